"""Parallel training: placements, the planner, the plan, and the executor that runs it."""

from .check import ScheduleError, check_plan, run_schedules
from .executor import Executor, Result
from .nonfinite import NonFiniteError
from .placement import Grid, OnRank, Partial, Replicate, Shard
from .plan import Plan
from .planner import make_plan
from .shard import PlacementError
from .state import gather_weights, replicas_equal
from .strategies import STRATEGIES, make_strategy, place
from .strategy import Options, Strategy

__all__ = [
    "STRATEGIES",
    "Executor",
    "Grid",
    "NonFiniteError",
    "OnRank",
    "Options",
    "Partial",
    "PlacementError",
    "Plan",
    "Replicate",
    "Result",
    "ScheduleError",
    "Shard",
    "Strategy",
    "check_plan",
    "gather_weights",
    "make_plan",
    "make_strategy",
    "place",
    "replicas_equal",
    "run_schedules",
]
