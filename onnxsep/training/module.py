"""The torch module that computes a graph node by node; :mod:`onnxsep.training.bridge` makes it."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.errors import OptionError, UnsupportedModelError
from onnxsep.graph.scopes import display_name
from onnxsep.training.attributes import Operation
from onnxsep.training.converters import import_torch
from onnxsep.training.normalize import Normalized


@dataclass(frozen=True)
class Step:
    """One node.

    Attributes:
        node: The node of the normalised graph.
        operation: What computes it.
        gone: Tensors that no later step reads.
    """

    node: onnx.NodeProto
    operation: Operation
    gone: tuple[str, ...]


@functools.cache
def module_class() -> Callable[..., Any]:
    """The class of ``TorchGraph.module``; made here because its base can only be imported when it is needed."""
    import_torch()
    import torch

    class OnnxModule(torch.nn.Module):
        def __init__(
            self,
            normalized: Normalized,
            steps: Sequence[Step],
            arrays: Mapping[str, NDArray[Any]],
            weights: Collection[str],
            statistics: Collection[str],
        ) -> None:
            super().__init__()
            self._steps = list(steps)
            self._own: dict[int, Step] = {}  # steps as they were, where a module stands in for one
            self._inputs = [value.name for value in normalized.graph.input]
            self._outputs = normalized.outputs
            self._keys: dict[str, str] = {}  # torch does not allow every name, so tensors are numbered
            self._statistics = sorted(statistics)
            self._texts = {name: array for name, array in arrays.items() if array.dtype.kind not in "fiub"}
            for index, (name, array) in enumerate(arrays.items()):
                if name in self._texts:
                    continue
                self._keys[name] = f"tensor_{index}"
                tensor = torch.from_numpy(np.array(array))
                if name in weights:
                    self.register_parameter(self._keys[name], torch.nn.Parameter(tensor))
                else:
                    self.register_buffer(self._keys[name], tensor, persistent=name in statistics)
            # Computed as they are in evaluation, see :meth:`train`.
            self._registered = torch.nn.ModuleList(
                step.operation.module for step in steps if step.operation.module is not None
            )
            self._stand_ins = torch.nn.ModuleDict()  # so that torch knows their parameters
            self.register_buffer("_device_marker", torch.empty(0), persistent=False)

        def weights(self) -> dict[str, Any]:
            keys = self._keys.items()
            return {name: self._parameters[key] for name, key in keys if key in self._parameters}

        def statistics(self) -> dict[str, Any]:
            return {name: self._buffers[self._keys[name]] for name in self._statistics}

        def inputs(self) -> list[str]:
            return list(self._inputs)

        def device(self) -> Any:
            return self._device_marker.device

        def steps(self) -> list[Step]:
            return list(self._steps)

        def train(self, mode: bool = True) -> "OnnxModule":
            super().train(mode)
            self._registered.eval()
            return self

        def put(self, index: int, module: Any) -> None:
            """Let a torch module compute a step, from the same tensors; None gives it back to its operation."""
            step = self._steps[index]
            self._own.setdefault(index, step)
            operation = self._own[index].operation
            if module is not None:
                operation = replace(operation, call=module, module=module)
                self._stand_ins[str(index)] = module
            elif str(index) in self._stand_ins:
                del self._stand_ins[str(index)]
            self._steps[index] = replace(step, operation=operation)

        def forward(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            tensors = {name: getattr(self, key) for name, key in self._keys.items()}
            missing = [name for name in self._inputs if name not in feeds]
            if missing:
                raise OptionError(f"the input {missing[0]!r} is missing; the model has: {', '.join(self._inputs)}")
            tensors.update(self._texts)
            tensors.update((name, feeds[name]) for name in self._inputs)
            run_steps(self._steps, tensors, self.training)
            return dict(zip(self._outputs, looked_up(tensors, self._outputs.values(), "the model"), strict=True))

    return OnnxModule


def run_steps(steps: Sequence[Step], tensors: dict[str, Any], training: bool) -> None:
    """Compute nodes; ``tensors`` holds what they read, and then what they give.

    Raises:
        UnsupportedModelError: torch cannot compute one.
    """
    for step in steps:
        try:
            arguments = [tensors[name] if name else None for name in step.operation.inputs]
        except KeyError as error:
            raise _missing(error.args[0], f"{step.node.op_type} {display_name(step.node)!r}") from error
        result = _run(step, arguments, training)
        tensors.update(zip(step.node.output, result if isinstance(result, tuple) else [result], strict=False))
        for name in step.gone:
            tensors.pop(name, None)


def looked_up(tensors: Mapping[str, Any], names: Iterable[str], what: str) -> list[Any]:
    """Tensors by name; ``what`` wants them.

    Raises:
        UnsupportedModelError: There is none of that name.
    """
    try:
        return [tensors[name] for name in names]
    except KeyError as error:
        raise _missing(error.args[0], what) from error


def _missing(name: str, what: str) -> UnsupportedModelError:
    """The file is damaged, or its nodes go round in a circle."""
    return UnsupportedModelError(f"the model cannot be run with torch: {what} needs {name!r}, and nothing gives it")


def _run(step: Step, arguments: Sequence[Any], training: bool) -> Any:
    """Compute one node; what torch says about a failure names no node, so that is added."""
    operation = step.operation
    try:
        if getattr(operation.call, "trains", False):
            return operation.call(*arguments, training=training)
        return operation.call(*arguments)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"the model cannot be run with torch: {step.node.op_type} {display_name(step.node)!r}: {reason}"
        ) from error
