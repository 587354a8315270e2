"""``check --layers``: which tensors of two models are compared, what errors they have, and where an error arises."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.checking import layers as layers_module
from onnxsep.checking.layer_report import LayerDifference, LayersReport
from onnxsep.checking.layers import compare_layers
from onnxsep.errors import OnnxsepError, OptionError
from onnxsep.model.io import Model
from onnxsep.quantization.report import QuantizeReport
from onnxsep.rewriting.report import RewriteReport
from onnxsep.running.runtime import Runner, RuntimeOptions

ONE_THREAD = RuntimeOptions(threads=1)
Floats = NDArray[np.float32]
SAMPLES = np.random.default_rng(5).standard_normal((24, 3, 8, 8)).astype(np.float32)


class Builder:
    """Nodes and weights that become a small model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(0)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def conv(self, source: str, output: str, channels: tuple[int, int], kernel: int = 3, **attributes: Any) -> str:
        """A Conv without bias that keeps sizes."""
        weight = self._random.standard_normal((channels[1], channels[0], kernel, kernel))
        self.weights[f"{output}_w"] = (weight / math.sqrt(channels[0] * kernel**2)).astype(np.float32)
        pads = [kernel // 2 * max(attributes.get("dilations", [1]))] * 4
        return self.add("Conv", [source, f"{output}_w"], output, pads=pads, **attributes)

    def constant(self, name: str, value: Any) -> str:
        self.weights[name] = np.asarray(value)
        return name

    def model(self, *outputs: str, functions: tuple[onnx.FunctionProto, ...] = ()) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        for output in graph.output:
            output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, None))
        imports = [helper.make_opsetid("", 17), *(helper.make_opsetid(f.domain, 1) for f in functions)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def chain() -> Builder:
    """Three Convs without biases, a Relu between each."""
    b = Builder()
    b.conv("x", "c1", (3, 8))
    b.add("Relu", ["c1"], "r1")
    b.conv("r1", "c2", (8, 8))
    b.add("Relu", ["c2"], "r2")
    b.conv("r2", "y", (8, 4))
    return b


def compare(reference: onnx.ModelProto, model: onnx.ModelProto, x: Floats = SAMPLES) -> LayersReport:
    def feeds(batch: int) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(x), batch):
            yield {"x": x[start : start + batch]}

    return compare_layers(Model(reference), Model(model), feeds, ONE_THREAD)


def rows_of(report: LayersReport) -> dict[str, LayerDifference]:
    return {row.name: row for row in report.rows}


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with other names of all inner tensors and nodes."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    names = {entry.name: entry.name for entry in (*copy.graph.input, *copy.graph.output)} | {"": ""}

    def other(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}")

    for node in copy.graph.node:
        node.ClearField("name")
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = other(name)
    for tensor in copy.graph.initializer:
        tensor.name = other(tensor.name)
    return copy


# ---------------------------------------------------------------- errors


def test_a_layer_that_is_off_by_a_known_share() -> None:
    """Weights that are 5 % too large: the Conv is linear, so its output is off by .05; what is before, by nothing."""
    other = chain()
    other.weights["c2_w"] = other.weights["c2_w"] * np.float32(1.05)
    report = compare(chain().model("y"), other.model("y"))
    assert [row.name for row in report.rows] == ["c1", "r1", "c2", "r2", "y"]
    rows = rows_of(report)
    assert (rows["c1"].relative, rows["r1"].relative) == (0, 0)
    assert (rows["c1"].snr_db, rows["c1"].jump) == (None, False)
    for name in ("c2", "r2", "y"):  # Relu and Conv pass a factor on
        assert rows[name].relative == pytest.approx(0.05, rel=1e-4)
        assert rows[name].snr_db == pytest.approx(-20 * math.log10(0.05), abs=1e-3)
    assert [row.name for row in report.rows if row.jump] == ["c2"]
    assert report.first_jump == "c2"
    assert rows["r2"].before == rows["c2"].relative
    assert (report.convs_compared, report.convs, report.tensors_compared, report.tensors) == (3, 3, 5, 5)
    assert report.samples == 24


def test_blocks_and_batches_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    other = chain()
    other.weights["c1_w"] = other.weights["c1_w"] + np.float32(0.01)
    whole = compare(chain().model("y"), other.model("y"))
    monkeypatch.setattr(layers_module, "_PROBED", 2)
    monkeypatch.setattr(layers_module, "_HELD", 3000)  # bytes: less than one tensor of one sample
    apart = compare(chain().model("y"), other.model("y"))
    for one, two in zip(whole.rows, apart.rows, strict=True):
        assert (one.name, one.max_abs, one.jump) == (two.name, two.max_abs, two.jump)
        assert one.relative == pytest.approx(two.relative, rel=1e-9)
    assert apart.samples == 24


def quantize_linear(b: Builder, source: str, scale: float, low: int = -128) -> str:
    """QuantizeLinear and DequantizeLinear of a tensor; gives the name of what comes back."""
    b.constant(f"{source}_s", np.float32(scale))
    b.constant(f"{source}_z", np.int8(low))
    b.add("QuantizeLinear", [source, f"{source}_s", f"{source}_z"], f"{source}_q")
    return b.add("DequantizeLinear", [f"{source}_q", f"{source}_s", f"{source}_z"], f"{source}_d")


def rounded(values: Floats, scale: float, low: int = -128) -> NDArray[np.float64]:
    """What QuantizeLinear and DequantizeLinear make of values, by their definition."""
    steps = np.clip(np.rint(values / np.float32(scale)) + low, -128, 127)
    return np.asarray((steps - low) * np.float64(np.float32(scale)))


def outputs_of(model: onnx.ModelProto, x: Floats) -> Floats:
    return np.asarray(Runner(Model(model), ONE_THREAD)({"x": x})["y"], np.float32)


def relu_of_a_conv(x: Floats) -> Floats:
    b = Builder()
    b.conv("x", "c1", (3, 8))
    b.add("Relu", ["c1"], "y")
    return outputs_of(b.model("y"), x)


def test_what_was_rounded_to_integers_is_compared_as_floats() -> None:
    """The Relu has become the range of the integers: they are compared with it, the floats before with the Conv."""
    b = Builder()
    b.conv("x", "c1", (3, 8))
    quantize_linear(b, "c1", 0.02)
    for node in chain().nodes[2:]:
        node.input[0] = {"r1": "c1_d"}.get(node.input[0], node.input[0])
        b.nodes.append(node)
    b.weights |= {name: value for name, value in chain().weights.items() if name != "c1_w"}
    report = compare(chain().model("y"), b.model("y"))
    rows = rows_of(report)
    expected = relu_of_a_conv(SAMPLES)
    error = float(np.linalg.norm(rounded(expected, 0.02) - expected) / np.linalg.norm(expected))
    assert rows["r1"].relative == pytest.approx(error, rel=1e-3)
    assert rows["c1"].relative == 0
    assert (report.convs_compared, report.tensors_compared) == (3, 5)
    assert report.first_jump is None  # rounding to 8 bits is no fault
    assert rows["r1"].other == "c1"


def test_integers_without_a_way_back_are_dequantised() -> None:
    """QLinearConv computes in integers; what is compared is (integer - zero point) * scale."""
    b = Builder()
    b.constant("xs", np.float32(0.04))
    b.constant("xz", np.int8(0))
    b.add("QuantizeLinear", ["x", "xs", "xz"], "xq")
    weight = chain().weights["c1_w"]
    b.constant("ws", np.float32(np.abs(weight).max() / 127))
    b.constant("wq", np.rint(weight / b.weights["ws"]).astype(np.int8))
    b.constant("ys", np.float32(0.03))
    b.constant("yz", np.int8(5))
    b.add("QLinearConv", ["xq", "xs", "xz", "wq", "ws", "xz", "ys", "yz"], "yq", pads=[1] * 4)
    b.nodes[-1].name = "c1_node"
    b.add("DequantizeLinear", ["yq", "ys", "yz"], "y")
    source = chain()
    del source.nodes[1:]
    source.nodes[0].output[0] = "y"
    report = compare(source.model("y"), b.model("y"))
    real = Builder()
    real.conv("x", "y", (3, 8))
    real.weights["y_w"] = b.weights["wq"].astype(np.float32) * b.weights["ws"]
    expected = outputs_of(source.model("y"), SAMPLES)
    actual = rounded(outputs_of(real.model("y"), rounded(SAMPLES, 0.04, 0).astype(np.float32)), 0.03, 5)
    (before, row) = report.rows
    assert before.op_type == "input"
    x = SAMPLES.astype(np.float64)
    assert before.relative == pytest.approx(
        float(np.linalg.norm(rounded(SAMPLES, 0.04, 0) - x) / np.linalg.norm(x)), rel=1e-4
    )
    # A sum that lies between two integers may be rounded the other way.
    assert row.relative == pytest.approx(float(np.linalg.norm(expected - actual) / np.linalg.norm(expected)), rel=0.01)
    assert (report.convs_compared, report.convs) == (1, 1)


def test_a_reference_that_is_quantised() -> None:
    b = Builder()
    b.conv("x", "c1", (3, 8))
    quantize_linear(b, "c1", 0.02)
    b.conv("c1_d", "y", (8, 4))
    source = Builder()
    source.conv("x", "c1", (3, 8))
    source.add("Relu", ["c1"], "r1")
    source.conv("r1", "y", (8, 4))
    one, two = compare(source.model("y"), b.model("y")), compare(b.model("y"), source.model("y"))
    assert (two.convs_compared, two.convs) == (2, 2)
    assert {row.name for row in two.rows} == {"c1", "y"}
    # Both ratios have the same difference above the line.
    expected = relu_of_a_conv(SAMPLES)
    ratio = np.linalg.norm(rounded(expected, 0.02)) / np.linalg.norm(expected)
    assert rows_of(one)["r1"].relative / max(row.relative for row in two.rows if row.name == "c1") == pytest.approx(
        float(ratio), rel=1e-4
    )


def test_a_relu_that_is_missing_is_the_first_jump() -> None:
    """The Conv's output has two readers, so that its Relu cannot become a range: without it, the error arises there."""

    def network(relu: bool) -> onnx.ModelProto:
        b = Builder()
        b.conv("x", "c1", (3, 8))
        b.add("Relu" if relu else "Identity", ["c1"], "r1")
        b.conv("r1", "c2", (8, 8))
        b.add("Add", ["c2", "c1"], "a")
        b.conv("a", "y", (8, 4))
        return b.model("y")

    report = compare(network(True), network(False))
    assert rows_of(report)["c1"].relative == 0
    assert report.first_jump == "c2"


def test_equalised_channels_are_no_error() -> None:
    """Factors for each channel are told where the next layer undoes them, and nothing is off; else they count."""
    factors = np.array([0.2, 0.5, 1, 2, 3, 1, 0.4, 5], np.float32)
    other = chain()
    other.weights["c1_w"] = other.weights["c1_w"] * factors[:, None, None, None]
    wrong = compare(chain().model("y"), other.model("y"))
    assert wrong.first_jump == "c1"
    assert rows_of(wrong)["c1"].scaled is None
    other.weights["c2_w"] = other.weights["c2_w"] / factors[:, None, None]
    report = compare(chain().model("y"), other.model("y"))
    assert report.first_jump is None
    for name in ("c1", "r1"):
        row = rows_of(report)[name]
        assert row.scaled == pytest.approx((0.2, 5), rel=1e-4)
        assert row.relative < 1e-5
    assert rows_of(report)["y"].scaled is None


def test_a_part_that_is_lost_within_is_the_first_jump() -> None:
    """Scores that one scale for boxes and scores rounds to 0, in the middle of a network."""

    def network(rounds: bool) -> onnx.ModelProto:
        b = Builder()
        b.add("Sigmoid", [b.conv("x", "c1", (3, 4))], "s1")
        b.add("Mul", ["s1", b.constant("pixels", np.float32(640))], "boxes")
        b.add("Sigmoid", [b.conv("x", "c2", (3, 6))], "scores")
        b.add("Concat", ["boxes", "scores"], "joined", axis=1)
        last = quantize_linear(b, "joined", 640 / 255) if rounds else "joined"
        b.add("Neg", [last], "y")
        return b.model("y")

    report = compare(network(False), network(True))
    assert report.first_jump == "joined"
    row = rows_of(report)["joined"]
    assert row.relative >= 1
    boxes, scores = row.parts
    assert (boxes.indices, boxes.lost, scores.indices, scores.lost) == ("0-3", False, "4-9", True)
    assert boxes.relative < 0.01


# ---------------------------------------------------------------- matching


@pytest.mark.parametrize("rename", [renamed, lambda model: model])
def test_names_do_not_matter(rename: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    source = chain().model("y")
    report = compare(source, rename(source))
    assert (report.convs_compared, report.tensors_compared) == (3, 5)
    assert [row.relative for row in report.rows] == [0] * 5


def branches(order: tuple[int, ...]) -> onnx.ModelProto:
    """Three branches that begin alike, the nodes of which stand in some order."""
    b = Builder()
    for branch, dilation in enumerate((1, 2, 3)):
        b.conv("x", f"a{branch}", (3, 4), 1)
        b.add("Relu", [f"a{branch}"], f"r{branch}")
        b.conv(f"r{branch}", f"b{branch}", (4, 4), 3, dilations=[dilation, dilation])
    b.add("Concat", ["b0", "b1", "b2"], "y", axis=1)
    first = b.nodes[:9]
    b.nodes[:9] = [node for branch in order for node in first[3 * branch : 3 * branch + 3]]
    return b.model("y")


def test_branches_that_stand_in_another_order() -> None:
    report = compare(branches((0, 1, 2)), renamed(branches((2, 0, 1))))
    assert (report.convs_compared, report.convs) == (6, 6)
    assert [row.relative for row in report.rows] == [0] * 10


def test_nodes_that_are_not_sorted() -> None:
    source = chain().model("y")
    turned = onnx.ModelProto.FromString(source.SerializeToString())
    del turned.graph.node[:]
    turned.graph.node.extend(reversed(source.graph.node))
    assert [row.name for row in compare(turned, source).rows] == ["c1", "r1", "c2", "r2", "y"]


def test_a_folded_batch_normalization() -> None:
    """(c - mean) / sqrt(var + eps) * scale + bias, folded into weight and bias: the same up to rounding."""
    b = chain()
    scale, bias, mean, variance = (np.linspace(low, 1.5, 8).astype(np.float32) for low in (0.5, -1, -0.5, 0.3))
    for name, value in (("g", scale), ("be", bias), ("m", mean), ("v", variance)):
        b.constant(name, value)
    node = helper.make_node("BatchNormalization", ["c1", "g", "be", "m", "v"], ["n1"], name="n1_node", epsilon=1e-5)
    b.nodes.insert(1, node)
    b.nodes[2].input[0] = "n1"
    folded = chain()
    factor = scale / np.sqrt(variance + np.float32(1e-5))
    folded.weights["c1_w"] = folded.weights["c1_w"] * factor[:, None, None, None]
    folded.constant("c1_b", bias - mean * factor)
    folded.nodes[0].input.append("c1_b")
    report = compare(b.model("y"), renamed(folded.model("y")))
    assert [row.name for row in report.rows] == ["n1", "r1", "c2", "r2", "y"]
    assert max(row.relative for row in report.rows) < 1e-5
    assert (report.convs_compared, report.tensors_compared, report.tensors) == (3, 5, 6)


def test_a_layer_without_a_counterpart_is_named() -> None:
    other = chain()
    del other.nodes[2:4]
    other.nodes[-1].input[0] = "r1"
    report = compare(chain().model("y"), renamed(other.model("y")))
    assert (report.convs_compared, report.convs) == (2, 3)
    assert report.not_compared == ("c2_node",)


def test_tensors_of_other_shapes_are_left_out() -> None:
    b = chain()
    b.nodes[-1].attribute[0].CopyFrom(helper.make_attribute("pads", [0] * 4))
    report = compare(chain().model("y"), b.model("y"))
    assert list(rows_of(report)) == ["c1", "r1", "c2", "r2"]
    assert report.notes[-1].startswith("1 pairs of tensors are left out: their shapes differ")


def test_nested_graphs_are_skipped_with_a_count() -> None:
    def branch(name: str) -> onnx.GraphProto:
        nodes = [helper.make_node(op, [source], [out]) for op, source, out in (("Neg", "c1", f"{name}1"),)]
        nodes.append(helper.make_node("Exp", [f"{name}1"], [f"{name}2"]))
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}2", TensorProto.FLOAT, None)])

    b = Builder()
    b.conv("x", "c1", (3, 4))
    b.add("If", [b.constant("yes", np.bool_(True))], "f", then_branch=branch("t"), else_branch=branch("e"))
    b.conv("f", "y", (4, 4))
    report = compare(b.model("y"), b.model("y"))
    assert report.nested == 4
    assert [row.name for row in report.rows] == ["c1", "f", "y"]


def test_functions_are_looked_into() -> None:
    imports = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Conv", ["a", "w"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["r"])]
    function = helper.make_function("local", "block", ["a", "w"], ["r"], body, imports)
    b = Builder()
    b.conv("x", "c1", (3, 4))
    b.nodes[0] = helper.make_node("block", ["x", "c1_w"], ["y"], domain="local", name="call")
    report = compare(b.model("y", functions=(function,)), b.model("y", functions=(function,)))
    assert (report.convs_compared, report.convs, report.tensors_compared) == (1, 1, 2)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_every_conv_of_a_quantised_network_is_compared(form: Any, activations: Any) -> None:
    """Shortened names, folded Relus, equalised channels: every Conv has its counterpart, and none of them jumps."""
    b = chain()
    b.nodes[-1].output[0], b.nodes[-1].name = "c3", "c3_node"
    b.add("Add", ["c3", b.conv("r1", "side", (8, 4), 1)], "sum")
    b.add("Relu", ["sum"], "r3")
    b.add("GlobalAveragePool", ["r3"], "pool")
    b.add("Flatten", ["pool"], "flat")
    b.constant("fc_w", np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32))
    b.add("Gemm", ["flat", "fc_w"], "y", transB=1)
    report = onnxsep.quantize(b.model("y"), data=SAMPLES, format=form, activations=activations, layers=True).report
    assert report.layers is not None
    found = report.layers
    assert (found.convs_compared, found.convs, found.linear_compared, found.linear) == (4, 4, 1, 1)
    assert found.first_jump is None
    (output,) = [row for row in found.rows if row.name == "y"]
    assert output.relative == pytest.approx(report.outputs[0].relative, rel=0.2)


# ---------------------------------------------------------------- commands


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """a.onnx, b.onnx with a second Conv that is off by .1, and data.npy."""
    other = chain()
    other.weights["c2_w"] = other.weights["c2_w"] * np.float32(1.1)
    onnx.save(chain().model("y"), tmp_path / "a.onnx")
    onnx.save(other.model("y"), tmp_path / "b.onnx")
    np.save(tmp_path / "data.npy", SAMPLES)
    return tmp_path


def test_the_table_of_check(files: Path) -> None:
    done = run("check", "--layers", "b.onnx", "a.onnx", "--data", "data.npy", "--samples", 10, cwd=files)
    assert done.returncode == 3  # the outputs differ
    assert "structure" not in done.stdout
    lines = done.stdout.splitlines()
    assert "layers: measured: compared on 10 samples: 3 of 3 Convs, 5 of 5 tensors" in lines
    assert [line.split() for line in lines if line.startswith("  > ")] == [[">", "0.1", "20.0", "0", "Conv", "c2"]]
    assert any(line.startswith("  first jump (>): Conv 'c2': relative error 0.1, of its inputs 0") for line in lines)


def test_layers_alone_judge_nothing(files: Path) -> None:
    done = run("check", "--layers", "--no-outputs", "b.onnx", "a.onnx", "--inputs", "data.npy", cwd=files)
    assert done.returncode == 0
    assert done.stdout.endswith("measured, and not judged: layers\n")


def test_random_inputs_are_said_to_tell_less(files: Path) -> None:
    done = run("check", "--layers", "--no-outputs", "b.onnx", "a.onnx", cwd=files)
    assert "the inputs are random: noise tells less than real inputs (--data or --inputs)" in done.stdout
    with_data = run("check", "--layers", "--no-outputs", "b.onnx", "a.onnx", "--data", "data.npy", cwd=files)
    assert "random" not in with_data.stdout


def test_every_format_shows_the_layers(files: Path) -> None:
    command = ["check", "--layers", "b.onnx", "a.onnx", "--data", "data.npy", "--format"]
    found = json.loads(run(*command, "json", cwd=files).stdout)["parts"][-1]
    assert (found["name"], found["status"]) == ("layers", "measured")
    assert [row["name"] for row in found["layers"]["rows"]] == ["c1", "r1", "c2", "r2", "y"]
    assert found["layers"]["first_jump"] == "c2"
    notices = [line for line in run(*command, "github", cwd=files).stdout.splitlines() if line.startswith("::notice")]
    assert len(notices) == 1
    assert "title=check layers::" in notices[0]
    assert "first jump (>): Conv 'c2'" in notices[0]
    suites = ET.fromstring(run(*command, "junit", cwd=files).stdout.encode())
    (case,) = [case for case in suites.iter("testcase") if case.get("name") == "layers"]
    assert "first jump (>): Conv 'c2'" in (case.findtext("system-out") or "")


def test_a_reference_that_is_a_text_has_no_layers(files: Path) -> None:
    assert run("check", "a.onnx", "a.txt", "--update", cwd=files).returncode == 0
    result = onnxsep.check(files / "a.onnx", files / "a.txt", structure=True, layers=True)
    assert [(part.name, part.status) for part in result.parts] == [
        ("structure", "same"),
        ("outputs", "skipped"),
        ("layers", "skipped"),
    ]


def test_outputs_are_compared_on_data(files: Path) -> None:
    """On samples of zeros both models give zeros; random inputs would tell them apart."""
    zeros = np.zeros((40, 3, 8, 8), np.float32)
    assert onnxsep.check(files / "b.onnx", files / "a.onnx", structure=False, weights=False, data=zeros).same
    assert not onnxsep.check(files / "b.onnx", files / "a.onnx", structure=False, weights=False, data=SAMPLES).same


def test_data_for_a_fixed_batch_are_several_runs(files: Path) -> None:
    fixed = {}
    for name in ("a", "b"):
        fixed[name] = onnx.load(files / f"{name}.onnx")
        fixed[name].graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    data = SAMPLES.copy()
    data[:20] = 0  # only the last of six runs tells the models apart
    result = onnxsep.check(fixed["b"], fixed["a"], data=data, layers=True, samples=None)
    outputs, layers = result.parts
    assert outputs.status == "differs"
    assert layers.layers is not None
    assert layers.layers.samples == 24
    assert rows_of(layers.layers)["c2"].relative == pytest.approx(0.1, rel=1e-4)


def test_data_and_inputs_contradict_each_other(files: Path) -> None:
    with pytest.raises(OptionError, match="leave out inputs"):
        onnxsep.check(files / "b.onnx", files / "a.onnx", data=SAMPLES, inputs=files / "data.npy")


def test_data_that_do_not_fit_are_refused(files: Path) -> None:
    with pytest.raises(OnnxsepError, match="3, 8, 8"):
        onnxsep.check(files / "b.onnx", files / "a.onnx", data=SAMPLES[:, :2], layers=True)


def test_inputs_of_other_names(files: Path) -> None:
    other = onnx.load(files / "b.onnx")
    other.graph.input[0].name = "image"
    other.graph.node[0].input[0] = "image"
    result = onnxsep.check(other, files / "a.onnx", data=SAMPLES, layers=True, ignore_names=True)
    layers = result.parts[-1].layers
    assert layers is not None
    assert layers.first_jump == "c2"


def test_a_model_that_does_not_run_is_skipped_with_the_reason(files: Path) -> None:
    other = onnx.load(files / "b.onnx")
    other.graph.node[1].op_type = "NoSuchOperator"
    other.graph.node[1].domain = "my.ops"
    other.opset_import.append(helper.make_opsetid("my.ops", 1))
    part = onnxsep.check(other, files / "a.onnx", data=SAMPLES, layers=True).parts[-1]
    assert part.status == "skipped"
    assert "cannot load the model: " in part.reason
    assert "NoSuchOperator" in part.reason


def test_rewrite_and_quantize_print_the_layers(files: Path) -> None:
    options = ["--layers", "--data", "data.npy", "--samples", 16, "--report", "report.json"]
    done = run("rewrite", "a.onnx", "r.onnx", "--mode", "channel", "--rank", "0.5", *options, cwd=files)
    assert "layers: compared on 8 samples: 3 of 3 Convs, 5 of 5 tensors" in done.stdout
    report = json.loads((files / "report.json").read_text())
    assert [row["name"] for row in report["layers"]["rows"]] == ["c1", "r1", "c2", "r2", "y"]
    assert report["layers"]["first_jump"] == "c2"  # the first Conv is left alone
    done = run("quantize", "a.onnx", "q.onnx", *options, cwd=files)
    assert "3 of 3 Convs, 5 of 5 tensors" in done.stdout


@pytest.mark.parametrize(("command", "record"), [("rewrite", RewriteReport), ("quantize", QuantizeReport)])
def test_old_reports_are_read(files: Path, command: str, record: Any) -> None:
    extra = ["--mode", "depthwise"] if command == "rewrite" else []
    data = ["--data", "data.npy", "--samples", 16]
    assert run(command, "a.onnx", "o.onnx", *extra, *data, "--report", "report.json", cwd=files).returncode == 0
    report = json.loads((files / "report.json").read_text())
    assert report.pop("layers") is None
    for output in report.get("outputs", report.get("verification", {}).get("outputs", [])):
        output.pop("parts")
        output.pop("lost", None)
    assert record.model_validate_json(json.dumps(report)).layers is None
