"""Operators that bring activations to a scale, and Dropout."""

from typing import Any

import torch
from torch.nn import functional

from onnxsep.training.attributes import Attributes, Builder, Call


def _batch_norm(attributes: Attributes) -> Call:
    epsilon, momentum = attributes.get("epsilon", 1e-5), 1 - attributes.get("momentum", 0.9)
    if not attributes.flag("spatial", True):
        raise NotImplementedError("spatial=0 is not supported")
    if attributes.flag("training_mode"):
        return _batch_norm_of_batches(epsilon, momentum, attributes.outputs)

    def call(x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, training: bool = False) -> Any:
        return functional.batch_norm(x, mean, var, scale, bias, training, momentum, epsilon)

    call.trains = True  # type: ignore[attr-defined]
    return call


def _batch_norm_of_batches(epsilon: float, momentum: float, outputs: int) -> Call:
    """With ``training_mode``: the graph itself says that statistics are the batch's, and gives the running ones out."""

    def call(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        if outputs == 1:
            return y
        dims = [axis for axis in range(x.dim()) if axis != 1]
        return y, torch.lerp(mean, x.mean(dims), momentum), torch.lerp(var, x.var(dims, correction=0), momentum)

    return call


def _instance_norm(attributes: Attributes) -> Call:
    epsilon = attributes.get("epsilon", 1e-5)
    # That of torch refuses an instance of one element.
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def _group_norm(attributes: Attributes) -> Call:
    groups, epsilon = attributes.need("num_groups"), attributes.get("epsilon", 1e-5)
    attributes.ignore("stash_type")

    def call(x: Any, scale: Any, bias: Any) -> Any:
        if attributes.opset < 21:  # one for each group, later one for each channel
            scale, bias = (tensor.repeat_interleave(x.shape[1] // groups) for tensor in (scale, bias))
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return call


def _layer_norm(attributes: Attributes) -> Call:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    attributes.ignore("stash_type")
    more = attributes.outputs > 1

    def call(x: Any, scale: Any, bias: Any = None) -> Any:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            y = functional.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = functional.layer_norm(x, shape, eps=epsilon) * scale
            y = y if bias is None else y + bias
        if not more:
            return y
        dims = tuple(range(axis % x.dim(), x.dim()))
        return y, x.mean(dims, True), (x.var(dims, correction=0, keepdim=True) + epsilon).rsqrt()

    return call


def _rms_norm(attributes: Attributes) -> Call:
    axis, epsilon = attributes.get("axis", -1), attributes.get("epsilon", 1e-5)
    attributes.ignore("stash_type")

    def call(x: Any, scale: Any) -> Any:
        dims = tuple(range(axis % x.dim(), x.dim()))
        return x * (x.square().mean(dims, True) + epsilon).rsqrt() * scale

    return call


def _mean_variance(attributes: Attributes) -> Call:
    axes = attributes.ints("axes") or [0, 2, 3]

    def call(x: Any) -> Any:
        centred = x - x.mean(axes, True)
        return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)

    return call


def _local_response(attributes: Attributes) -> Call:
    alpha, beta, bias = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    size = attributes.need("size")
    before = (size - 1) // 2

    def call(x: Any) -> Any:
        pads = [0, 0] * (x.dim() - 2) + [before, size - 1 - before]  # torch puts the odd one on the other side
        sums = functional.pad(x.square(), pads).unfold(1, size, 1).sum(-1)
        return x / (bias + sums * (alpha / size)).pow(beta)

    return call


def _lp_norm(attributes: Attributes) -> Call:
    axis, p = attributes.get("axis", -1), attributes.get("p", 2)

    def call(x: Any) -> Any:
        length = torch.linalg.vector_norm(x, p, axis, True)
        return x / length.masked_fill(length == 0, 1.0)

    return call


def _dropout(attributes: Attributes) -> Call:
    fixed, old = attributes.get("ratio", 0.5), attributes.opset < 12
    attributes.ignore("seed")
    masked = attributes.outputs > 1

    def call(x: Any, ratio: Any = None, mode: Any = None, *, training: bool = False) -> Any:
        share = fixed if ratio is None else float(ratio)
        if not masked:
            return functional.dropout(x, share, training)
        kept = torch.rand_like(x) >= share if training else torch.ones_like(x, dtype=torch.bool)
        y = x * kept / (1 - share) if training and share < 1 else x * kept
        return y, torch.zeros_like(kept) if old else kept  # the runtime's older versions give no mask

    call.trains = True  # type: ignore[attr-defined]
    return call


def _global_lp_pool(attributes: Attributes) -> Call:
    p = attributes.get("p", 2)
    return lambda x: torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), True)


TABLE: dict[str, Builder] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _local_response,
    "LpNormalization": _lp_norm,
    "GlobalLpPool": _global_lp_pool,
    "Dropout": _dropout,
}
