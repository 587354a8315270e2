"""Bias correction and equalisation: what both promise, measured in the runtime."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from marked import marked
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from random_examples import some
from versions import needs_new_runtime

import onnxsep
from onnxsep.data import open_data
from onnxsep.model.io import Model, load
from onnxsep.modes.base import conv_modes
from onnxsep.quantization import quantize
from onnxsep.quantization.equalizing import equalize
from onnxsep.quantization.measuring import split
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.targets import find_targets
from onnxsep.running.runtime import Runner, RuntimeOptions

DIGITS = Path(__file__).resolve().parents[1] / "models" / "digits" / "digits_cnn.onnx"
MODES = conv_modes()
NO_CHAIN = ("lean", "pointwise")  # of a 3 x 3 Conv; pointwise takes others
ONE = RuntimeOptions(threads=1)
PLAIN = RuntimeOptions(threads=1, optimize=False)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images of handwritten digits, as the digits model takes them."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return np.asarray(found.images[:, None] / 16, np.float32)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def outputs_of(proto: onnx.ModelProto, names: Sequence[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model computes for inner tensors."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.add(name=name)
    return Runner(Model(watched), PLAIN)(feed)


def channel_means(proto: onnx.ModelProto, nodes: Sequence[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means of the outputs of nodes, by the name of the node."""
    output = {node.name: node.output[0] for node in proto.graph.node if node.name in nodes}
    values = outputs_of(proto, list(output.values()), feed)
    return {
        node: np.moveaxis(values[name].astype(np.float64), 1, -1).reshape(-1, values[name].shape[1]).mean(axis=0)
        for node, name in output.items()
    }


def weighted(op_type: str, names: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, names, [output], output, **attributes)


def model_of(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[Any], out: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "made for a test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random_weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape) / 2 for name, shape in shapes.items()}


# ---------------------------------------------------------------- bias correction


@pytest.mark.parametrize("mode", some(["", "depthwise", "spatial"], 2))
def test_means_over_the_calibration_samples_are_those_of_the_float_model(mode: str, images: np.ndarray) -> None:
    source = load(DIGITS) if not mode else onnxsep.rewrite(DIGITS, mode=mode, verify="none").model
    data, samples = images[:200], 100
    # Without equalisation the float model to compare with is the prepared one.
    settings: dict[str, Any] = {
        "data": data,
        "samples": samples,
        "equalize": False,
        "runtime": ONE,
        "per_channel": False,
    }
    prepared = prepare(source, Settings(equalize=False)).proto
    used = split(open_data(data, source), samples, 0).fitted
    feed = {source.proto.graph.input[0].name: data[used]}
    layers = [node.name for node in prepared.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2]
    assert len(layers) == 8
    expected = channel_means(prepared, layers, feed)
    errors = {}
    for correct in (False, True):
        result = quantize(source, bias_correction=correct, **settings)
        found = channel_means(result.proto, layers, feed)
        errors[correct] = max(
            np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max() for name in layers
        )
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.corrected == 8
    assert errors[True] < 5e-4
    assert errors[True] < 0.1 * errors[False]


def test_corrected_integer_operators_have_the_biases_of_the_other_format(images: np.ndarray) -> None:
    def biases(format_: Any, correct: bool) -> list[list[int]]:
        options = {"format": format_, "bias_correction": correct, "biases": "int32", "samples": 48, "runtime": ONE}
        result = quantize(DIGITS, data=images[:60], equalize=False, **options).proto
        return sorted(value.tolist() for value in constants(result).values() if value.dtype == np.int32 and value.any())

    assert biases("qdq", True) == biases("qoperator", True)
    assert biases("qdq", True) != biases("qdq", False)


@pytest.mark.parametrize("stored", ["int32", "float"])
def test_correction_touches_nothing_but_biases(images: np.ndarray, stored: Any) -> None:
    plain, corrected = (
        quantize(DIGITS, data=images[:60], samples=48, bias_correction=correct, biases=stored, runtime=ONE).proto
        for correct in (False, True)
    )
    assert list(plain.graph.node) == list(corrected.graph.node)
    before, after = constants(plain), constants(corrected)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert {before[name].dtype for name in changed} == {np.dtype(np.int32 if stored == "int32" else np.float32)}
    biases = {node.input[2] for node in plain.graph.node if node.op_type in ("Conv", "Gemm") and len(node.input) > 2}
    assert stored == "int32" or changed <= biases


def test_zero_weights_stay_zero_when_biases_are_corrected() -> None:
    weights = random_weights(w=(6, 4, 3, 3), b=(6,))
    weights["w"][np.random.default_rng(1).random(weights["w"].shape) < 0.6] = 0
    source = model_of([weighted("Conv", ["x", "w", "b"], "y", pads=[1] * 4)], weights, ["n", 4, 8, 8], "y")
    data = np.random.default_rng(2).standard_normal((40, 4, 8, 8)).astype(np.float32)
    result = quantize(source, data=data, samples=32, runtime=ONE)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.corrected == 1
    (stored,) = [value for value in constants(result.proto).values() if value.shape == (6, 4, 3, 3)]
    assert stored.dtype == np.int8
    assert not stored[weights["w"] == 0].any()


def test_layer_before_an_activation_gets_a_bias_and_one_before_a_layer_does_not() -> None:
    weights = random_weights(w1=(4, 4, 3, 3), w2=(5, 4, 1, 1), w3=(3, 5, 1, 1), b3=(3,))
    nodes = [
        weighted("Conv", ["x", "w1"], "before a layer"),
        weighted("Conv", ["before a layer", "w2"], "before a Sigmoid"),
        weighted("Sigmoid", ["before a Sigmoid"], "activation"),
        weighted("Conv", ["activation", "w3", "b3"], "last"),
    ]
    source = model_of(nodes, weights, ["n", 4, 8, 8], "last")
    data = 1 + np.random.default_rng(2).standard_normal((40, 4, 8, 8)).astype(np.float32)
    result = quantize(source, data=data, samples=32, equalize=False, runtime=ONE)
    found = result.report.bias_correction
    assert found is not None
    assert (found.corrected, found.added, found.left) == (2, ("before a Sigmoid",), ())
    feed = {"x": data[split(open_data(data, load(source)), 32, 0).fitted]}
    names = ["before a Sigmoid", "last"]
    expected, actual = channel_means(source, names, feed), channel_means(result.proto, names, feed)
    for name in names:
        np.testing.assert_allclose(actual[name], expected[name], atol=2e-4 * np.abs(expected[name]).max())


def test_terms_of_a_sum_are_corrected_together(images: np.ndarray) -> None:
    """Only the first term has a bias; the mean that counts is that of the sum."""
    source = onnxsep.rewrite(DIGITS, mode="depthwise", rank=3, force=True, verify="none").model
    result = quantize(source, data=images[:60], equalize=False, per_channel=False, runtime=ONE)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.added == ()
    prepared = prepare(source, Settings(equalize=False)).proto
    targets, left = find_targets(prepared, {node.name for node in prepared.graph.node})
    sums = [target.seen for target in targets if target.seen != target.name]
    assert len(sums) == 6  # all Convs but the first
    assert not left
    feed = {source.proto.graph.input[0].name: images[:60][split(open_data(images[:60], source), 200, 0).fitted]}
    expected, actual = channel_means(prepared, sums, feed), channel_means(result.proto, sums, feed)
    for name in sums:
        # The shift of the bias is rounded once more before it is added.
        np.testing.assert_allclose(actual[name], expected[name], atol=0.01 * np.abs(expected[name]).max())


def test_bias_that_is_computed_is_added_behind_the_layer() -> None:
    """The layer then has a bias of its own, which can be corrected."""
    weights = random_weights(w=(6, 4, 3, 3))
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["computed"], "mean", axes=[0, 2, 3], keepdims=0),
        weighted("Conv", ["x", "w", "computed"], "y"),
    ]
    weights["w"] = weights["w"][:4]
    source = model_of(nodes, weights, ["n", 4, 8, 8], "y")
    data = np.random.default_rng(2).standard_normal((40, 4, 8, 8)).astype(np.float32)
    found = quantize(source, data=data, samples=32, exclude="mean", runtime=ONE).report
    rows = {node.name: node.status for node in found.nodes}
    assert rows["y"] == "quantized"
    assert found.bias_correction is not None
    assert (found.bias_correction.corrected, found.bias_correction.left) == (1, ())
    assert found.relative < 0.03


def test_activations_go_to_files_when_memory_is_small(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxsep.calibration import frontier
    from onnxsep.quantization import correcting

    spilled = []

    class Watched(frontier.Store):
        def put(self, array: np.ndarray) -> frontier.Kept:
            kept = super().put(array)
            spilled.append(self.spilled)
            return kept

    large = quantize(DIGITS, data=images[:80], runtime=ONE).proto
    monkeypatch.setattr(correcting, "Store", Watched)
    monkeypatch.setattr(correcting, "_HELD", 10_000)
    small = quantize(DIGITS, data=images[:80], runtime=ONE).proto
    assert spilled[-1] > 100_000
    assert small.SerializeToString(deterministic=True) == large.SerializeToString(deterministic=True)


def test_without_correction_the_report_says_nothing_of_it(images: np.ndarray) -> None:
    assert quantize(DIGITS, data=images[:20], bias_correction=False, runtime=ONE).report.bias_correction is None


@needs_new_runtime
def test_correction_with_layers_left_in_float(images: np.ndarray) -> None:
    names = [node.name for node in load(DIGITS).proto.graph.node if node.op_type == "Conv"]
    result = quantize(DIGITS, data=images[:60], exclude=names[2:4], runtime=ONE)
    assert result.report.bias_correction is not None
    assert result.report.bias_correction.corrected == 6
    before = constants(prepare(load(DIGITS), Settings()).proto)
    after = constants(result.proto)
    for node in result.proto.graph.node:
        if node.name in names[2:4]:
            np.testing.assert_array_equal(after[node.input[2]], before[node.input[2]])


@pytest.mark.parametrize("mode", some(["", "depthwise"], 2))
def test_correction_lowers_the_error_on_other_images(mode: str, shared: Path) -> None:
    """Of a trained network, on training images that neither ranges nor biases come from."""
    packed = shared / "data" / "cifar10_webp.npz"
    if not packed.is_file():
        pytest.skip("the shared folder has no CIFAR-10 images")
    with np.load(packed) as arrays:
        sprite = np.asarray(Image.open(io.BytesIO(arrays["train_00"].tobytes())).convert("RGB"))
    pixels = sprite.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(1000, 3, 32, 32)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((pixels / 255 - mean) / std).astype(np.float32)
    source = load(shared / "models" / "cifar10_resnet20_ts.onnx")
    if mode:
        source = onnxsep.rewrite(source, mode=mode, rank=3, force=True, verify="none").model
    fresh = {source.proto.graph.input[0].name: x[500:750]}
    expected = next(iter(Runner(source, ONE)(fresh).values()))
    errors = []
    for correct in (False, True):
        result = quantize(source, data=x[:60], per_channel=False, bias_correction=correct, runtime=ONE).model
        errors.append(np.linalg.norm(next(iter(Runner(result, ONE)(fresh).values())) - expected))
    assert errors[1] < 0.95 * errors[0]


# ---------------------------------------------------------------- equalisation

CHAINS = {
    "channel": 2,
    "cp": 4,
    "depthwise": 2,
    "depthwise-spatial": 3,
    "linear-bottleneck": 3,
    "pointwise-depthwise": 2,
    "spatial": 2,
    "spatial-depthwise": 4,
    "tucker": 3,
}


def neighbours(proto: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Pairs of layers, the second of which alone reads the first."""
    pairs = []
    for node in proto.graph.node:
        readers = [other for other in proto.graph.node if node.output[0] in other.input]
        if node.op_type in LAYERS and len(readers) == 1 and readers[0].op_type in LAYERS:
            pairs.append((node, readers[0]))
    return pairs


LAYERS = ("Conv", "Gemm", "MatMul")


def ranges_between(
    first: onnx.NodeProto, second: onnx.NodeProto, values: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The largest weight that writes each channel between two layers, and the largest that reads it."""

    def weight(node: onnx.NodeProto) -> np.ndarray:
        turned = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not any(entry.name == "transB" and entry.i for entry in node.attribute)
        )
        found: np.ndarray = np.abs(values[node.input[1]].T if turned else values[node.input[1]])
        return found

    written, read = weight(first), weight(second)
    channels, group = len(written), next((entry.i for entry in second.attribute if entry.name == "group"), 1)
    by_group = read.reshape(group, len(read) // group, read.shape[1], -1).max(axis=(1, 3))
    return written.reshape(channels, -1).max(axis=1), by_group.reshape(channels)


def unbalance(proto: onnx.ModelProto) -> int:
    """Scale channels between factors at random, the network computing the same; gives the number of pairs."""
    generator = np.random.default_rng(5)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    pairs = neighbours(proto)
    for first, second in pairs:
        values = constants(proto)
        written, read = values[first.input[1]].copy(), values[second.input[1]].copy()
        group = next((entry.i for entry in second.attribute if entry.name == "group"), 1)
        channels = len(written)
        scale = np.exp(generator.uniform(-2, 2, channels)).astype(np.float32)
        written *= scale.reshape(-1, 1, 1, 1)
        blocks = read.reshape(group, len(read) // group, read.shape[1], *read.shape[2:])
        read = (blocks / scale.reshape(group, 1, -1, 1, 1)).reshape(read.shape)
        assert len(first.input) < 3  # no mode has a bias between its factors
        for name, value in ((first.input[1], written), (second.input[1], read)):
            tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    return len(pairs)


@pytest.mark.parametrize("mode", sorted(CHAINS))
def test_factors_of_every_mode_are_balanced_and_compute_the_same(mode: str) -> None:
    assert set(CHAINS) == {name for name in MODES if name not in NO_CHAIN}
    rank = {"rank": 2} if mode in ("depthwise", "depthwise-spatial", "pointwise-depthwise") else {"rank": 0.4}
    options: dict[str, Any] = {"rank": "paper"} if mode == "spatial-depthwise" else rank
    result = onnxsep.rewrite(DIGITS, mode=mode, only=["block*"], force=True, verify="none", **options)
    proto = onnx.ModelProto()
    proto.CopyFrom(result.proto)
    replaced = sum(conv.status == "replaced" for conv in result.report.convs)
    terms = options["rank"] if options["rank"] == 2 else 1
    assert replaced == 4
    assert unbalance(proto) == replaced * terms * (CHAINS[mode] - 1)
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    assert equalize(changed) >= replaced * terms * (CHAINS[mode] - 1)
    feed = {"image": np.random.default_rng(0).random((4, 1, 8, 8), np.float32)}
    (expected,), (actual,) = (Runner(Model(model), PLAIN)(feed).values() for model in (proto, changed))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    values = constants(changed)
    for first, second in neighbours(changed):
        written, read = ranges_between(first, second, values)
        np.testing.assert_allclose(written, read, rtol=0.02)


def test_modes_without_a_chain_have_nothing_to_balance() -> None:
    for mode in NO_CHAIN:
        result = onnxsep.rewrite(DIGITS, mode=mode, only=["block*"], force=True, verify="none", rank="paper")
        made = [node for node in marked(result.proto).graph.node if node.metadata_props]
        assert made or not result.report.totals.replaced
        names = {node.output[0] for node in made if node.op_type == "Conv"}
        assert not any(node.op_type == "Conv" and node.input[0] in names for node in made)


@pytest.mark.parametrize("form", ["Gemm", "Gemm turned", "MatMul"])
@pytest.mark.parametrize("activation", ["", "Relu"])
def test_pairs_of_linear_layers_are_equalised(form: str, activation: str) -> None:
    weights = random_weights(w1=(12, 8), w2=(5, 12), b1=(12,), b2=(5,))
    weights["w1"] *= np.exp(np.random.default_rng(3).uniform(-3, 3, (12, 1)))
    op_type, attributes, biases = "Gemm", {"transB": 1}, ["b1", "b2"]
    if form != "Gemm":
        attributes = {}
        weights["w1"], weights["w2"] = weights["w1"].T, weights["w2"].T
    if form == "MatMul":
        op_type, biases = "MatMul", []
        del weights["b1"], weights["b2"]
    nodes = [
        weighted(op_type, ["x", "w1", *biases[:1]], "first", **attributes),
        *([helper.make_node(activation, ["first"], ["between"])] if activation else []),
        weighted(op_type, ["between" if activation else "first", "w2", *biases[1:]], "last", **attributes),
    ]
    source = model_of(nodes, weights, ["n", 8], "last")
    changed = onnx.ModelProto()
    changed.CopyFrom(source)
    assert equalize(changed) == 1
    feed = {"x": np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)}
    expected, actual = (Runner(Model(model), PLAIN)(feed)["last"] for model in (source, changed))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    written, read = ranges_between(changed.graph.node[0], changed.graph.node[-1], constants(changed))
    np.testing.assert_allclose(written, read, rtol=1e-3)


def test_linear_factors_of_rewrite_are_equalised(images: np.ndarray) -> None:
    weights = random_weights(w1=(40, 64), b1=(40,), w2=(30, 40), b2=(30,), w3=(10, 30), b3=(10,))
    nodes = [
        weighted("Gemm", ["x", "w1", "b1"], "first", transB=1),
        helper.make_node("Sigmoid", ["first"], ["between"]),
        weighted("Gemm", ["between", "w2", "b2"], "second", transB=1),
        helper.make_node("Tanh", ["second"], ["again"]),
        weighted("Gemm", ["again", "w3", "b3"], "last", transB=1),
    ]
    source = model_of(nodes, weights, ["n", 64], "last")
    result = onnxsep.rewrite(source, mode="pointwise", rank=4, include_first=True, verify="none")
    replaced = sum(conv.status == "replaced" for conv in result.report.convs)
    assert replaced >= 2
    assert equalize(result.proto) == replaced


def test_shared_weights_of_linear_layers_and_a_bias_of_one_number_are_left() -> None:
    weights = random_weights(w=(8, 8), w1=(8, 8), one=(1,), w2=(8, 8))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w1", "one"], ["d"]),
        helper.make_node("Gemm", ["d", "w2"], ["e"]),
    ]
    source = model_of(nodes, weights, ["n", 8], "e")
    before = source.SerializeToString()
    assert equalize(source) == 0
    assert source.SerializeToString() == before
