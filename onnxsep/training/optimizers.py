"""The optimisers of fine-tuning and the size of their steps."""

from collections.abc import Iterable
from typing import Any

from onnxsep.training.run_records import Settings
from onnxsep.training.schedule import share_of_rate

_MOMENTUM = 0.9
_LARGEST_GRADIENT = 1.0  # norm over all weights; without it, SGD leaves the basin of a network without norms


class Steps:
    """Steps of an optimiser; weight decay holds for the weights of layers, not for biases and norms.

    Args:
        torch: The package.
        parameters: What is moved.
        settings: Which optimiser, its rates and how many epochs there are.
    """

    def __init__(self, torch: Any, parameters: Iterable[Any], settings: Settings) -> None:
        self._torch, self._settings, self._values = torch, settings, list(parameters)
        groups = [
            {
                "params": [value for value in self._values if _is_layer_weight(value)],
                "weight_decay": settings.weight_decay,
            },
            {"params": [value for value in self._values if not _is_layer_weight(value)], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if settings.optimizer == "adam":
            self.optimizer = torch.optim.AdamW(groups, lr=settings.rate)
        else:
            self.optimizer = torch.optim.SGD(groups, lr=settings.rate, momentum=_MOMENTUM, nesterov=True)

    def begin(self, at: int, steps: int) -> None:
        """Set the rate of step ``at`` of so many, and forget the gradients of the last one."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._settings.rate * share_of_rate(self._settings.schedule, at, steps)
        self.optimizer.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Move the weights along their gradients."""
        self._torch.nn.utils.clip_grad_norm_(self._values, _LARGEST_GRADIENT)
        self.optimizer.step()


def _is_layer_weight(value: Any) -> bool:
    """Whether it has values along several axes; a bias or a scale has them along one."""
    return sum(int(size > 1) for size in tuple(value.shape)) > 1
