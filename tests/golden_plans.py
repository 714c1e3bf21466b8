"""The message lists of the strategies for a tiny network, as text small enough to be read by eye.

    python tests/golden_plans.py            # show what differs from the files in tests/golden
    python tests/golden_plans.py --write    # write them anew; then read the difference before committing it

A line is one collective of one rank: its phase, layer and chunk, its name and algorithm, and round by round
what is sent (>) to whom and received (<) from whom, in bytes.
"""

import sys
from itertools import groupby
from pathlib import Path

from minidnn import nn
from minidnn.parallel import Options, make_plan, make_strategy

FOLDER = Path(__file__).with_name("golden")
SHAPE, BATCH = (3, 3, 1), 16

CASES = {
    "data": ("data", {}),
    "data-naive": ("data", {"bucket_mib": 0, "all_reduce": "tree"}),
    "data-sharded": ("data", {"sharded_momentum": True}),
    "data-factors": ("data", {"fc_gradients": "factors"}),
    "layer-split": ("layer_split", {"micro_batches": 2}),
    "owt-a": ("owt", {}),
    "owt-b": ("owt", {"scheme": "b"}),
    "owt-c": ("owt", {"scheme": "c"}),
    "owt-pairs": ("owt", {"fc_pairs": True}),
    "hybrid": ("hybrid", {"dp": 2}),
    "tensor": ("tensor", {}),
    "alexnet2012": ("alexnet2012", {}),
}
RANKS = (2, 4)


def tiny():
    """2 x 2 x 4 features: 64 bytes a sample after the convolutions, 16 after fc3 and fc4, 8 after fc5."""
    return nn.Sequential(
        {
            "conv1": nn.Conv2d(1, 4, 2),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(4, 4, 1, groups=2),
            "flatten": nn.Flatten(),
            "fc3": nn.Linear(16, 4),
            "relu3": nn.ReLU(),
            "fc4": nn.Linear(4, 4),
            "fc5": nn.Linear(4, 2),
        }
    )


def plan_of(name, ranks):
    strategy, options = CASES[name]
    model, options = tiny(), Options(**options)
    return make_plan(model, SHAPE, make_strategy(strategy, model, SHAPE, ranks, options), BATCH)


def text_of(name, ranks):
    """The message list of a case, as its file has it."""
    plan = plan_of(name, ranks)
    lines = [f"{name}, {ranks} ranks, batch {BATCH}, {plan.dtype}"]
    for rank in range(ranks):
        lines += ["", f"rank {rank}"]
        for messages in _collectives(plan.messages(rank)):
            first = messages[0]
            rounds = [
                " ".join(f"{'>' if m.kind == 'send' else '<'}{m.peer} {m.bytes}" for m in together)
                for _, together in groupby(messages, lambda m: m.index)
            ]
            chunk = f"chunk {first.micro_batch}" if first.phase in ("forward", "backward") else ""
            what = f"{first.phase:<13} {first.layer:<12} {chunk:<7} {first.op} {first.algorithm}"
            lines.append(f"  {what:<58} {' | '.join(rounds)}")
    return "\n".join(lines) + "\n"


def _collectives(messages):
    """Runs of messages of one collective: a new one begins where the label changes or the rounds begin anew."""
    runs, last = [], None
    for m in messages:
        label = m.phase, m.layer, m.micro_batch, m.op
        if last is None or label != last[0] or m.index < last[1]:
            runs.append([])
        runs[-1].append(m)
        last = label, m.index
    return runs


def path_of(name, ranks):
    return FOLDER / f"{name}-{ranks}.txt"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        for n in RANKS:
            path, text = path_of(case, n), text_of(case, n)
            if not path.exists() or path.read_text() != text:
                print("written" if "--write" in sys.argv else "differs", path)
                if "--write" in sys.argv:
                    path.write_text(text)
