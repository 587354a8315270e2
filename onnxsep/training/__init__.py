"""Training a model's weights with torch: the graph as a torch module, and label-free tuning by distillation.

Needs the extra ``finetune`` (torch), which is imported when a function here is called, never before.
"""

from onnxsep.training.bridge import TorchGraph, to_torch, write_back
from onnxsep.training.converters import check_installed
from onnxsep.training.tuning import TuneResult, tune

__all__ = ["TorchGraph", "TuneResult", "check_installed", "to_torch", "tune", "write_back"]
