"""Pruning: single weights become zero, or whole channels leave the graph; see ``api.prune``."""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.engine.sparsity import SPARSITY_KEY
    from onnxsep.pruning.api import PruneResult, prune
    from onnxsep.pruning.report import PruneReport
    from onnxsep.pruning.schedule import Goal, surviving_weights
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.engine.sparsity": ("SPARSITY_KEY",),
            "onnxsep.pruning.api": ("PruneResult", "prune"),
            "onnxsep.pruning.report": ("PruneReport",),
            "onnxsep.pruning.schedule": ("Goal", "surviving_weights"),
        },
    )

__all__ = ["SPARSITY_KEY", "Goal", "PruneReport", "PruneResult", "prune", "surviving_weights"]
