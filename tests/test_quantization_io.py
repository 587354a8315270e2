"""``--int8-io``, and what makes int8 files small."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper
from random_examples import some

import onnxsep
from onnxsep.errors import ModelLoadError
from onnxsep.evaluation import evaluate
from onnxsep.model.io import load
from onnxsep.quantization import QuantizationError, quantize
from onnxsep.running.integer_io import RealRunner, as_real, integer_io
from onnxsep.running.runtime import Runner, RuntimeOptions

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
ONE = RuntimeOptions(threads=1)
ENDS = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    """Images of handwritten digits with their classes, as the digits model takes them."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return {"x": (found.images[:, None] / 16).astype(np.float32), "y": found.target.astype(np.int64)}


def ends(proto: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(entry.name, entry.type.tensor_type.elem_type) for entry in (*proto.graph.input, *proto.graph.output)]


def around(nodes: list[onnx.NodeProto], *, opset: int = 17, **extra: Any) -> onnx.ModelProto:
    """A model of a Conv, ``inner``, between the given nodes; ``x`` [n, 3, 8, 8] is its input, ``out`` its output."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((4, 3, 3, 3)), "b": generator.standard_normal(4)}
    graph = helper.make_graph(
        nodes,
        "around",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8]), *extra.get("inputs", [])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None), *extra.get("outputs", [])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
        value_info=extra.get("value_info", []),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w", "b"], [result], "inner", pads=[1, 1, 1, 1])


def samples(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)


def both(source: onnx.ModelProto, data: Any, **options: Any) -> tuple[onnxsep.QuantizeResult, onnxsep.QuantizeResult]:
    """The same quantisation with float ends and with integer ones."""
    plain = quantize(source, data=data, runtime=ONE, activations="uint8", **options)
    return plain, quantize(source, data=data, runtime=ONE, activations="uint8", int8_io=True, **options)


# ---------------------------------------------------------------- integers at the ends


@pytest.mark.parametrize(
    ("format_", "activations"),
    some(product(["qdq", "qoperator"], ["int8", "uint8"]), 3),  # each once
)
def test_only_the_ends_change(format_: Any, activations: Any, digits: dict[str, np.ndarray]) -> None:
    options: dict[str, Any] = {"data": digits["x"][:80], "format": format_, "activations": activations, "runtime": ONE}
    plain, integer = quantize(DIGITS, **options), quantize(DIGITS, int8_io=True, **options)
    elem_type = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[activations]
    assert ends(integer.proto) == [("image", elem_type), ("logits", elem_type)]
    assert ends(plain.proto) == [("image", TensorProto.FLOAT), ("logits", TensorProto.FLOAT)]
    assert not [node for node in integer.proto.graph.node if node.op_type == "QuantizeLinear" and "image" in node.input]
    assert not [
        node for node in integer.proto.graph.node if node.op_type == "DequantizeLinear" and "logits" in node.output
    ]
    count = {len(plain.proto.graph.node) - len(integer.proto.graph.node)}
    assert count == {2}
    onnx.checker.check_model(integer.proto, full_check=format_ == "qdq")
    feed = {"image": digits["x"][-50:]}
    np.testing.assert_array_equal(
        RealRunner(integer.model, ONE)(feed)["logits"], Runner(plain.model, ONE)(feed)["logits"]
    )


def test_uint8_is_the_default() -> None:
    source = around([conv("x", "out")])
    assert ends(quantize(source, data=samples(), int8_io=True, runtime=ONE).proto) == [
        ("x", TensorProto.UINT8),
        ("out", TensorProto.UINT8),
    ]


def test_metadata_say_what_the_integers_stand_for() -> None:
    source = around([conv("x", "out")])
    helper.set_model_props(source, {"license": "mine"})
    result = quantize(source, data=samples(), int8_io=True, runtime=ONE)
    entries = {entry.key: entry.value for entry in result.proto.metadata_props}
    assert set(entries) == {"license", "onnxsep.quantization.input.x", "onnxsep.quantization.output.out"}
    data = samples()
    low, high = float(data.min()), float(data.max())
    scale, zero_point = (float(part) for part in entries["onnxsep.quantization.input.x"].split(","))
    assert scale == pytest.approx((high - low) / 255, rel=0.1)  # of the samples that are not held out
    assert zero_point == pytest.approx(-low / scale, abs=8)
    reported = {(entry.kind, entry.name): entry for entry in result.report.integers}
    assert np.float32(reported["input", "x"].scale) == np.float32(scale)
    # By hand, without the package's own reading of the metadata.
    out_scale, out_zero = (float(part) for part in entries["onnxsep.quantization.output.out"].split(","))
    fed = np.clip(np.rint(data / np.float32(scale)) + zero_point, 0, 255).astype(np.uint8)
    given = Runner(result.model, ONE)({"x": fed})["out"]
    assert given.dtype == np.uint8
    expected = Runner(load(source), ONE)({"x": data})["out"]
    error = np.linalg.norm((given - out_zero) * out_scale - expected) / np.linalg.norm(expected)
    assert error == pytest.approx(result.report.relative, rel=0.2)


def test_values_are_moved_as_integers() -> None:
    """Transpose and Reshape stand before the first QuantizeLinear and behind the last DequantizeLinear."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], "turn", perm=[0, 1, 3, 2]),
        conv("turned", "c"),
        helper.make_node("Flatten", ["c"], ["out"], "flat"),
    ]
    info = [helper.make_tensor_value_info("turned", TensorProto.FLOAT, ["n", 3, 8, 8])]
    plain, integer = both(around(nodes, value_info=info), samples())
    assert ends(integer.proto) == [("x", TensorProto.UINT8), ("out", TensorProto.UINT8)]
    assert [entry.type.tensor_type.elem_type for entry in integer.proto.graph.value_info] == [TensorProto.UINT8]
    onnx.shape_inference.infer_shapes(integer.proto, check_type=True, strict_mode=True)
    feed = {"x": samples(5)}
    np.testing.assert_array_equal(RealRunner(integer.model, ONE)(feed)["out"], Runner(plain.model, ONE)(feed)["out"])


def test_nodes_in_float_that_read_the_ends_still_get_real_numbers() -> None:
    nodes = [
        conv("x", "out"),
        helper.make_node("ReduceL2", ["x"], ["size"], "of the input", axes=[1]),
        helper.make_node("ReduceL2", ["out"], ["other"], "of the output", axes=[1]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("size", "other")]
    plain, integer = both(around(nodes, outputs=outputs), samples())
    kinds = dict(ends(integer.proto))
    assert kinds == {"x": 2, "out": 2, "size": 1, "other": 1}
    notes = [note for note in integer.report.notes if "stays" in note]
    assert len(notes) == 2
    assert all("stays in float: no quantised node computes it" in note for note in notes)
    feed = {"x": samples(5)}
    actual, expected = RealRunner(integer.model, ONE)(feed), Runner(plain.model, ONE)(feed)
    for name in ("out", "other"):
        np.testing.assert_array_equal(actual[name], expected[name])
    # The input itself is rounded now, also for nodes in float.
    np.testing.assert_allclose(actual["size"], expected["size"], atol=0.05)
    names = [name for node in integer.proto.graph.node for name in node.output]
    assert len(names) == len(set(names))


def test_inputs_that_are_no_floats_stay() -> None:
    nodes = [
        conv("x", "c"),
        helper.make_node("Cast", ["offset"], ["real"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["c", "real"], ["out"], "sum"),
    ]
    source = around(nodes, inputs=[helper.make_tensor_value_info("offset", TensorProto.INT64, ["n", 1, 1, 1])])
    data = {"x": samples(), "offset": np.arange(40).reshape(40, 1, 1, 1) % 3}
    plain, integer = both(source, data)
    assert dict(ends(integer.proto)) == {"x": 2, "offset": TensorProto.INT64, "out": 2}
    feed = {name: value[:6] for name, value in data.items()}
    np.testing.assert_array_equal(RealRunner(integer.model, ONE)(feed)["out"], Runner(plain.model, ONE)(feed)["out"])


def test_nothing_to_exchange_is_an_error() -> None:
    source = around([conv("x", "c"), helper.make_node("Relu", ["c"], ["out"], "relu")])
    with pytest.raises(
        QuantizationError, match=r"no float input or output of the model is quantised.*'x'.*leave the option out"
    ):
        quantize(source, data=samples(), int8_io=True, exclude="*", runtime=ONE)
    behind = around([helper.make_node("Sin", ["x"], ["s"], "sin"), conv("s", "out")])
    left = quantize(behind, data=samples(), int8_io=True, runtime=ONE)  # the output alone
    assert ends(left.proto) == [("x", TensorProto.FLOAT), ("out", TensorProto.UINT8)]
    assert any("input 'x' stays in float: no quantised node reads it" in note for note in left.report.notes)


def test_accuracy_within_a_limit_is_that_of_the_model_with_integer_ends(digits: dict[str, np.ndarray]) -> None:
    data = {"x": digits["x"][:300], "y": digits["y"][:300]}
    report = quantize(DIGITS, data=data, samples=100, max_drop=5.0, int8_io=True, runtime=ONE).report
    assert report.accuracy is not None
    assert report.accuracy.drop <= 5
    assert len(report.integers) == 2


# ---------------------------------------------------------------- such models on real data


def test_evaluate_feeds_real_numbers(digits: dict[str, np.ndarray], tmp_path: Path) -> None:
    plain, integer = both(onnx.load(DIGITS), digits["x"][:80])
    plain.save(tmp_path / "float ends.onnx")
    integer.save(tmp_path / "uint8 ends.onnx")
    data = {"x": digits["x"][-200:], "y": digits["y"][-200:]}
    models = [DIGITS, tmp_path / "float ends.onnx", tmp_path / "uint8 ends.onnx"]
    report = evaluate(models, data=data, runs=2, runtime=ONE)
    first, second, third = report.models
    assert first.top1 is not None
    assert second.top1 is not None
    assert third.top1 is not None
    assert third.top1.share == second.top1.share
    assert third.top1.share.value > first.top1.share.value - 0.02
    assert third.latency is not None
    assert third.memory is not None
    assert not third.memory.reason or "system" in third.memory.reason
    assert [note for note in report.notes if "uint8 ends.onnx" in note and "real numbers" in note]
    alone = evaluate(tmp_path / "uint8 ends.onnx", data=data, runs=0, memory=False, runtime=ONE).models[0]
    assert alone.top1 is not None
    assert alone.top1.share == third.top1.share


def test_images_are_preprocessed_and_then_quantised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for number, array in enumerate(pixels):
        image.fromarray(array).save(tmp_path / "images" / f"{number:02}.png")
    source = around([conv("x", "c"), helper.make_node("GlobalAveragePool", ["c"], ["out"], "pool")])
    preprocessing = onnxsep.data.Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,))
    result = quantize(
        source, data=tmp_path / "images", preprocessing=preprocessing, int8_io=True, samples=None, runtime=ONE
    )
    report = evaluate(
        result.model,
        data=tmp_path / "images",
        preprocessing=preprocessing,
        reference=source,
        runs=0,
        memory=False,
        runtime=ONE,
    )
    found = report.models[0].against_reference
    assert found is not None
    assert found.outputs[0].relative is not None
    assert found.outputs[0].relative < 0.05


def test_model_without_such_metadata_is_as_it_is() -> None:
    source = load(around([conv("x", "out")]))
    assert not integer_io(source.proto)
    assert as_real(source) is source


@pytest.mark.parametrize("text", ["0.5", "0,3", "nan,0", "0.5,256", "-1,0", "0.5,1.5", "inf,2", ""])
def test_metadata_that_cannot_be_read_are_named(text: str) -> None:
    source = around([conv("x", "out")])
    source.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    helper.set_model_props(source, {"onnxsep.quantization.input.x": text})
    with pytest.raises(ModelLoadError, match=r"onnxsep\.quantization\.input\.x"):
        integer_io(source)


def test_metadata_of_what_is_no_integer_do_not_count() -> None:
    source = around([conv("x", "out")])
    helper.set_model_props(
        source, {"onnxsep.quantization.input.x": "broken", "onnxsep.quantization.input.gone": "0.5,3"}
    )
    assert not integer_io(source)


def test_command_shows_and_writes_integer_ends(tmp_path: Path) -> None:
    onnx.save(around([conv("x", "out")]), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=1 + samples(300))  # a mean that can be shifted

    quantize = ("quantize", "in.onnx")
    options = ("--data", "data.npz", "--int8-io")
    done = run(*quantize, "out.onnx", *options, "--report", "r.json", cwd=tmp_path, columns=100)
    assert done.returncode == 0, done.stderr
    assert "input x: uint8, real = " in done.stdout
    assert "biases corrected: 1" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert [entry["type"] for entry in report["integers"]] == ["uint8", "uint8"]
    assert report["options"]["activations"] == "uint8"
    assert ends(onnx.load(tmp_path / "out.onnx")) == [("x", 2), ("out", 2)]
    failed = run(*quantize, "no.onnx", *options, "--exclude", "*", cwd=tmp_path, columns=100)
    assert failed.returncode == 1
    assert "--int8-io" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "no.onnx").exists()


# ---------------------------------------------------------------- sizes


def shares(proto: onnx.ModelProto, whole: int) -> tuple[float, float]:
    """File, and int8 weights with their scales, as shares of a number of bytes."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    held = sum(
        values[node.input[0]].nbytes + values[node.input[1]].nbytes
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].dtype == np.int8
    )
    return proto.ByteSize() / whole, held / whole


def test_depthwise_resnet20_in_int8_has_seven_percent_of_the_bytes(shared: Path) -> None:
    path = shared / "models" / "cifar10_resnet20_ts.onnx"
    source = onnxsep.rewrite(path, mode="depthwise", rank=1, verify="none").model
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    for correct in (False, True):
        result = quantize(source, data=data, bias_correction=correct, runtime=ONE)
        file, weights = shares(result.proto, path.stat().st_size)
        assert file <= 0.07
        assert weights <= 0.04
    names = {node.name for node in result.proto.graph.node}
    assert {row.name for row in result.report.nodes if row.status == "quantized"} <= names


def test_constants_and_value_infos_are_not_stored_twice(digits: dict[str, np.ndarray]) -> None:
    result = quantize(DIGITS, data=digits["x"][:40], runtime=ONE).proto
    known = {name for node in onnx.load(DIGITS).graph.node for name in node.input}
    stored = [
        (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        for tensor in result.graph.initializer
        if tensor.name not in known
    ]
    assert len(stored) > 20
    assert len(stored) == len(set(stored))
    assert len(result.graph.value_info) == len(onnx.load(DIGITS).graph.value_info)
    used = {name for node in result.graph.node for name in node.input}
    assert {tensor.name for tensor in result.graph.initializer} <= used
