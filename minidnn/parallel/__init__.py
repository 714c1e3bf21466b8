"""Parallel training: the mesh, the rule, the planner, the plan, and the executor that runs it."""

from .by_hand import make_strategy, place
from .check import ScheduleError, check_plan, run_events
from .executor import Executor
from .mesh import Mesh
from .nonfinite import NonFiniteError
from .placement import At, Partial, Replicate, Shard
from .plan import Plan
from .planner import make_plan
from .rule import PlacementError, Split
from .run import Result
from .state import gather_state, gather_weights, replicas_equal, unequal_replicas
from .strategies import STRATEGIES
from .strategy import Options, Strategy

__all__ = [
    "STRATEGIES",
    "At",
    "Executor",
    "Mesh",
    "NonFiniteError",
    "Options",
    "Partial",
    "PlacementError",
    "Plan",
    "Replicate",
    "Result",
    "ScheduleError",
    "Shard",
    "Split",
    "Strategy",
    "check_plan",
    "gather_state",
    "gather_weights",
    "make_plan",
    "make_strategy",
    "place",
    "replicas_equal",
    "run_events",
    "unequal_replicas",
]
