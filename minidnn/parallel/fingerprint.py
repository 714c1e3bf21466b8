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
    """Raise InputError on every rank unless all ranks have the same settings.

    Parameters
    ----------
    settings : mapping
        Name to value; texts are compared as they are, other values by `repr`. All ranks must give the same
        names.
    """
    if comm.size == 1:
        return
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in settings.items()}
    everyone = comm.exchange(np.array([_digest(text) for text in texts.values()], np.int64))
    for i, (name, text) in enumerate(texts.items()):
        if (everyone[:, i] != everyone[0, i]).any():
            raise InputError(_complaint(name, comm.exchange_texts(text)))


def _digest(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big", signed=True
    )


def _complaint(name: str, texts: list[str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        ranks.setdefault(text, []).append(rank)
    parts = [
        f"{shown} on rank{'s' * (len(ranks[text]) > 1)} {', '.join(map(str, ranks[text]))}"
        for text, shown in zip(ranks, _where_they_differ(list(ranks)), strict=True)
    ]
    return (
        f"the ranks do not run the same program: {name} is {' but '.join(parts)}; "
        "start all ranks with the same options"
    )


def _where_they_differ(texts: list[str]) -> list[str]:
    """Of each text the first line in which they differ, and of a long line the part around that place."""
    lines = next(
        row for row in zip_longest(*(t.splitlines() for t in texts), fillvalue="") if len(set(row)) > 1
    )
    if max(map(len, lines)) <= _SHOWN:
        return [line.strip() or "nothing" for line in lines]
    at = next(i for i, column in enumerate(zip_longest(*lines)) if len(set(column)) > 1)
    start = max(0, at - _SHOWN // 2)
    return [
        "..." * (start > 0) + line[start : start + _SHOWN] + "..." * (start + _SHOWN < len(line))
        for line in lines
    ]
