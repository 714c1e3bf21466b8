"""Random configurations of operations and optimisers, each in minidnn and in PyTorch over the same arrays.

A case is (minidnn's function, PyTorch's, arrays): both take the arrays, in minidnn's layout, as tensors.
"""

import numpy as np
import torch

from minidnn import functional as F
from minidnn import optim

TF = torch.nn.functional


def channels_first(f):
    """A function of PyTorch on images (n, h, w, c)."""
    return lambda x, *rest: f(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


class Draw:
    """Random choices of one case."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def int(self, low, high):
        return int(self.random.integers(low, high + 1))

    def pick(self, *values):
        return values[self.int(0, len(values) - 1)]

    def normal(self, *shape):
        return self.random.standard_normal(shape)

    def positive(self, *shape):
        return self.random.uniform(0.3, 2, shape)

    def shape(self, least=1, most=4):
        return tuple(self.int(1, 5) for _ in range(self.int(least, most)))

    def axes(self, ndim):
        """None, an axis or several, some counted from the end."""
        axes = self.random.permutation(ndim)[: self.int(1, ndim)]
        axes = tuple(int(a) - ndim * self.int(0, 1) for a in axes)
        return self.pick(None, axes[0], axes)


def conv2d(d):
    groups, i, o = d.pick(1, 1, 2, 3), d.int(1, 4), d.int(1, 4)
    kernel, stride, dilation = ([d.int(1, k) for _ in range(2)] for k in (4, 3, 2))
    padding = [d.int(0, 3) for _ in range(2)]
    size = [
        max(1, (k - 1) * e + 1 - 2 * p) + d.int(0, 7)
        for k, e, p in zip(kernel, dilation, padding, strict=True)
    ]
    arrays = [d.normal(d.int(1, 3), *size, groups * i), d.normal(*kernel, i, groups * o)]
    arrays += [d.normal(groups * o)] * d.int(0, 1)
    options = tuple(stride), tuple(padding), tuple(dilation), groups

    def theirs(x, W, b=None):
        return channels_first(lambda x: TF.conv2d(x, W.permute(3, 2, 0, 1).contiguous(), b, *options))(x)

    return lambda x, W, b=None: F.conv2d(x, W, b, *options), theirs, arrays


def conv_transpose2d(d):
    groups, i, o = d.pick(1, 1, 2, 3), d.int(1, 4), d.int(1, 4)
    kernel, stride, dilation = (tuple(d.int(1, k) for _ in range(2)) for k in (4, 3, 2))
    padding = tuple(d.int(0, (k - 1) * e // 2) for k, e in zip(kernel, dilation, strict=True))
    more = tuple(d.int(0, s - 1) for s in stride)
    arrays = [d.normal(d.int(1, 3), d.int(2, 6), d.int(2, 6), groups * i), d.normal(*kernel, i, groups * o)]
    arrays += [d.normal(groups * o)] * d.int(0, 1)

    def theirs(x, W, b=None):
        W = (
            W.reshape(*kernel, i, groups, o)
            .permute(3, 2, 4, 0, 1)
            .reshape(groups * i, o, *kernel)
            .contiguous()
        )
        f = lambda x: TF.conv_transpose2d(x, W, b, stride, padding, more, groups, dilation)  # noqa: E731
        return channels_first(f)(x)

    return (
        lambda x, W, b=None: F.conv_transpose2d(x, W, b, stride, padding, more, dilation, groups),
        theirs,
        arrays,
    )


def pool2d(d):
    size, stride = (tuple(d.int(1, 4) for _ in range(2)) for _ in range(2))
    padding, ceil = tuple(d.int(0, s // 2) for s in size), d.pick(False, True)
    x = d.normal(d.int(1, 3), d.int(4, 9), d.int(4, 9), d.int(1, 5))
    options = size, stride, padding, ceil
    if d.int(0, 1):
        theirs = channels_first(lambda x: TF.max_pool2d(x, size, stride, padding, ceil_mode=ceil))
        return lambda x: F.max_pool2d(x, *options), theirs, [x]
    include = d.pick(False, True)
    return (
        lambda x: F.avg_pool2d(x, *options, include),
        channels_first(lambda x: TF.avg_pool2d(x, *options, include)),
        [x],
    )


def product(d):
    n, k, m = (d.int(1, 6) for _ in range(3))
    batch = d.shape(0, 2)
    if d.int(0, 2):
        x, y = d.pick((k,), (n, k), (*batch, n, k)), d.pick((k,), (k, m), (*batch, k, m))
        return F.matmul, torch.matmul, [d.normal(*x), d.normal(*y)]
    arrays = [d.normal(*batch, n, k), d.normal(k, m), d.normal(m)]
    return F.linear, lambda x, W, b: TF.linear(x, W.T, b), arrays


def einsum(d):
    letters = "abcde"
    sizes = {c: d.int(1, 4) for c in letters}
    terms = ["".join(d.random.choice(list(letters), d.int(1, 3), replace=False)) for _ in range(d.int(1, 3))]
    used = sorted(set("".join(terms)))
    out = "".join(d.random.permutation(used)[: d.int(0, len(used))])
    subscripts = f"{','.join(terms)}->{out}"
    arrays = [d.normal(*(sizes[c] for c in t)) for t in terms]
    return lambda *xs: F.einsum(subscripts, *xs), lambda *xs: torch.einsum(subscripts, *xs), arrays


UNARY = "abs exp sqrt log sin cos log1p expm1 erf sign tanh sigmoid neg relu silu gelu".split()


def unary(d):
    name, shape = d.pick(*UNARY), d.shape(0)
    theirs = getattr(torch, name, None) or getattr(TF, name)
    return (
        getattr(F, name),
        theirs,
        [(d.positive if name in ("sqrt", "log", "log1p") else d.normal)(*shape) * 1.5],
    )


def bounded(d):
    low, high, slope = -float(d.positive()), float(d.positive()), float(d.positive())
    bounds = d.pick((low, high), (low, None), (None, high))
    return (
        *d.pick(
            (lambda x: F.clip(x, *bounds), lambda x: torch.clamp(x, *bounds)),
            (lambda x: F.leaky_relu(x, slope), lambda x: TF.leaky_relu(x, slope)),
        ),
        [d.normal(*d.shape(0))],
    )


def binary(d):
    shape = d.shape()
    x, y = (tuple(d.pick(n, n, 1) for n in shape[d.int(0, len(shape)) :]) for _ in range(2))
    name = d.pick("add", "sub", "mul", "div", "maximum", "minimum", "power", "where")
    make = d.positive if name in ("div", "power") else d.normal
    ours, theirs = getattr(F, name), {"power": torch.pow}.get(name) or getattr(torch, name)
    if name == "where":
        c = d.normal(*shape) > 0
        return (
            lambda x, y: F.where(c, x, y),
            lambda x, y: torch.where(torch.tensor(c), x, y),
            [make(*x), make(*y)],
        )
    return ours, theirs, [make(*x), make(*y)]


def reduction(d):
    x = d.normal(*d.shape())
    axis, keep = d.axes(x.ndim), d.pick(False, True)
    every = tuple(range(x.ndim)) if axis is None else axis
    name = d.pick("sum", "mean", "max", "min", "var", "std", "logsumexp", "softmax", "log_softmax")
    if "softmax" in name:
        axis = d.int(-x.ndim, x.ndim - 1)
        return lambda x: getattr(F, name)(x, axis), lambda x: getattr(torch, name)(x, axis), [x]
    if name in ("var", "std"):
        count = int(np.prod([x.shape[a] for a in np.atleast_1d(every)]))
        ddof = d.int(0, 1) if count > 1 else 0
        f = lambda x: getattr(torch, name)(x, every, correction=ddof, keepdim=keep)  # noqa: E731
        return lambda x: getattr(F, name)(x, axis, keep, ddof), f, [x]
    theirs = getattr(torch, {"max": "amax", "min": "amin"}.get(name, name))
    return lambda x: getattr(F, name)(x, axis, keep), lambda x: theirs(x, every, keep), [x]


def index(d):
    x = d.normal(*d.shape(2))
    many, key, numbers = d.shape(0, 2), [], d.pick(False, True)
    for n in x.shape[: d.int(1, x.ndim)]:
        start = d.int(0, n - 1)
        key += [None] * (d.int(0, 4) == 0)
        # a number beside arrays is an array for NumPy, and a selection before them for PyTorch
        one = start if numbers else d.random.integers(-n, n, many)
        key.append(d.pick(one, slice(start, None), slice(None)))
    if d.int(0, 3) == 0:
        key = [d.normal(*x.shape[: d.int(1, x.ndim)]) > 0]
    key = tuple(key)
    as_torch = tuple(torch.tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    return lambda x: F.getitem(x, key), lambda x: x[as_torch], [x]


def arrangement(d):
    x, y = (d.normal(*shape) for shape in [d.shape(2)] * 2)
    axis = d.int(-x.ndim, x.ndim - 1)
    sides = [(d.int(0, 2), d.int(0, 2)) for _ in x.shape]
    flat = [side for pair in reversed(sides) for side in pair]
    cuts = sorted(d.int(0, x.shape[axis]) for _ in range(2))
    order, value = tuple(map(int, d.random.permutation(x.ndim))), float(d.normal())
    return (
        *d.pick(
            (lambda x, y: F.concatenate((x, y), axis), lambda x, y: torch.cat((x, y), axis)),
            (lambda x, y: F.stack((x, y), axis), lambda x, y: torch.stack((x, y), axis)),
            (lambda x, y: F.pad(x, sides, value), lambda x, y: TF.pad(x, flat, value=value)),
            (lambda x, y: F.split(x, cuts, axis)[1], lambda x, y: torch.tensor_split(x, cuts, axis)[1]),
            (lambda x, y: F.transpose(x, order), lambda x, y: x.permute(order)),
            (lambda x, y: F.expand_dims(x, axis), lambda x, y: x.unsqueeze(axis)),
        ),
        [x, y],
    )


def normalisation(d):
    groups = d.int(1, 3)
    c, eps = groups * d.int(1, 4), float(d.positive()) * 0.01
    x = d.normal(d.int(2, 4), d.int(1, 4), d.int(2, 4), c)
    vectors = [d.normal(c), d.normal(c)]
    size = d.pick(1, 3, 5)
    name = d.pick("layer", "group", "batch", "local")
    if name == "layer":
        return (
            lambda x, g, b: F.layer_norm(x, g, b, eps),
            lambda x, g, b: TF.layer_norm(x, (c,), g, b, eps),
            [x, *vectors],
        )
    if name == "group":
        theirs = channels_first(lambda x, g, b: TF.group_norm(x, groups, g, b, eps))
        return lambda x, g, b: F.group_norm(x, g, b, groups, eps), theirs, [x, *vectors]
    if name == "batch":
        theirs = channels_first(lambda x, g, b: TF.batch_norm(x, None, None, g, b, True, 0.1, eps))
        return lambda x, g, b: F.batch_norm(x, g, b, eps)[0], theirs, [x, *vectors]
    theirs = channels_first(lambda x: TF.local_response_norm(x, size, 0.3 * size, 0.6, 1.5))
    return lambda x: F.local_response_norm(x, size, 0.3, 0.6, 1.5), theirs, [x]


def loss(d):
    shape, reduction = d.shape(1, 3), d.pick("mean", "sum", "none")
    y, t, delta = d.normal(*shape), d.normal(*shape), float(d.positive())
    p = d.random.uniform(0.1, 0.9, shape)
    how, f = (
        {"reduction": reduction},
        d.pick("mse", "l1", "huber", "logits", "probabilities", "cross-entropy"),
    )
    if f == "cross-entropy":
        return cross_entropy(d, how)
    ours, theirs, x, t = {
        "mse": (F.mean_squared_error, TF.mse_loss, y, t),
        "l1": (F.mean_absolute_error, TF.l1_loss, y, t),
        "huber": (F.huber, TF.huber_loss, y, t),
        "logits": (F.binary_cross_entropy, TF.binary_cross_entropy_with_logits, y, p),
        "probabilities": (F.binary_cross_entropy, TF.binary_cross_entropy, p, d.random.uniform(0, 1, shape)),
    }[f]
    more = {"from_logits": True} if f == "logits" else {}
    both = how | ({"delta": delta} if f == "huber" else {})
    # values of a row are added up by ours, and averaged by PyTorch's
    scale = np.prod(shape[1:], dtype=int) if ours is F.binary_cross_entropy and reduction == "mean" else 1
    return (
        lambda x: ours(x, t.astype(x.dtype), **both, **more),
        lambda x: theirs(x, torch.tensor(t).to(x.dtype), **both) * int(scale),
        [x],
    )


def cross_entropy(d, how):
    rows, c = d.shape(1, 3), d.int(2, 5)
    labels, smoothing = d.random.integers(0, c, rows), d.pick(0.0, 0.2)
    weights, ignored = d.pick(None, d.positive(c)), d.pick(-100, -100, 1)
    labels.flat[0] = 0  # one row at least counts
    probabilities = d.random.dirichlet(np.ones(c), rows)
    dense = d.int(0, 3) == 0

    def ours(x):
        w = None if weights is None else weights.astype(x.dtype)
        t = probabilities.astype(x.dtype) if dense else labels
        ignore = None if dense or ignored < 0 else ignored
        return F.softmax_cross_entropy(x, t, weights=w, ignore_index=ignore, label_smoothing=smoothing, **how)

    def theirs(x):
        w = None if weights is None else torch.tensor(weights).to(x.dtype)
        t = torch.tensor(probabilities).to(x.dtype).movedim(-1, 1) if dense else torch.tensor(labels)
        options = {} if dense else {"ignore_index": ignored}
        return TF.cross_entropy(x.movedim(-1, 1), t, w, label_smoothing=smoothing, **options, **how)

    return ours, theirs, [d.normal(*rows, c)]


def embedding(d):
    count = d.int(1, 6)
    numbers = d.random.integers(0, count, d.shape(0, 3))
    return (
        lambda W: F.embedding(numbers, W),
        lambda W: TF.embedding(torch.tensor(numbers), W),
        [d.normal(count, d.int(1, 5))],
    )


OPERATIONS = (
    conv2d, conv2d, conv_transpose2d, pool2d, product, einsum, unary, bounded, binary, reduction, index, arrangement,
    normalisation, loss, loss, embedding,
)  # fmt: skip


def optimisers(d):
    """(minidnn's optimiser, PyTorch's): each from parameters."""
    lr, decay, beta = float(d.positive()) * 0.01, d.pick(0.0, 0.1), float(d.random.uniform(0, 0.99))
    momentum, beta2, eps = d.pick(0.0, 0.9), float(d.random.uniform(0.5, 0.999)), d.pick(1e-8, 1e-2)
    nesterov = bool(momentum) and d.pick(False, True)
    name = d.pick("SGD", "Adam", "AdamW", "RMSprop")
    common = {"lr": lr, "weight_decay": decay}
    ours, theirs = {
        "SGD": ({"momentum": momentum, "nesterov": nesterov},) * 2,
        "RMSprop": ({"beta": beta, "eps": eps}, {"alpha": beta, "eps": eps}),
    }.get(name, ({"beta1": beta, "beta2": beta2, "eps": eps}, {"betas": (beta, beta2), "eps": eps}))
    return (
        lambda params: getattr(optim, name)(params, **common, **ours),
        lambda params: getattr(torch.optim, name)(params, **common, **theirs),
    )
