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
    """The steps of the comparison before a collective.

    Raises
    ------
    ProtocolError
        On every rank, when the headers are not all alike.
    """
    number = tag - SEQUENCE if tag >= SEQUENCE else f"named {tag - NAMED}"
    own = _header(comm, number, op, algorithm, dtype, counts, root)
    table = yield from comm.exchanging(own, HEADERS + tag, Note(op, algorithm, comm.ledger.labels))
    texts = [_fields(row) for row in table]
    differing = [name for k, name in enumerate(FIELDS) if len({text[k] for text in texts}) > 1]
    if differing:
        raise ProtocolError(_complaint(comm, texts, differing))


def check_messages(comm, moves, dtype, tag) -> Generator:
    """The steps of the comparison before single messages: the sender's header goes ahead of each.

    Raises
    ------
    ProtocolError
        On the receiver, when it expects something else.
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


def _header(comm, sequence, op, algorithm, dtype, counts, root) -> np.ndarray:
    labels = comm.ledger.labels
    elements = counts if isinstance(counts, int) else sum(np.ravel(counts).tolist())
    sizes = repr(counts)
    if len(sizes) > SHOWN:
        sizes = f"{sizes[:SHOWN]}... (digest {zlib.crc32(sizes.encode()):08x})"
    fields = [sequence, op, algorithm, np.dtype(dtype).name, elements, sizes, root]
    text = SEPARATOR.join(map(str, [*fields, labels.layer[:60], labels.phase[:20]]))
    header = np.zeros(SIZE, np.uint8)
    data = text.encode()[:SIZE]
    header[: len(data)] = np.frombuffer(data, np.uint8)
    return header


def _fields(header) -> list[str]:
    return header.tobytes().rstrip(b"\0").decode(errors="replace").split(SEPARATOR)


def _describe(fields) -> str:
    named = dict(zip(FIELDS, fields, strict=True))
    text = f"{named['operation']} {named['algorithm']} of {named['elements']} {named['dtype']}"
    if named["counts"] != named["elements"]:
        text += f" in blocks {named['counts']}"
    text += f", root {named['root']}"
    text += "".join(f", {name} {named[name]}" for name in ("layer", "phase") if named[name])
    return f"{text} (call {named['call number']})"


def _complaint(comm, texts, differing) -> str:
    lines = [f"the ranks differ in {', '.join(differing)}"]
    groups: dict[tuple, list[int]] = {}
    for rank, text in zip(comm.ranks, texts, strict=True):
        groups.setdefault(tuple(text), []).append(rank)
    for text, ranks in groups.items():
        who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
        lines.append(f"  {who}: {_describe(text)}")
    return "\n".join(lines)
