"""The real CuPy on a stand-in CUDA runtime that executes kernels on the CPU, for machines without a GPU.

It lives beside the checkout, in ``../shared/tools/cupy_on_cpu``; its README says what it can show.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minidnn.data.cache import cache_folder

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT.parent / "shared" / "tools" / "cupy_on_cpu"


@functools.cache
def folder_or_skip() -> Path:
    """Where the emulation is; the test is skipped, with the reason, where it cannot run.

    With ``MINIDNN_REQUIRE_EMULATION=1`` that is a failure.
    """
    missing = [
        reason
        for reason, found in (
            (f"no CPU emulation of CUDA in {FOLDER}", FOLDER.is_dir()),
            ("no cupy: pip install -e '.[emulation]'", importlib.util.find_spec("cupy")),
            ("no g++", shutil.which("g++")),
        )
        if not found
    ]
    if missing and os.environ.get("MINIDNN_REQUIRE_EMULATION") == "1":
        pytest.fail("; ".join(missing))
    if missing:
        pytest.skip("; ".join(missing))
    # Compiled kernels are kept for the next run. Subprocesses inherit where; what all kernels share is built here,
    # by one process, since several that begin at once would write the same files.
    for name in ("FAKECUDA_BUILD", "CUDA_CPU_CACHE"):
        os.environ.setdefault(name, str(cache_folder() / "emulation"))
    run("import fakecuda; fakecuda.install(); import cupy; (cupy.zeros(1) + 1).get()", timeout=120)
    return FOLDER


def run(program: str | Path, *args: object, timeout: float) -> str:
    """What a program (source text, or the path of a script) prints on the emulated device.

    It may ``import fakecuda`` and must call ``fakecuda.install()`` before it imports cupy. The test fails if it
    fails or does not end in time.
    """
    code = [program] if isinstance(program, Path) else ["-c", program]
    path = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    process = subprocess.run(
        [sys.executable, *map(str, code), *map(str, args)],
        env=os.environ | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
