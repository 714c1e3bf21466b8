"""Keeping freed memory in the process, so that large arrays do not cost page faults at every step.

glibc gives blocks above 128 kB back to the kernel when they are freed, and the kernel clears every page again
when the next array of that size is touched: filling a fresh 64 MB array takes half as long again as filling
one that was used before. Two thresholds of ``mallopt`` turn that off. Python's and NumPy's own caches do not
hold arrays of this size.
"""

import ctypes
import functools
import sys

M_TRIM_THRESHOLD = -1  # /usr/include/malloc.h
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1  # mallopt takes an int


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C library, once; True if it was one that understands (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 - other libraries have a mallopt that ignores both
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
