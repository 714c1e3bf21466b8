"""Which messages of the backward pass return the gradient of which messages of the forward pass.

Every communication layer moves data forward and moves its gradient back by the adjoint collective. The two
belong to the same layer, micro-batch and ranks; of several, the last one forward is the first one backward.
"""

from collections import defaultdict

from minidnn.comm.algorithms import OPERATIONS
from minidnn.report.bandwidth import Collective, collectives
from minidnn.report.records import Trace

ADJOINT = {op: held.adjoint for op, held in OPERATIONS.items()}


def adjoint_collectives(trace: Trace, step: int) -> list[tuple[Collective, Collective]]:
    """Pairs (forward, backward) of one step."""
    waiting: dict[tuple, list[Collective]] = defaultdict(list)
    pairs = []
    for c in collectives(trace.messages_of(step)):
        m = c.first
        ranks = frozenset(m.group) or frozenset((m.source, m.dest))
        if m.op in ("send", "recv", ""):
            ranks = frozenset((m.source, m.dest))
        op = "send" if m.op in ("recv", "") else m.op
        if m.phase == "forward":
            waiting[m.layer, m.micro_batch, ranks, op].append(c)
        elif m.phase == "backward":
            partners = waiting.get((m.layer, m.micro_batch, ranks, ADJOINT.get(op, op)))
            if partners:
                pairs.append((partners.pop(), c))
    return pairs


def adjoint_messages(trace: Trace, step: int) -> dict[int, list[int]]:
    """For each message number the numbers of the messages that carry the adjoint of its slice, both ways.

    The message that carries the same slice the other way is preferred, then all that carry the same slice (a
    ring goes round in one direction, forward and backward), then the whole adjoint collective.
    """
    result: dict[int, list[int]] = {}
    for forward, backward in adjoint_collectives(trace, step):
        for own, others in ((forward, backward), (backward, forward)):
            for m in own.messages:
                same = [o for o in others.messages if (o.start, o.stop) == (m.start, m.stop)]
                back = [o for o in same if (o.source, o.dest) == (m.dest, m.source)]
                result[m.number] = [o.number for o in back or same or others.messages]
    return result
