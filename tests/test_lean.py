"""The lean mode of paper 003: the pattern of its weight, its form, its least squares, and the networks of the paper."""

import importlib.util
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from marked import marked
from onnx import helper, numpy_helper

import onnxsep
from onnxsep.algebra.statistics import Statistics
from onnxsep.graph.parameters import count_parameters
from onnxsep.graph.shapes import skeleton
from onnxsep.layers.conv import AutoPad, Conv
from onnxsep.layers.layer import INPUT, AddLayer, ChannelPadLayer, ConvLayer, channels, macs, parameters, relative_macs
from onnxsep.modes.base import NOTHING_TO_SEPARATE, Task, factor_shapes, get_mode
from onnxsep.rewriting.report import ConvReport

Array = npt.NDArray[Any]
LEAN = get_mode("lean")
SCRIPT = Path(__file__).resolve().parents[1] / "models" / "leanresnet.py"
TYPES: dict[str, tuple[Any, float]] = {"float32": (np.float32, 1e-5), "float16": (np.float16, 5e-3)}
ELEMENT_TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


def plain(
    kernel: tuple[int, ...], in_channels: int = 4, out_channels: int = 4, *, bias: bool = False, **changes: Any
) -> Conv:
    """A Conv that keeps the size, of odd kernel."""
    ones = (1,) * len(kernel)
    conv = Conv(in_channels, out_channels, kernel, ones, tuple(k // 2 for k in kernel) * 2, ones, bias=bias)
    return replace(conv, **changes)


def in_pattern(conv: Conv) -> npt.NDArray[np.bool_]:
    """True for every tap that a lean Conv has: each tap that is the centre, or of channel i = o and one step off it."""
    kept = np.zeros(conv.weight_shape, bool)
    middle = [(k - 1) // 2 for k in conv.kernel_shape]
    for o, i in product(range(conv.out_channels), range(conv.in_channels)):
        for tap in product(*(range(k) for k in conv.kernel_shape)):
            distance = sum(abs(place - centre) for place, centre in zip(tap, middle, strict=True))
            kept[o, i][tap] = distance == 0 or (distance == 1 and o == i)
    return kept


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def conv_model(conv: Conv, weight: Array, size: tuple[int, ...], opset: int = 17) -> onnx.ModelProto:
    """A model of one Conv: x -> y."""
    attributes: dict[str, Any] = {"strides": conv.strides, "dilations": conv.dilations}
    attributes.update({"pads": conv.pads} if conv.auto_pad == "NOTSET" else {"auto_pad": conv.auto_pad})
    initializers = [numpy_helper.from_array(weight, "w")]
    if conv.bias:
        initializers.append(numpy_helper.from_array(values(conv.out_channels, seed=1).astype(weight.dtype), "b"))
    kind = ELEMENT_TYPES[weight.dtype.name]
    node = helper.make_node("Conv", ["x", "w", *(["b"] if conv.bias else [])], ["y"], name="conv", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, [2, conv.in_channels, *size])],
        [helper.make_tensor_value_info("y", kind, [2, conv.out_channels, *"hwd"[: conv.dims]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, x: Array, name: str = "x") -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {name: x})[0], np.float64)


def rewrite(model: onnx.ModelProto, rank: str | float = "paper", **options: Any) -> tuple[onnxsep.Result, ConvReport]:
    result = onnxsep.rewrite(model, mode="lean", rank=rank, **{"force": True, "include_first": True, **options})
    (row,) = result.report.convs
    return result, row


# ---------------------------------------------------------------- the form


@dataclass(frozen=True)
class Case:
    conv: Conv
    size: tuple[int, ...]
    dtype: str
    opset: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.integers(1, 3))
    kernel = tuple(draw(st.sampled_from([1, 3, 3, 5, 7] if dims < 3 else [1, 3, 3, 5])) for _ in range(dims))
    if max(kernel) == 1:
        kernel = (3, *kernel[1:])
    choices: list[AutoPad] = ["NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER"]
    same = draw(st.sampled_from(choices))
    # ONNX Runtime refuses dilations together with SAME.
    dilations = tuple(1 if same != "NOTSET" else draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel)
    strides = tuple(1 if same != "NOTSET" and k > 1 else draw(st.sampled_from([1, 1, 2, 3])) for k in kernel)
    least = [(k - 1) * d // 2 for k, d in zip(kernel, dilations, strict=True)]
    pads = tuple(pad + draw(st.integers(0, 2)) for pad in least * 2)
    conv = Conv(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(1, 5)),
        kernel_shape=kernel,
        strides=strides,
        pads=pads if same == "NOTSET" else (0,) * (2 * dims),
        dilations=dilations,
        bias=draw(st.booleans()),
        auto_pad=same,
    )
    size = tuple((k - 1) * d + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilations, strict=True))
    dtype = draw(st.sampled_from(["float32", "float32", "float16"]))
    return Case(conv, size, dtype, draw(st.sampled_from([7, 10, 11, 17])))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(case=cases())
def test_equals_the_conv_whose_other_taps_are_zero(case: Case) -> None:
    """Run against the same Conv with a masked weight: same centre, strides, dilations, borders, channels, sizes."""
    conv = case.conv
    event(f"{conv.dims} dims, {conv.auto_pad}, in - out {np.sign(conv.in_channels - conv.out_channels)}")
    kind, tolerance = TYPES[case.dtype]
    weight = values(*conv.weight_shape).astype(kind)
    assert LEAN.accepts(conv) is None
    masked = conv_model(conv, np.where(in_pattern(conv), weight, 0).astype(kind), case.size, case.opset)
    result, row = rewrite(conv_model(conv, weight, case.size, case.opset), verify="none")
    onnx.checker.check_model(result.proto, full_check=True)
    x = values(2, conv.in_channels, *case.size, seed=2).astype(kind)
    expected, actual = run(masked, x), run(result.proto, x)
    assert expected.shape == actual.shape
    np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max(), rtol=0)
    assert row.status == "replaced"
    assert row.rank == ()
    lost = np.linalg.norm(np.where(in_pattern(conv), 0, weight.astype(np.float64)))
    assert row.weight_error == pytest.approx(lost / np.linalg.norm(weight.astype(np.float64)), rel=1e-6, abs=1e-12)
    axes = sum(k > 1 for k in conv.kernel_shape)
    both = min(conv.in_channels, conv.out_channels)
    stored = conv.in_channels * conv.out_channels + 2 * axes * both + (conv.out_channels if conv.bias else 0)
    assert row.parameters_after == result.report.totals.parameters_after == stored
    assert result.report.totals.macs_after == row.macs_after


@pytest.mark.parametrize(("kernel", "extra"), [((3,), 2), ((3, 3), 4), ((5, 5), 4), ((3, 3, 3), 6)])
def test_parameters_are_those_of_the_paper(kernel: tuple[int, ...], extra: int) -> None:
    """c_in c_out + 4 c_in in 2-D (below equation 4), two taps for each axis in general."""
    for c_in, c_out in [(8, 8), (8, 16)]:
        assert parameters(LEAN.layers(plain(kernel, c_in, c_out), ())) == c_in * c_out + extra * c_in


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 17, 20])
@pytest.mark.parametrize(("c_in", "c_out"), [(3, 5), (5, 3)])
def test_pad_of_the_channels_in_all_operator_sets(opset: int, c_in: int, c_out: int) -> None:
    conv = plain((3, 3), c_in, c_out, bias=True)
    model = conv_model(conv, values(*conv.weight_shape).astype(np.float32), (6, 7), opset)
    result, row = rewrite(model, verify="local")
    (pad,) = [node for node in result.proto.graph.node if node.op_type == "Pad"]
    assert len(pad.input) == (1 if opset < 11 else 2)
    assert result.report.verification.ran
    # Taps are lost, so the outputs differ; by white noise as much as the weights do.
    assert row.output_error == pytest.approx(row.weight_error, rel=0.3)


def test_weights_in_a_function() -> None:
    conv = plain((3, 3), 3, 5)
    weight = values(*conv.weight_shape).astype(np.float32)
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
    ]
    function = helper.make_function("local", "Layer", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = conv_model(conv, weight, (6, 7))
    del model.graph.initializer[:]
    model.graph.node[0].CopyFrom(helper.make_node("Layer", ["x"], ["y"], domain="local"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    result, row = rewrite(model, verify="local")
    assert row.status == "replaced"
    assert row.output_error is not None
    masked = conv_model(conv, np.where(in_pattern(conv), weight, np.float32(0)), (6, 7))
    x = values(2, 3, 6, 7, seed=2).astype(np.float32)
    np.testing.assert_allclose(run(result.proto, x), run(masked, x), atol=1e-4)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (plain((1, 1)), NOTHING_TO_SEPARATE),
        (plain((3, 3), group=2), "grouped Conv (2 groups): this mode takes ungrouped ones only"),
        (plain((3, 2), pads=(1, 1, 1, 1)), "a kernel of 3 x 2 has no tap at its centre"),
        (
            plain((3, 5), pads=(0, 2, 1, 2), dilations=(1, 1)),
            "its pads are too small: the 1 x 1 Conv would have to leave out the border, which needs pads of at least "
            "1 x 2 on either side",
        ),
        (
            plain((3, 3), pads=(1, 1, 1, 1), dilations=(2, 1)),
            "its pads are too small: the 1 x 1 Conv would have to leave out the border, which needs pads of at least "
            "2 x 1 on either side",
        ),
        (
            plain((3, 3), auto_pad="VALID", pads=(0,) * 4),
            "its pads are too small: the 1 x 1 Conv would have to leave out the border, which needs pads of at least "
            "1 x 1 on either side",
        ),
        (
            plain((3, 3), auto_pad="SAME_UPPER", pads=(0,) * 4, strides=(2, 1)),
            "auto_pad SAME_UPPER with strides: where its centre lies depends on the size of the input",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_with_the_reason(conv: Conv, reason: str) -> None:
    assert LEAN.accepts(conv) == reason


def test_bfloat16_keeps_its_type() -> None:
    conv = plain((3, 3), 3, 5)
    weight = values(*conv.weight_shape).astype(ml_dtypes.bfloat16)
    tensor = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, weight.shape, weight.tobytes(), raw=True)
    model = conv_model(conv, weight.astype(np.float32), (6, 7), 22)
    model.graph.initializer[0].CopyFrom(tensor)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    result, row = rewrite(model, verify="local")
    assert {one.data_type for one in result.proto.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    lost = np.linalg.norm(np.where(in_pattern(conv), 0, weight.astype(np.float64)))
    assert row.weight_error == pytest.approx(lost / np.linalg.norm(weight.astype(np.float64)), rel=1e-6)


# ---------------------------------------------------------------- a mode without a rank


def test_there_is_no_rank_to_choose() -> None:
    conv = plain((3, 3), 8, 8)  # 576 parameters, 96 of them in the pattern: 1/6
    model = conv_model(conv, values(*conv.weight_shape).astype(np.float32), (6, 7))
    plainly, row = rewrite(model)
    assert (row.rank, row.notes) == ((), ())
    assert {entry.value for node in marked(plainly.proto).graph.node for entry in node.metadata_props} == {
        "lean",
        "",
        "conv",
    }
    for rank in (3, "full"):
        result, row = rewrite(model, rank)
        assert row.notes == (f"mode lean has no rank: '{rank}' is not used",)
        assert result.proto.SerializeToString() == plainly.proto.SerializeToString()
    result, row = rewrite(model, 0.5)
    assert (row.status, row.notes) == ("replaced", ())
    _, row = rewrite(model, 0.1)
    assert row.reason == "mode lean has no rank, and its 96 weights are more than 0.1 of 576"
    _, row = rewrite(model, "energy=0.9")
    assert row.reason == "mode lean has no rank, so it cannot keep a share of the energy"
    (inspected,) = onnxsep.inspect(model, modes=["lean"]).convs
    assert inspected.modes["lean"].rank == ()
    assert inspected.modes["lean"].parameters == 96


def test_again_changes_nothing() -> None:
    conv = plain((3, 3), 3, 5)
    once, _ = rewrite(conv_model(conv, values(*conv.weight_shape).astype(np.float32), (6, 7)))
    twice = onnxsep.rewrite(once.model, mode="lean", include_first=True)
    assert twice.proto.SerializeToString() == once.proto.SerializeToString()
    assert twice.report.totals.replaced == 0


# ---------------------------------------------------------------- counting what layers cost


def test_layers_that_pad_channels_cost_nothing() -> None:
    """A chain by hand: 2 channels of 8 x 6 halved to 4 x 3, then padded to 5 channels, and added to a 1 x 1 Conv's."""
    half = Conv(2, 2, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), group=2)
    mixing = replace(half, out_channels=5, group=1)
    layers = (
        ConvLayer("mixing", INPUT, mixing),
        ConvLayer("half", INPUT, half),
        ChannelPadLayer("padded", "half", 5),
        AddLayer("sum", ("mixing", "padded")),
    )
    assert parameters(layers) == 10 + 2
    assert macs(layers, (8, 6)) == 4 * 3 * (10 + 2)
    assert relative_macs(layers) * 8 * 6 == 4 * 3 * (10 + 2)
    assert channels(layers, 2) == {"input": 2, "mixing": 5, "half": 2, "padded": 5, "sum": 5}
    assert factor_shapes(layers) == [(5, 2, 1, 1), (2, 1, 1, 1)]


# ---------------------------------------------------------------- the fit to data


def sampled(conv: Conv, count: int = 400) -> tuple[Array, Array]:
    """Correlated patches [count, d], and outputs [count, out] that only partly depend on them."""
    d = conv.in_channels * math.prod(conv.kernel_shape)
    x = values(count, d, seed=4) @ (np.eye(d) + 0.5 * values(d, d, seed=5) / math.sqrt(d))
    return x, x @ values(d, conv.out_channels, seed=6) + 0.1 * values(count, conv.out_channels, seed=7)


def statistics(x: Array, y: Array) -> Statistics:
    return Statistics(gram=(x.T @ x / len(x))[None], cross=(y.T @ x / len(x))[None])


@pytest.mark.parametrize(
    "conv",
    [plain((3, 3)), plain((3, 3), 3, 6), plain((3, 3), 6, 3), plain((5,), 3, 4), plain((3, 1, 5), 2, 3), plain((7, 3))],
    ids=lambda conv: f"{conv.kernel_shape} {conv.in_channels}-{conv.out_channels}",
)
def test_joint_is_least_squares_over_the_pattern(conv: Conv) -> None:
    x, y = sampled(conv)
    weight = values(*conv.weight_shape)
    task = Task(conv, weight, statistics(x, y))
    fitted = LEAN.fit(task, (), "joint")
    assert [array.shape for array in fitted.weights] == factor_shapes(LEAN.layers(conv, ()))
    matrix = LEAN.reconstruct(conv, fitted)
    kept = in_pattern(conv)
    assert (matrix[~kept] == 0).all()
    for o in range(conv.out_channels):
        columns = kept[o].ravel()
        expected = np.linalg.lstsq(x[:, columns], y[:, o], rcond=None)[0]
        np.testing.assert_allclose(matrix[o].ravel()[columns], expected, rtol=1e-6, atol=1e-8)


def test_joint_with_what_the_data_do_not_see() -> None:
    """Dead channels and more unknowns than positions: with the prior the fit is finite, and no worse than the mask."""
    conv = plain((3, 3), 6, 5)
    x, y = sampled(conv, 20)
    x[:, 9:18] = 0.0
    weight = values(*conv.weight_shape)
    seen = statistics(x, y).with_prior(weight, 1e-3)
    task = Task(conv, weight, seen)

    def objective(matrix: Array) -> float:
        flat = matrix.reshape(5, -1)
        return float(np.vdot(flat @ seen.gram[0], flat) - 2 * np.vdot(seen.cross[0], flat))

    fitted = LEAN.reconstruct(conv, LEAN.fit(task, (), "joint"))
    assert np.isfinite(fitted).all()
    masked = LEAN.reconstruct(conv, LEAN.factorize(task, ()))
    assert objective(fitted) < objective(masked)
    np.testing.assert_allclose(fitted[:, 1, 1, 1], weight[:, 1, 1, 1], rtol=1e-6)  # the dead channel: as it was


def test_joint_with_an_empty_gram_matrix() -> None:
    conv = plain((3, 3))
    nothing = Statistics(np.zeros((1, 36, 36)), np.zeros((1, 4, 36)))
    fitted = LEAN.fit(Task(conv, values(*conv.weight_shape), nothing), (), "joint")
    assert all((array == 0).all() for array in fitted.weights)


def test_other_fits_are_not_offered() -> None:
    conv = plain((3, 3))
    task = Task(conv, values(*conv.weight_shape), Statistics(np.eye(36)[None], np.zeros((1, 4, 36))))
    assert LEAN.inits == ("svd", "joint")
    with pytest.raises(NotImplementedError, match="mode lean does not offer 'response'"):
        LEAN.fit(task, (), "response")


# ---------------------------------------------------------------- the networks of the paper


@pytest.fixture(scope="module")
def leanresnet() -> ModuleType:
    """The script of models/, which is no package."""
    spec = importlib.util.spec_from_file_location("models_leanresnet", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_out(widths: tuple[int, ...], steps: tuple[int, ...], classes: int, *, lean: bool) -> int:
    """Trainable parameters of a network, Conv by Conv, each with a BatchNormalization of its output."""

    def conv(c_in: int, c_out: int) -> int:
        return c_in * c_out + 4 * c_in if lean else 9 * c_in * c_out

    total = 9 * 3 * widths[0] + 2 * widths[0]  # the opening Conv stays full
    before = widths[0]
    for width, count in zip(widths, steps, strict=True):
        for c_in in (before, *[width] * (2 * count - 1)):
            total += conv(c_in, width) + 2 * width
        before = width
    return total + widths[-1] * classes + classes


# Millions of table 1, and where they are not what the paper's rule gives, those of the rule.
@pytest.mark.parametrize(
    ("name", "full", "lean"),
    [
        ("A", "4.304", "0.497"),
        ("B", "0.607", None),
        ("C", "27.351", "3.138"),
        ("D", "3.863", None),
        ("E", "17.289", "1.958"),
        ("F", "2.435", None),
    ],
)
def test_networks_have_the_parameters_of_the_paper(
    leanresnet: ModuleType, name: str, full: str, lean: str | None
) -> None:
    """The full network is built as ONNX, and rewritten; both are counted from their shapes."""
    source = leanresnet.build(name)
    widths, steps, classes, size = leanresnet.NETWORKS[name]
    assert [dim.dim_value for dim in source.graph.input[0].type.tensor_type.shape.dim] == [1, 3, size, size]
    count = count_parameters(skeleton(source), "trainable")
    assert count == leanresnet.trainable_parameters(source) == written_out(widths, steps, classes, lean=False)
    assert f"{count / 1e6:.3f}" == full
    if lean is None:
        return
    result = onnxsep.rewrite(source, mode="lean", verify="none")
    assert result.report.totals.convs == 1 + 2 * sum(steps)
    assert [row.reason for row in result.report.convs if row.status == "left"] == [
        "first Conv, reached straight from an input; include_first=True replaces it"
    ]
    count = count_parameters(skeleton(result.proto), "trainable")
    assert count == leanresnet.trainable_parameters(result.proto) == written_out(widths, steps, classes, lean=True)
    assert f"{count / 1e6:.3f}" == lean


def test_network_runs_and_every_piece_is_the_masked_conv(leanresnet: ModuleType) -> None:
    """The network with every Conv masked, against the lean one: the same answers from a tenth of the weights."""
    source = leanresnet.build("B", image_size=16, batch=2)
    masked = onnx.ModelProto()
    masked.CopyFrom(source)
    weights = {node.input[1] for node in source.graph.node if node.op_type == "Conv" and node.name != "opening"}
    for tensor in masked.graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor)
            kept = in_pattern(plain((3, 3), array.shape[1], array.shape[0]))
            tensor.CopyFrom(numpy_helper.from_array(np.where(kept, array, np.float32(0)), tensor.name))
    result = onnxsep.rewrite(source, mode="lean", verify="local")
    assert result.report.verification.ran
    onnx.checker.check_model(result.proto, full_check=True)
    assert result.proto.SerializeToString() == leanresnet.build_lean("B", image_size=16, batch=2).SerializeToString()
    images = values(2, 3, 16, 16, seed=3).astype(np.float32)
    expected, actual = run(masked, images, "image"), run(result.proto, images, "image")
    assert expected.shape == (2, 10)
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_script_writes_what_it_says(tmp_path: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    path = tmp_path / "a.onnx"
    done = script(str(path), "--network", "A", "--lean", "--batch", "n")
    assert done.stdout == f"{path}: 496,682 trainable parameters, {path.stat().st_size:,} bytes\n"
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    refused = script(str(path), "--image-size", "20")
    assert refused.returncode == 2
    assert "the image size must be a multiple of 8 for network A, not 20" in refused.stderr
    refused = script(str(tmp_path / "no" / "a.onnx"), "--network", "B")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "cannot write" in refused.stderr
    assert "Traceback" not in refused.stderr
