"""Training programs: options, the loop, the closing table, the one-process twin."""

from .options import parse, parser
from .session import Session
from .trainer import Trainer, run, train
from .twin import Twin

__all__ = ["Session", "Trainer", "Twin", "parse", "parser", "run", "train"]
