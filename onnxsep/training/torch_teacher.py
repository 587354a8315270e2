"""The teacher in torch, where that is faster than ONNX Runtime: in bfloat16, or on a GPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import OnnxsepError
from onnxsep.model.io import Model
from onnxsep.training.batches import Feeds
from onnxsep.training.bridge import to_torch
from onnxsep.training.choices import Precision
from onnxsep.training.converters import import_torch
from onnxsep.training.full_precision import full_precision
from onnxsep.training.teacher import TeacherCall

# Largest relative difference (root mean square) from ONNX Runtime that the precision explains.
_SAME = {"float32": 1e-3, "bfloat16": 0.05}


class TorchTeacher:
    """A model in torch that is not trained.

    Args:
        model: The model.
        device: Where it runs.
        precision: Of its layers; outputs are float32.

    Raises:
        UnsupportedModelError: torch cannot compute it.
    """

    def __init__(self, model: Model, device: Any, precision: Precision) -> None:
        self._torch = import_torch()
        self._graph = to_torch(model)
        self._graph.module.to(device).requires_grad_(False)
        self._device, self._reduced = device, precision == "bfloat16"

    def __call__(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """The outputs by name.

        Raises:
            UnsupportedModelError: torch cannot compute it for these inputs.
        """
        lower = self._torch.autocast(self._device.type, self._torch.bfloat16, self._reduced)
        with self._torch.no_grad(), full_precision(), lower:
            outputs = self._graph.module(self._graph.tensors(feeds))
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in outputs.items()
        }


def fastest_teacher(
    model: Model, runner: TeacherCall, feeds: Feeds, device: Any, precision: Precision
) -> tuple[TeacherCall, tuple[str, ...]]:
    """The teacher in torch where that is faster and gives the same, else as it is.

    In float32 on a CPU, ONNX Runtime is the faster of the two. In bfloat16 torch takes 0.6 of its time for ResNet-20.

    Args:
        model: The teacher.
        runner: It in ONNX Runtime.
        feeds: Some samples, on which the two are compared.
        device: Where the model is trained.
        precision: In which it is trained.

    Returns:
        The teacher to ask, and what the user should know.
    """
    if device.type == "cpu" and precision == "float32":
        return runner, ()
    try:
        teacher = TorchTeacher(model, device, precision)
        ours, theirs = teacher(feeds), runner(feeds)
    except OnnxsepError as error:
        return runner, (f"the teacher runs in ONNX Runtime, which is slower here: {error}",)
    worst = max((_error(ours[name], values) for name, values in theirs.items() if values.dtype.kind == "f"), default=0)
    if not worst <= _SAME[precision]:
        reason = f"in torch with {precision} its outputs differ by {worst:.2g}"
        return runner, (f"the teacher runs in ONNX Runtime, which is slower here: {reason}",)
    return teacher, ()


def _error(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    wide = theirs.astype(np.float64)
    return float(np.linalg.norm(ours.astype(np.float64) - wide) / max(np.linalg.norm(wide), 1e-12))
