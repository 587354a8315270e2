"""What every mode owes: exact at full rank for every Conv that it accepts, and the best error below.

Most tests draw Convs and run over all installed modes, so a new mode is tested here without a line of its own.
"""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_examples import examples, some

import onnxsep
from onnxsep.algebra.als import Problem
from onnxsep.algebra.statistics import Statistics
from onnxsep.errors import ModeNotFoundError
from onnxsep.layers.conv import AutoPad, Conv
from onnxsep.layers.rank import Rank, RankAxis
from onnxsep.modes.base import Factors, Mode, Task, conv_modes, factor_shapes, get_mode
from onnxsep.rewriting.report import ConvReport

Array = npt.NDArray[Any]
NUMPY_TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
ELEMENT_TYPES: dict[str, int] = {
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
}
UNOPTIMISED = onnxsep.RuntimeOptions(threads=1, optimize=False)
# ||original - result|| / ||original|| of the outputs, at full rank. float64 and bfloat16 run as float32, for ONNX
# Runtime has no such Conv. float16 has 11 bits and bfloat16 8: the rounding of the factors (and of the values between
# two float16 Convs) is about 5e-4 or 4e-3 of the terms of a sum, and more of a sum whose terms cancel.
TOLERANCE = {"float32": 1e-5, "float64": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Case:
    """One Conv, the spatial sizes of its input, and the type of its weight."""

    conv: Conv
    size: tuple[int, ...]
    dtype: str
    seed: int


def weights(case: Case) -> tuple[Array, Array]:
    """Weight and bias; the weight's values are not alike along any axis, so that swapped axes show."""
    rng = np.random.default_rng(case.seed)
    weight = rng.standard_normal(case.conv.weight_shape)
    for axis, extent in enumerate(weight.shape):
        weight *= rng.uniform(0.5, 1.5, [extent if other == axis else 1 for other in range(weight.ndim)])
    kind = NUMPY_TYPES[case.dtype]
    return weight.astype(kind), rng.standard_normal(case.conv.out_channels).astype(kind)


def tensor_of(name: str, array: Array) -> onnx.TensorProto:
    kind = ELEMENT_TYPES[array.dtype.name]
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def conv_model(case: Case, batch: int = 2) -> onnx.ModelProto:
    """A model of one Conv named "conv": x -> y."""
    conv = case.conv
    attributes: dict[str, Any] = {"strides": conv.strides, "dilations": conv.dilations, "group": conv.group}
    if conv.auto_pad == "NOTSET":
        attributes["pads"] = conv.pads
    else:
        attributes["auto_pad"] = conv.auto_pad
    if case.seed % 2:  # a Conv may leave out its kernel_shape
        attributes["kernel_shape"] = conv.kernel_shape
    names = ["w", "b"] if conv.bias else ["w"]
    kind = ELEMENT_TYPES[case.dtype]
    node = helper.make_node("Conv", ["x", *names], ["y"], name="conv", **attributes)
    graph = helper.make_graph(
        [node],
        "one_conv",
        [helper.make_tensor_value_info("x", kind, [batch, conv.in_channels, *case.size])],
        [helper.make_tensor_value_info("y", kind, [batch, conv.out_channels, *("hwd"[: conv.dims])])],
        [tensor_of(name, array) for name, array in zip(names, weights(case), strict=False)],
    )
    opset = 22 if case.dtype == "bfloat16" else 17  # the first one whose Conv takes bfloat16
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float64 or bfloat16 tensor as float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, tensor in enumerate(copy.graph.initializer):
        # Not to_array: in onnx 1.17 it does not read raw bfloat16, and returns memory that nobody wrote.
        kind = NUMPY_TYPES[next(name for name, number in ELEMENT_TYPES.items() if number == tensor.data_type)]
        single = np.frombuffer(tensor.raw_data, kind).reshape(tensor.dims).astype(np.float32)
        copy.graph.initializer[index].CopyFrom(numpy_helper.from_array(single, tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    # Opset 22 is for bfloat16 only, and the oldest supported runtime does not know it. In 17 these mean the same.
    assert {node.op_type for node in copy.graph.node} <= {"Conv", "ConvTranspose", "Add", "Pad", "Constant"}
    copy.opset_import[0].version = 17
    return copy


def run(model: onnx.ModelProto, x: Array) -> Array:
    """The output, in double precision, with graph optimisations off."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


def compare(case: Case, original: onnx.ModelProto, result: onnx.ModelProto) -> float:
    """||original - result|| / ||original|| on random input, a batch of two."""
    x = np.random.default_rng(case.seed + 1).standard_normal((2, case.conv.in_channels, *case.size))
    if case.dtype in ("float64", "bfloat16"):
        original, result = as_float32(original), as_float32(result)
    x = x.astype(np.float16 if case.dtype == "float16" else np.float32)
    expected, actual = run(original, x), run(result, x)
    assert expected.shape == actual.shape
    return float(np.linalg.norm(expected - actual) / np.linalg.norm(expected))


def rewrite(model: onnx.ModelProto, mode: str, rank: str | float) -> onnxsep.Result:
    """Replace the one Conv of a model at any cost."""
    return onnxsep.rewrite(
        model, mode=mode, rank=rank, force=True, include_first=True, runtime=UNOPTIMISED, verify="none"
    )


def ranks_at(mode: Mode, conv: Conv, wanted: int) -> Rank:
    """Every rank as near to ``wanted`` as its range allows."""
    rank: Rank = ()
    while (axis := mode.rank_axis(conv, rank)) is not None:
        rank += (axis.clamp(wanted),)
    return rank


def has_spectrum(mode: str) -> bool:
    """Whether ranks can be chosen by the share of the energy."""
    return type(get_mode(mode)).spectrum is not Mode.spectrum


def only_conv(result: onnxsep.Result) -> ConvReport:
    (row,) = result.report.convs
    return row


# Kernels that exporters really produce, and odd ones; every axis has its own length where that is possible.
KERNELS: dict[int, list[tuple[int, ...]]] = {
    1: [(1,), (3,), (8,), (25,)],
    2: [(1, 1), (1, 3), (3, 1), (3, 3), (2, 3), (5, 5), (4, 7), (3, 39)],
    3: [(1, 1, 1), (3, 1, 5), (1, 3, 2), (2, 3, 4), (3, 3, 3), (1, 1, 4), (3, 1, 1)],
}


@st.composite
def cases(draw: st.DrawFn, dims: int, auto_pad: AutoPad) -> Case:
    kernel = draw(st.sampled_from(KERNELS[dims]))
    strides = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel)
    # ONNX Runtime refuses dilations together with SAME.
    dilations = tuple(1 if auto_pad.startswith("SAME") else draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel)
    # A pad may be as long as the dilated kernel, no more.
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [draw(st.integers(0, min(window - 1, 4))) for window in windows * 2]
    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    conv = Conv(
        in_channels=group * draw(st.integers(1, 5)),
        out_channels=group * draw(st.integers(1, 5)),
        kernel_shape=kernel,
        strides=strides,
        pads=tuple(pads) if auto_pad == "NOTSET" else (0,) * (2 * dims),
        dilations=dilations,
        group=group,
        bias=draw(st.booleans()),
        auto_pad=auto_pad,
    )
    size = tuple(window + draw(st.integers(0, 6)) for window in windows)
    dtype = draw(st.sampled_from(["float32", "float32", "float32", "float64", "float16"]))
    return Case(conv, size, dtype, draw(st.integers(0, 1000)))


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", sorted(conv_modes()))
@settings(deadline=None, derandomize=True, max_examples=examples(4, deep=60))
@given(data=st.data())
def test_full_rank_is_exact(mode: str, dims: int, auto_pad: AutoPad, data: st.DataObject) -> None:
    case = data.draw(cases(dims, auto_pad))
    model = conv_model(case)
    before = model.SerializeToString()
    result = rewrite(model, mode, "full")
    assert model.SerializeToString() == before
    row = only_conv(result)
    refusal = get_mode(mode).accepts(case.conv)
    if refusal:
        event("refused")
        assert (row.status, row.reason) == ("left", refusal)
        assert result.proto.SerializeToString() == before
        return
    event(f"replaced: group {case.conv.group}, {case.dtype}")
    assert (row.status, row.reason) == ("replaced", "")
    assert sum(node.op_type == "Conv" for node in result.proto.graph.node) > 1
    onnx.checker.check_model(result.proto, full_check=True)
    if not get_mode(mode).is_exact(case.conv, row.rank or ()):
        model = with_weight(model, case, rebuilt(mode, case, row.rank or ()))
    assert compare(case, model, result.proto) < TOLERANCE[case.dtype]
    # The counts before and after are those of the weights in the two files.
    stored = [sum(math.prod(w.dims) for w in proto.graph.initializer) for proto in (model, result.proto)]
    assert [row.parameters_before, row.parameters_after] == stored


def rebuilt(mode: str, case: Case, rank: Rank) -> Array:
    """The weight that the replacement stands for."""
    chosen = get_mode(mode)
    factors = chosen.factorize(Task(case.conv, weights(case)[0].astype(np.float64)), rank)
    return np.asarray(chosen.reconstruct(case.conv, factors))


def with_weight(model: onnx.ModelProto, case: Case, weight: Array) -> onnx.ModelProto:
    """The model of one Conv with another weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer[0].CopyFrom(tensor_of("w", weight.astype(NUMPY_TYPES[case.dtype])))
    return copy


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", sorted(conv_modes()))
@settings(deadline=None, derandomize=True, max_examples=examples(10, deep=40))
@given(data=st.data())
def test_replacement_computes_what_it_reconstructs(mode: str, dims: int, data: st.DataObject) -> None:
    """At any rank: strides, pads, dilations and the bias are where they belong."""
    case = data.draw(cases(dims, data.draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER"]))))
    wanted = data.draw(st.integers(1, 6))
    if get_mode(mode).accepts(case.conv):
        event("refused")
        return
    rank = ranks_at(get_mode(mode), case.conv, wanted)
    model = conv_model(case)
    result = rewrite(model, mode, wanted)
    assert only_conv(result).rank == rank
    assert compare(case, with_weight(model, case, rebuilt(mode, case, rank)), result.proto) < TOLERANCE[case.dtype]


PADDED = ("lean",)  # modes that keep some taps and lose the others; the 1 x 1 Conv in the middle needs pads around it


def wide_conv(kernel: tuple[int, ...]) -> Conv:
    """Many channels, a stride along the first axis only, more padding at the ends than at the beginnings."""
    ones = (1,) * len(kernel)
    pads = tuple(k // 2 for k in kernel) + tuple(k // 2 + 1 for k in kernel)
    return Conv(24, 40, kernel, (2, *ones[1:]), pads, ones, bias=True)


MANY = some(
    [
        (mode, conv)
        for conv in map(wide_conv, [(3, 39), (5, 5), (3, 1, 5), (3, 3, 3), (1, 1), (1, 1, 1)])
        for mode in sorted(conv_modes())
        if not get_mode(mode).accepts(conv)
    ],
    3,
)


def test_every_mode_is_tested_with_many_channels() -> None:
    assert {mode for mode, _ in MANY} == set(conv_modes())


@pytest.mark.parametrize(("mode", "conv"), MANY, ids=[f"{mode}-{conv.kernel_shape}" for mode, conv in MANY])
@pytest.mark.parametrize("dtype", some(sorted(TOLERANCE), 2))
def test_full_rank_is_exact_with_many_channels(mode: str, conv: Conv, dtype: str) -> None:
    case = Case(conv, tuple(k + 5 for k in conv.kernel_shape), dtype, 7)
    model = conv_model(case)
    result = rewrite(model, mode, "full")
    rank = only_conv(result).rank or ()
    if not get_mode(mode).is_exact(conv, rank):
        assert compare(case, with_weight(model, case, rebuilt(mode, case, rank)), result.proto) < TOLERANCE[dtype]
        return
    error = only_conv(result).weight_error
    assert error is not None
    # A few units of the stored type: the rounding of every factor, and of their product.
    assert error < {"float32": 1e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert {tensor.data_type for tensor in result.proto.graph.initializer} == {ELEMENT_TYPES[dtype]}
    assert compare(case, model, result.proto) < TOLERANCE[dtype]


def plain_case(
    kernel: tuple[int, ...], group: int = 1, in_channels: int = 6, out_channels: int = 8, dtype: str = "float64"
) -> Case:
    dims = len(kernel)
    ones = (1,) * dims
    conv = Conv(in_channels, out_channels, kernel, ones, (1,) * (2 * dims), ones, group=group, bias=True)
    return Case(conv, tuple(k + 4 for k in kernel), dtype, 11)


def depthwise_matrices(weight: Array, group: int) -> Iterator[Array]:
    """One [out_channels, taps] matrix for each input channel (paper 002, section 3.1)."""
    assert group == 1
    for channel in range(weight.shape[1]):
        yield np.stack([kernel[channel].ravel() for kernel in weight])


def spatial_matrices(weight: Array, group: int) -> Iterator[Array]:
    """One [in_channels * kh, out_channels * kw] matrix for each group."""
    for part in np.split(weight, group):
        out_channels, in_channels, kh, kw = part.shape
        matrix = np.empty((in_channels * kh, out_channels * kw))
        for o in range(out_channels):
            for i in range(in_channels):
                matrix[i * kh : (i + 1) * kh, o * kw : (o + 1) * kw] = part[o, i]
        yield matrix


def expected_error(matrices: Sequence[Array], rank: int) -> float:
    """Relative error of the best approximation of each matrix by one of that rank."""
    spectra = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices]
    lost = sum(float((s[rank:] ** 2).sum()) for s in spectra)
    return math.sqrt(lost / sum(float((s**2).sum()) for s in spectra))


DEPTHWISE_CASES = [plain_case((3, 3)), plain_case((2, 5)), plain_case((7,)), plain_case((2, 3, 2))]
SPATIAL_CASES = [plain_case((3, 3)), plain_case((2, 5)), plain_case((3, 4), group=2), plain_case((5, 2), 3, 9, 6)]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("mode", "case"),
    [*(("depthwise", case) for case in DEPTHWISE_CASES), *(("spatial", case) for case in SPATIAL_CASES)],
    ids=lambda value: value if isinstance(value, str) else f"{value.conv.kernel_shape}g{value.conv.group}",
)
def test_reported_error_is_that_of_the_discarded_singular_values(mode: str, case: Case, dtype: str) -> None:
    conv = case.conv
    case = Case(conv, case.size, dtype, case.seed)
    matrices_of = depthwise_matrices if mode == "depthwise" else spatial_matrices
    matrices = list(matrices_of(weights(case)[0].astype(np.float64), conv.group))
    full = min(matrices[0].shape)
    model = conv_model(case)
    step = conv.group if mode == "spatial" else 1  # every group has the same rank
    last = math.inf
    for rank in range(1, full + 1):
        row = only_conv(rewrite(model, mode, rank * step))
        assert row.rank == (rank * step,)
        assert row.weight_error is not None
        assert row.weight_error == pytest.approx(expected_error(matrices, rank), rel=1e-6, abs=1e-6)
        assert row.weight_error <= last + 1e-6
        last = row.weight_error
    assert last < (1e-13 if dtype == "float64" else 1e-6)


def test_error_of_three_axes_is_the_sum_of_two_truncations() -> None:
    """The second split truncates what the first one left; orthonormal factors make the squared errors add up."""
    case = plain_case((3, 2, 4), in_channels=5, out_channels=3)
    weight = weights(case)[0]
    model = conv_model(case)
    for first, second in [(1, 1), (4, 4), (7, 7), (15, 15)]:
        (rank,) = {first, second}
        row = only_conv(rewrite(model, "spatial", rank))
        outer = np.stack([weight[:, i, z].ravel() for i in range(5) for z in range(3)])  # [in*kd, out*kh*kw]
        _, s, vt = np.linalg.svd(outer, full_matrices=False)
        used_first = min(rank, len(s))
        rest = (s[:used_first, None] * vt[:used_first]).reshape(used_first, 3, 2, 4)  # [r, out, kh, kw]
        inner = rest.transpose(0, 2, 1, 3).reshape(used_first * 2, 3 * 4)
        tail = np.linalg.svd(inner, compute_uv=False)
        used_second = min(rank, len(tail))
        assert row.rank == (used_first, used_second)
        lost = (s[used_first:] ** 2).sum() + (tail[used_second:] ** 2).sum()
        assert row.weight_error == pytest.approx(math.sqrt(lost) / np.linalg.norm(weight), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 3, 4), (3, 1, 5), (3, 3, 1)])
@pytest.mark.parametrize("group", [1, 2])
def test_error_never_rises_with_rank_in_three_dimensions(kernel: tuple[int, ...], group: int) -> None:
    model = conv_model(plain_case(kernel, group))
    errors = [only_conv(rewrite(model, "spatial", rank)).weight_error for rank in range(group, 40, group)]
    assert errors[-1] is not None
    assert errors[-1] < 1e-13
    for before, after in itertools.pairwise(errors):
        assert before is not None
        assert after is not None
        assert after <= before + 1e-13


def factors_of(result: onnxsep.Result) -> list[Array]:
    """The weights of the new Convs, in graph order."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.proto.graph.initializer}
    return [stored[node.input[1]] for node in result.proto.graph.node if node.op_type == "Conv"]


def test_depthwise_factors_are_balanced() -> None:
    result = rewrite(conv_model(plain_case((3, 4))), "depthwise", 3)
    factors = factors_of(result)
    assert len(factors) == 6
    for depthwise, pointwise in zip(factors[0::2], factors[1::2], strict=True):
        assert depthwise.shape == (6, 1, 3, 4)
        assert pointwise.shape == (8, 6, 1, 1)
        norms = np.linalg.norm(depthwise.reshape(6, -1), axis=1)
        np.testing.assert_allclose(norms, np.linalg.norm(pointwise[:, :, 0, 0], axis=0), rtol=1e-12)
        assert (norms > 0).all()


@pytest.mark.parametrize("group", [1, 2])
def test_spatial_factors_are_balanced(group: int) -> None:
    result = rewrite(conv_model(plain_case((3, 4), group)), "spatial", 4 * group)
    vertical, horizontal = factors_of(result)
    assert vertical.shape == (4 * group, 6 // group, 3, 1)
    assert horizontal.shape == (8, 4, 1, 4)
    norms = np.linalg.norm(vertical.reshape(4 * group, -1), axis=1)
    for number, part in enumerate(np.split(horizontal, group)):
        other = np.linalg.norm(part.transpose(1, 0, 2, 3).reshape(4, -1), axis=1)
        np.testing.assert_allclose(norms[4 * number : 4 * number + 4], other, rtol=1e-12)


KERNEL_FREE = ("pointwise",)  # modes for 1 x 1 Convs


def degenerate(kind: str, shape: tuple[int, ...]) -> Array:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(shape).astype(np.float32)
    if kind == "zero":
        return np.zeros_like(weight)
    if kind == "constant":
        return np.full_like(weight, 0.125)
    if kind == "dead channels":  # an input channel, an output channel and one tap that are zero
        weight[:, 0] = weight[1] = weight[..., 0] = 0
    elif kind == "denormal channels":  # what weight decay leaves of a channel that nothing uses
        weight[:, 0] *= np.float32(1e-40)
        weight[1] *= np.float32(1e-30)
    elif kind == "tiny":
        weight *= np.float32(1e-36)
    elif kind == "huge":
        weight *= np.float32(1e37)
    return weight


@pytest.mark.parametrize("kind", ["zero", "constant", "dead channels", "denormal channels", "tiny", "huge"])
@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        *((mode, (6, 4, 3, 3)) for mode in sorted(conv_modes()) if mode not in KERNEL_FREE),
        *((mode, (6, 4, 1, 1)) for mode in KERNEL_FREE),
        *((mode, (4, 5, 3, 2, 3)) for mode in ("spatial", "cp", "tucker", "depthwise-spatial")),
        *((mode, (3, 2, 2, 5)) for mode in ("spatial", "cp", "tucker", "depthwise-spatial", "spatial-depthwise")),
    ],
)
@pytest.mark.parametrize("rank", ["full", 1, "energy=0.9"])
def test_degenerate_weights(kind: str, mode: str, shape: tuple[int, ...], rank: str | int) -> None:
    weight = degenerate(kind, shape)
    kernel = shape[2:]
    dims = len(kernel)
    pads = tuple(k // 2 if mode in PADDED else 0 for k in kernel) * 2
    case = Case(Conv(shape[1], shape[0], kernel, (1,) * dims, pads, (1,) * dims), kernel, "float32", 1)
    model = conv_model(case)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    result = rewrite(model, mode, rank)
    row = only_conv(result)
    if isinstance(rank, str) and rank.startswith("energy") and not has_spectrum(mode):
        assert (row.status, row.reason.split(" has ")[0]) == ("left", f"mode {mode}")
        return
    assert row.status == "replaced"
    assert row.weight_error is not None
    assert all(np.isfinite(factor).all() for factor in factors_of(result))
    exact_kinds = ("zero",) if mode in PADDED else ("zero", "constant")  # of rank one, but not sparse
    if (rank == "full" and get_mode(mode).is_exact(case.conv, row.rank or ())) or kind in exact_kinds:
        assert row.weight_error < 1e-6
        # Random input of an amplitude that keeps the output of huge weights finite.
        x = np.random.default_rng(5).uniform(0.001, 0.01, (1, shape[1], *(k + 2 for k in kernel))).astype(np.float32)
        expected, actual = run(free_shape(model), x), run(free_shape(result.proto), x)
        assert np.isfinite(actual).all()
        assert np.linalg.norm(expected - actual) <= 1e-4 * np.linalg.norm(expected)
    else:
        assert row.weight_error < 1
    if rank == "energy=0.9":  # of each truncation
        assert row.weight_error <= math.sqrt(0.1 * len(row.rank or ())) + 1e-6


def free_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.ClearField("shape")
    return copy


def accepted_case(mode: str) -> Case:
    """A 3 x 3 Conv, or a 1 x 1 Conv for the modes of these."""
    case = plain_case((1, 1) if mode in KERNEL_FREE else (3, 3))
    assert get_mode(mode).accepts(case.conv) is None
    return case


@pytest.mark.parametrize("mode", sorted(conv_modes()))
@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_double_weights_whose_squares_leave_the_range(mode: str, scale: float) -> None:
    case = accepted_case(mode)
    model = conv_model(case)
    plain = weights(case)[0]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(plain * scale, "w"))
    row = only_conv(rewrite(model, mode, "full"))
    assert row.status == "replaced"
    assert row.weight_error is not None
    exact = get_mode(mode).is_exact(case.conv, row.rank or ())
    assert row.weight_error < (1e-13 if exact else 1)
    ranks: list[str | int] = [1, 2, "energy=0.8"] if has_spectrum(mode) else [1, 2]
    expected = {rank: only_conv(rewrite(conv_model(case), mode, rank)) for rank in ranks}
    for rank, other in expected.items():
        row = only_conv(rewrite(model, mode, rank))
        assert row.rank == other.rank
        assert row.weight_error == pytest.approx(other.weight_error, rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("rank", ["paper", "energy=0.9"])
@pytest.mark.parametrize("mode", sorted(conv_modes()))
def test_weights_that_are_not_finite_are_left_alone(mode: str, rank: str, value: float) -> None:
    case = accepted_case(mode)
    model = conv_model(case)
    weight = weights(case)[0]
    weight[1, 2].flat[-1] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    result = rewrite(model, mode, rank)
    assert only_conv(result).reason == "its weight holds NaN or infinity"
    assert result.proto.SerializeToString() == model.SerializeToString()


PLAIN_CASES = [
    *(plain_case((3, 3)), plain_case((2, 3), group=2), plain_case((2, 1, 3)), plain_case((2, 3, 2), 2)),
    *(plain_case((3, 4), in_channels=9, out_channels=2), plain_case((1, 1), 2), plain_case((1, 1), 1, 7, 5)),
]
NEVER_EXACT = ("lean", "spatial-depthwise")  # they say so in their docstrings
# How far the weight error may rise from one rank to the next. These modes have no closed form, and their iterations may
# stop in a local optimum; they say so in their docstrings.
RISE = {"cp": 0.02, "linear-bottleneck": 0.02, "tucker": 0.01, "spatial-depthwise": 0.01}


@pytest.mark.parametrize("mode", sorted(conv_modes()))
def test_weight_error_never_rises_with_rank(mode: str) -> None:
    chosen = get_mode(mode)
    tested = [case.conv for case in PLAIN_CASES if not chosen.accepts(case.conv)]
    assert tested
    for number, conv in enumerate(tested):
        weight = np.random.default_rng(number).standard_normal(conv.weight_shape)
        errors: dict[Rank, float] = {}
        for wanted in range(1, 80):
            rank = ranks_at(chosen, conv, wanted)
            if rank not in errors:
                difference = chosen.reconstruct(conv, chosen.factorize(Task(conv, weight), rank)) - weight
                errors[rank] = float(np.linalg.norm(difference) / np.linalg.norm(weight))
        for before, after in itertools.pairwise(errors.values()):
            assert after <= before + RISE.get(mode, 1e-12)
        assert next(iter(errors.values())) < 1


@dataclass(frozen=True)
class Fit:
    """A Conv, a weight, and statistics of inputs that a network might deliver."""

    conv: Conv
    weight: Array
    statistics: Statistics


def sampled(conv: Conv, seed: int, columns: int, prior: float) -> Fit:
    """Statistics of a sample: inputs of very different sizes, correlated, some channels dead; noisy targets."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(conv.weight_shape)
    group, channels, taps = conv.group, conv.in_channels // conv.group, math.prod(conv.kernel_shape)
    outputs, size = conv.out_channels // group, channels * taps
    x = rng.standard_normal((group, size, size)) @ rng.standard_normal((group, size, columns))
    loud = 10.0 ** rng.uniform(-4, 1, (group, channels, 1, 1)) * (rng.random((group, channels, 1, 1)) > 0.2)
    x = (x.reshape(group, channels, taps, columns) * loud).reshape(group, size, columns)
    y = weight.reshape(group, outputs, size) @ (x * rng.uniform(0.5, 1.5, (group, size, 1)))
    y += 0.1 * y.std() * rng.standard_normal(y.shape)
    transposed = np.swapaxes(x, 1, 2) / columns
    statistics = Statistics(x @ transposed, y @ transposed).with_prior(weight, prior)
    return Fit(conv, weight, statistics)


def objective(mode: Mode, fit: Fit, factors: Factors) -> float:
    """The mean squared error of the outputs, but for a constant."""
    product = mode.reconstruct(fit.conv, factors).reshape(fit.statistics.cross.shape)
    return sum(
        Problem(gram, cross).objective(matrix)
        for gram, cross, matrix in zip(fit.statistics.gram, fit.statistics.cross, product, strict=True)
    )


FITTED = [mode for mode in sorted(conv_modes()) if "joint" in get_mode(mode).inits]


@pytest.mark.parametrize("mode", FITTED)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    number=st.integers(0, len(PLAIN_CASES) - 1),
    wanted=st.integers(1, 8),
    seed=st.integers(0, 1000),
    columns=st.sampled_from([1, 7, 50, 400]),
    prior=st.sampled_from([1e-2, 1e-5]),
)
def test_joint_fit_never_worse_than_the_weights_alone(
    mode: str, number: int, wanted: int, seed: int, columns: int, prior: float
) -> None:
    chosen = get_mode(mode)
    cases_of_mode = [case.conv for case in PLAIN_CASES if not chosen.accepts(case.conv)]
    fit = sampled(cases_of_mode[number % len(cases_of_mode)], seed, columns, prior)
    rank = ranks_at(chosen, fit.conv, wanted)
    task = Task(fit.conv, fit.weight, fit.statistics, sweeps=5)
    start = chosen.factorize(task, rank)
    for init in chosen.inits[1:]:
        factors = chosen.fit(task, rank, init)
        assert [factor.shape for factor in factors.weights] == factor_shapes(chosen.layers(fit.conv, rank))
        assert all(np.isfinite(factor).all() for factor in factors.weights)
        if init == "joint":
            before, after = objective(chosen, fit, start), objective(chosen, fit, factors)
            assert after <= before + 1e-9 * (abs(before) + abs(after))


@pytest.mark.parametrize("mode", FITTED)
def test_joint_fit_to_white_inputs_is_no_worse_than_the_weights_alone(mode: str) -> None:
    """With the identity as Gram matrix the fit approximates the weight itself."""
    chosen = get_mode(mode)
    for case in PLAIN_CASES:
        conv = case.conv
        if chosen.accepts(conv):
            continue
        weight = weights(case)[0]
        size = conv.weight_size // conv.out_channels
        gram = np.broadcast_to(np.eye(size), (conv.group, size, size))
        statistics = Statistics(gram, weight.reshape(conv.group, -1, size))
        for wanted in (1, 3):
            rank = ranks_at(chosen, conv, wanted)
            products = [
                chosen.reconstruct(conv, chosen.factorize(Task(conv, weight), rank)),
                chosen.reconstruct(conv, chosen.fit(Task(conv, weight, statistics), rank, "joint")),
            ]
            alone, fitted = (float(np.linalg.norm(product - weight)) for product in products)
            assert fitted <= alone * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("mode", sorted(conv_modes()))
def test_layers_and_factors_agree_at_every_rank(mode: str) -> None:
    """The arrays of ``factorize`` fit ``layers``, ``reconstruct`` gives the weight's shape, ranks stay in range."""
    chosen = get_mode(mode)
    assert chosen.name == mode
    assert chosen.summary
    for case in PLAIN_CASES:
        if chosen.accepts(case.conv):
            continue
        weight = weights(case)[0]
        for wanted in range(1, 60, 4):
            rank: tuple[int, ...] = ()
            axes: list[RankAxis] = []
            while (axis := chosen.rank_axis(case.conv, rank)) is not None:
                assert axis.full % axis.step == 0
                assert axis.step <= axis.paper <= axis.full
                assert axis.paper % axis.step == 0
                if has_spectrum(mode):
                    spectrum = chosen.spectrum(Task(case.conv, weight), rank)
                    assert spectrum.shape[-1] * axis.step == axis.full
                    assert (np.diff(spectrum, axis=-1) <= 0).all()
                axes.append(axis)
                rank += (axis.clamp(wanted),)
            layers = chosen.layers(case.conv, rank)
            factors = chosen.factorize(Task(case.conv, weight), rank)
            assert [factor.shape for factor in factors.weights] == factor_shapes(layers)
            product = chosen.reconstruct(case.conv, factors)
            assert product.shape == case.conv.weight_shape
            if rank == tuple(axis.full for axis in axes) and mode not in NEVER_EXACT:
                assert chosen.is_exact(case.conv, rank)
                np.testing.assert_allclose(product, weight, atol=1e-12)
            assert len({layer.name for layer in layers}) == len(layers)


def test_unknown_mode_names_the_known_ones() -> None:
    known = ", ".join(onnxsep.available_modes())
    assert {"depthwise", "spatial"} <= set(onnxsep.available_modes())
    with pytest.raises(ModeNotFoundError, match=f"unknown mode 'sepconv'; the installed modes are: {known}"):
        get_mode("sepconv")


ODD_MODES = """
from onnxsep.passes.spatial import Spatial

class Thing:
    name = "thing"

class Other(Spatial):
    pass
"""
ODD_ENTRY_POINTS = """[onnxsep.modes]
thing = odd_modes:Thing
renamed = odd_modes:Other
depthwise = odd_modes:Other
"""


def test_odd_packages_harm_no_other_mode(tmp_path: Path) -> None:
    """What is no mode, goes by two names, or takes the name of another one is refused with the reason, when asked for.

    The package is installed as pip would leave it, in a folder of its own.
    """
    (tmp_path / "odd_modes.py").write_text(ODD_MODES)
    info = tmp_path / "odd_modes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-modes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ODD_ENTRY_POINTS)
    script = """
import onnxsep
from onnxsep.modes import get_mode
print(sorted(onnxsep.available_modes()))
for name in ("thing", "renamed", "depthwise"):
    try:
        get_mode(name)
    except onnxsep.OnnxsepError as error:
        print(error)
"""
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    output = done.stdout.splitlines()
    known = sorted(set(onnxsep.available_modes()) - {"depthwise"})
    broken = "is installed but cannot be loaded"
    assert output == [
        str(known),
        f"the mode 'thing' {broken}: TypeError: odd_modes:Thing must give an onnxsep.Mode, BlockMode or WidthMode "
        "with the name 'thing' and a summary",
        f"the mode 'renamed' {broken}: TypeError: odd_modes:Other must give an onnxsep.Mode, BlockMode or WidthMode "
        "with the name 'renamed' and a summary",
        f"the mode 'depthwise' {broken}: several packages bring a mode of this name: odd_modes:Other, "
        "onnxsep.passes.depthwise:Depthwise; uninstall all but one",
    ]


def test_a_mode_object_is_taken_as_it_is() -> None:
    mode = get_mode("spatial")
    assert get_mode(mode) is mode
    result = onnxsep.rewrite(
        conv_model(plain_case((3, 3))), mode=mode, include_first=True, force=True, verify="none", rank=2
    )
    assert result.report.mode == "spatial"
    assert only_conv(result).rank == (2,)
