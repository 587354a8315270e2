"""The geometry of a Conv against ONNX's own shape inference, counting without sizes, and reading ranks."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxsep.errors import OptionError
from onnxsep.layers.conv import AutoPad, Conv
from onnxsep.layers.layer import INPUT, ConvLayer, macs, parameters, relative_macs
from onnxsep.layers.rank import RankAxis, RankPolicy
from onnxsep.modes.base import conv_modes

FIXED = settings(deadline=None, derandomize=True, max_examples=200)


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    """Any geometry that ONNX defines, different along each axis."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = dims) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    group = draw(st.sampled_from([1, 1, 2, 3]))
    auto_pad: AutoPad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    return Conv(
        in_channels=group * draw(st.integers(1, 3)),
        out_channels=group * draw(st.integers(1, 4)),
        kernel_shape=each(1, 5),
        strides=each(1, 4),
        pads=each(0, 3, 2 * dims) if auto_pad == "NOTSET" else (0,) * (2 * dims),
        dilations=each(1, 3),
        group=group,
        bias=draw(st.booleans()),
        auto_pad=auto_pad,
    )


def inferred_output_size(conv: Conv, size: tuple[int, ...]) -> tuple[int, ...]:
    """Spatial sizes of the output, by onnx.shape_inference."""
    attributes = {"pads": list(conv.pads)} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad}
    node = onnx.helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        group=conv.group,
        strides=list(conv.strides),
        dilations=list(conv.dilations),
        **attributes,
    )
    kind = onnx.TensorProto.FLOAT
    inputs = [
        onnx.helper.make_tensor_value_info("x", kind, [1, conv.in_channels, *size]),
        onnx.helper.make_tensor_value_info("w", kind, list(conv.weight_shape)),
    ]
    output = onnx.helper.make_tensor_value_info("y", kind, None)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    shape = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape
    assert shape.dim[1].dim_value == conv.out_channels
    return tuple(dim.dim_value for dim in shape.dim[2:])


@FIXED
@given(conv=convs(), data=st.data())
def test_output_size_is_that_of_onnx(conv: Conv, data: st.DataObject) -> None:
    size = tuple(data.draw(st.integers(1, 24)) for _ in range(conv.dims))
    padding = [conv.pads[axis] + conv.pads[axis + conv.dims] for axis in range(conv.dims)]
    windows = [(k - 1) * d + 1 for k, d in zip(conv.kernel_shape, conv.dilations, strict=True)]
    if not conv.auto_pad.startswith("SAME"):  # where the kernel does not fit, ONNX defines no size
        assume(all(n + p >= window for n, p, window in zip(size, padding, windows, strict=True)))
    assert conv.output_size(size) == inferred_output_size(conv, size)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"), [(2, 5, 1, 0), (1, 5, 3, 0), (3, 5, 4, 0), (5, 5, 9, 1), (4, 5, 1, 0)]
)
def test_output_is_empty_where_the_kernel_does_not_fit(size: int, kernel: int, stride: int, expected: int) -> None:
    conv = Conv(1, 1, (kernel,), (stride,), (0, 0), (1,))
    assert conv.output_size((size,)) == (expected,)
    assert conv.macs((size,)) == 5 * expected


def test_counts_of_a_grouped_conv() -> None:
    conv = Conv(6, 9, (3, 5), (2, 1), (1, 0, 2, 4), (1, 2), group=3, bias=True)
    assert conv.weight_shape == (9, 2, 3, 5)
    assert conv.weight_size == 9 * 2 * 15
    assert conv.parameters == 9 * 2 * 15 + 9
    # (10 + 1 + 2 - 3) // 2 + 1 = 6 rows; (12 + 0 + 4 - 9) // 1 + 1 = 8 columns
    assert conv.output_size((10, 12)) == (6, 8)
    assert conv.macs((10, 12)) == 48 * 270


def test_along_keeps_what_belongs_to_its_axes() -> None:
    conv = Conv(2, 3, (3, 5, 7), (1, 2, 3), (1, 2, 3, 4, 5, 6), (4, 5, 6), group=1, bias=True)
    factor = conv.along([1], 8, 9, bias=False)
    assert factor == Conv(8, 9, (1, 5, 1), (1, 2, 1), (0, 2, 0, 0, 5, 0), (1, 5, 1))


@FIXED
@given(
    mode=st.sampled_from(sorted(conv_modes())),
    dims=st.integers(1, 3),
    kernel=st.lists(st.sampled_from([1, 3, 5]), min_size=3, max_size=3),
    strides=st.lists(st.sampled_from([1, 2]), min_size=3, max_size=3),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    wanted=st.integers(1, 12),
)
def test_relative_macs_are_those_of_large_even_sizes(
    mode: str, dims: int, kernel: list[int], strides: list[int], channels: tuple[int, int], wanted: int
) -> None:
    """With the usual padding of an odd kernel, MACs are proportional to even sizes exactly, at stride 2 as well."""
    shape = tuple(kernel[:dims])
    half = tuple(k // 2 for k in shape)
    conv = Conv(*channels, shape, tuple(strides[:dims]), half + half, (1,) * dims)
    chosen = conv_modes()[mode]
    assume(max(shape) > 1)
    assume(chosen.accepts(conv) is None)
    rank: tuple[int, ...] = ()
    while (axis := chosen.rank_axis(conv, rank)) is not None:
        rank += (axis.clamp(wanted),)
    layers = chosen.layers(conv, rank)
    size = (128, 64, 32)[:dims]
    assert relative_macs(layers) * math.prod(size) == macs(layers, size)
    assert relative_macs([ConvLayer("conv", INPUT, conv)]) * math.prod(size) == conv.macs(size)
    # Without padding it holds in the limit.
    bare = chosen.layers(replace(conv, pads=(0,) * (2 * dims)), rank)
    large = (2**20,) * dims
    assert float(Fraction(macs(bare, large), math.prod(large)) / relative_macs(bare)) == pytest.approx(1, rel=1e-4)


def test_counting_follows_the_layers() -> None:
    conv = Conv(3, 4, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), bias=True)
    layers = conv_modes()["spatial"].layers(conv, (7,))
    # 5 x 1 into 7 channels on 8 x 16 positions, then 1 x 5 on 8 x 8
    assert parameters(layers) == 3 * 5 * 7 + 7 * 5 * 4 + 4
    assert macs(layers, (16, 16)) == 8 * 16 * 105 + 8 * 8 * 140
    layers = conv_modes()["depthwise"].layers(conv, (2,))
    assert parameters(layers) == 2 * (3 * 25 + 3 * 4) + 4
    assert macs(layers, (16, 16)) == 64 * 2 * (75 + 12)


def test_rank_axis_clamps_to_its_steps() -> None:
    axis = RankAxis("channels", full=12, paper=8, step=4)
    assert [axis.clamp(rank) for rank in (1, 4, 7, 8, 11, 12, 13, 10**9)] == [4, 4, 4, 8, 8, 12, 12, 12]


@pytest.mark.parametrize(
    ("given_rank", "kind", "value", "text"),
    [
        ("paper", "paper", 0, "paper"),
        (" full ", "full", 0, "full"),
        ("16", "integer", 16, "16"),
        (16, "integer", 16, "16"),
        (np.int64(3), "integer", 3, "3"),
        ("0.5", "fraction", 0.5, "0.5"),
        (0.5, "fraction", 0.5, "0.5"),
        (np.float64(0.25), "fraction", 0.25, "0.25"),
        (1e-05, "fraction", 1e-5, "1e-05"),
        ("1.0", "fraction", 1.0, "1.0"),
        ("energy=0.95", "energy", 0.95, "energy=0.95"),
        ("energy=1", "energy", 1.0, "energy=1.0"),
    ],
)
def test_ranks_are_read(given_rank: str | float, kind: str, value: float, text: str) -> None:
    policy = RankPolicy.parse(given_rank)
    assert (policy.kind, policy.value, str(policy)) == (kind, value, text)
    assert RankPolicy.parse(str(policy)) == policy
    assert RankPolicy.parse(policy) is policy


@pytest.mark.parametrize("rank", ["0", 0, "-3", "0.0", "1.5", 16.0, "-0.5", "energy=0", "energy=1.01", "energy=nan"])
def test_ranks_out_of_range_are_refused(rank: str | float) -> None:
    with pytest.raises(OptionError, match="rank out of range"):
        RankPolicy.parse(rank)


@pytest.mark.parametrize(
    "rank",
    ["", "papers", "half", "1,5", "0x10", "1/2", "50%", "energy", "energy=", "energy=a", "energy.9", "nan", True],
)
def test_what_is_no_rank_is_refused(rank: str | float) -> None:
    with pytest.raises(OptionError, match="cannot read the rank"):
        RankPolicy.parse(rank)
