"""Real MPI runs for the tests: plain subprocesses with a time limit, and nothing left over after them."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


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
    command = [MPIRUN, *launcher, "-n", str(n), sys.executable, *code, *map(str, args)]
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
    return subprocess.CompletedProcess(command, process.returncode, out, err)
