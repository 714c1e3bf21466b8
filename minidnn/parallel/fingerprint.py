"""Do all ranks run the same program? Asked once, before the first step.

Ranks that were given different models, batches, seeds or strategies would train nonsense, or wait for
messages that never come. Each rank sends the others a digest of every setting; where one differs, every
rank raises the same error, which names the ranks and both values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from ..comm.communicator import Communicator
from ..errors import InputError

_TEXT = 160  # bytes of a setting that are shown


def check_same(comm: Communicator, settings: Mapping[str, object]) -> None:
    """Raise InputError on every rank unless all ranks have the same settings.

    Parameters
    ----------
    settings : mapping
        Name to value; compared by `repr`. All ranks must give the same names.
    """
    if comm.size == 1:
        return
    texts = {name: repr(value) for name, value in settings.items()}
    digests = [
        int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "big", signed=True)
        for t in texts.values()
    ]
    everyone = comm.exchange(np.array(digests, np.int64))
    for i, (name, text) in enumerate(texts.items()):
        column = everyone[:, i]
        if (column == column[0]).all():
            continue
        shown = np.zeros(_TEXT, np.uint8)
        raw = np.frombuffer(text.encode()[:_TEXT], np.uint8)
        shown[: len(raw)] = raw
        values = comm.exchange(shown)
        others = [r for r in range(comm.size) if column[r] != column[0]]
        first, other = (bytes(values[r]).rstrip(b"\0").decode(errors="replace") for r in (0, others[0]))
        ranks = f"rank{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        raise InputError(
            f"the ranks do not run the same program: {name} is {first} on rank 0 but {other} on {ranks}; "
            "start all ranks with the same options"
        )
