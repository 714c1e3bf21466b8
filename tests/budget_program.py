"""Prints, as JSON, what one warm training step of a small AlexNet allocates through NumPy.

NumPy lets a program replace its allocator (NEP 49). The one here is the C library's, and notes sizes. Run as
a program of its own, which leaves without freeing anything.
"""

import ctypes
import json
import os
import sys

import numpy as np

from minidnn import functional as F
from minidnn import nn
from minidnn.backend import workers
from minidnn.optim import SGD
from minidnn.tensor import Tensor

LARGE = 1 << 20
SET_HANDLER = 304  # of NumPy's C API, since 1.22
pointer, size = ctypes.c_void_p, ctypes.c_size_t
libc = ctypes.CDLL(None)
for name, arguments in (("malloc", (size,)), ("calloc", (size, size)), ("realloc", (pointer, size))):
    getattr(libc, name).restype, getattr(libc, name).argtypes = pointer, arguments
libc.free.restype, libc.free.argtypes = None, (pointer,)

sizes: list[int] = []


class Handler(ctypes.Structure):
    """PyDataMem_Handler of ndarraytypes.h"""

    _fields_ = [
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", pointer),
        ("malloc", ctypes.CFUNCTYPE(pointer, pointer, size)),
        ("calloc", ctypes.CFUNCTYPE(pointer, pointer, size, size)),
        ("realloc", ctypes.CFUNCTYPE(pointer, pointer, pointer, size)),
        ("free", ctypes.CFUNCTYPE(None, pointer, pointer, size)),
    ]


def noted(count, allocate):
    sizes.append(count)
    return allocate()


types = {name: kind for name, kind, *_ in Handler._fields_}
handler = Handler(
    b"counting",
    1,
    None,
    types["malloc"](lambda _, n: noted(n, lambda: libc.malloc(n))),
    types["calloc"](lambda _, n, each: noted(n * each, lambda: libc.calloc(n, each))),
    types["realloc"](lambda _, block, n: noted(n, lambda: libc.realloc(block, n))),
    types["free"](lambda _, block, n: libc.free(block)),
)


def install() -> None:
    api = ctypes.pythonapi
    api.PyCapsule_New.restype, api.PyCapsule_New.argtypes = (
        ctypes.py_object,
        (pointer, ctypes.c_char_p, pointer),
    )
    api.PyCapsule_GetPointer.restype = pointer
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    table = api.PyCapsule_GetPointer(np._core._multiarray_umath._ARRAY_API, None)
    address = ctypes.cast(table, ctypes.POINTER(pointer))[SET_HANDLER]
    capsule = api.PyCapsule_New(ctypes.addressof(handler), b"mem_handler", None)
    ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)(capsule)


def main(batch: int, image: int, width: float) -> None:
    workers.set_threads(1)  # the allocator is that of one thread, and how work is cut depends on their number
    model = nn.alexnet(image=image, classes=10, width=width).init(0)
    optimiser = SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = np.random.default_rng(0).standard_normal((batch, image, image, 3), np.float32)
    labels, samples = np.arange(batch) % 10, np.arange(batch)

    def step() -> None:
        model.zero_grad()
        with nn.context(training=True, seed=0, step=optimiser.iteration, samples=samples):
            loss = F.softmax_cross_entropy(model(Tensor(images)), labels)
        loss.backward()
        optimiser.step()

    for _ in range(2):
        step()
    install()
    found = []
    for _ in range(2):
        sizes.clear()
        step()
        large = [n for n in sizes if n >= LARGE]
        found.append({"large": len(large), "large_bytes": sum(large), "bytes": sum(sizes)})
    print(json.dumps(found), flush=True)
    os._exit(0)


main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
