"""ONNX's operators by minidnn's: from arrays and attributes to arrays, images of (n, c, h, w) turned on the way.

What minidnn does not have raises `NotExpressible`; what it has and does wrongly is for the test to find.
"""

import math

import numpy as np

from minidnn import functional as F
from minidnn.optim import SGD, Adam
from minidnn.tensor import Tensor


class NotExpressible(Exception):
    """minidnn has nothing for this operator, or not with this option."""


def need(condition):
    if not condition:
        raise NotExpressible


def last(x):
    """(n, c, ...) to (n, ..., c)"""
    return F.transpose(x, (0, *range(2, x.ndim), 1))


def first(x):
    """(n, ..., c) to (n, c, ...)"""
    return F.transpose(x, (0, x.ndim - 1, *range(1, x.ndim - 1)))


def padding(a, x, kernel):
    """The attributes auto_pad and pads as ((top, bottom), (left, right)) or a name."""
    auto, pads = a.get("auto_pad", "NOTSET"), a.get("pads", [0, 0, 0, 0])
    if auto == "SAME_UPPER":
        return "same"
    if auto == "SAME_LOWER":  # the odd pixel comes first
        strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
        sides = []
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            sides.append((total - total // 2, total // 2))
        return tuple(sides)
    return ((0, 0), (0, 0)) if auto == "VALID" else ((pads[0], pads[2]), (pads[1], pads[3]))


def pair(a, name, default=(1, 1)):
    return tuple(a.get(name, default))


def conv(a, x, W, b=None):
    need(x.ndim == 4)
    options = pair(a, "strides"), padding(a, x, W.shape[2:]), pair(a, "dilations"), a.get("group", 1)
    return first(F.conv2d(last(x), W.transpose(2, 3, 1, 0), b, *options))


def conv_transpose(a, x, W, b=None):
    need(x.ndim == 4 and "output_shape" not in a and a.get("auto_pad") != "SAME_LOWER")
    groups, (i, o, kh, kw) = a.get("group", 1), W.shape
    W = W.reshape(groups, i // groups, o, kh, kw).transpose(3, 4, 1, 0, 2).reshape(kh, kw, i // groups, -1)
    more = pair(a, "output_padding", (0, 0))
    options = pair(a, "strides"), padding(a, x, (kh, kw)), more, pair(a, "dilations"), groups
    return first(F.conv_transpose2d(last(x), W, b, *options))


def pool(function, **options):
    def run(a, x):
        kernel = a["kernel_shape"]
        need(x.ndim == 4 and set(a.get("dilations", [1])) == {1} and not a.get("storage_order"))
        ceil = bool(a.get("ceil_mode", 0))
        more = {k: bool(a.get(k, 0)) for k in options}
        window = tuple(kernel), pair(a, "strides"), padding(a, x, kernel), ceil
        return first(function(last(x), *window, **more))

    return run


def normalised(y, x, eps, axes):
    """The outputs of a normalisation: y, the mean, and 1 / sqrt(var + eps)."""
    return y, F.mean(x, axes, True), 1 / F.sqrt(F.var(x, axes, True) + eps)


def layer_norm(a, x, gamma, beta=None):
    axis, eps = a.get("axis", -1) % x.ndim, a.get("epsilon", 1e-5)
    c = math.prod(x.shape[axis:])
    beta = np.zeros_like(gamma) if beta is None else beta
    y = F.layer_norm(
        x.reshape(-1, c), *(np.broadcast_to(v, x.shape[axis:]).reshape(c) for v in (gamma, beta)), eps
    )
    return normalised(F.reshape(y, x.shape), Tensor(x), eps, tuple(range(axis, x.ndim)))


def group_norm(a, x, gamma, beta):
    need(len(gamma) == x.shape[1])
    return first(F.group_norm(last(x), gamma, beta, a.get("num_groups", x.shape[1]), a.get("epsilon", 1e-5)))


def batch_norm(a, x, gamma, beta, mean, var):
    eps = a.get("epsilon", 1e-5)
    if not a.get("training_mode"):
        return first(F.batch_norm_inference(last(x), gamma, beta, mean, var, eps))
    y, m, v = F.batch_norm(last(x), gamma, beta, eps)
    keep = a.get("momentum", 0.9)
    running = (old * keep + new.astype(old.dtype) * (1 - keep) for old, new in ((mean, m), (var, v)))
    return first(y), *running


def reduce(function):
    def run(a, x, axes=None):
        axes = a.get("axes", axes)
        if axes is not None and len(axes) == 0 or axes is None:
            if a.get("noop_with_empty_axes"):
                need(function in (F.sum, F.mean))
                return x
            axes = range(x.ndim)
        need(x.size)
        return function(Tensor(x), tuple(int(i) for i in axes), bool(a.get("keepdims", 1)))

    return run


def arg(name):
    def run(a, x):
        need(not a.get("select_last_index"))
        i = getattr(Tensor(x), name)(a.get("axis", 0))
        return np.expand_dims(i, a.get("axis", 0)) if a.get("keepdims", 1) else i

    return run


def fold(function):
    def run(a, x, *others):
        for y in others:
            x = function(x, y)
        return x

    return run


def divide(a, x, y):
    need(x.dtype.kind == "f")
    return F.div(x, y)


def clip(a, x, low=None, high=None):
    need(low is None or high is None or low <= high)
    low, high = a.get("min", low), a.get("max", high)
    return F.clip(x, *(None if b is None else np.asarray(b).item() for b in (low, high)))


def reshape(a, x, shape):
    shape = [n if n or a.get("allowzero") else x.shape[i] for i, n in enumerate(shape.tolist())]
    return F.reshape(x, shape)


def flatten(a, x):
    axis = a.get("axis", 1) + (x.ndim if a.get("axis", 1) < 0 else 0)
    return F.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def axes_of(a, axes):
    axes = a.get("axes", axes)
    return None if axes is None else tuple(int(i) for i in axes)


def split(a, x, sizes=None):
    axis, parts = a.get("axis", 0), a.get("num_outputs", a["outputs"])
    sizes = a.get("split", sizes)
    if sizes is None:
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1)
        return F.split(x, np.cumsum(sizes).tolist(), axis)
    return F.split(x, np.cumsum(sizes)[:-1].tolist(), axis)


def slices(a, x, starts=None, ends=None, axes=None, steps=None):
    starts, ends = a.get("starts", starts), a.get("ends", ends)
    axes = a.get("axes", range(len(starts)) if axes is None else axes)
    key = [slice(None)] * x.ndim
    for i, start, end, step in zip(
        axes, starts, ends, [1] * len(starts) if steps is None else steps, strict=True
    ):
        start, end = (int(max(v, -(2**31))) for v in (start, end))
        if step < 0 and end < -x.shape[i]:
            end = None
        key[int(i)] = slice(start, end, int(step))
    return F.getitem(x, tuple(key))


def pad(a, x, pads=None, value=0, axes=None):
    need(a.get("mode", "constant") == "constant")
    pads = np.asarray(a.get("pads", pads))
    need((pads >= 0).all())
    width = np.zeros((x.ndim, 2), int)
    width[list(range(x.ndim) if axes is None else axes)] = pads.reshape(2, -1).T
    return F.pad(x, width.tolist(), np.asarray(value).item())


def gather(a, x, indices):
    return F.getitem(x, (slice(None),) * (a.get("axis", 0) % x.ndim) + (indices,))


def gather_nd(a, x, indices):
    need(not a.get("batch_dims"))
    return F.getitem(x, tuple(np.moveaxis(indices, -1, 0)))


def compress(a, x, condition):
    axis = a.get("axis")
    x = x if axis is not None else x.reshape(-1)
    mask = np.zeros(x.shape[axis or 0], bool)
    mask[: len(condition)] = condition
    return F.getitem(x, (slice(None),) * ((axis or 0) % x.ndim) + (mask,))


def gemm(a, x, y, c=None):
    need(x.dtype.kind == "f")
    x, y = (F.transpose(v) if a.get(t) else v for v, t in ((x, "transA"), (y, "transB")))
    z = F.matmul(x, y) * a.get("alpha", 1.0)
    return z if c is None else z + Tensor(c) * a.get("beta", 1.0)


def dropout(a, x, ratio=None, training=False):
    need(a["outputs"] == 1 and not training)
    return x


def gelu(a, x):
    need(a.get("approximate", "none") == "none")
    return F.gelu(x)


def cross_entropy(a, x, labels, weights=None):
    options = {
        "weights": weights,
        "ignore_index": a.get("ignore_index"),
        "reduction": a.get("reduction", "mean"),
    }
    loss = F.softmax_cross_entropy(last(Tensor(x)), labels, **options)
    return (loss, F.log_softmax(x, 1)) if a["outputs"] > 1 else loss


def cast(a, x, like=None):
    import onnx

    dtype = like.dtype if like is not None else onnx.helper.tensor_dtype_to_np_dtype(a["to"])
    need(dtype in (np.float32, np.float64) and x.dtype in (np.float32, np.float64))
    return F.astype(x, dtype)


def momentum(a, rate, t, *rest):
    count = len(rest) // 3
    params = [Tensor(x.copy(), True, f"w{i}") for i, x in enumerate(rest[:count])]
    for p, g in zip(params, rest[count : 2 * count], strict=True):
        p.grad = g.copy()
    need(int(t) > 0 and a["beta"] == 1 or int(t) == 0)
    options = {"nesterov": a["mode"] == "nesterov", "weight_decay": a["norm_coefficient"]}
    sgd = SGD(params, float(rate), a["alpha"], **options)
    state = {p.name: v for p, v in zip(params, rest[2 * count :], strict=True)}
    sgd.load_state_dict({"iteration": 0, "velocity": state})
    sgd.step()
    return *(p.data for p in params), *sgd.state_dict()["velocity"].values()


def adam(a, rate, t, *rest):
    count, t = len(rest) // 4, int(t)
    need(t > 0 and not a.get("norm_coefficient_post"))
    params = [Tensor(x.copy(), True, f"w{i}") for i, x in enumerate(rest[:count])]
    for p, g in zip(params, rest[count : 2 * count], strict=True):
        p.grad = g.copy()
    eps = a["epsilon"] / math.sqrt(1 - a["beta"] ** t)  # ONNX adds it before it corrects the mean of squares
    optimiser = Adam(
        params, float(rate), a["alpha"], a["beta"], eps, weight_decay=a.get("norm_coefficient", 0)
    )
    slots = {"mean": rest[2 * count : 3 * count], "square": rest[3 * count :], "updates": [t - 1] * count}
    names = [p.name for p in params]
    state = {slot: dict(zip(names, values, strict=True)) for slot, values in slots.items()}
    optimiser.load_state_dict({"iteration": 0, **state})
    optimiser.step()
    state = optimiser.state_dict()
    return *(p.data for p in params), *state["mean"].values(), *state["square"].values()


def constant(a):
    (value,) = (v for k, v in a.items() if k != "outputs")
    need(not isinstance(value, (str, list)) or all(isinstance(v, (int, float)) for v in value))
    return np.asarray(
        value, np.float32 if np.asarray(value).dtype == np.float64 and "value" not in a else None
    )


def unary(function, **attributes):
    """A function of one tensor; attributes by ONNX's name: (ours, default)."""
    return lambda a, x: function(x, **{k: a.get(n, d) for n, (k, d) in attributes.items()})


def compare(name):
    return lambda a, x, y: getattr(Tensor(x), name)(y)


def softplus(a, x):
    return F.logsumexp(F.stack([x, np.zeros_like(x)]), 0)


OPERATORS = {
    **{
        n: unary(getattr(F, n.lower()))
        for n in "Abs Neg Exp Log Sqrt Sin Cos Erf Sign Relu Sigmoid Tanh".split()
    },
    "LeakyRelu": unary(F.leaky_relu, alpha=("slope", 0.01)),
    "PRelu": lambda a, x, s: F.where(x > 0, x, F.mul(x, s)),
    "Elu": lambda a, x: F.where(x > 0, x, F.expm1(F.minimum(x, 0)) * a.get("alpha", 1.0)),
    "ThresholdedRelu": lambda a, x: F.where(x > a.get("alpha", 1.0), x, 0),
    "Gelu": gelu,
    "Swish": lambda a, x: F.silu(F.mul(x, a.get("alpha", 1.0))) / a.get("alpha", 1.0),
    "HardSigmoid": lambda a, x: F.clip(F.mul(x, a.get("alpha", 0.2)) + a.get("beta", 0.5), 0, 1),
    "HardSwish": lambda a, x: F.mul(x, F.clip(F.mul(x, 1 / 6) + 0.5, 0, 1)),
    "Softsign": lambda a, x: F.div(x, 1 + F.abs(x)),
    "Softplus": softplus,
    "Mish": lambda a, x: F.mul(x, F.tanh(softplus(a, x))),
    "Reciprocal": lambda a, x: F.div(1, x),
    "Identity": lambda a, x: x,
    "Dropout": dropout,
    "Add": fold(F.add),
    "Sub": fold(F.sub),
    "Mul": fold(F.mul),
    "Div": divide,
    "Pow": lambda a, x, y: F.power(x, Tensor(y)),
    "Max": fold(F.maximum),
    "Min": fold(F.minimum),
    "Sum": fold(F.add),
    "Mean": lambda a, *xs: F.mean(F.stack(xs), 0),
    "Less": compare("__lt__"),
    "LessOrEqual": compare("__le__"),
    "Greater": compare("__gt__"),
    "GreaterOrEqual": compare("__ge__"),
    "Where": lambda a, c, x, y: F.where(c, x, y),
    "Clip": clip,
    "Cast": cast,
    "CastLike": cast,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": lambda a, x: pool(F.max_pool2d)(a, x) if a["outputs"] == 1 else need(False),
    "AveragePool": pool(F.avg_pool2d, count_include_pad=True),
    "GlobalAveragePool": lambda a, x: F.mean(x, tuple(range(2, x.ndim)), True),
    "GlobalMaxPool": lambda a, x: F.max(x, tuple(range(2, x.ndim)), True),
    "LRN": lambda a, x: first(
        F.local_response_norm(
            last(x), a["size"], a.get("alpha", 1e-4) / a["size"], a.get("beta", 0.75), a.get("bias", 1.0)
        )
    ),
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": group_norm,
    "BatchNormalization": batch_norm,
    "Softmax": lambda a, x: F.softmax(x, a.get("axis", -1)),
    "LogSoftmax": lambda a, x: F.log_softmax(x, a.get("axis", -1)),
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "ReduceSum": reduce(F.sum),
    "ReduceMean": reduce(F.mean),
    "ReduceMax": reduce(F.max),
    "ReduceMin": reduce(F.min),
    "ReduceLogSumExp": reduce(F.logsumexp),
    "ReduceL1": reduce(lambda x, *axes: F.sum(F.abs(x), *axes)),
    "ReduceL2": reduce(lambda x, *axes: F.sqrt(F.sum(F.mul(x, x), *axes))),
    "ReduceSumSquare": reduce(lambda x, *axes: F.sum(F.mul(x, x), *axes)),
    "ReduceLogSum": reduce(lambda x, *axes: F.log(F.sum(x, *axes))),
    "ArgMax": arg("argmax"),
    "ArgMin": arg("argmin"),
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": lambda a, x: F.transpose(x, *a.get("perm", ())),
    "Squeeze": lambda a, x, axes=None: F.squeeze(x, axes_of(a, axes)),
    "Unsqueeze": lambda a, x, axes=None: F.expand_dims(x, axes_of(a, axes)),
    "Concat": lambda a, *xs: F.concatenate(xs, a["axis"]),
    "Split": split,
    "Slice": slices,
    "Pad": pad,
    "Gather": gather,
    "GatherND": gather_nd,
    "Compress": compress,
    "Einsum": lambda a, *xs: F.einsum(a["equation"], *xs),
    "MatMul": lambda a, x, y: F.matmul(x, y),
    "Gemm": gemm,
    "Momentum": momentum,
    "Adam": adam,
    "Constant": constant,
    "Shape": lambda a, x: np.array(x.shape[a.get("start", 0) : a.get("end")], np.int64),
}
