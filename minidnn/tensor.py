"""`Tensor` with all its operators, and what else a program needs to differentiate: the names of `graph` and `tape`."""

import minidnn.functional  # noqa: F401 - gives Tensor its operators
from minidnn.graph import Function, Tensor, as_tensor
from minidnn.tape import Tape, is_grad_enabled, no_grad

__all__ = ["Function", "Tape", "Tensor", "as_tensor", "is_grad_enabled", "no_grad"]
