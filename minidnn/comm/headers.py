"""The check behind ``--debug-comm``: the ranks compare what they are about to do before they do it.

One small fixed-size header per rank: sequence number, operation, algorithm, dtype, sizes, root, layer.
When two differ every rank raises a :class:`.ProtocolError` that names the operation, the layer, the ranks
and what differs.  Without the check such a program hangs, or goes on with wrong numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator

import numpy as np

from .communicator import HEADERS, NAMED, SEQUENCE, Note, ProtocolError

SIZE = 256  # bytes of a header
FIELDS = ("call number", "operation", "algorithm", "dtype", "elements", "counts", "root", "layer", "phase")
SHOWN = 40  # characters of the counts that a complaint shows
SEPARATOR = "\x1f"


def check(comm, op, algorithm, dtype, counts, root, tag) -> Generator:
    """The steps of the comparison before a collective; a ProtocolError on every rank when they differ."""
    number = tag - SEQUENCE if tag >= SEQUENCE else f"named {tag - NAMED}"
    own = _header(comm, number, op, algorithm, dtype, counts, root)
    table = yield from comm.exchanging(own, HEADERS + tag, Note(op, algorithm, comm.ledger.labels))
    texts = [_fields(row) for row in table]
    differing = [name for k, name in enumerate(FIELDS) if len({text[k] for text in texts}) > 1]
    if differing:
        groups: dict[tuple, list[int]] = {}
        for rank, text in zip(comm.ranks, texts, strict=True):
            groups.setdefault(tuple(text), []).append(rank)
        lines = [f"the ranks differ in {', '.join(differing)}"]
        for text, ranks in groups.items():
            lines.append(f"  rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {_describe(text)}")
        raise ProtocolError("\n".join(lines))


def check_messages(comm, moves, dtype, tag) -> Generator:
    """The steps of the comparison before single messages: the sender's header goes ahead of each.

    A ProtocolError on the receiver when it expects something else.
    """
    requests, received = [], []
    for move in moves:
        sending = move.kind == "send"
        own = _header(comm, tag, "send", "direct", dtype, move.elements, comm.rank if sending else move.peer)
        if sending:
            requests.append(comm.isend(own, move.peer, HEADERS + tag))
        else:
            received.append((move.peer, own, np.empty_like(own)))
            requests.append(comm.irecv(received[-1][2], move.peer, HEADERS + tag))
        requests[-1].note = Note("send", "direct", comm.ledger.labels)
    yield requests
    for source, own, theirs in received:
        # a send and its receive are on different layers of a split model: only the data must agree
        sent, wanted = _fields(theirs), _fields(own)
        differing = [name for k, name in enumerate(FIELDS[:6]) if sent[k] != wanted[k]]
        if differing:
            named = ["tag" if name == "call number" else name for name in differing]
            raise ProtocolError(
                f"rank {comm.ranks[comm.rank]} receives from rank {comm.ranks[source]}, and they differ in "
                f"{', '.join(named)}: sent {_describe(sent)}; expected {_describe(wanted)}"
            )


def _header(comm, number, op, algorithm, dtype, counts, root) -> np.ndarray:
    labels = comm.ledger.labels
    elements = counts if isinstance(counts, int) else sum(np.ravel(counts).tolist())
    sizes = repr(counts)
    if len(sizes) > SHOWN:
        sizes = f"{sizes[:SHOWN]}... (digest {zlib.crc32(sizes.encode()):08x})"
    fields = [number, op, algorithm, np.dtype(dtype).name, elements, sizes, root]
    text = SEPARATOR.join(map(str, [*fields, labels.layer[:60], labels.phase[:20]]))
    return np.frombuffer(text.encode()[:SIZE].ljust(SIZE, b"\0"), np.uint8)


def _fields(header) -> list[str]:
    return header.tobytes().rstrip(b"\0").decode(errors="replace").split(SEPARATOR)


def _describe(fields) -> str:
    number, op, algorithm, dtype, elements, counts, root, layer, phase = fields
    text = f"{op} {algorithm} of {elements} {dtype}" + f" in blocks {counts}" * (counts != elements)
    text += f", root {root}" + f", layer {layer}" * bool(layer) + f", phase {phase}" * bool(phase)
    return f"{text} (call {number})"
