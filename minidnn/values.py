"""The tensor: values, their gradient, and where they came from. Its operators are in ``functional/methods.py``."""

from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array, to_host
from minidnn.tape import state


class Changes:
    """How often values in memory were changed: one count for all tensors that share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


RESULT = Changes()  # of all results of recorded operations: nobody may change them


class Tensor:
    """An array, its gradient, and the operation it came from.

    Parameters
    ----------
    data : array, sequence or number
        NumPy and CuPy arrays are taken as they are (shared, not copied); anything else goes through
        ``numpy.asarray``.
    requires_grad : bool
        Whether backward should leave a gradient in ``.grad``; needs a floating-point dtype.
    name : str, optional
        For messages.

    Attributes
    ----------
    data : array
        The values.
    grad : array or None
        Of the shape and dtype of `data`. Backward adds to it; `zero_grad` drops it.
    grad_buffer : array or None
        Where the first gradient of a leaf is written, if set (e.g. a view of a flat buffer that is sent as
        a whole).
    creator, index : Function or None, int
        The node that made this tensor, and which of its outputs it is. A tensor without creator is a leaf.
    version : int
        Counts `assign` to this tensor and to those that share its memory (views, `detach`): backward raises if
        a leaf it needs has changed since forward. Writing into ``.data`` goes around this check.
    """

    __slots__ = "data grad requires_grad name creator index changes grad_buffer __weakref__".split()
    __array_ufunc__ = None  # array * tensor is left to Tensor.__rmul__

    def __init__(self, data: Any, requires_grad: bool = False, name: str | None = None) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor(...) of a tensor: use detach() for a leaf that shares its values")
        if data is not None and not is_array(data):
            if isinstance(data, (list, tuple)) and any(isinstance(value, Tensor) for value in data):
                raise TypeError(
                    "a list of tensors is no tensor, and NumPy would drop their graph: concatenate them"
                )
            data = np.asarray(data)
        if requires_grad and data is not None and data.dtype.kind != "f":
            raise TypeError(
                f"a tensor of dtype {data.dtype} cannot require a gradient: use float32 or float64"
            )
        self.data = data
        self.grad: Any = None
        self.requires_grad = requires_grad
        self.name = name
        self.creator: Any = None
        self.index = 0
        self.changes = Changes()
        self.grad_buffer: Any = None

    @property
    def version(self) -> int:
        return self.changes.count

    @version.setter
    def version(self, count: int) -> None:
        self.changes.count = count

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def size(self) -> int:
        return self.data.size

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of shape () has no length and no rows: item() gives its value")
        return self.shape[0]

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data}, dtype={self.dtype}{grad}{name})"

    def item(self) -> float:
        """The value of a tensor of one element as a Python number (waits for the device)."""
        if self.data.size != 1:
            raise ValueError(
                f"{self.name or 'a tensor'} of shape {self.shape} is not one number: numpy() gives all values"
            )
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: shared on the CPU, a copy of device memory."""
        return to_host(as_tensor(self).data)

    def detach(self) -> "Tensor":
        """A leaf that shares the values and needs no gradient."""
        leaf = Tensor(self.data)
        leaf.changes = self.changes
        return leaf

    def assign(self, array: Any) -> None:
        """Replace the values in place.

        Raises
        ------
        ValueError
            `array` has another shape.
        TypeError
            `array` has another dtype.
        RuntimeError
            The tensor, or one whose memory it shares, is the result of a recorded operation: backward may need
            its values.
        """
        if self.creator is not None or self.changes is RESULT:
            raise RuntimeError(
                "assign to the result of an operation, or to a part of it: backward may need its values; "
                "Tensor(y.data.copy()) is a leaf of its own"
            )
        data = self.data
        if isinstance(array, Tensor):
            array = array.data
        if not is_array(array):
            array = array_module(data).asarray(array, dtype=data.dtype)
        if array.shape != data.shape:
            raise ValueError(f"assign: array of shape {array.shape} to a tensor of shape {data.shape}")
        if array.dtype != data.dtype:
            raise TypeError(f"assign: array of dtype {array.dtype} to a tensor of dtype {data.dtype}")
        data[...] = array
        self.version += 1

    def zero_grad(self) -> None:
        """Forget the gradient: the next backward starts anew."""
        self.grad = None

    def backward(self, gradient: Any = None) -> None:
        """`Tape.backward` from this tensor, through all that led to it, on whatever tape it was recorded."""
        tape = self.creator.tape() if self.creator is not None else None
        (tape or state.implicit).backward(self, gradient, everywhere=True)


def as_tensor(x: Any) -> Tensor:
    """`x` itself if it is a tensor with values, else a leaf that holds it."""
    if not isinstance(x, Tensor):
        return Tensor(x)
    if x.data is None:
        raise RuntimeError(f"{x.name or 'a parameter'} has no values yet: call model.init(seed=...)")
    return x
