"""``quantize``: figures that can be worked out by hand or with the runtime's own tools, and every way to go wrong."""

import json
import subprocess
from collections.abc import Callable, Collection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper
from random_examples import some
from versions import needs_right_weights

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import DataError, OptionError, VerificationError
from onnxsep.evaluation import evaluate
from onnxsep.model.io import Model, load
from onnxsep.quantization import QuantizationError, QuantizeResult, quantize
from onnxsep.quantization.calibrating import calibrate
from onnxsep.quantization.equalizing import equalize
from onnxsep.quantization.measuring import split
from onnxsep.quantization.naming import tensor_names
from onnxsep.quantization.nodes import to_calibrate
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.sparing import spare
from onnxsep.running.runtime import Runner, RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
ONE = RuntimeOptions(threads=1)


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    """Images of handwritten digits with their classes, as the digits model takes them."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return {"x": (found.images[:, None] / 16).astype(np.float32), "y": found.target.astype(np.int64)}


def network(
    *,
    opset: int = 17,
    ir_version: int = 8,
    named: bool = True,
    weights_are_inputs: bool = False,
    dtype: Any = np.float32,
) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, Conv, residual Add, GlobalAveragePool: 4 channels, 8 x 8."""
    generator = np.random.default_rng(0)
    arrays = {
        "w1": generator.standard_normal((4, 3, 3, 3)),
        "w2": generator.standard_normal((4, 4, 3, 3)),
        "b2": generator.standard_normal(4),
        "scale": generator.uniform(0.5, 2, 4),
        "bias": generator.standard_normal(4),
        "mean": generator.standard_normal(4),
        "var": generator.uniform(0.5, 2, 4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "bias", "mean", "var"], ["n1"], "norm"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second", pads=[1, 1, 1, 1], doc_string="of the user"),
        helper.make_node("Add", ["c2", "r1"], ["a"], "sum"),
        helper.make_node("GlobalAveragePool", ["a"], ["out"], "pool"),
    ]
    if not named:
        for node in nodes:
            node.ClearField("name")
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [helper.make_tensor_value_info("x", elem, ["n", 3, 8, 8])]
    if weights_are_inputs:
        inputs += [helper.make_tensor_value_info(name, elem, value.shape) for name, value in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "the user's graph",
        inputs,
        [helper.make_tensor_value_info("out", elem, ["n", 4, 1, 1])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in arrays.items()],
        doc_string="about the graph",
        value_info=[helper.make_tensor_value_info("c2", elem, ["n", 4, 8, 8], doc_string="about c2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    model.producer_name, model.model_version, model.doc_string = "trainer", 7, "about the model"
    helper.set_model_props(model, {"license": "mine"})
    return model


def samples(count: int = 40, seed: int = 1, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(dtype)


def statuses(result: QuantizeResult) -> dict[str, str]:
    return {node.name: node.status for node in result.report.nodes}


def only(proto: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    (found,) = [node for node in proto.graph.node if node.op_type == op_type]
    return found


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def quantized_weight(proto: onnx.ModelProto, conv: str) -> tuple[np.ndarray, np.ndarray]:
    """int8 weight and scales of a Conv in a QDQ model."""
    node = next(node for node in proto.graph.node if node.name == conv)
    dequantize = next(other for other in proto.graph.node if node.input[1] in other.output)
    values = constants(proto)
    return values[dequantize.input[0]], values[dequantize.input[1]]


# ---------------------------------------------------------------- what the result is


@pytest.mark.parametrize(
    ("method", "activations", "format_"),
    some(product(["minmax", "entropy", "percentile"], ["int8", "uint8"], ["qdq", "qoperator"]), 5),
)
def test_digits_model_keeps_its_accuracy(
    format_: Any, activations: Any, method: Any, digits: dict[str, np.ndarray]
) -> None:
    result = quantize(
        DIGITS,
        data={"x": digits["x"][:100]},
        format=format_,
        activations=activations,
        method=method,
        runtime=ONE,
    )
    # Old versions of the quantiser do not know Flatten.
    assert {node.op_type for node in result.report.nodes if node.status == "left"} <= {"Flatten"}
    rest = {"x": digits["x"][-400:], "y": digits["y"][-400:]}
    before, after = evaluate([DIGITS, result.model], data=rest, runs=0, memory=False, runtime=ONE).models
    assert before.top1 is not None
    assert after.top1 is not None
    assert after.top1.share.value >= before.top1.share.value - 0.01
    assert after.file_bytes < 0.3 * before.file_bytes


def test_weights_are_rounded_to_the_scale_of_their_channel() -> None:
    source = network()
    del source.graph.node[1]  # without the BatchNormalization the first weight stays as it is
    source.graph.node[1].input[0] = "c1"
    result = quantize(source, data=samples(), runtime=ONE)
    weight = constants(source)["w1"]
    got, scale = quantized_weight(result.proto, "first")
    expected_scale = np.abs(weight).max(axis=(1, 2, 3)) / 127.5  # the runtime spreads the range over 255 steps
    np.testing.assert_allclose(scale, expected_scale, rtol=0.01)
    steps = scale[:, None, None, None]
    assert (np.abs(got * steps - weight) <= 0.5001 * steps).all()
    assert got.dtype == np.int8


def test_per_tensor_weights_have_one_scale() -> None:
    _, scale = quantized_weight(quantize(network(), data=samples(), per_channel=False, runtime=ONE).proto, "first")
    assert scale.size == 1


def test_reduced_range_leaves_a_bit_unused() -> None:
    got, _ = quantized_weight(quantize(network(), data=samples(), reduce_range=True, runtime=ONE).proto, "second")
    assert 32 < np.abs(got.astype(int)).max() <= 64


def test_zero_weights_stay_zero() -> None:
    source = network()
    (tensor,) = [tensor for tensor in source.graph.initializer if tensor.name == "w2"]
    weight = numpy_helper.to_array(tensor).copy()
    zero = np.random.default_rng(3).random(weight.shape) < 0.6
    weight[zero] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, "w2"))
    got, _ = quantized_weight(quantize(source, data=samples(), runtime=ONE).proto, "second")
    assert zero.sum() > 50
    assert not got[zero].any()


def test_error_in_the_report_is_the_error_of_the_outputs() -> None:
    source, data = network(), samples(50)
    result = quantize(source, data=data, samples=30, runtime=ONE)
    indices = split(open_data(data, load(source)), 30, 0).verified
    expected = Runner(load(source), ONE)({"x": data[indices]})["out"].astype(np.float64)
    actual = Runner(result.model, ONE)({"x": data[indices]})["out"].astype(np.float64)
    (output,) = result.report.outputs
    relative = np.linalg.norm(expected - actual) / np.linalg.norm(expected)
    assert output.relative == pytest.approx(relative, rel=1e-3)
    assert output.max_abs == pytest.approx(np.abs(expected - actual).max(), rel=1e-3)
    assert 0 < relative < 0.1


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize("format_", ["qdq", "qoperator"])
def test_interface_metadata_and_names_of_the_user_stay(format_: Any) -> None:
    source = network()
    result = quantize(source, data=samples(), format=format_, runtime=ONE).proto
    for field in ("producer_name", "model_version", "doc_string", "metadata_props"):
        assert getattr(result, field) == getattr(source, field)
    assert result.graph.name == "the user's graph"
    assert result.graph.doc_string == "about the graph"
    assert list(result.graph.input) == list(source.graph.input)
    assert list(result.graph.output) == list(source.graph.output)
    assert [entry.domain for entry in result.opset_import if entry.domain not in ("", "ai.onnx")] == (
        [] if format_ == "qdq" else ["com.microsoft"]
    )
    names = {node.name for node in result.graph.node}
    assert {"first", "second", "sum", "pool"} <= names
    assert [node.doc_string for node in result.graph.node if node.name == "second"] == ["of the user"]


def test_source_is_not_changed_and_tensors_keep_their_names() -> None:
    source = network()
    before = source.SerializeToString()
    result = quantize(source, data=samples(), runtime=ONE).proto
    assert source.SerializeToString() == before
    assert only(result, "Add").name == "sum"
    assert {"x", "out", "c2", "r1"} <= tensor_names(result)
    assert list(result.graph.value_info) == list(source.graph.value_info)


def test_short_names_change_nothing_but_the_size() -> None:
    kept = quantize(network(), data=samples(), runtime=ONE).model
    short = quantize(network(), data=samples(), names="short", runtime=ONE).model
    feed = {"x": samples(8, seed=5)}
    np.testing.assert_array_equal(Runner(short, ONE)(feed)["out"], Runner(kept, ONE)(feed)["out"])
    assert short.proto.ByteSize() < 0.95 * kept.proto.ByteSize()


def test_short_names_do_not_meet_those_of_the_user() -> None:
    source = network()
    for node in source.graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = {"c2": "b", "r1": "c"}.get(name, name)
    del source.graph.value_info[:]
    result = quantize(source, data=samples(), runtime=ONE)
    outputs = [name for node in result.proto.graph.node for name in node.output]
    outputs += [tensor.name for tensor in result.proto.graph.initializer]
    assert len(outputs) == len(set(outputs))
    assert {"b", "c"} <= set(outputs)
    plain = quantize(network(), data=samples(), runtime=ONE)
    assert result.report.outputs == plain.report.outputs


def test_nodes_without_names_get_none() -> None:
    result = quantize(network(named=False), data=samples(), exclude="c2", runtime=ONE)
    assert not any(node.name for node in result.proto.graph.node)
    assert statuses(result)["c2"] == "left"
    assert result.report.outputs != quantize(network(), data=samples(), runtime=ONE).report.outputs


def test_same_input_same_bytes() -> None:
    first, second = (quantize(network(), data=samples(), runtime=ONE).proto for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


# ---------------------------------------------------------------- what is done for the user


def test_batch_normalization_is_folded() -> None:
    result = quantize(network(), data=samples(), runtime=ONE)
    assert not [node for node in result.proto.graph.node if node.op_type == "BatchNormalization"]
    assert statuses(result) == {
        **dict.fromkeys(("first", "second", "sum", "pool"), "quantized"),
        "relu": "folded",
    }


def test_opset_is_raised_where_scales_per_channel_need_it() -> None:
    source = network(opset=9, ir_version=4)
    result = quantize(source, data=samples(), runtime=ONE)
    assert [(entry.domain, entry.version) for entry in result.proto.opset_import] == [("", 13)]
    assert any("opset raised" in note and "13" in note for note in result.report.notes)
    onnx.checker.check_model(result.proto, full_check=True)
    assert result.report.relative == pytest.approx(quantize(network(), data=samples(), runtime=ONE).report.relative)


def test_newer_opset_stays() -> None:
    result = quantize(network(opset=17), data=samples(), runtime=ONE)
    assert [(entry.domain, entry.version) for entry in result.proto.opset_import] == [("", 17)]


def test_weights_that_are_graph_inputs_are_quantized_too() -> None:
    result = quantize(
        network(opset=8, ir_version=3, weights_are_inputs=True), data={"x": samples()}, per_channel=False, runtime=ONE
    )
    assert [entry.name for entry in result.proto.graph.input] == ["x"]
    assert any("7 graph inputs" in note for note in result.report.notes)
    assert statuses(result)["first"] == statuses(result)["second"] == "quantized"


def test_external_data_is_read_and_the_result_stands_alone(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    result = quantize(tmp_path / "in.onnx", data=samples(), runtime=ONE)
    files = result.save(tmp_path / "out.onnx")
    assert files.data_paths == ()
    plain = quantize(network(), data=samples(), runtime=ONE)
    assert result.report.outputs == plain.report.outputs
    assert Runner(load(tmp_path / "out.onnx"), ONE)({"x": samples(2)})["out"].shape == (2, 4, 1, 1)


def test_bias_of_a_gemm_may_have_two_dimensions() -> None:
    generator = np.random.default_rng(2)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["out"], "dense")],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(generator.standard_normal((6, 5)).astype(np.float32), "w"),
            numpy_helper.from_array(generator.standard_normal((1, 5)).astype(np.float32), "b"),
        ],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = generator.standard_normal((30, 6)).astype(np.float32)
    result = quantize(source, data=data, runtime=ONE)
    assert statuses(result) == {"dense": "quantized"}
    assert result.report.relative < 0.02


def test_shared_bias_is_quantized_for_each_node() -> None:
    """Their inputs differ in scale. A tensor bears the name that the quantiser would give to its copy of the bias."""
    source = network()
    source.graph.node[0].input.append("b2")
    for node in source.graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = {"r1": "b20"}.get(name, name)
    del source.graph.node[1]  # a BatchNormalization would be folded into the bias
    source.graph.node[1].input[0] = "c1"
    result = quantize(source, data=samples(), runtime=ONE)
    assert statuses(result)["first"] == statuses(result)["second"] == "quantized"
    assert result.report.relative < 0.1


# ---------------------------------------------------------------- calibration in bounded memory


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_are_those_of_all_data_at_once(method: Any) -> None:
    """The last samples are the largest, so that a histogram of the first ones is too narrow."""
    data = samples(40) * np.linspace(0.01, 3, 40, dtype=np.float32)[:, None, None, None]
    prepared = prepare(load(network()), Settings()).proto
    tensors = to_calibrate(prepared, {node.op_type for node in prepared.graph.node}, ())
    opened = open_data(data, Model(prepared))
    ranges = calibrate(prepared, tensors, opened, range(40), Settings(method=method, percentile=99.0), ONE)
    assert list(ranges) == tensors
    assert len(tensors) == 6
    watched = onnx.ModelProto()
    watched.CopyFrom(prepared)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name != "x")
    activations = Runner(Model(watched), RuntimeOptions(threads=1, optimize=False))({"x": data}) | {"x": data}
    for name in tensors:
        whole = activations[name]
        low, high = ranges[name]
        if method == "minmax":
            assert (low, high) == pytest.approx((whole.min(), whole.max()))
            continue
        assert np.mean(whole > high) == pytest.approx(0.005, abs=1 / whole.size + 2e-4)
        below = 0.005 if whole.min() < 0 else 0  # a Relu gives so many zeros that none can be cut off
        assert np.mean(whole < low) == pytest.approx(below, abs=1 / whole.size + 2e-4)


def test_narrow_percentile_clips_more() -> None:
    wide, narrow = (
        quantize(network(), data=samples(), method="percentile", percentile=share, runtime=ONE).report.relative
        for share in (99.999, 80.0)
    )
    assert narrow > 2 * wide


@pytest.mark.parametrize(("count", "samples_", "calibrated", "measured"), [(100, 50, 50, 10), (100, 200, 90, 10)])
def test_held_out_samples_are_others(count: int, samples_: int, calibrated: int, measured: int) -> None:
    parts = split(open_data(samples(count), load(network())), samples_, 0)
    assert (len(parts.fitted), len(parts.verified), parts.unseen) == (calibrated, measured, True)
    assert not set(parts.fitted) & set(parts.verified)


def test_one_sample_serves_for_both_and_that_is_said() -> None:
    report = quantize(network(), data=samples(1), runtime=ONE).report
    assert not report.held_out
    assert any("too few samples" in note for note in report.notes)


def test_fixed_batch_is_filled() -> None:
    source = network()
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    source.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 8
    report = quantize(source, data=samples(40), samples=16, runtime=ONE).report
    assert (report.calibration_samples, report.measured_samples, report.held_out) == (16, 8, True)


# ---------------------------------------------------------------- equalisation


def test_equalising_brings_back_what_unbalanced_channels_lose(digits: dict[str, np.ndarray]) -> None:
    source, _ = unbalanced(1000.0)
    options: dict[str, Any] = {"data": {"x": digits["x"][:300]}, "per_channel": False, "runtime": ONE}
    plain = quantize(source, equalize=False, **options).report
    equalized = quantize(source, **options).report
    balanced = quantize(DIGITS, **options).report
    assert plain.relative > 0.3
    assert equalized.relative < 0.05
    assert equalized.relative == pytest.approx(balanced.relative, rel=0.2)  # whatever scales it came with


@pytest.mark.parametrize("mode", ["depthwise", "spatial", "pointwise-depthwise"])
def test_equalised_factors_compute_the_same_and_are_balanced(mode: str) -> None:
    source = onnxsep.rewrite(DIGITS, mode=mode, verify="none").model
    prepared = prepare(source, Settings(equalize=False)).proto
    changed = onnx.ModelProto()
    changed.CopyFrom(prepared)
    assert equalize(changed) > 3
    feed = {source.proto.graph.input[0].name: np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}
    (expected,), (actual,) = (Runner(Model(proto), ONE)(feed).values() for proto in (prepared, changed))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    before, after = constants(prepared), constants(changed)
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) > 6


def test_ranges_on_both_sides_of_a_channel_become_equal() -> None:
    proto, name = unbalanced(50.0)
    equalize(proto)
    values = constants(proto)
    first = next(index for index, node in enumerate(proto.graph.node) if node.name == name)
    second = next(node for node in proto.graph.node[first + 1 :] if node.op_type == "Conv")
    left = np.abs(values[proto.graph.node[first].input[1]]).max(axis=(1, 2, 3))
    right = np.abs(values[second.input[1]]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(left, right, rtol=0.01)


def test_shared_weights_and_zeros_are_not_equalised() -> None:
    proto, _ = unbalanced(50.0)
    weights = [node.input[1] for node in proto.graph.node if node.op_type == "Conv"]
    for number, name in enumerate(weights):
        proto.graph.node.append(helper.make_node("Identity", [name], [f"seen{number}"]))
    assert equalize(proto) == 0
    source = network()
    del source.graph.node[4], source.graph.node[1]
    source.graph.node[1].input[0], source.graph.node[3].input[0] = "c1", "c2"
    for tensor in source.graph.initializer:
        if tensor.name == "w1":
            weight = numpy_helper.to_array(tensor).copy()
            weight[2] = 0
            tensor.CopyFrom(numpy_helper.from_array(weight, "w1"))
    assert equalize(source) == 1
    assert np.isfinite(constants(source)["w1"]).all()
    assert not constants(source)["w1"][2].any()


# ---------------------------------------------------------------- what is left


def test_excluded_nodes_compute_in_float() -> None:
    result = quantize(network(), data=samples(), exclude=["sec*", "pool"], runtime=ONE)
    assert {name for name, status in statuses(result).items() if status == "left"} == {"second", "pool"}
    assert "w2" in constants(result.proto)
    (second,) = [node for node in result.proto.graph.node if node.name == "second"]
    assert second.input[1] == "w2"
    assert {node.name: node.reason for node in result.report.nodes}["second"] == "exclude 'sec*'"


def test_pattern_of_a_folded_node_is_said_and_one_of_no_node_refused() -> None:
    notes = quantize(network(), data=samples(), exclude="norm", runtime=ONE).report.notes
    assert any("'norm'" in note and "folded" in note for note in notes)
    with pytest.raises(OptionError, match="'nothing\\*' matches the name of no node"):
        quantize(network(), data=samples(), exclude="nothing*", runtime=ONE)


def test_everything_excluded_gives_back_the_source(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "in.onnx")
    result = quantize(tmp_path / "in.onnx", data=samples(), exclude="*", runtime=ONE)
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    assert any("nothing was quantised" in note for note in result.report.notes)
    assert result.report.relative == 0


def test_half_precision_keeps_its_inputs_and_outputs() -> None:
    """The runtime has no float16 Conv on the CPU: it computes in float32 between casts, and there int8 comes in."""
    source = network(dtype=np.float16)
    result = quantize(source, data=samples(dtype=np.float16), runtime=ONE)
    assert list(result.proto.graph.input) == list(source.graph.input)
    assert list(result.proto.graph.output) == list(source.graph.output)
    assert statuses(result)["second"] == "quantized"
    assert quantized_weight(result.proto, "second")[0].dtype == np.int8
    assert not [tensor for tensor in result.proto.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert result.report.relative < 0.1


def test_double_precision_is_refused_with_the_runtimes_reason() -> None:
    with pytest.raises(QuantizationError, match="cannot load the model"):
        quantize(network(dtype=np.float64), data=samples(dtype=np.float64), runtime=ONE)


def test_unknown_operators_are_left_with_the_reason() -> None:
    source = network()
    source.graph.node[-1].CopyFrom(helper.make_node("ReduceL2", ["a"], ["out"], "norms", axes=[2, 3]))
    rows = {node.name: node for node in quantize(source, data=samples(), runtime=ONE).report.nodes}
    assert rows["norms"].status == "left"
    assert "does not know" in rows["norms"].reason


# ---------------------------------------------------------------- --max-drop


def unbalanced(factor: float) -> tuple[onnx.ModelProto, str]:
    """The digits model, computing the same: one channel between two Convs is scaled up, and down again by the second.

    Returns:
        The model, and the name of the first of the two Convs.
    """
    proto = onnx.load(DIGITS)
    values = constants(proto)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for conv in proto.graph.node:
        relus = readers.get(conv.output[0], [])
        users = readers.get(relus[0].output[0], []) if [node.op_type for node in relus] == ["Relu"] else []
        if conv.op_type == "Conv" and [node.op_type for node in users] == ["Conv"]:
            break
    else:
        raise AssertionError("no two Convs in a row")
    changed = {name: values[name].copy() for name in (conv.input[1], conv.input[2], users[0].input[1])}
    changed[conv.input[1]][0] *= factor
    changed[conv.input[2]][0] *= factor
    changed[users[0].input[1]][:, 0] /= factor
    for tensor in proto.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    return proto, conv.name


@needs_right_weights
def test_layers_that_hurt_stay_in_float_until_the_drop_is_within_the_limit(digits: dict[str, np.ndarray]) -> None:
    source, name = unbalanced(1000.0)
    data = {"x": digits["x"][:600], "y": digits["y"][:600]}
    options: dict[str, Any] = {"data": data, "samples": 100, "per_channel": False, "equalize": False, "runtime": ONE}
    result = quantize(source, max_drop=0.5, **options)
    found = result.report.accuracy
    assert found is not None
    assert found.source - found.all_quantized > 5
    assert name in found.spared
    assert len(found.spared) < 7
    assert found.drop <= 0.5
    assert {row.name for row in result.report.nodes if "max_drop" in row.reason} == set(found.spared)
    rest = split(open_data(data, load(source)), 100, 0).others
    assert len(rest) == found.samples == 500
    checked = evaluate(
        [source, result.model],
        data={"x": data["x"][rest], "y": data["y"][rest]},
        runs=0,
        memory=False,
        runtime=ONE,
    )
    assert [100 * model.top1.share.value for model in checked.models if model.top1] == pytest.approx(
        [found.source, found.result]
    )


def test_no_layer_is_spared_without_need(digits: dict[str, np.ndarray]) -> None:
    data = {"x": digits["x"][:300], "y": digits["y"][:300]}
    report = quantize(DIGITS, data=data, samples=100, max_drop=2.0, runtime=ONE).report
    assert report.accuracy is not None
    assert report.accuracy.spared == ()
    assert report.accuracy.drop <= 2


COSTS = {"a": 0.1, "b": 3.0, "c": 0.2, "d": 1.0, "e": 0.05, "f": 0.4}


def cost(spared: Collection[str]) -> float:
    return sum(value for name, value in COSTS.items() if name not in spared)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(5.0, ()), (2.0, ("b",)), (0.8, ("b", "d")), (0.36, ("b", "d", "f")), (0.04, ("b", "d", "f", "c", "a", "e"))],
)
def test_as_few_layers_as_possible(limit: float, expected: tuple[str, ...]) -> None:
    found = spare(list(COSTS), cost, cost, limit)
    assert found.names == expected
    assert found.drop == pytest.approx(cost(expected))
    assert found.first == pytest.approx(4.75)


def test_layers_that_only_seemed_to_hurt_are_quantized_again() -> None:
    found = spare(list(COSTS), lambda spared: 0.0 if "d" in spared else 1.0, cost, 0.5)
    assert found.names == ("d",)


def test_limit_out_of_reach_is_told_with_what_remains() -> None:
    found = spare(list(COSTS), lambda spared: 1 + cost(spared), cost, 0.5)
    assert set(found.names) == set(COSTS)
    assert found.drop == pytest.approx(1)


def test_drop_needs_labels() -> None:
    with pytest.raises(DataError, match="no labels"):
        quantize(network(), data=samples(), max_drop=1.0, runtime=ONE)


# ---------------------------------------------------------------- ways to go wrong


def test_quantized_model_is_refused() -> None:
    once = quantize(network(), data=samples(), runtime=ONE)
    with pytest.raises(QuantizationError, match="quantised already"):
        quantize(once.model, data=samples(), runtime=ONE)


def test_activation_without_a_range_is_named() -> None:
    source = network()
    source.graph.node[2].CopyFrom(helper.make_node("Log", ["n1"], ["r1"], "log"))
    with pytest.raises(QuantizationError, match="'r1' is NaN or infinite"):
        quantize(source, data=samples(), runtime=ONE)


def test_result_too_far_from_the_source_fails_with_its_report() -> None:
    with pytest.raises(VerificationError, match="max_error") as caught:
        quantize(network(), data=samples(), max_error=1e-6, runtime=ONE)
    assert caught.value.report.relative > 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int4"}, "format 'int4'"),
        ({"activations": "int4"}, "activations 'int4'"),
        ({"method": "mean"}, "method 'mean'"),
        ({"percentile": 99.0}, "percentile needs"),
        ({"method": "percentile", "percentile": 12.0}, "percentile 12"),
        ({"max_error": -1.0}, "max_error"),
        ({"max_drop": 100.0}, "max_drop"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quantize(network(), data=samples(), **options)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(DataError):
        quantize(network(), data=samples()[:, :2], runtime=ONE)


# ---------------------------------------------------------------- the command line


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    onnx.save(network(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=samples())

    def quantize_there(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run("quantize", *arguments, cwd=tmp_path, columns=100)

    return quantize_there


def test_command_writes_model_and_report(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = command("in.onnx", "out.onnx", "--data", "data.npz", "--report", "r.json", "--exclude", "sum")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "in float: Add sum: --exclude 'sum'" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["output_bytes"] == report["bytes_after"] == (tmp_path / "out.onnx").stat().st_size
    assert onnxsep.load(tmp_path / "out.onnx").proto.graph.name == "the user's graph"


def test_command_prints_json_alone(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = command("in.onnx", "out.onnx", "--data", "data.npz", "--json", "--method", "entropy")
    assert json.loads(done.stdout)["options"]["method"] == "entropy"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("in.onnx", "out.onnx"), 2, "--data"),
        (("in.onnx", "out.onnx", "--data", "data.npz", "--method", "mean"), 2, "mean"),
        (("in.onnx", "out.onnx", "--data", "none.npz"), 1, "does not exist"),
        (("in.onnx", "out.onnx", "--data", "data.npz", "--scale", "1/255"), 1, "for images"),
        (("in.onnx", "data.npz", "--data", "data.npz"), 1, "would overwrite data.npz"),
        (("in.onnx", "out.onnx", "--data", "data.npz", "--max-error", "1e-9"), 3, "--max-error"),
    ],
)
def test_command_fails_with_one_message(
    arguments: tuple[str, ...],
    status: int,
    message: str,
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    done = command(*arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.onnx").exists()
