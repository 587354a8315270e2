"""Training a model's weights with torch: the graph as a torch module, and label-free tuning by distillation.

Needs the extra ``finetune`` (torch), which is imported when a function here is called, never before.
"""

from typing import TYPE_CHECKING

from onnxsep.options.lazy import lazy

if TYPE_CHECKING:
    from onnxsep.training.bridge import TorchGraph, to_torch, write_back
    from onnxsep.training.converters import check_installed
    from onnxsep.training.tuning import TuneResult, tune
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.training.bridge": ("TorchGraph", "to_torch", "write_back"),
            "onnxsep.training.converters": ("check_installed",),
            "onnxsep.training.tuning": ("TuneResult", "tune"),
        },
    )

__all__ = ["TorchGraph", "TuneResult", "check_installed", "to_torch", "tune", "write_back"]
