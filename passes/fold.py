"""fold: what multiplies and shifts the channels behind a Conv goes into its weight and bias.

What it does
    y' = a y + c for each channel of a Conv's output y gives W' = a W and b' = a b + c, in double precision: exact but
    for the rounding of W' and b' to the type of the weight. With BatchNormalization a = gamma / sqrt(variance +
    epsilon) and c = beta - a mean (Jacob et al. 2018, section 3.2).

Pattern
    A Conv, then one to eight of: BatchNormalization (inference, statistics constant), Mul or Add with a constant that
    is one number or one for each channel, as [C, 1, 1], [1, C, 1, 1] or the like.

Why
    Two nodes and 4 C numbers become C numbers. Runtimes do the same when they load a model; what reads the file itself
    (quantisers, converters, decompositions of the Convs) gains from having it done. It always pays, so first Convs are
    folded too.

When it refuses
    What it would fold is used elsewhere, or is an output; statistics that are not constant; BatchNormalization that
    trains, or has statistics for each position (spatial=0); operator sets below 7, whose broadcasting differs. A weight
    that other nodes use, or Convs that fold it otherwise: it would have to be stored twice (``--force``).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    Const,
    ConvLayer,
    Either,
    FactorizationError,
    Layer,
    Op,
    Operand,
    Operator,
    Pattern,
    Refusal,
    Value,
    per_channel,
)

_CONV, _NORM = "conv", "norm"
_MOST = 8  # nodes behind a Conv; exporters write up to three
_LEAST_OPSET = 7  # below it Mul and Add broadcast as an attribute says, and BatchNormalization has other ones
_PARTS = {"BatchNormalization": ("gamma", "beta", "mean", "variance"), "Mul": ("factor",), "Add": ("term",)}


def _behind(inner: Operand, number: int) -> Operand:
    """One more node behind what was matched so far."""
    statistics = [Const(f"{part}_{number}") for part in _PARTS["BatchNormalization"]]
    return Either(
        Op(f"{_NORM}_{number}", "BatchNormalization", inner, *statistics),
        # The constant first: where there is none, nothing behind it has to be tried.
        Op(f"scale_{number}", "Mul", Const(f"factor_{number}"), inner),
        Op(f"shift_{number}", "Add", Const(f"term_{number}"), inner),
    )


def _chain() -> Operand:
    conv = Op(_CONV, "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
    chain = _behind(conv, 1)
    for number in range(2, _MOST + 1):
        chain = _behind(Either(chain, conv), number)
    return chain


class Fold(BlockMode):
    """Conv with BatchNormalization, Mul and Add behind it."""

    name = "fold"
    summary = "BatchNormalization, and Mul or Add of constants, folded into the Conv before it; exact"
    pattern = Pattern("Conv with BatchNormalization behind it", _chain())
    anchor = _CONV
    exact = True
    finished = False

    def accepts(self, block: Block) -> str | None:
        """Refuse what is not the same for all positions and inputs."""
        if block.opset < _LEAST_OPSET:
            return f"operator set {block.opset}: only from {_LEAST_OPSET} on is it known what is behind it"
        channels, dims = block.conv.out_channels, block.conv.dims
        for role, node in _links(block):
            if node.op_type == "BatchNormalization":
                if node.attribute("training_mode", 0) or node.outputs > 1:
                    return "the BatchNormalization behind it is in training mode"
                if not node.attribute("spatial", 1):
                    return "the BatchNormalization behind it has statistics for each position (spatial=0)"
            for part in _PARTS[node.op_type]:
                shape = block.shapes[_numbered(part, role)]
                fits = shape == (channels,) if len(_PARTS[node.op_type]) > 1 else per_channel(shape, channels, dims)
                if not fits:
                    size = "x".join(map(str, shape)) or "()"
                    return f"the {part} of the {node.op_type} behind it ({size}) is not one number for each channel"
        return None

    def why_not(self, refusal: Refusal | None) -> str:
        """A Mul or Add of two tensors is not what it looks for: then nothing comes close."""
        if refusal is None or not (refusal.whole or any(role.startswith(_NORM) for role in refusal.nodes)):
            return "no BatchNormalization behind it"
        return re.sub(r" as its (\w+)_\d+, which is not", r" as its \1, which is not", refusal.reason)

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The same Conv, with a bias."""
        return (ConvLayer("folded", INPUT, replace(block.conv, bias=True)),)

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """Weight and bias."""
        channels = block.conv.out_channels
        scale, shift = np.ones(channels), values.get("bias", np.zeros(channels)).reshape(-1)
        for role, node in _links(block):
            parts = [values[_numbered(part, role)].reshape(-1) for part in _PARTS[node.op_type]]
            factor, term = _affine(node, parts)
            scale, shift = scale * factor, shift * factor + term
        weight = values["weight"]
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)), shift


def _links(block: Block) -> Iterator[tuple[str, Operator]]:
    """What stands behind the Conv, in order."""
    return ((role, node) for role, node in block.nodes.items() if role != _CONV)


def _numbered(part: str, role: str) -> str:
    """The role of a constant of the node in a role."""
    return f"{part}_{role.rpartition('_')[2]}"


def _affine(node: Operator, parts: Sequence[Array]) -> tuple[Array, Array]:
    """Factor and term of each channel, or one for all.

    Raises:
        FactorizationError: a variance is negative.
    """
    if node.op_type == "Mul":
        return parts[0], np.zeros(1)
    if node.op_type == "Add":
        return np.ones(1), parts[0]
    gamma, beta, mean, variance = parts
    spread = variance + node.attribute("epsilon", 1e-5)
    if not (spread > 0).all():
        raise FactorizationError("a variance of the BatchNormalization behind it is not positive")
    factor = gamma / np.sqrt(spread)
    return factor, beta - mean * factor
