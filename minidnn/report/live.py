"""A trace of what the ranks have recorded so far, without any files: for `--explain` while a run goes on."""

import json

import numpy as np

from minidnn.comm.communicator import Communicator
from minidnn.comm.trace_files import measure_clock
from minidnn.report.records import Trace
from minidnn.report.trace import assemble


def gather(comm: Communicator, run: dict | None = None) -> Trace | None:
    """Bring every rank's records to rank 0; every rank calls this, between steps.

    The messages that this takes are in no ledger.

    Parameters
    ----------
    run : dict, optional
        What run.json would hold: model, strategy, plan_rows, ...

    Returns
    -------
    Trace or None
        On rank 0 the trace, None elsewhere.
    """
    records = [{"seq": seq, **record} for seq, record in enumerate(comm.ledger.records())]
    offset, error = measure_clock(comm)
    header = {"rank": comm.rank, "size": comm.size, "clock_offset": offset, "clock_error": error}
    text = json.dumps([header, records], default=lambda value: value.item()).encode()  # NumPy's numbers
    length = int(comm.exchange(np.array([len(text)])).max())
    padded = np.full(length, ord(" "), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = comm.exchange(padded)
    if comm.rank:
        return None
    parts = dict(enumerate(json.loads(row.tobytes()) for row in rows))
    trace, _ = assemble("this run", run or {}, {rank: tuple(part) for rank, part in parts.items()})
    return trace
