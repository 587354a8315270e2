"""Around every training loop: threads, outputs as arrays, and proof that torch computes the model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import OptionError, UnsupportedModelError
from onnxsep.graph.scopes import display_name
from onnxsep.training.batches import Feeds
from onnxsep.training.bridge import TorchGraph
from onnxsep.training.converters import import_torch
from onnxsep.training.full_precision import full_precision
from onnxsep.training.teacher import Teacher

# Largest relative difference (root mean square) between torch and ONNX Runtime that rounding explains.
_SAME = {"float16": 0.05}
_SAME_FLOAT32 = 1e-3
# What is nearly 0 behind a Sigmoid or Softmax is known to an absolute precision only, also to ONNX Runtime.
_NOTHING = 1e-6
# What is constant between its jumps.
_WITHOUT_GRADIENT = {
    *("Hardmax", "Round", "Sign", "Floor", "Ceil", "ArgMax", "ArgMin", "Cast", "OneHot"),
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads in the context; 0 leaves the number as it is."""
    torch = import_torch()
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def arrays_of(graph: TorchGraph, feeds: Feeds) -> dict[str, NDArray[Any]]:
    """The outputs of the torch module by name, without gradients."""
    with import_torch().no_grad(), full_precision():
        outputs = graph.module(graph.tensors(feeds))
    return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}


def check_conversion(runner: Teacher, feeds: Feeds, ours: Mapping[str, NDArray[Any]]) -> None:
    """The torch copy computes what ONNX Runtime computes, or its gradients are those of another network.

    Args:
        runner: The same model in ONNX Runtime.
        feeds: Some inputs.
        ours: What the torch copy gives for them.

    Raises:
        UnsupportedModelError: An output differs by more than rounding explains.
    """
    for name, expected in runner(feeds).items():
        if expected.dtype.kind != "f":
            continue
        wide, found = expected.astype(np.float64), ours[name].astype(np.float64)
        error = float(np.linalg.norm(found - wide) / max(np.linalg.norm(wide), 1e-12))
        same = error <= _SAME.get(expected.dtype.name, _SAME_FLOAT32) or np.abs(found - wide).max(initial=0) <= _NOTHING
        if np.isfinite(wide).all() and not same:
            raise UnsupportedModelError(
                f"the torch copy of the model computes another {name!r} than ONNX Runtime (relative difference"
                f" {error:.2g}), so it cannot be tuned: torch has no exact counterpart of one of its operators"
            )


def check_outputs(names: Iterable[str], ours: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    """The teacher's outputs of these names are outputs of the model too, in the same shapes.

    Raises:
        OptionError: One is not.
    """
    for name in names:
        if name not in ours or ours[name].shape != wanted[name].shape:
            raise OptionError(f"the output {name!r} of the teacher is not one of the model, or has another shape")


def check_gradients(graph: TorchGraph, feeds: Feeds, names: Iterable[str]) -> None:
    """Some gradient goes back from these outputs to a weight.

    Raises:
        UnsupportedModelError: None does: what is between them is constant wherever it has a derivative.
    """
    torch, names = import_torch(), list(names)
    outputs = graph.module(graph.tensors(feeds))
    source = torch.Generator().manual_seed(0)
    total = sum(
        (outputs[name] * torch.randn(outputs[name].shape, generator=source).to(outputs[name])).sum() for name in names
    )
    weights = [value for value in graph.parameters.values() if value.requires_grad]
    if torch.is_tensor(total) and total.requires_grad:
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        if any(gradient is not None and bool(gradient.any()) for gradient in gradients):
            return
    flat = [step.node for step in graph.module.steps() if step.node.op_type in _WITHOUT_GRADIENT]
    where = f"; that of {flat[-1].op_type} {display_name(flat[-1])!r} is 0 everywhere" if flat else ""
    raise UnsupportedModelError(
        f"the model cannot be trained: no gradient goes back from {', '.join(map(repr, names))} to its weights{where}"
    )
