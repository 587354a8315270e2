"""The one door of modes: all that a mode needs, whether it stands in ``passes/`` or in another package.

A package of your own lists its mode in the entry-point group ``onnxsep.modes``; ARCHITECTURE.md shows how.
"""

from onnxsep.algebra.als import balanced
from onnxsep.algebra.gram import Gram, Mixed, RowGram
from onnxsep.algebra.linalg import (
    Array,
    inverse_or_zero,
    principal_axes,
    reduced_rank_regression,
    scale_product,
    scaled_to_one,
    solve_lower,
    squared_singular_values,
    truncated_svd,
)
from onnxsep.algebra.polyadic import compose, exact_rank, improved, orthogonal_terms, squared_errors
from onnxsep.algebra.statistics import Statistics
from onnxsep.errors import FactorizationError, OptionError
from onnxsep.graph.activations import ACTIVATIONS, activation
from onnxsep.graph.expressions import Const, Either, Op, Operand, Value
from onnxsep.graph.index import Index
from onnxsep.graph.matching import Match, Pattern, Refusal
from onnxsep.graph.places import Place
from onnxsep.layers.block_layers import (
    AveragePoolLayer,
    ClipLayer,
    ConcatLayer,
    ElementwiseLayer,
    FlattenLayer,
    GateLayer,
    GlobalPoolLayer,
    NormLayer,
    ShuffleLayer,
    TransposeLayer,
)
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import INPUT, AddLayer, ChannelPadLayer, ConvLayer, Layer
from onnxsep.layers.rank import Rank, RankAxis
from onnxsep.layers.units import (
    ACTIVATION_FORMS,
    SHUFFLE_OPSET,
    activated,
    depthwise,
    dice,
    gate,
    normed,
    pointwise,
    strided_dice,
)
from onnxsep.modes.base import NOTHING_TO_SEPARATE, Factors, Mode, Task, available_modes, conv_modes, get_mode
from onnxsep.modes.block import Block, BlockMode, Operator
from onnxsep.modes.carrying import (
    activation_refused,
    affine,
    carried,
    carried_activation,
    carried_bounds,
    carried_tensors,
    plain_norm,
)
from onnxsep.modes.heads import connected, flattened, goes_on, matrix_of, maybe_idle, not_linear, outputs_of
from onnxsep.modes.last_block import closed_block_pattern
from onnxsep.modes.multilinear import Multilinear, axis_name, half_rank, kernel_axes, summed
from onnxsep.modes.norms import NORM_TENSORS, STATISTICS, norm_refused, per_channel, scaled
from onnxsep.modes.residual import Residual, ResidualMode, drawn, keep_sizes, residual_sum
from onnxsep.modes.settings import NUMBERS, Setting, whole_numbers
from onnxsep.modes.width import Group, WidthMode

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_FORMS",
    "INPUT",
    "NORM_TENSORS",
    "NOTHING_TO_SEPARATE",
    "NUMBERS",
    "SHUFFLE_OPSET",
    "STATISTICS",
    "AddLayer",
    "Array",
    "AveragePoolLayer",
    "Block",
    "BlockMode",
    "ChannelPadLayer",
    "ClipLayer",
    "ConcatLayer",
    "Const",
    "Conv",
    "ConvLayer",
    "Either",
    "ElementwiseLayer",
    "FactorizationError",
    "Factors",
    "FlattenLayer",
    "GateLayer",
    "GlobalPoolLayer",
    "Gram",
    "Group",
    "Index",
    "Layer",
    "Match",
    "Mixed",
    "Mode",
    "Multilinear",
    "NormLayer",
    "Op",
    "Operand",
    "Operator",
    "OptionError",
    "Pattern",
    "Place",
    "Rank",
    "RankAxis",
    "Refusal",
    "Residual",
    "ResidualMode",
    "RowGram",
    "Setting",
    "ShuffleLayer",
    "Statistics",
    "Task",
    "TransposeLayer",
    "Value",
    "WidthMode",
    "activated",
    "activation",
    "activation_refused",
    "affine",
    "available_modes",
    "axis_name",
    "balanced",
    "carried",
    "carried_activation",
    "carried_bounds",
    "carried_tensors",
    "closed_block_pattern",
    "compose",
    "connected",
    "conv_modes",
    "depthwise",
    "dice",
    "drawn",
    "exact_rank",
    "flattened",
    "gate",
    "get_mode",
    "goes_on",
    "half_rank",
    "improved",
    "inverse_or_zero",
    "keep_sizes",
    "kernel_axes",
    "matrix_of",
    "maybe_idle",
    "norm_refused",
    "normed",
    "not_linear",
    "orthogonal_terms",
    "outputs_of",
    "per_channel",
    "plain_norm",
    "pointwise",
    "principal_axes",
    "reduced_rank_regression",
    "residual_sum",
    "scale_product",
    "scaled",
    "scaled_to_one",
    "solve_lower",
    "squared_errors",
    "squared_singular_values",
    "strided_dice",
    "summed",
    "truncated_svd",
    "whole_numbers",
]
