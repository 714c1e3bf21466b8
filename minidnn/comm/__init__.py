"""Communication between ranks, in the order in which to read it.

- :mod:`.patterns`, :mod:`.algorithms`: the collectives as data, which rank sends what to whom in which round;
- :mod:`.communicator`: sending and receiving, :mod:`.engine`: collectives in flight; transports :mod:`.threads` and
  :mod:`.mpi` (with :mod:`.staging` for device arrays);
- :mod:`.collectives`, executed by :mod:`.execute`; :mod:`.headers` checks that the ranks agree, :mod:`.tuning`
  chooses an algorithm by size;
- :mod:`.operation`: collectives on tensors split along axes, with their adjoints; :mod:`.functions`: the same
  as differentiable functions;
- :mod:`.ledger`: what was sent and where the time went; :mod:`.trace_files` writes it.
"""

from . import collectives, functions, threads
from .communicator import CommunicationError, Communicator, DeadlockError, ProtocolError
from .ledger import Ledger
from .mpi import world

__all__ = [
    "CommunicationError", "Communicator", "DeadlockError", "Ledger", "ProtocolError", "collectives",
    "functions", "threads", "world",
]  # fmt: skip
