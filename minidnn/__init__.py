"""minidnn: a deep-learning framework in which every message of parallel training can be seen and checked.

``import minidnn as mn`` does not even import NumPy; ``mn.nn``, ``mn.Tensor`` and the others are imported when
they are first used.
"""

import sys
from importlib import import_module
from typing import Any

from minidnn.launch import threads as _threads  # noqa: F401 - first of all: NumPy reads the number when imported

_MODULES = "backend comm data functional gradcheck launch nn optim parallel random report train".split()
_NAMES = {name: "tensor" for name in ("Function", "Tape", "Tensor", "is_grad_enabled", "no_grad")}

__all__ = sorted([*_MODULES, *_NAMES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _NAMES:
        value = getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(
            f"module 'minidnn' has no attribute {name!r}", name=name, obj=sys.modules[__name__]
        )
    globals()[name] = value  # the next time it is found without coming here
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("minidnn")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"
