"""Faults in one rank of a real training run, of every kind, at any time: does the run end, and how?

    python tests/faults.py --times 2       # every kind, in every strategy, twice: a table for benchmarks/README.md

As ``faults.py rank KIND VICTIM STRATEGY SEED`` it is the program whose rank VICTIM fails: before it comes to the
guard, inside (at one of its messages, which one the seed decides), or after.
"""

import argparse
import atexit
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = str(Path(__file__).resolve())
STRATEGIES = {"data": 2, "layer_split": 2, "owt": 2, "tensor": 2, "alexnet2012": 2, "hybrid": 4}
LIMITS = {"MINIDNN_START": "4", "MINIDNN_STALL": "4", "MINIDNN_LEAVE": "4"}  # seconds
OPTIONS = "--width 0.1 --batch 16 --images 64 --steps 3 --epochs 1 --validation 16 --quiet".split()


def to_self(number):
    return lambda: os.kill(os.getpid(), number)


def in_child(act):
    def fork():
        if os.fork() == 0:
            act()

    return fork


def fail():
    raise ValueError("a fault")


def close_stdout():
    os.close(1)
    print("nobody reads this", flush=True)


def too_little_memory():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 22),) * 2)


def other_thread():
    threading.Thread(target=time.sleep, args=(3600,)).start()


def endless():
    while True:
        pass


#: (when, what happens): what is to be read, of which one must be; "" where the launcher alone can know
NOT_STARTED, GONE, NOT_ENDED = "have not started within 4 s", "is gone without a word", "not ended within 4 s"
STILL, FINISHED = "has not gone on for 4 s", "has finished"
ENDS = {
    ("before", "raises"): (fail, "ValueError: a fault"),
    ("before", "exits with 0"): (lambda: sys.exit(0), NOT_STARTED),
    ("before", "exits with 1"): (lambda: sys.exit(1), ""),
    ("before", "killed"): (to_self(signal.SIGKILL), ""),
    ("before", "stopped"): (to_self(signal.SIGSTOP), NOT_STARTED),
    ("before", "out of memory"): (too_little_memory, ""),
    ("inside", "raises"): (fail, "ValueError: a fault"),
    ("inside", "sys.exit(0)"): (lambda: sys.exit(0), FINISHED),
    ("inside", "sys.exit(3)"): (lambda: sys.exit(3), ""),
    ("inside", "sys.exit(256)"): (lambda: sys.exit(256), ""),
    ("inside", "os._exit(0)"): (lambda: os._exit(0), GONE),
    ("inside", "os._exit(3)"): (lambda: os._exit(3), GONE),
    ("inside", "execv"): (lambda: os.execv("/bin/true", ["true"]), GONE),
    ("inside", "killed"): (to_self(signal.SIGKILL), GONE),
    ("inside", "terminated"): (to_self(signal.SIGTERM), GONE),
    ("inside", "segmentation fault"): (to_self(signal.SIGSEGV), GONE),
    ("inside", "stopped"): (to_self(signal.SIGSTOP), STILL),
    ("inside", "interrupted"): (to_self(signal.SIGINT), "interrupted"),
    ("inside", "computes for ever"): (endless, "in endless"),
    ("inside", "closed stdout"): (close_stdout, "Bad file descriptor"),
    ("inside", "child raises"): (in_child(fail), "ValueError: a fault"),
    ("inside", "child exits with 3"): (in_child(lambda: sys.exit(3)), GONE),
    ("after", "killed"): (to_self(signal.SIGKILL), ""),
    ("after", "stopped"): (to_self(signal.SIGSTOP), NOT_ENDED),
    ("after", "os._exit(3)"): (lambda: os._exit(3), ""),
    ("after", "thread goes on"): (other_thread, NOT_ENDED),
}


def program(when, what, victim, strategy, seed):
    """What each rank runs."""
    import minidnn.launch.launchers as launchers

    def act():
        os.write(2, b"the fault strikes\n")
        ENDS[when, what][0]()

    mine = launchers.rank() == victim
    if mine and when == "before":
        act()
    from minidnn.comm.mpi import MPICommunicator
    from minidnn.train import run

    if mine and when == "inside":
        send, at = MPICommunicator._isend, itertools.count()
        chosen = random.Random(f"{strategy} {what} {seed}").randrange(6, 16)

        def faulty(*args):
            if next(at) == chosen:
                act()
            return send(*args)

        MPICommunicator._isend = faulty
    if mine and when == "after":
        if what == "thread goes on":
            act()
        else:
            atexit.register(act)
    run("", strategy, OPTIONS)


def inject(when, what, victim=1, strategy="data", seed=0, launcher=("mpirun",), timeout=60):
    """Run it; exit code, seconds until the last process is gone, and all that was printed.

    Raises
    ------
    subprocess.TimeoutExpired
        The run did not end; it is killed.
    """
    command = [
        *launcher,
        "-n",
        STRATEGIES[strategy],
        sys.executable,
        HERE,
        "rank",
        when,
        what,
        victim,
        strategy,
        seed,
    ]
    env = os.environ | LIMITS | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(HERE).parents[1])}
    begin = time.monotonic()
    # a rank or a witness that is left over keeps the pipe open, so the end of the pipe is that of the last process
    with subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    ) as process:
        try:
            out = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    seconds, out = time.monotonic() - begin, out.decode(errors="replace")
    assert "the fault strikes" in out, out
    return process.returncode, seconds, out


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1, help="how often each kind in each strategy")
    parser.add_argument(
        "--launcher", default="mpirun", help="for Open MPI as root: 'mpirun --oversubscribe ...'"
    )
    args = parser.parse_args()
    print(
        "| when | fault | runs | seconds to the last process | exit codes | message |\n|---|---|---|---|---|---|"
    )
    count, zeros, silent = 0, 0, []
    for (when, what), (_, words) in ENDS.items():

        def one(case, when=when, what=what):
            seed, strategy = case
            victim = (seed + len(strategy)) % STRATEGIES[strategy]
            return inject(when, what, victim, strategy, seed, args.launcher.split())

        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(one, itertools.product(range(args.times), STRATEGIES)))
        codes, seconds = sorted({code for code, _, _ in ends}), [seconds for _, seconds, _ in ends]
        told = sum(words in out for _, _, out in ends)
        silent += [out for _, _, out in ends if words not in out]
        message = (
            f"`{words}`" + f" ({told} of {len(ends)})" * (told < len(ends)) if words else "the launcher's"
        )
        shown = f"{min(seconds):.1f}-{max(seconds):.1f} | {', '.join(map(str, codes))} | {message}"
        print(f"| {when} | {what} | {len(ends)} | {shown} |", flush=True)
        count, zeros = count + len(ends), zeros + sum(code == 0 for code, _, _ in ends)
    print(f"\n{count} faults, every run ended; {zeros} with exit code 0, {len(silent)} without the message")
    print(*silent, sep="\n----\n", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        when, what, victim, strategy, seed = sys.argv[2:]
        program(when, what, int(victim), strategy, int(seed))
    else:
        main()
