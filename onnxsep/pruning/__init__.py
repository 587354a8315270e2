"""Pruning: single weights become zero, or whole channels leave the graph; see ``api.prune``."""

from onnxsep.pruning.api import PruneResult, prune
from onnxsep.pruning.mark import SPARSITY_KEY, dense_factor_notes
from onnxsep.pruning.report import PruneReport
from onnxsep.pruning.schedule import Goal, surviving_weights

__all__ = [
    "SPARSITY_KEY",
    "Goal",
    "PruneReport",
    "PruneResult",
    "dense_factor_notes",
    "prune",
    "surviving_weights",
]
