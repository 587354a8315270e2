"""The optimisers of training and the size of their steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from onnxsep.training.run_records import Settings
from onnxsep.training.schedule import share_of_rate

_MOMENTUM = 0.9
_LARGEST_GRADIENT = 1.0  # norm over all weights; without it, SGD leaves the basin of a network without norms
_SMALLEST_SCALE = 0.1  # share of the median scale: a tensor of zeros moves too


class Steps:
    """Steps of an optimiser; weight decay holds for the weights of layers, not for biases and norms.

    Args:
        torch: The package.
        parameters: What is moved.
        settings: Which optimiser, and its rates. Relative ones suit weights of unlike scale: networks, and the two
            factors of one weight, differ in it.
    """

    def __init__(self, torch: Any, parameters: Iterable[Any], settings: Settings) -> None:
        self._torch, self._settings, self._values = torch, settings, list(parameters)
        ordered = sorted(self._values, key=_is_layer_weight, reverse=True)
        together: dict[tuple[float, bool], list[Any]] = {}
        for value, scale in zip(ordered, _scales(ordered) if settings.relative else [1.0] * len(ordered), strict=True):
            together.setdefault((scale, _is_layer_weight(value)), []).append(value)
        self._scales = [scale for scale, _ in together]
        groups = [
            {"params": values, "weight_decay": settings.weight_decay if decays else 0.0}
            for (_, decays), values in together.items()
        ]
        if settings.optimizer == "adam":
            self.optimizer = torch.optim.AdamW(groups, lr=settings.rate)
        else:
            self.optimizer = torch.optim.SGD(groups, lr=settings.rate, momentum=_MOMENTUM, nesterov=True)

    def begin(self, at: int, steps: int) -> None:
        """Set the rate of step ``at`` of so many, and forget the gradients of the last one."""
        rate = self._settings.rate * share_of_rate(self._settings.schedule, at, steps)
        for group, scale in zip(self.optimizer.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale
        self.optimizer.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Move the weights along their gradients."""
        if not self._settings.relative:  # Adam's relative steps are bounded already; clipped, they gain less
            self._torch.nn.utils.clip_grad_norm_(self._values, _LARGEST_GRADIENT)
        self.optimizer.step()


def _is_layer_weight(value: Any) -> bool:
    """Whether it has values along several axes; a bias or a scale has them along one."""
    return sum(int(size > 1) for size in tuple(value.shape)) > 1


def _scales(tensors: Iterable[Any]) -> list[float]:
    """What a step is relative to, for each tensor: the root mean square of its values, within reason."""
    sizes = [float(tensor.detach().square().mean().sqrt()) for tensor in tensors]
    least = _SMALLEST_SCALE * float(np.median(sizes)) or 1e-3
    return [max(size, least) for size in sizes]
