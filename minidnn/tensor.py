"""Tensor: an array with a gradient. Function: one differentiable operation, and its node in the graph.

An operation is a class with ``forward`` and ``backward`` over raw arrays; an instance is one node::

    class Scale(Function):
        \"\"\"y = c x\"\"\"

        def __init__(self, c):
            self.c = c

        def forward(self, x):
            return x * self.c

        def backward(self, gy):
            return gy * self.c

    y = Scale(3.0)(x)

`Tape` (in ``minidnn/tape.py``) holds the nodes in program order and runs backward.
"""

from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array, to_host
from minidnn.tape import LEAF, Tape, is_grad_enabled, next_order, no_grad, state

__all__ = ["Function", "Tape", "Tensor", "as_tensor", "is_grad_enabled", "no_grad"]


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
        self.creator: Function | None = None
        self.index = 0
        self.changes = _Changes()
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
        if self.creator is not None or self.changes is _RESULT:
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


class _Changes:
    """How often values in memory were changed: one count for all tensors that share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_RESULT = _Changes()  # of all results of recorded operations: nobody may change them


class Function:
    """An operation; an instance, called on tensors, runs `forward` and is its node in the graph.

    A subclass defines ``forward(*arrays)`` and either ``backward(*gys)``, which returns one gradient (or
    None) per input, or, where inputs are followed by weights, the two parts of it: ``backward_input`` for
    the first inputs and ``backward_weight`` for the others, always called in this order. All see raw
    arrays. A gradient may be `gy` itself or a view of it; any other array must not be returned twice.

    Attributes
    ----------
    collective : bool
        The node takes part in backward even if no gradient reached its output (`gy` is None then), and is
        recorded even if no input needs a gradient. May be set on the instance.
    needs : tuple of bool
        Which inputs want a gradient: backward can leave out the others.
    layer : str or None
        Label of the tape when the node was recorded.
    saves_inputs : bool
        Whether backward reads values of the inputs; if so, a leaf changed by `Tensor.assign` in between is
        an error.
    """

    __slots__ = ("__dict__", "edges", "gys", "layer", "order", "tape", "versions")

    collective = False
    saves_inputs = True
    needs: tuple[bool, ...] = (True,) * 16
    backward_weight: Any = None

    def forward(self, *arrays: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def backward_input(self, *gys: Any) -> tuple:
        raise TypeError(f"{type(self).__name__} defines neither backward nor backward_input")

    def backward(self, *gys: Any) -> Any:
        return *self.backward_input(*gys), *self.backward_weight(*gys)

    def __call__(self, *inputs: Any) -> Any:
        """Run `forward` on the tensors' arrays; record the node if a gradient may be wanted.

        Raises
        ------
        TypeError
            Inputs of different dtypes: nothing is converted silently.
        RuntimeError
            The instance is a node already: each call needs one of its own.
        """
        if hasattr(self, "edges"):
            raise RuntimeError(
                f"{self.name}: this instance is a node of the graph already; make one for each call"
            )
        try:
            arrays = [t.data for t in inputs]
            needs = tuple([t.requires_grad for t in inputs])
            if arrays:
                dtype = arrays[0].dtype
                for a in arrays:
                    if a.dtype is not dtype and a.dtype != dtype:
                        raise mixed_dtypes(type(self).__name__, inputs)
        except AttributeError:
            arrays = None
        if arrays is None:
            return self(*[as_tensor(t) for t in inputs])
        node = self if state.enabled and (self.collective or True in needs) else None
        self.needs = needs if node else (False,) * len(needs)
        outputs = self.forward(*arrays)
        if node:
            self._record(inputs)
        if type(outputs) is tuple:
            if node:
                self.gys = [None] * len(outputs)
            return tuple([_result(y, inputs, node, i) for i, y in enumerate(outputs)])
        return _result(outputs, inputs, node)

    def _record(self, inputs: tuple) -> None:
        """Become a node of the current tape."""
        tape = state.tape
        reference = tape.reference
        edges: list[Any] = []
        versions = []
        for t in inputs:
            creator = t.creator
            if creator is not None:
                edges.append((creator, t.index))
                if creator.tape is not reference:
                    tape.bordered = True
            else:
                edges.append((t, LEAF) if t.requires_grad else None)
            changes = t.changes
            if changes is not _RESULT and self.saves_inputs:
                versions.append((t, changes, changes.count))
        self.edges = edges
        self.versions = versions
        self.gys = [None]
        self.layer = tape.layer
        self.tape = reference
        self.order = next_order()
        if not tape.implicit or self.collective:
            tape.nodes.append(self)

    @property
    def name(self) -> str:
        """The operation and the layer it belongs to, for messages."""
        kind = type(self).__name__
        layer = getattr(self, "layer", None)
        return f"{layer} ({kind})" if layer else kind

    def out_buffer(self, i: int) -> Any:
        """Where backward may write (and return) the gradient of input `i`, or None if it must make an array.

        It is the ``grad_buffer`` of a leaf that has no gradient yet.
        """
        edge = self.edges[i]
        if edge is None or edge[1] != LEAF:
            return None
        leaf = edge[0]
        buffer = leaf.grad_buffer
        if buffer is None or leaf.grad is not None or not buffer.flags.c_contiguous:
            return None
        for j, other in enumerate(self.edges):
            if j != i and other is not None and other[0] is leaf:
                return None
        return buffer

    def leaf(self, i: int) -> Any:
        """The leaf that input `i` was, if it is one and takes part in backward; else None."""
        edge = self.edges[i]
        return edge[0] if edge is not None and edge[1] == LEAF else None

    def is_result(self, i: int) -> bool:
        """Whether input `i` was made by a recorded operation."""
        edge = self.edges[i]
        return edge is not None and edge[1] != LEAF

    def check_versions(self) -> None:
        """Raise if a leaf that backward needs was changed since forward."""
        for t, changes, count in self.versions:
            if changes.count != count:
                raise RuntimeError(
                    f"{self.name}: {t.name or 'an input'} was changed in place (assign) after forward; "
                    "backward needs its old values"
                )

    def release(self) -> None:
        """Drop what was saved for backward."""
        self.gys = None
        self.edges = self.versions = ()
        self.__dict__.clear()


def as_tensor(x: Any) -> Tensor:
    """`x` itself if it is a tensor with values, else a leaf that holds it."""
    if not isinstance(x, Tensor):
        return Tensor(x)
    if x.data is None:
        raise RuntimeError(f"{x.name or 'a parameter'} has no values yet: call init() of its model first")
    return x


def _result(data: Any, inputs: tuple, creator: Function | None, index: int = 0) -> Tensor:
    """A tensor made by an operation: `Tensor.__init__` without its checks."""
    if type(data) is not np.ndarray and isinstance(data, np.generic):
        data = np.asarray(data)  # NumPy turns results without axes into scalars
    y = _new(Tensor)
    y.data = data
    y.grad = None
    y.requires_grad = creator is not None
    y.name = None
    y.creator = creator
    y.index = index
    y.changes = _Changes() if creator is None else _RESULT
    y.grad_buffer = None
    view = data.base is not None
    for t in inputs:
        if t.data is data or view and array_module(data).may_share_memory(t.data, data):
            y.changes = t.changes
    return y


_new = Tensor.__new__

import minidnn.functional.methods  # noqa: E402, F401 - gives Tensor its operators, and needs the classes above
from minidnn.functional.errors import mixed_dtypes  # noqa: E402
