"""All measurements by name, or one after the other into a report.

python -m benchmarks step_time
python -m benchmarks all --out benchmarks/README.md
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from benchmarks.common import header, installed

NAMES = {
    "step_time": "A training step in one process",
    "parallel_step": "A training step on two ranks",
    "oversubscribed": "Four ranks on two cores",
    "schemes": "The schemes of One Weird Trick",
    "collectives": "all_reduce",
    "memory": "Memory",
    "overhead": "Overhead",
    "pipeline": "Idle time of pipeline schedules",
    "input_pipeline": "Input",
    "scaling": "Scaling",
}
INTRODUCTION = """\
# Benchmarks

Written by `{command}`; the tables below are its output as it is. The programs of a ratio take turns, each in
processes of its own that stay alive, and the ratio is taken in each round: what stands here is the median of these
ratios, with the first and third quartile. A peer that is not installed leaves its columns empty. Absolute times
depend on the machine and on who else uses it; ratios less so.

"""


def section(name: str, quick: bool) -> str:
    """One measurement's part of the report."""
    module = importlib.import_module(f"benchmarks.{name}")
    begin = time.perf_counter()
    text = module.run(quick=quick)
    minutes = (time.perf_counter() - begin) / 60
    command = f"python -m benchmarks.{name}" + " --quick" * quick
    about = module.__doc__.partition("\n\n")[0]
    return f"## {NAMES[name]}\n\n{about}\n\n`{command}` ({minutes:.1f} min)\n\n```\n{text}\n```\n"


def main() -> int:
    """Run what the command line names."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=["all", *NAMES])
    p.add_argument("--out", metavar="FILE.md", help="write the report here, too, after every measurement")
    p.add_argument(
        "--quick", action="store_true", help="little work, to see that all run; not for publication"
    )
    args = p.parse_args()
    flags = f" --out {args.out}" * bool(args.out) + " --quick" * args.quick
    parts = [INTRODUCTION.format(command=f"python -m benchmarks {args.name}{flags}")]
    if args.quick:
        parts.append("**A trial run with little work: these numbers mean nothing.**\n\n")
    parts.append(f"```\n{header()}\n```\n\n")
    failed = []
    for name in NAMES if args.name == "all" else [args.name]:
        try:
            parts.append(section(name, args.quick) + "\n")
        except Exception:  # the others are still worth having
            failed.append(name)
            parts.append(f"## {NAMES[name]}\n\nfailed:\n\n```\n{traceback.format_exc()}```\n\n")
        print(parts[-1], flush=True)
        if args.out:
            Path(args.out).write_text("".join(parts).rstrip() + "\n")
    if not installed("torch"):
        print("without PyTorch, its columns are empty", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
