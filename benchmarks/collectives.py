"""The time of an all_reduce over two ranks: ours over send and receive, and the MPI library's.

    python -m benchmarks.collectives [--quick]

In place, float32; the library is asked in one call, as a program would, and in slices of 4 MiB, which is what
`--all-reduce mpi` does.
"""

from __future__ import annotations

from benchmarks.common import alternate, judged, milliseconds, program, ratios, spread
from benchmarks.processes import Worker, steps_of
from minidnn.text import size, table

LIBRARY = "library"
NAMES = {
    LIBRARY: "library, one call",
    "mpi": "library, in slices",
    "ring": "ring",
    "direct": "direct",
    "doubling": "recursive doubling",
    "halving": "halving and doubling",
}
LARGE = 150_000_000  # bytes: the gradients of AlexNet's fully connected layers are of this order
BEST, RING = 0.40, 0.60  # targets at that size
SMALL, CALLS = 1.5, 100  # target at the smallest, of so many calls one after the other
SWEEP = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 25)


def run(quick: bool = False) -> str:
    """A table of all algorithms at one large size, and one of medians over sizes."""
    large, sweep = (1 << 20, SWEEP[:2]) if quick else (LARGE, SWEEP)
    with Worker("all_reduce", {"count": large // 4}, threads=1, ranks=2) as worker:

        def measure(nbytes: int, rounds: int, steps: int, calls: int = 1) -> dict[str, list[float]]:
            request = {"count": nbytes // 4, "calls": calls}
            programs = {a: steps_of(worker, steps, algorithm=a, **request) for a in NAMES}
            for one in programs.values():
                one()  # page faults of the first use
            return alternate(programs, rounds)

        times = measure(large, 2 if quick else 15, 3)
        rows = []
        for name, label in NAMES.items():
            ratio = ratios(times, name, LIBRARY) if name != LIBRARY else []
            rate = [large / seconds / 1e9 for seconds in times[name]]
            target = {"ring": RING}.get(name)
            wanted = f"<= {target:.2f}" if target else ""
            cells = milliseconds(times[name]), spread(rate, 1), spread(ratio)
            rows.append([label, *cells, wanted, judged(ratio, target) if target else ""])
        best = [
            min(row)
            for row in zip(*(ratios(times, a, LIBRARY) for a in ("mpi", "ring", "direct")), strict=True)
        ]
        rows.append(
            ["best of slices, ring, direct", "", "", spread(best), f"<= {BEST:.2f}", judged(best, BEST)]
        )
        header = ["all_reduce", "ms", "GB/s", "/ one call", "target", "met"]
        title = f"{large / 1e6:.0f} MB of float32 over 2 ranks: medians (quartiles) of alternating rounds"
        first = table(rows, header, title)

        rows = []
        for nbytes in sweep:
            times = measure(nbytes, 2 if quick else 9, 5 if quick else 21)
            rows.append([size(nbytes), *(spread(times[a], 3 if nbytes < 1 << 22 else 1, 1e3) for a in NAMES)])
        times = measure(SWEEP[0], 2 if quick else 15, 5, CALLS)
    second = table(rows, ["bytes", *NAMES.values()], "By size, milliseconds: medians (quartiles)")
    small = {name: ratios(times, name, LIBRARY) for name in NAMES if name != LIBRARY}
    rows = [[x, spread(times[a], 1, 1e6), spread(small.get(a, [])), "", ""] for a, x in NAMES.items()]
    best = [min(row) for row in zip(*small.values(), strict=True)]
    rows.append(["best of ours", "", spread(best), f"<= {SMALL:.1f}", judged(best, SMALL)])
    title = f"{size(SWEEP[0])}, {CALLS} calls in a row: medians (quartiles)"
    third = table(rows, ["all_reduce", "microseconds", "/ one call", "target", "met"], title)
    return "\n\n".join((first, second, third))


if __name__ == "__main__":
    program(run, __doc__)
