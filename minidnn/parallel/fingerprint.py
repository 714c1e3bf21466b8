"""Do all ranks run the same program? Asked once, before the first step.

Ranks that were given different models, batches, seeds or strategies would train nonsense, or wait for
messages that never come. Each rank sends the others a digest of every setting; where one differs, every
rank raises the same error, which names the ranks and their values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import zip_longest

import numpy as np

from ..comm.communicator import Communicator
from ..errors import InputError

_SHOWN = 100  # characters of a value that are shown, from a little before it differs


def check_same(comm: Communicator, settings: Mapping[str, object]) -> None:
    """Raise InputError on every rank unless all have the same values under the same names; values that are no texts are
    compared by `repr`."""
    if comm.size == 1:
        return
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in settings.items()}
    everyone = comm.exchange(
        np.array([digest(text.encode(errors="surrogateescape")) for text in texts.values()], np.int64)
    )
    for i, (name, text) in enumerate(texts.items()):
        if (everyone[:, i] != everyone[0, i]).any():
            ranks: dict[str, list[str]] = {}
            for rank, theirs in enumerate(comm.exchange_texts(text)):
                ranks.setdefault(theirs, []).append(str(rank))
            pairs = zip(ranks.values(), _where_they_differ(list(ranks)), strict=True)
            parts = [f"{shown} on rank{'s' * (len(own) > 1)} {', '.join(own)}" for own, shown in pairs]
            raise InputError(
                f"the ranks do not run the same program: {name} is {' but '.join(parts)}; "
                "start all ranks with the same options"
            )


def digest(data: bytes) -> int:
    """A fingerprint that fits an int64, and is not 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True) or 1


def _where_they_differ(texts: list[str]) -> list[str]:
    """Of each text the first line in which they differ, and of a long line the part around that place."""
    rows = zip_longest(*(t.splitlines() for t in texts), fillvalue="")
    lines = next(row for row in rows if len(set(row)) > 1)
    if max(map(len, lines)) <= _SHOWN:
        return [line.strip() or "nothing" for line in lines]
    at = next(i for i, column in enumerate(zip_longest(*lines)) if len(set(column)) > 1)
    start = max(0, at - _SHOWN // 2)
    stop = start + _SHOWN
    return ["..." * (start > 0) + line[start:stop] + "..." * (stop < len(line)) for line in lines]
