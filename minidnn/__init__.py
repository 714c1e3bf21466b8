"""minidnn: a deep-learning framework in which every message of parallel training can be seen and checked."""

from minidnn import _blas  # noqa: F401 - first of all: it sets the BLAS threads, which NumPy reads when imported
