"""Pruning: single weights become zero, or whole channels leave the graph; see ``api.prune``."""

from onnxsep.engine.sparsity import SPARSITY_KEY
from onnxsep.pruning.api import PruneResult, prune
from onnxsep.pruning.report import PruneReport
from onnxsep.pruning.schedule import Goal, surviving_weights

__all__ = [
    "SPARSITY_KEY",
    "Goal",
    "PruneReport",
    "PruneResult",
    "prune",
    "surviving_weights",
]
