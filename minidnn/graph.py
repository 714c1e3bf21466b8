"""Function: one differentiable operation, and its node in the graph.

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

from minidnn.backend import array_module
from minidnn.tape import LEAF, next_order, state
from minidnn.values import RESULT, Changes, Tensor, as_tensor

__all__ = ["Function", "Tensor", "as_tensor"]


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
        arrays, needs, dtype = [], [], None
        try:
            for t in inputs:
                array = t.data
                if array.dtype is not dtype:
                    if dtype is not None and array.dtype != dtype:
                        raise _mixed_dtypes(self, inputs)
                    dtype = array.dtype
                arrays.append(array)
                needs.append(t.requires_grad)
        except AttributeError:
            arrays = None
        if arrays is None:
            return self(*[as_tensor(t) for t in inputs])
        node = self if state.enabled and (self.collective or True in needs) else None
        self.needs = tuple(needs) if node else (False,) * len(needs)
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
            if changes is not RESULT and self.saves_inputs:
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
    y.changes = Changes() if creator is None else RESULT
    y.grad_buffer = None
    view = data.base is not None
    for t in inputs:
        if t.data is data or view and array_module(data).may_share_memory(t.data, data):
            y.changes = t.changes
    return y


_new = Tensor.__new__


def _mixed_dtypes(node: Function, inputs: tuple) -> TypeError:
    """The error to raise for tensors of several dtypes, with what would make them one."""
    found = ", ".join(f"{t.name or f'input {i}'} {t.dtype}" for i, t in enumerate(inputs))
    weights = next((t.dtype for t in inputs if t.name and t.requires_grad), None)
    others = [t.dtype for t in inputs if t.dtype != weights]
    hint = f"give the data as array.astype(np.{weights or 'float32'})"
    if weights is not None and others[0].kind == "f":
        hint += f", or draw the weights by model.init(dtype=np.{others[0]})"
    node.layer = state.tape.layer
    return TypeError(f"{node.name}: dtypes are never mixed, got {found}; {hint}")
