"""Layers of an old block that go on in the new one: Convs with their BatchNormalization, activations, their tensors."""

from collections.abc import Mapping

import numpy as np

from onnxsep.algebra.linalg import Array
from onnxsep.graph.activations import ACTIVATIONS
from onnxsep.layers.block_layers import BoundsLayer, ElementwiseLayer, GateLayer, NormLayer
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import ConvLayer, Layer
from onnxsep.modes.block import Block
from onnxsep.modes.norms import NORM_TENSORS, STATISTICS

Kept = dict[tuple[str, str], str]
"""As ``BlockMode.kept`` gives them."""
_BOUNDS = ("least", "most")


def carried(block: Block, number: str, name: str, source: str, conv: Conv | None = None) -> list[Layer]:
    """The Conv in the role ``conv_<number>``, or one of another geometry, and the BatchNormalization behind it."""
    layers: list[Layer] = [ConvLayer(name, source, conv or block.convs[f"conv_{number}"])]
    norm = block.nodes.get(f"norm_{number}")
    if norm is not None:
        channels = (conv or block.convs[f"conv_{number}"]).out_channels
        layers.append(NormLayer(f"{name}_norm", name, channels, norm.attribute("epsilon", 1e-5)))
    return layers


def carried_tensors(block: Block, number: str, name: str, *, norm: bool = True, weight: bool = True) -> Kept:
    """Tensors of ``carried`` that stay the source's own: weight and bias, BatchNormalization."""
    found: Kept = {(name, "weight"): f"weight_{number}"} if weight else {}
    if f"bias_{number}" in block.shapes and weight:
        found[name, "bias"] = f"bias_{number}"
    if norm and f"norm_{number}" in block.nodes:
        pairs = zip(NORM_TENSORS, STATISTICS, strict=True)
        found |= {(f"{name}_norm", tensor): f"{part}_{number}" for tensor, part in pairs}
    return found


def carried_activation(block: Block, role: str, name: str, source: str) -> list[Layer]:
    """The activation in a role of ``graph.activations.activation``; none where it is missing."""
    node = block.nodes.get(role)
    if node is None:
        return []
    if node.op_type == "Mul":
        gate = block.nodes[f"{role}_gate"]
        return [
            ElementwiseLayer(f"{name}_gate", source, gate.op_type, gate.attributes),
            GateLayer(name, source, f"{name}_gate"),
        ]
    if node.op_type == "Clip" and f"{role}_least" in block.shapes:
        return [BoundsLayer(name, source)]
    return [ElementwiseLayer(name, source, node.op_type, node.attributes)]


def carried_bounds(block: Block, role: str, name: str) -> Kept:
    """The bounds of a Clip, which stay the source's own."""
    return {(name, end): f"{role}_{end}" for end in _BOUNDS if f"{role}_{end}" in block.shapes}


def activation_refused(block: Block, role: str) -> str | None:
    """Why an activation cannot be written anew; None if it can, or is missing."""
    node = block.nodes.get(role)
    if node is None:
        return None
    bounds = [f"{role}_{end}" in block.shapes for end in _BOUNDS]
    simple = node.op_type in (*ACTIVATIONS, "Clip") and any(bounds) == all(bounds)
    gated = node.op_type == "Mul" and set(block.nodes) & {f"{role}_gate"} and f"{role}_ramp" not in block.nodes
    if simple or gated:
        return None
    return f"an activation of it ({node.op_type}) is of a form that cannot be written anew"


def affine(block: Block, values: Mapping[str, Array], number: str) -> tuple[Array, Array]:
    """Scale and shift of each channel behind a Conv, [channels]: its bias and its BatchNormalization together."""
    channels = block.convs[f"conv_{number}"].out_channels
    scale, shift = np.ones(channels), values.get(f"bias_{number}", np.zeros(channels)).reshape(-1)
    norm = block.nodes.get(f"norm_{number}")
    if norm is None:
        return scale, shift
    gamma, beta, mean, variance = (values[f"{part}_{number}"] for part in STATISTICS)
    scale = gamma / np.sqrt(variance + norm.attribute("epsilon", 1e-5))
    return scale, beta + scale * (shift - mean)


def plain_norm(scale: Array, shift: Array, epsilon: float) -> list[Array]:
    """Gamma, beta, mean and variance of a BatchNormalization that multiplies and adds."""
    return [scale * np.sqrt(1 + epsilon), shift, np.zeros_like(scale), np.ones_like(scale)]
