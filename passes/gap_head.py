"""gap-head: a classifier of several fully connected layers becomes GlobalAveragePool and one of them.

What it does
    The mean of each channel over all positions, then one linear layer to the classes: C K + K parameters in place of
    those of the whole head (M. Lin et al. 2013, section 3.2; paper 004, V2).

Pattern
    Pooling or none, then Flatten (or Reshape to [N, features], Squeeze does not do; with or without a Transpose to NHWC
    before it), then two to six fully connected layers (Gemm, or MatMul with or without an Add of a constant) with any
    activation between them, and Dropout or Identity anywhere behind them. The last layer's outputs are the logits;
    Softmax behind them stays. The pooling goes with the head, as in paper 004: the mean is taken of what it read.

Initialisation
    With data: ridge regression of the logits of the original on the mean features, with an intercept,
        min |Y - (X W^T + b)|^2 + l |W|^2,
    its strength l chosen by leave-one-out, which has a closed form (G. Golub, M. Heath and G. Wahba 1979). No labels
    are needed. Without: the product of the old layers as if each activation passed half of everything (as Relu does
    with values symmetric about 0), the weights of a channel's positions added up. That keeps the scale and a little of
    the sense, so the network needs training then.

When it refuses
    One fully connected layer, which is such a head already if pooling stands before it; anything else between the
    layers, or what they compute is used elsewhere or is an output; the shape of what it reads is not known, or is not
    [N, channels, positions ...] with as many features as the first layer takes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from onnxsep.modes import (
    INPUT,
    Array,
    Block,
    BlockMode,
    Conv,
    ConvLayer,
    Either,
    FlattenLayer,
    GlobalPoolLayer,
    Layer,
    Operand,
    Pattern,
    Refusal,
    Value,
    activation,
    connected,
    flattened,
    goes_on,
    matrix_of,
    maybe_idle,
    not_linear,
    outputs_of,
)

_FIRST, _MOST = "fc_1", 6
_SLOPE = 0.5  # of an activation, as the start without data takes it
_TO_NHWC = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
_STRENGTHS = 10.0 ** np.arange(-8, 4)  # of the ridge, relative to the mean square of the features


def _activated(inner: Operand, number: int) -> Operand:
    idle = maybe_idle(f"drop_{number}", inner)
    active = Either(activation(f"activation_{number}", idle), idle)
    return maybe_idle(f"drop_after_{number}", active)


def _head() -> Operand:
    layers = [connected(flattened(Value("x")), 1)]
    for number in range(2, _MOST + 1):
        layers.append(connected(_activated(layers[-1], number - 1), number))
    return Either(*layers[:0:-1])


class GapHead(BlockMode):
    """Several fully connected layers behind Flatten."""

    name = "gap-head"
    summary = "a classifier of several Gemm or MatMul layers as GlobalAveragePool and one Gemm"
    pattern = Pattern("classifier head", _head(), goes_on)
    anchor = _FIRST
    exact = False
    linear_layers = True
    fits = "ridge"
    untrained = (
        "the new head starts as the product of the old layers, on mean features: the network needs training, or data"
        " to fit the head to"
    )

    def accepts(self, block: Block) -> str | None:
        """Refuse what does not end in one vector for each image."""
        dims, features = block.dims, block.conv.in_channels
        if dims is None or len(dims) < 3 or not all(isinstance(size, int) for size in dims[1:]):
            shape = "not known" if dims is None else f"[{', '.join(map(str, dims))}]"
            return f"the shape of what the head reads is {shape}; it must be [N, channels, sizes ...]"
        flat = block.nodes["flatten"]
        if flat.op_type == "Flatten" and flat.attribute("axis", 1) != 1:
            return f"its Flatten begins at axis {flat.attribute('axis', 1)}, not at the channels"
        pooled = block.nodes["pool"].dims if "pool" in block.nodes else dims
        if pooled is None or math.prod(size if isinstance(size, int) else 0 for size in pooled[1:]) != features:
            return f"its first layer takes {features} features, which are not all those of one image"
        # As many rows as images, or rows as long as the features of one image: each follows from the other.
        rows, columns = flat.dims if flat.dims is not None and len(flat.dims) == 2 else (None, None)
        if columns != features and (rows is None or rows != dims[0]):
            shape = "not known" if flat.dims is None else f"[{', '.join(map(str, flat.dims))}]"
            return f"the shape behind its {flat.op_type} is {shape}, not [{dims[0]}, {features}]"
        if "transpose" in block.nodes and block.nodes["transpose"].attribute("perm", None) != _TO_NHWC.get(len(dims)):
            return "its Transpose is not the one from NCHW to NHWC"
        return not_linear(block, _numbers(block))

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what a head is, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "no head of several fully connected layers here"
        return f"no head of several fully connected layers: {refusal.reason}"

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """Pool, flatten, one linear layer."""
        linear = Conv(_channels(block), outputs_of(block, _numbers(block)[-1]), (), (), (), (), bias=True)
        return GlobalPoolLayer("pool", INPUT), FlattenLayer("flatten", "pool"), ConvLayer("linear", "flatten", linear)

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The product of the layers, each activation as the half of what it reads."""
        numbers = _numbers(block)
        weight, bias = np.eye(block.conv.in_channels), np.zeros(block.conv.in_channels)
        for number in numbers:
            matrix, term = matrix_of(block, values, number), values.get(f"bias_{number}", np.zeros(1)).reshape(-1)
            scale = 1.0 if number == 1 or not _is_active(block, number - 1) else _SLOPE
            weight = matrix if number == 1 else scale * (matrix @ weight)
            bias = (np.zeros(len(matrix)) if number == 1 else scale * (matrix @ bias)) + term
        channels = _channels(block)
        by_position = weight.reshape(len(weight), -1, channels) if "transpose" in block.nodes else None
        summed = (
            weight.reshape(len(weight), channels, -1).sum(axis=2) if by_position is None else by_position.sum(axis=1)
        )
        return [summed, bias]

    def observe(self, block: Block, inputs: Array) -> Array:
        """The mean of each channel."""
        means: Array = inputs.reshape(*inputs.shape[:2], -1).mean(axis=2)
        return means

    def fit(self, block: Block, rows: Array, targets: Array) -> Sequence[Array]:
        """Ridge regression, its strength chosen by leave-one-out."""
        return ridge(rows, targets)

    def predict(self, block: Block, tensors: Sequence[Array], rows: Array) -> Array:
        """X W^T + b."""
        outputs: Array = rows @ tensors[0].T + tensors[1]
        return outputs


def ridge(rows: Array, targets: Array) -> tuple[Array, Array]:
    """Weight [outputs, features] and intercept [outputs] of ridge regression with the least leave-one-out error.

    Args:
        rows: [samples, features].
        targets: [samples, outputs].
    """
    mean, level = rows.mean(axis=0), targets.mean(axis=0)
    u, s, vt = np.linalg.svd(rows - mean, full_matrices=False)
    wanted = targets - level
    seen, scale = u.T @ wanted, (s**2).mean() or 1.0
    best: tuple[float, Array] | None = None
    for strength in _STRENGTHS * scale:
        shrunk = s**2 / (s**2 + strength)
        leverage = 1 / len(rows) + (u**2) @ shrunk
        left_out = (wanted - u @ (shrunk[:, None] * seen)) / np.maximum(1 - leverage, 1e-9)[:, None]
        error = float(np.square(left_out).sum())
        if best is None or error < best[0]:
            best = error, (vt.T @ ((s / (s**2 + strength))[:, None] * seen)).T
    assert best is not None
    weight = best[1]
    return weight, level - weight @ mean


def _channels(block: Block) -> int:
    found = (block.dims or ())[1]
    assert isinstance(found, int)
    return found


def _numbers(block: Block) -> list[int]:
    """Of the layers."""
    return [number for number in range(1, _MOST + 1) if f"fc_{number}" in block.nodes]


def _is_active(block: Block, number: int) -> bool:
    return f"activation_{number}" in block.nodes
