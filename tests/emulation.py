"""The real CuPy on a stand-in CUDA runtime that executes kernels on the CPU, for machines without a GPU.

It lives beside the checkout, in ``../shared/tools/cupy_on_cpu``; its README says what it can show.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "tools" / "cupy_on_cpu"


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
    return FOLDER
