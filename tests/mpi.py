"""Real MPI runs for the tests: plain subprocesses with a time limit, and nothing left over after them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _library():
    """Whose mpirun it is: "MPICH", "Open MPI" or "Intel MPI"; None where there is none."""
    if MPIRUN is None:
        return None
    told = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, timeout=30).stdout
    return next(
        (name for name, word in (("Open MPI", "Open MPI"), ("Intel MPI", "Intel")) if word in told), "MPICH"
    )


LIBRARY = _library()
# What MPICH's mpirun may print among the program's output when it has ended the other ranks itself.
OWN_WORDS = re.compile(r"\n=+\n=   BAD TERMINATION .*?(\n=+\n.*?suggestions\n|\Z)", re.DOTALL)
# Open MPI refuses, without these, to run as root and with more ranks than cores.
FLAGS = ["--oversubscribe", "--allow-run-as-root"] if LIBRARY == "Open MPI" else []
needs_mpi = pytest.mark.skipif(MPIRUN is None, reason='no mpirun: pip install "minidnn[mpi]"')
needs_mpich = pytest.mark.skipif(LIBRARY != "MPICH", reason=f"for MPICH's mpirun, this is that of {LIBRARY}")


def ended_with(run, *codes):
    """Whether a run in which one rank ended the others ended with one of the codes.

    MPICH may report the signal that it sent the others in place of that rank's code, Open MPI adds 128 to a
    signal, and Intel's mpirun has a code of its own.
    """
    return (
        run.returncode
        in {"MPICH": (*codes, 9), "Open MPI": (*codes, 137), "Intel MPI": (*codes, 9, 255)}[LIBRARY]
    )


def mpirun(n, program, *args, timeout=60, env=None, launcher=()):
    """Run a program on n ranks.

    Parameters
    ----------
    program : str or Path
        A script's path, or the name of a module (as after ``python -m``), or source text (with a newline in
        it).
    timeout : float
        Seconds; afterwards the whole process group is killed and the test fails with what was printed.

    Returns
    -------
    subprocess.CompletedProcess, with text in stdout and stderr
    """
    assert MPIRUN, "no mpirun beside this Python or on PATH: pip install mpich"
    program = str(program)
    if "\n" in program:
        code = ["-c", textwrap.dedent(program)]
    elif program.endswith(".py"):
        code = [program]
    else:
        code = ["-m", program]
    command = [MPIRUN, *FLAGS, *launcher, "-n", str(n), sys.executable, *code, *map(str, args)]
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{command} did not end within {timeout} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, OWN_WORDS.sub("", out), err)
