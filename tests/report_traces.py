"""Made-up trace folders: AlexNet-like steps on virtual clocks, in the schema of minidnn/report/trace.py.

Every rank has its own clock (shifted by CLOCKS[rank]); a message arrives ALPHA + bytes * BETA after both
sides have posted it, so tests know the numbers that the reports must find.
"""

import json
from pathlib import Path

ALPHA, BETA = 50e-6, 1e-9
CLOCKS = (0.0, 123.456, -7.5, 1000.0, 3.25, -44.0, 0.5, 17.0)
MS = 1e-3
CONV = {
    "conv1": 3.0, "relu1": 0.3, "pool1": 0.5, "conv2": 4.0, "relu2": 0.2, "pool2": 0.3, "conv3": 2.5,
    "relu3": 0.1, "conv4": 2.0, "relu4": 0.1, "conv5": 1.5, "relu5": 0.1, "pool5": 0.1, "flatten": 0.02,
}  # fmt: skip
FC = {
    "fc6": 4.0, "relu6": 0.05, "drop6": 0.05, "fc7": 2.0, "relu7": 0.05, "drop7": 0.05, "fc8": 0.6,
    "loss": 0.1,
}  # fmt: skip
FLOPS = {
    "conv1": 2e8,
    "conv2": 4e8,
    "conv3": 3e8,
    "conv4": 2e8,
    "conv5": 1.5e8,
    "fc6": 3e8,
    "fc7": 2e8,
    "fc8": 1e7,
}
FEATURES = 9216 * 16  # elements of fc6's input that each rank computes
BUCKETS = {"conv4": 2_000_000, "conv1": 800_000}  # elements of gradients that are ready after a layer


class Recorder:
    """Ranks with virtual clocks that write down what they do."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.now = [0.0] * size
        self.records: list[list[dict]] = [[] for _ in range(size)]
        self.step = 0
        self.tag = 0

    def add(self, rank: int, record: dict) -> None:
        shifted = {
            key: value - CLOCKS[rank] if key in ("begin", "end", "posted", "done", "time") else value
            for key, value in record.items()
        }
        self.records[rank].append({"seq": len(self.records[rank]), **shifted})

    def span(self, rank, state, layer, phase, seconds) -> None:
        begin = self.now[rank]
        self.now[rank] += seconds
        flops = FLOPS.get(layer, 0) if state == "compute" else 0
        labels = {"state": state, "layer": layer, "phase": phase, "micro_batch": None, "step": self.step}
        self.add(rank, {"kind": "span", **labels, "begin": begin, "end": self.now[rank], "flops": flops})

    def ring(self, op, layer, phase, elements, rounds, cause, *, hidden=False) -> list[float]:
        """A ring collective; hidden: it runs beside what the ranks do next. Its end times are returned."""
        self.tag += 1
        p, clock = self.size, list(self.now)
        block = -(-elements // p)
        labels = {
            "step": self.step,
            "phase": phase,
            "layer": layer,
            "tensor": "",
            "micro_batch": None,
            "cause": cause,
        }
        for index in range(1, rounds + 1):
            done = [max(clock[r], clock[r - 1]) + ALPHA + 4 * block * BETA for r in range(p)]
            how = {"op": op, "algorithm": "ring", "index": index, "count": rounds, "group": list(range(p))}
            for r in range(p):
                for side, source, dest in (("send", r, (r + 1) % p), ("recv", (r - 1) % p, r)):
                    start = block * ((source - index + 1) % p)
                    ends = {"source": source, "dest": dest, "tag": self.tag}
                    data = {"bytes": 4 * block, "dtype": "float32", "start": start, "stop": start + block}
                    times = {"posted": clock[r], "done": clock[r] + ALPHA / 2 if side == "send" else done[r]}
                    self.add(r, {"kind": "message", "side": side, **labels, **how, **ends, **data, **times})
            clock = done
        if not hidden:
            for r in range(p):
                self.span(r, "wait", layer, phase, clock[r] - self.now[r])
        return clock


def owt_step(ranks: Recorder, number: int) -> None:
    """One step of One Weird Trick: convolutions data parallel, fully connected layers column-parallel."""
    p, everyone = ranks.size, range(ranks.size)
    ranks.step = number
    begin = list(ranks.now)
    slow = [1 + 0.1 * ((r * 7 + number) % 3) for r in everyone]
    for r in everyone:
        ranks.span(r, "input", "", "input", 0.4 * MS)
        for layer, time in CONV.items():
            ranks.span(r, "compute", layer, "forward", time * MS * slow[r])
    if p > 1:
        ranks.ring("all_gather", "fc6", "forward", p * FEATURES, p - 1, "fc6")
    for r in everyone:
        for layer, time in FC.items():
            ranks.span(r, "compute", layer, "forward", time * MS / p)
        for layer, time in reversed(FC.items()):
            ranks.span(r, "compute", layer, "backward", 2 * time * MS / p)
    ends = list(ranks.now)
    if p > 1:
        ranks.ring("reduce_scatter", "fc6", "backward", p * FEATURES, p - 1, "fc6")
    for layer, time in reversed(CONV.items()):
        for r in everyone:
            ranks.span(r, "compute", layer, "backward", 2 * time * MS * slow[r])
        if p > 1 and layer in BUCKETS:
            size = BUCKETS[layer], 2 * (p - 1)
            ends = ranks.ring("all_reduce", layer, "gradient sync", *size, "replicated weights", hidden=True)
    for r in everyone:
        if p > 1:
            ranks.span(r, "wait", "conv1", "gradient sync", max(0.0, ends[r] - ranks.now[r]))
        ranks.span(r, "compute", "conv", "update", 1.5 * MS)
        ranks.span(r, "other", "", "", 0.05 * MS)
        step = {"kind": "step", "step": number, "begin": begin[r], "end": ranks.now[r]}
        ranks.add(r, {**step, "loss": 2.3 / number, "images": 16})
        held = {"parameters": 10_000_000, "gradients": 10_000_000, "activations": 5_000_000 + r}
        ranks.add(r, {"kind": "memory", "step": number, "time": ranks.now[r], **held})


def write_records(folder: Path, records: list[list[dict]], run: str = "a1", info: dict | None = None) -> Path:
    """Write a folder with the given records of each rank, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for r, own in enumerate(records):
        header = {"format": "minidnn-trace", "version": 1, "run": run, "rank": r, "size": len(records)}
        lines = [{**header, "clock_offset": CLOCKS[r], "clock_error": 2e-6}, *own]
        lines.append({"kind": "end", "records": len(own)})
        (folder / f"rank{r}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    description = {"format": "minidnn-trace", "version": 1, "run": run, **(info or {})}
    (folder / "run.json").write_text(json.dumps(description))
    return folder


def write_trace(folder: Path, size: int = 2, steps: int = 3, run: str = "a1", strategy: str = "owt") -> Path:
    """Write a folder with `steps` steps of `size` ranks, and return it."""
    ranks = Recorder(size)
    for number in range(1, steps + 1):
        owt_step(ranks, number)
    info = {
        "model": "alexnet", "strategy": strategy, "size": size,
        "command": f"mpirun -n {size} python examples/alexnet_{strategy}.py --trace {folder.name}",
        "versions": {"python": "3.11", "numpy": "2.4"}, "machine": {"cpu": "of this test", "cores": 2},
        "options": {"batch": 16, "image": 56}, "plan": "plan of <alexnet> & co\n",
    }  # fmt: skip
    return write_records(folder, ranks.records, run, info)
