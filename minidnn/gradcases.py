"""Every operation of `minidnn.functional` at several geometries, for the gradient checker and the tests."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minidnn import functional as F
from minidnn.backend import array_module
from minidnn.random import random_bits

Make = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values."""
    return random.standard_normal(shape)


def positive(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values in 0.5 ... 2: for logarithm, root, divisor."""
    return random.uniform(0.5, 2, shape)


def fraction(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values in 0.1 ... 0.9: for probabilities."""
    return random.uniform(0.1, 0.9, shape)


def nonzero(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values at least 0.1 away from 0: for functions with a kink there."""
    return random.choice([-1, 1], shape) * random.uniform(0.1, 2, shape)


def distinct(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """No two values closer than 0.1, so that a small step does not change which is the largest."""
    n = int(np.prod(shape))
    return (random.permutation(n).reshape(shape) - n / 2) * 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation at one geometry."""

    operation: str  # its name in `minidnn.functional`
    label: str  # what is particular: shapes and options
    function: Callable[..., Any]  # from tensors to a tensor
    shapes: tuple[tuple[int, ...], ...]  # of the inputs
    makes: tuple[Make, ...]  # how to draw each input; the last one serves for all further inputs

    def inputs(self, seed: int = 0, dtype: Any = np.float64) -> list[np.ndarray]:
        """The input arrays, the same for the same seed."""
        random = np.random.default_rng(seed)
        makes = self.makes + self.makes[-1:] * (len(self.shapes) - len(self.makes))
        return [np.asarray(make(random, s), dtype=dtype) for make, s in zip(makes, self.shapes, strict=True)]


CASES: list[Case] = []


def case(
    operation: str,
    *shapes: tuple[int, ...],
    make: Make | tuple[Make, ...] = normal,
    label: str = "",
    function: Callable[..., Any] | None = None,
    **options: Any,
) -> None:
    """Add a case: the operation with `options`, or `function`; labelled with its shapes and options."""
    if function is None:
        function = partial(getattr(F, operation), **options)
    said = [label or " ".join(map(str, shapes)).replace(" ", "").replace(")(", ") (")]
    said += [f"{key}={value}".replace(" ", "") for key, value in options.items()]
    makes = make if isinstance(make, tuple) else (make,)
    CASES.append(Case(operation, " ".join(said), function, shapes, makes))


# Arithmetic, with broadcasting, with one tensor as both operands, and with a number on either side.
for _name, _make in (("add", normal), ("sub", normal), ("mul", normal), ("div", (normal, positive))):
    _f = getattr(F, _name)
    case(_name, (3, 4), (3, 4), make=_make)
    case(_name, (2, 3, 4), (4,), make=_make)
    case(_name, (2, 1, 4), (3, 1), make=_make)
    case(_name, (), (2, 3), make=_make)
    case(_name, (3, 4), make=positive, label="with itself", function=lambda x, f=_f: f(x, x))
    case(_name, (3, 4), label="with a number", function=lambda x, f=_f: f(f(x, 3), 0.5))
    case(_name, (3, 4), make=positive, label="a number first", function=lambda x, f=_f: f(2, x))
for _exponent in (2, 3, 0.5, -1.5, 1, 0):
    case("power", (3, 4), make=positive, exponent=_exponent)
for _shapes in (((3, 4), (3, 4)), ((2, 1, 4), (3, 1)), ((2, 3), ()), ((), (2, 3))):
    case("power", *_shapes, make=positive, label=f"to a tensor {_shapes}", function=F.power)
case("power", (3, 4), make=positive, label="of a number", function=lambda x: F.power(2, x))
for _make, _names in (
    (normal, "neg exp sigmoid tanh sin cos expm1 erf silu gelu"),
    (positive, "log sqrt log1p"),
    (nonzero, "abs relu sign leaky_relu"),
):
    for _name in _names.split():
        case(_name, (3, 4), make=_make)
        case(_name, (), make=_make)
case("leaky_relu", (3, 4), make=nonzero, slope=0.3)
for _options in ({"low": -0.44, "high": 0.41}, {"low": 0.33}, {"high": -0.22}):
    case("clip", (5, 6), make=distinct, **_options)
case("astype", (3, 4), label="to and fro", function=lambda x: F.astype(F.astype(x, np.float64), x.dtype))
for _name in ("maximum", "minimum"):
    _f = getattr(F, _name)
    case(_name, (3, 4), (3, 4), make=(distinct, fraction))
    case(_name, (2, 1, 4), (3, 1), make=(distinct, fraction))
    case(_name, (3, 4), make=distinct, label="with a number", function=lambda x, f=_f: f(0.05, f(x, 0.01)))
for _shapes in (((3, 4), (3, 4)), ((2, 1, 4), (3, 1)), ((4,), (1, 4)), ((), ())):
    case("where", *_shapes, function=partial(F.where, np.arange(12).reshape(3, 4) % 3 > 0))
for _name in ("softmax", "log_softmax"):
    case(_name, (5, 4))
    case(_name, (3, 4, 2), axis=0)
    case(_name, (3, 4, 2), axis=1)

# Reductions and moves of values.
for _name, _make in (("sum", normal), ("mean", normal), ("max", distinct), ("min", distinct)) + tuple(
    (_name, normal) for _name in ("var", "std", "logsumexp")
):
    case(_name, (2, 3, 4), make=_make)
    case(_name, (2, 3, 4), make=_make, axis=1)
    case(_name, (2, 3, 4), make=_make, axis=(0, 2))
    case(_name, (2, 3, 4), make=_make, axis=-1, keepdims=True)
    case(_name, (2, 3, 4), make=_make, axis=(0, -1), keepdims=True)
for _shape in ((4, 6), (-1, 3), (2, 3, 2, 2), (24,)):
    case("reshape", (2, 3, 4), label=f"to {_shape}", function=lambda x, shape=_shape: F.reshape(x, shape))
for _axes in ((), (1, 2, 0), (0, -1, 1)):
    case("transpose", (2, 3, 4), label=f"axes {_axes}", function=lambda x, axes=_axes: F.transpose(x, *axes))
case("flatten", (2, 3, 2, 2))
case("var", (2, 3, 4), axis=(0, 2), ddof=1)
case("std", (5,), ddof=1)
case("squeeze", (1, 3, 1, 2))
case("squeeze", (1, 3, 1, 2), axis=-2)
case("expand_dims", (3, 2), axis=1)
case("expand_dims", (3, 2), axis=(0, -1))
case("pad", (2, 3), width=1, value=2.0)
case("pad", (2, 3, 2), width=(0, 2))
case("pad", (2, 3), width=((1, 0), (0, 2)))
_products = lambda ys: sum((y * y).sum() for y in ys[1:])  # noqa: E731 - the first part gets no gradient
case("split", (4, 6), label="in 3", function=lambda x: _products(F.split(x, 3, 1)))
case("split", (4, 6), label="at 1, 3", function=lambda x: _products(F.split(x, (1, 3))))
for _label, _key in (
    ("[1]", 1),
    ("[:, 1:3]", (slice(None), slice(1, 3))),
    ("[..., -1]", (..., -1)),
    ("[::-2, None, 1]", (slice(None, None, -2), None, 1)),
    ("[1, 2, 3]", (1, 2, 3)),
    ("[[2, 0, 2]]", [2, 0, 2]),
    ("[:, [[0, 4], [4, 4]]]", (slice(None), np.array([[0, 4], [4, 4]]))),
    ("[[3, 3], 1:3, [5, 5]]", ([3, 3], slice(1, 3), [5, 5])),
):
    case("getitem", (4, 5, 6), label=_label, function=partial(F.getitem, key=_key))
for _label, _key in (
    ("[mask]", np.arange(12).reshape(4, 3) % 4 > 1),
    ("[..., mask, None]", (..., np.arange(2) > 0, None)),
    ("[mask, 1:, 0]", ([True, False, True, True], slice(1, None), 0)),
):
    case("getitem", (4, 3, 2), label=_label, function=partial(F.getitem, key=_key))
for _axis, *_shapes in ((0, (2, 3), (1, 3), (4, 3)), (-1, (2, 3), (2, 1)), (1, (2, 1, 2), (2, 3, 2))):
    _f = lambda *xs, axis: F.concatenate(xs, axis)  # noqa: E731
    case("concatenate", *_shapes, label=f"axis={_axis}", function=partial(_f, axis=_axis))
for _axis in (0, 1, -1):
    case("stack", (2, 3), (2, 3), label=f"axis={_axis}", function=lambda *xs, axis=_axis: F.stack(xs, axis))

# Products.
for _x, *_ys in (
    ((3, 4), (4, 2), (5, 1, 4, 2)),
    ((2, 3, 4), (2, 4, 5), (4, 5), (4,)),
    ((4,), (4,), (2, 4, 3)),
):
    for _y in _ys:
        case("matmul", _x, _y)
for _subscripts, *_shapes in (
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("bihd,bjhd->bhij", (2, 3, 2, 4), (2, 5, 2, 4)),
    ("ij,j,kj", (2, 3), (3,), (4, 3)),
    ("ii", (3, 3)),
    ("iij->ji", (3, 3, 2)),
    ("ij->", (2, 3)),
    ("ab,c->ca", (2, 3), (4,)),
    ("...ij,...j->...i", (2, 1, 3, 4), (5, 4)),
    ("ij,ij->i", (2, 3), (1, 3)),
):
    case("einsum", *_shapes, label=_subscripts, function=partial(F.einsum, _subscripts))
case("embedding", (5, 3), function=partial(F.embedding, np.array([[1, 4], [1, 0]])))
case("matmul", (3, 3), label="with itself", function=lambda x: F.matmul(x, x))
for _x in ((5, 4), (1, 4), (2, 3, 4), (2, 0, 4)):
    case("linear", _x, (4, 3), (3,))
for _x in ((5, 4), (4,)):
    case("linear", _x, (4, 3))

# Convolutions: x (n, h, w, c), W (kh, kw, c / groups, o), b (o,).
case("conv2d", (2, 5, 6, 3), (3, 3, 3, 4))
case("conv2d", (2, 5, 6, 3), (3, 3, 3, 4), (4,))
case("conv2d", (2, 5, 6, 3), (1, 1, 3, 4), (4,))
case("conv2d", (2, 5, 6, 3), (5, 6, 3, 4), (4,))
case("conv2d", (2, 5, 6, 3), (3, 2, 3, 4), (4,), padding=1)
case("conv2d", (2, 5, 6, 2), (3, 3, 2, 4), (4,), padding=3)
case("conv2d", (2, 5, 6, 2), (2, 3, 2, 3), (3,), padding="same")
case("conv2d", (2, 7, 6, 2), (3, 2, 2, 3), (3,), padding="same", stride=2)
case("conv2d", (1, 8, 7, 2), (3, 3, 2, 3), (3,), stride=(3, 2))
case("conv2d", (1, 8, 9, 2), (2, 3, 2, 3), (3,), stride=(2, 4), padding=((1, 0), (0, 2)))
case("conv2d", (1, 8, 9, 2), (3, 2, 2, 3), (3,), dilation=(2, 3))
case("conv2d", (1, 8, 9, 2), (3, 2, 2, 3), (3,), dilation=(2, 3), padding=((0, 1), (4, 2)))
case("conv2d", (1, 8, 9, 2), (3, 2, 2, 3), (3,), dilation=(2, 3), stride=2, padding="same")
case("conv2d", (2, 5, 5, 4), (3, 3, 2, 6), (6,), groups=2, padding=1)
case("conv2d", (2, 6, 5, 6), (3, 2, 2, 3), (3,), groups=3, stride=2, padding=(1, 0))
case("conv2d", (1, 5, 5, 4), (3, 3, 1, 4), (4,), groups=4)
case("conv2d", (1, 5, 5, 2), (1, 1, 2, 3), (3,), stride=2)
case("conv2d", (1, 2, 2, 2), (3, 3, 2, 4), (4,), stride=5, padding=1)
for _options in (
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "padding": ((1, 0), (0, 2)), "output_padding": (2, 0)},
    {"stride": 2, "padding": "same"},
    {"dilation": (2, 1), "padding": "same"},
):
    case("conv_transpose2d", (2, 3, 4, 2), (3, 2, 2, 3), (3,), **_options)
case("conv_transpose2d", (2, 3, 4, 4), (3, 3, 2, 6), groups=2, stride=2)

# Pooling: overlapping, with gaps, padded, with a partial last window.
for _name, _make in (("max_pool2d", distinct), ("avg_pool2d", normal)):
    _x = (2, 6, 8, 3)
    case(_name, _x, make=_make, size=2)
    case(_name, _x, make=_make, size=3, stride=2)
    case(_name, _x, make=_make, size=3, stride=1)
    case(_name, _x, make=_make, size=(2, 3), stride=(3, 1))
    case(_name, _x, make=_make, size=2, stride=3)
    case(_name, _x, make=_make, size=3, stride=2, padding=1)
    case(_name, _x, make=_make, size=3, stride=2, padding="same")
    case(_name, _x, make=_make, size=3, stride=2, ceil_mode=True)
    case(_name, _x, make=_make, size=(3, 2), stride=(2, 3), padding=((0, 2), (1, 0)), ceil_mode=True)
    case(_name, (1, 20, 20, 1), make=_make, size=17, stride=3)
for _options in ({"padding": 1}, {"padding": "same"}, {"padding": ((0, 1), (2, 0)), "ceil_mode": True}):
    case("avg_pool2d", (2, 6, 8, 3), size=3, stride=2, count_include_pad=True, **_options)

# Normalisation and dropout.
case("local_response_norm", (2, 2, 3, 7))
case("local_response_norm", (2, 2, 3, 7), size=3, alpha=0.5)
case("local_response_norm", (2, 2, 3, 7), size=4, alpha=0.5)
case("local_response_norm", (3, 8), size=5, alpha=0.5, beta=0.6, k=1.0)
case("local_response_norm", (2, 3, 8), size=5, alpha=0.5, groups=2)
case("local_response_norm", (2, 3), size=9, alpha=0.5)


def _normalise(x: Any, gamma: Any, beta: Any) -> Any:
    """Batch normalisation by given statistics, wherever `x` is."""
    xp = array_module(x.data)
    mean, var = xp.asarray([0.1, -0.2, 0.3]), xp.asarray([0.5, 1, 2])
    return F.batch_norm_inference(x, gamma, beta, mean, var)


def _drop(x: Any, p: float) -> Any:
    """Dropout with the bits of four samples, wherever `x` is."""
    return F.dropout(x, p, random_bits(0, "drop", 0, np.arange(4), (5, 6), xp=array_module(x.data)))


for _x in ((6, 3), (2, 3, 4, 3)):
    _inputs = _x, (3,), (3,)
    case("batch_norm", *_inputs, function=lambda x, g, b: F.batch_norm(x, g, b)[0])
    _f = lambda x, g, b: F.batch_norm(x, g, b, 1e-3, lambda sums: sums)[0]  # noqa: E731
    case("batch_norm", *_inputs, label="with all_sum", function=_f)
    case("batch_norm_inference", *_inputs, function=_normalise)
case("layer_norm", (5, 4), (4,), (4,))
case("layer_norm", (2, 3, 4), (4,), (4,), eps=0.1)
case("group_norm", (3, 6), (6,), (6,), groups=2)
case("group_norm", (2, 3, 2, 4), (4,), (4,), groups=2)
case("group_norm", (2, 3, 2, 4), (4,), (4,), groups=1)
for _p in (0, 0.3, 0.5):
    case("dropout", (4, 5, 6), label=f"p={_p}", function=partial(_drop, p=_p))

# Losses, by targets of four rows.
_labels = np.array([0, 2, 1, 2])
_rows = np.random.default_rng(1).dirichlet(np.ones(3), 4)


def _by_rows(loss: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The loss against `_rows`, in the dtype of its input."""
    return lambda x: loss(x, _rows.astype(x.dtype), **options)


for _total in (None, 7):
    _say = "" if _total is None else f", total={_total}"
    _f = partial(F.softmax_cross_entropy, labels=_labels, total=_total)
    case("softmax_cross_entropy", (4, 3), label=f"labels{_say}", function=_f)
    _f = _by_rows(F.softmax_cross_entropy, total=_total)
    case("softmax_cross_entropy", (4, 3), label=f"probabilities{_say}", function=_f)
    _f = _by_rows(F.binary_cross_entropy, total=_total)
    case("binary_cross_entropy", (4, 3), make=fraction, label=f"probabilities{_say}", function=_f)
    _f = _by_rows(F.binary_cross_entropy, total=_total, from_logits=True)
    case("binary_cross_entropy", (4, 3), label=f"logits{_say}", function=_f)
    _f = _by_rows(F.mean_squared_error, total=_total)
    case("mean_squared_error", (4, 3), label=f"(4,3){_say}", function=_f)
    for _name in ("mean_absolute_error", "huber"):
        case(_name, (4, 3), label=f"(4,3){_say}", function=_by_rows(getattr(F, _name), total=_total))


def _by_labels(x: Any, shape: tuple[int, ...] = (4,), weighted: bool = True, **options: Any) -> Any:
    """Cross-entropy of labels, with weights of the classes in the dtype of `x`."""
    weights = np.array([1, 0.5, 2], x.dtype) if weighted else None
    return F.softmax_cross_entropy(x, np.resize(_labels, shape), weights=weights, **options)


for _options in (
    {"weighted": False, "ignore_index": 2},
    {"weighted": False, "label_smoothing": 0.2},
    {},
    {"ignore_index": 1, "label_smoothing": 0.2},
    {"reduction": "none", "weighted": False},
    {"reduction": "none", "label_smoothing": 0.1},
    {"reduction": "sum"},
):
    case("softmax_cross_entropy", (4, 3), function=partial(_by_labels, **_options), label=f"{_options}")
_f = partial(_by_labels, shape=(2, 5))
case("softmax_cross_entropy", (2, 5, 3), function=_f)
case("softmax_cross_entropy", (2, 5, 3), label="(2,5,3) none", function=partial(_f, reduction="none"))
_f = _by_rows(F.softmax_cross_entropy, label_smoothing=0.3)
case("softmax_cross_entropy", (4, 3), label="probabilities, smoothed", function=_f)
for _name in ("binary_cross_entropy", "mean_squared_error", "mean_absolute_error", "huber"):
    for _reduction in ("none", "sum"):
        _f = _by_rows(getattr(F, _name), reduction=_reduction)
        case(_name, (4, 3), make=fraction, label=_reduction, function=_f)
case("huber", (4, 3), label="delta=0.5", function=_by_rows(F.huber, delta=0.5))
