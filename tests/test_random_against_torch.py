"""Operations and optimisers against PyTorch's over random configurations: by the plain kernels, by the fast ones, and
by fast ones forced on arrays that are too small for them.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from torch_cases import OPERATIONS, Draw, optimisers  # noqa: E402

from minidnn.backend import kernels  # noqa: E402
from minidnn.tensor import Tape, Tensor  # noqa: E402

torch.set_num_threads(1)
COUNT = 560  # configurations of operations in each mode
LIMIT = {np.float64: 1e-10, np.float32: 2e-5}


@pytest.fixture(params=["plain", "fast", "forced"])
def which(request):
    """Which kernels run."""
    if request.param == "forced":
        request.getfixturevalue("forced")
    with kernels.use_fast(request.param != "plain"):
        yield request.param


def ours(function, arrays, gy):
    leaves = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    with Tape() as tape:
        y = function(*leaves)
    if y.requires_grad:
        tape.backward(y, gy(y.shape))
    return [
        y.data,
        *(np.zeros(a.shape) if t.grad is None else t.grad for t, a in zip(leaves, arrays, strict=True)),
    ]


def theirs(function, arrays, gy):
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = function(*leaves)
    y.backward(torch.tensor(gy(tuple(y.shape))))
    return [
        y.detach().numpy(),
        *(
            np.zeros(a.shape) if t.grad is None else t.grad.numpy()
            for t, a in zip(leaves, arrays, strict=True)
        ),
    ]


def difference(a, b, dtype):
    """The largest, as a multiple of what rounding may make of it."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max(initial=0) / (LIMIT[dtype] * max(1, np.abs(b).max(initial=0))))


def test_operations(which):
    wrong = []
    for seed in range(COUNT):
        make = OPERATIONS[seed % len(OPERATIONS)]
        f, g, arrays = make(Draw(seed))
        dtype = np.float32 if seed % 3 == 0 else np.float64
        arrays = [np.asarray(a, dtype) for a in arrays]

        def gy(shape, seed=seed, dtype=dtype):
            return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)

        try:
            pairs = zip(ours(f, arrays, gy), theirs(g, arrays, gy), strict=True)
            worst = max(difference(a, b, dtype) for a, b in pairs)
        except Exception as error:
            worst = f"{type(error).__name__}: {error}"
        if not isinstance(worst, float) or not worst < 1:
            wrong.append((make.__name__, seed, worst))
    print(f"\n{COUNT} configurations, {which}: {len(wrong)} differ from PyTorch")
    assert not wrong, wrong


def test_optimisers(which):
    for seed in range(60):
        d = Draw(seed)
        make, make_theirs = optimisers(d)
        shapes, dtype = [d.shape(0, 3) for _ in range(3)], d.pick(np.float32, np.float64)
        arrays = [np.asarray(d.normal(*shape), dtype) for shape in shapes]
        w = [Tensor(a.copy(), requires_grad=True) for a in arrays]
        v = [torch.tensor(a, requires_grad=True) for a in arrays]
        optimiser, their_optimiser = make(w), make_theirs(v)
        for step in range(5):
            for i, (p, q) in enumerate(zip(w, v, strict=True)):
                g = np.asarray(d.normal(*p.shape), dtype)
                p.grad, q.grad = g, torch.tensor(g)
                if i == step == 1:  # one without a gradient is left as it is, its means too
                    p.grad = q.grad = None
            optimiser.step()
            their_optimiser.step()
        for p, q in zip(w, v, strict=True):
            assert difference(p.data, q.detach().numpy(), dtype) < 1, (seed, type(optimiser), p.shape)
