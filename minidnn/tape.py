"""The tape: operations in the order in which the program ran them, and backward, which walks them in reverse.

Program order is a valid topological order of the graph: an operation runs after those that made its inputs.
It is also the same on every rank of an SPMD program, so the adjoint messages of communication functions
pair up by construction. For the same reason a node whose class says ``collective = True`` takes part in
backward even when no gradient reached its output: its peers wait for its message.

Two kinds of tape record nodes:

- ``with Tape() as tape:`` keeps a list of all nodes of the block until ``tape.backward`` has used them;
- outside of such a block each thread has an implicit tape, which keeps only collective nodes. All others
are found
  from the outputs (a tensor knows the node that made it), so forward-only code holds nothing.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidnn.backend import array_module, is_array

LEAF = -1  # output index in an edge that leads to a leaf tensor instead of to a node


class Tape:
    """A list of nodes in program order.

    Attributes
    ----------
    layer : str or None
        Copied to every node recorded from now on (``node.layer``): names the layer in errors and in the
        ledger.
    nodes : list of Function
        What was recorded and not yet used by backward.
    """

    def __init__(self) -> None:
        self.layer: str | None = None
        self.nodes: list[Any] = []
        self.implicit = False
        self.bordered = False  # whether a node here takes the output of a node of another tape
        self.reference = weakref.ref(self)  # shared by all nodes: they must not keep the tape alive
        self._deferred: list[tuple[Any, list]] = []
        self._pending: dict[int, int] | None = None

    def __enter__(self) -> "Tape":
        state.outer.append(state.tape)
        state.tape = self
        return self

    def __exit__(self, *exception: object) -> None:
        state.tape = state.outer.pop()

    def backward(
        self,
        outputs: Any,
        gradients: Any = None,
        *,
        defer_weights: bool = False,
        on_ready: Callable[[Any], None] | None = None,
        observer: Callable[[Any], None] | None = None,
        everywhere: bool = False,
    ) -> None:
        """Add the gradient of sum_i <gradients[i], outputs[i]> to ``.grad`` of every leaf; use up the tape.

        Arrays saved for backward are released as the walk passes them. A gradient that reaches a node of
        another ``with Tape()`` block waits there until that tape's backward.

        Parameters
        ----------
        outputs : Tensor or sequence of Tensor
            Where to start. May be empty: then only collective nodes run, with what their peers send.
        gradients : array or sequence of (array or None), optional
            One per output, of its shape and dtype. None stands for 1 and needs an output of one element.
        defer_weights : bool
            Run only ``backward_input`` of nodes that have it apart from ``backward_weight``;
            `backward_weights` does the rest later (zero-bubble pipeline schedules).
        on_ready : callable
            Called with each leaf once, when nothing more on this tape will add to its gradient. A leaf that
            the tape uses but no gradient reached is reported too (its ``.grad`` is as it was).
        observer : callable
            Called with each node just before its backward.
        everywhere : bool
            Nothing waits: nodes of other tapes that led to `outputs` are walked through, too.

        Raises
        ------
        RuntimeError
            Second backward through the same nodes; a value needed by backward was changed by ``assign``.
        ValueError, TypeError
            Gradient missing for an output that is not a scalar, or of another shape or dtype.
        """
        if not isinstance(outputs, (list, tuple)):
            outputs, gradients = (outputs,), (gradients,)
        elif gradients is None:
            gradients = (None,) * len(outputs)
        if len(gradients) != len(outputs):
            raise ValueError(f"backward: {len(gradients)} gradients for {len(outputs)} outputs")
        seeds = [_seed(output, gradient) for output, gradient in zip(outputs, gradients, strict=True)]
        nodes = self.nodes
        if self.implicit or self.bordered:
            nodes, self.nodes = self._reachable(outputs, everywhere), []
        pending = self._pending = _count_leaf_uses(nodes) if on_ready or defer_weights else None
        for output, gradient in zip(outputs, seeds, strict=True):
            if output.creator is None:
                _accumulate_leaf(output, gradient, (), None)
            else:
                _accumulate_node(output.creator, output.index, gradient)
        while nodes:
            node = nodes.pop()
            gys = node.gys
            if gys is None:  # used up by the backward of another tape
                continue
            for gy in gys:
                if gy is not None:
                    break
            else:
                if not node.collective:  # no gradient came this way
                    edges = node.edges
                    node.release()
                    if pending is not None:
                        _settle(edges, pending, on_ready)
                    continue
            for _, changes, count in node.versions:
                if changes.count != count:
                    node.check_versions()  # raises
            if observer:
                observer(node)
            edges = node.edges
            if defer_weights and node.backward_weight is not None:
                grads = node.backward_input(*gys)
                edges = edges[: len(grads)]
                self._deferred.append((node, gys))
                node.gys = None
            else:
                grads = node.backward(*gys)
                if type(grads) is not tuple:
                    grads = (grads,)
                if len(grads) != len(edges):
                    raise RuntimeError(
                        f"{node.name}.backward gave {len(grads)} gradients for {len(edges)} inputs"
                    )
            _accumulate(node, edges, grads, gys)
            if node.gys is not None:
                node.release()
            if pending is not None:
                _settle(edges, pending, on_ready)
        if not self._deferred:
            self._pending = None

    def backward_weights(
        self,
        on_ready: Callable[[Any], None] | None = None,
        observer: Callable[[Any], None] | None = None,
    ) -> None:
        """The weight gradients left out by ``backward(defer_weights=True)``, in the same order."""
        deferred, self._deferred = self._deferred, []
        pending, self._pending = self._pending, None
        deferred.reverse()
        while deferred:
            node, gys = deferred.pop()
            node.check_versions()
            if observer:
                observer(node)
            grads = node.backward_weight(*gys)
            edges = node.edges[len(node.edges) - len(grads) :]
            _accumulate(node, edges, grads, gys)
            node.release()
            _settle(edges, pending, on_ready)

    def _reachable(self, outputs: Sequence[Any], everywhere: bool) -> list[Any]:
        """The nodes of this tape and those that led to them or to `outputs`, in program order."""
        unused = [node for node in self.nodes if node.gys is not None]
        stack = [output.creator for output in outputs if output.creator is not None] + unused
        found: dict[int, Any] = {}
        while stack:
            node = stack.pop()
            if node.order in found or not (everywhere or self._walks(node)):
                continue
            if node.gys is None:
                raise _used_up(node)
            found[node.order] = node
            for edge in node.edges:
                if edge is not None and edge[1] != LEAF:
                    stack.append(edge[0])
        return [found[order] for order in sorted(found)]

    def _walks(self, node: Any) -> bool:
        """Whether no other tape's backward will come to `node`: it is ours, or nobody's list holds it."""
        tape = node.tape()
        return tape is None or tape is self or tape.implicit


class _State(threading.local):
    """What each thread has of its own: its innermost tape, and whether operations are recorded."""

    def __init__(self) -> None:
        self.enabled = True
        self.outer: list[Any] = []  # what holds again at the end of each `with` block that the thread is in
        self.implicit = self.tape = Tape()  # `implicit` keeps it alive while another is innermost
        self.tape.implicit = True


state = _State()
next_order = itertools.count().__next__


def current_tape() -> Tape:
    """The innermost tape of this thread."""
    return state.tape


def is_grad_enabled() -> bool:
    """False inside `no_grad`."""
    return state.enabled


class no_grad(contextlib.ContextDecorator):
    """Context manager or decorator: operations inside are not recorded, their results need no gradient."""

    def __enter__(self) -> None:
        state.outer.append(state.enabled)
        state.enabled = False

    def __exit__(self, *exception: object) -> None:
        state.enabled = state.outer.pop()


def _seed(output: Any, gradient: Any) -> Any:
    """The gradient to start from at `output`, checked."""
    if not output.requires_grad:
        raise RuntimeError("backward: this tensor depends on no tensor that requires a gradient")
    data = output.data
    if gradient is None:
        if data.size != 1:
            raise ValueError(
                f"backward on a tensor of shape {data.shape} needs a gradient of that shape: "
                "only a scalar can do without one"
            )
        return array_module(data).ones(data.shape, data.dtype)
    if hasattr(gradient, "requires_grad"):
        gradient = gradient.data
    # its owner may change the array while a gradient in factors, or one that waits, still needs it
    gradient = gradient.copy() if is_array(gradient) else array_module(data).array(gradient, dtype=data.dtype)
    if gradient.shape != data.shape:
        raise ValueError(f"backward: gradient of shape {gradient.shape} for a tensor of shape {data.shape}")
    if gradient.dtype != data.dtype:
        raise TypeError(f"backward: gradient of dtype {gradient.dtype} for a tensor of dtype {data.dtype}")
    return gradient


def _accumulate(node: Any, edges: Sequence[Any], grads: Sequence[Any], gys: Sequence[Any]) -> None:
    """Hand each gradient of `node`'s inputs on along its edge."""
    for edge, gradient in zip(edges, grads, strict=True):
        if edge is None or gradient is None:
            continue
        target, index = edge
        if index == LEAF:
            _accumulate_leaf(target, gradient, gys, node)
        else:
            _accumulate_node(target, index, gradient)


def _accumulate_node(node: Any, index: int, gradient: Any) -> None:
    gys = node.gys
    if gys is None:
        raise _used_up(node)
    held = gys[index]
    # a sum goes to a new array: the one held may be shared with another edge (the gradient of x + y goes to
    # both)
    gys[index] = gradient if held is None else held + gradient


def _accumulate_leaf(leaf: Any, gradient: Any, gys: Sequence[Any], node: Any) -> None:
    """Add `gradient` to ``leaf.grad``; the first one goes into ``leaf.grad_buffer`` where there is one."""
    data = leaf.data
    if gradient.shape != data.shape or gradient.dtype != data.dtype:
        raise RuntimeError(
            f"{node.name if node else 'backward'}: gradient {gradient.dtype}{gradient.shape} "
            f"for {leaf.name or 'a leaf'} {data.dtype}{data.shape}"
        )
    if type(gradient) is not np.ndarray:
        if hasattr(gradient, "joined"):  # factors, where the leaf takes them
            leaf.add_factors(gradient)
            return
        if isinstance(gradient, np.generic):
            gradient = np.asarray(gradient)  # NumPy turns results without axes into scalars
    if leaf.grad is not None:
        leaf.grad += gradient
        return
    buffer = leaf.grad_buffer
    if buffer is not None:
        if gradient is not buffer:
            buffer[...] = gradient
        leaf.grad = buffer
        return
    # .grad must be the leaf's own: what is a view, or is passed on elsewhere too, is copied
    shared = gradient.base is not None
    for gy in gys:
        shared = shared or gradient is gy
    leaf.grad = gradient.copy() if shared else gradient


def _count_leaf_uses(nodes: Sequence[Any]) -> dict[int, int]:
    """How many gradients each leaf (by id) still waits for."""
    pending: dict[int, int] = {}
    for node in nodes:
        for edge in node.edges:
            if edge is not None and edge[1] == LEAF:
                key = id(edge[0])
                pending[key] = pending.get(key, 0) + 1
    return pending


def _settle(edges: Sequence[Any], pending: dict[int, int], on_ready: Callable[[Any], None] | None) -> None:
    """One use of each leaf among `edges` is done; report those that wait for no other."""
    for edge in edges:
        if edge is not None and edge[1] == LEAF:
            key = id(edge[0])
            pending[key] -= 1
            if on_ready and not pending[key]:
                on_ready(edge[0])


def _used_up(node: Any) -> RuntimeError:
    return RuntimeError(
        f"second backward through {node.name}: the first one released the values it saved. Run forward "
        "again, or give all outputs to one tape.backward([...])"
    )
