"""Single weights set to zero: how many, which ones, and that nothing else in the file changes."""

import json
import subprocess
import sys
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.engine.sparsity import dense_factor_notes
from onnxsep.errors import OptionError, VerificationError
from onnxsep.graph.constants import read_constant
from onnxsep.model.io import Model, load, read_tensor
from onnxsep.model.saving import save
from onnxsep.model.tensors import decode
from onnxsep.pruning import SPARSITY_KEY, Goal, PruneResult, prune, surviving_weights
from onnxsep.pruning.magnitude import outside_pattern, smallest

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
Array = NDArray[Any]
RNG = np.random.default_rng(7)


def weight(*shape: int, dtype: Any = np.float32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


KINDS = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}


def tensor(name: str, values: Array) -> onnx.TensorProto:
    """Also of bfloat16, which older onnx cannot store."""
    kind = KINDS[values.dtype.name]
    return onnx.TensorProto(name=name, data_type=kind, dims=values.shape, raw_data=values.tobytes())


def make(
    nodes: str,
    weights: Mapping[str, Array],
    *,
    x: str = "float[1,4,6,6]",
    extra: str = "",
) -> onnx.ModelProto:
    """A model of the nodes, written in ONNX's text form, with initialisers."""
    head = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
    proto: onnx.ModelProto = onnx.parser.parse_model(f"{head}\ng ({x} x) => (float y) {{\n{nodes}\n}}\n{extra}")
    proto.graph.initializer.extend(tensor(name, values) for name, values in weights.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")  # the text form cannot leave it open
    inferred = shape_inference.infer_shapes(proto)
    proto.graph.output[0].CopyFrom(inferred.graph.output[0])
    return proto


def tensors(proto: onnx.ModelProto) -> dict[str, Array]:
    found = {tensor.name: decode(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = decode(node.attribute[0].t)
    return found


def row(result: PruneResult, name: str) -> Any:
    (found,) = [layer for layer in result.report.layers if layer.name == name]
    return found


TWO = "a = Conv<pads = [1, 1, 1, 1]>(x, w0)\n b = Relu(a)\n y = Conv(b, w1)"


def two(**kinds: Any) -> onnx.ModelProto:
    return make(TWO, {"w0": weight(8, 4, 3, 3, **kinds), "w1": weight(4, 8, 3, 3, **kinds)})


# --- how many ------------------------------------------------------------------------------------------------------


def test_conv_weights_of_resnet_101_are_what_table_3_starts_from() -> None:
    """R1 has 42,697,380 trainable parameters: all but the Convs' are the linear layer and two for each BN channel."""
    blocks = {64: 3, 128: 4, 256: 23, 512: 3}
    channels = 64 + sum(count * 6 * width + 4 * width for width, count in blocks.items())
    assert 42_697_380 - (2048 * 100 + 100) - 2 * channels == 42_387_136


@pytest.mark.parametrize("weights", [42_387_136, 388_587, 139_511])
def test_ten_steps_of_table_3(weights: int) -> None:
    left = surviving_weights(weights, 0.2, 10)
    assert len(left) == 10
    for before, after in pairwise((weights, *left)):
        # The nearest whole number to a fifth: at most two fifths away.
        assert abs(5 * (before - after) - before) <= 2


def test_the_benchmark_prints_table_3() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "iterative_pruning.py")], capture_output=True, text=True, check=True
    )
    lines = [line.replace(",", "").split() for line in done.stdout.splitlines()[1:]]
    columns = [[int(cell) for cell in column] for column in list(zip(*lines, strict=True))[2:]]
    assert [column[0] for column in columns] == [42_387_136, 388_587, 139_511]
    for column in columns:
        assert len(column) == 11
        for before, after in pairwise(column):
            assert abs(5 * (before - after) - before) <= 2


def test_shares_are_decimal_and_halves_go_to_the_even_number() -> None:
    assert surviving_weights(10, 0.25, 1) == (8,)  # 2.5 -> 2
    assert surviving_weights(14, 0.25, 1) == (10,)  # 3.5 -> 4
    assert 0.575 * 100 < 57.5  # in binary; 57.5 -> 58
    assert surviving_weights(100, 0.575, 1) == (42,)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("options", [{"sparsity": 0.59}, {"step": 0.2, "steps": 4}, {"step": 0.3}])
def test_counts_are_exact(scope: Any, options: dict[str, Any]) -> None:
    source = two()
    result = prune(source, scope=scope, **options)
    sizes = [8 * 4 * 9, 4 * 8 * 9]
    expected = []
    for size in [sum(sizes)] if scope == "global" else sizes:
        left = size
        for _ in range(options.get("steps", 1)):
            left -= round(left * options["step"]) if "step" in options else round(left * options["sparsity"])
        expected.append(size - left)
    zeros = [int((values == 0).sum()) for values in tensors(result.proto).values()]
    assert sum(zeros) == sum(expected) == result.report.totals.zeros_after
    if scope == "layer":
        assert zeros == expected
    assert [layer.zeros_after for layer in result.report.layers] == zeros
    assert result.report.surviving[-1] == sum(sizes) - sum(zeros)


def test_steps_go_on_where_the_last_run_stopped() -> None:
    source = two()
    at_once = prune(source, step=0.2, steps=3)
    one_by_one = prune(prune(prune(source, step=0.2).model, step=0.2).model, step=0.2)
    assert at_once.proto == one_by_one.proto
    again = prune(at_once.model, sparsity=0.1)  # more of it is zero already
    assert again.model is at_once.model
    assert "zero already" in again.report.notes[0]


# --- which ones ----------------------------------------------------------------------------------------------------


@given(
    shapes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    share=st.floats(0, 1),
    levels=st.integers(1, 40),
)
@settings(deadline=None)
def test_the_smallest_go_and_ties_in_order(shapes: list[int], seed: int, share: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-levels, levels + 1, size).astype(np.float32) for size in shapes]
    count = int(share * sum(shapes))
    masks = smallest(weights, count)
    flat = np.concatenate(weights)
    first = sorted(range(len(flat)), key=lambda index: (abs(flat[index]), index))[:count]
    assert np.flatnonzero(np.concatenate(masks)).tolist() == sorted(first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_order_does_not_depend_on_the_type(dtype: Any) -> None:
    values = np.array([3, -1, 2, -0.5, 1.5, -0.25], dtype)
    assert smallest([values], 3)[0].tolist() == [False, True, False, True, False, True]


def test_doubles_that_are_one_in_single_precision_keep_their_order() -> None:
    values = np.array([1 + 2e-12, 1 + 1e-12, 1])
    assert smallest([values], 2)[0].tolist() == [False, True, True]


@given(kept=st.integers(1, 3), groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_pattern_keeps_the_largest_of_every_group(kept: int, groups: int, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(3 * 4 * groups * 2).reshape(3, 4 * groups, 2).astype(np.float32)
    mask = outside_pattern(values + 1, kept, 4)
    for out in range(3):
        for group in range(groups):
            for tap in range(2):
                part = values[out, 4 * group : 4 * group + 4, tap]
                stays = ~mask[out, 4 * group : 4 * group + 4, tap]
                assert stays.sum() == kept
                assert set(part[stays]) == set(sorted(part)[-kept:])


def test_pattern_of_every_layer() -> None:
    nodes = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w0)
    b = Conv<group = 2>(a, w1)
    p = GlobalAveragePool(b)
    f = Flatten(p)
    g = Gemm<transB = 1>(f, w2)
    h = Gemm(g, w3)
    y = MatMul(h, w4)
    """
    shapes: dict[str, tuple[int, ...]] = {
        "w0": (8, 4, 3, 3),
        "w1": (4, 4, 3, 3),
        "w2": (8, 4),
        "w3": (8, 12),
        "w4": (12, 5),
    }
    source = make(nodes, {name: weight(*shape) for name, shape in shapes.items()})
    result = prune(source, pattern="2:4", linear=True)
    for name, values in tensors(result.proto).items():
        inputs_first = values.T if name in ("w0", "w1", "w2") else values
        zeros = inputs_first.reshape(*inputs_first.shape[:-1], -1)
        axis_last = np.moveaxis(values, 0 if name in ("w3", "w4") else 1, -1)
        assert ((axis_last.reshape(*axis_last.shape[:-1], -1, 4) == 0).sum(axis=-1) == 2).all(), (name, zeros.shape)
    assert {layer.status for layer in result.report.layers} == {"pruned"}


def test_pattern_that_does_not_fit() -> None:
    result = prune(make(TWO, {"w0": weight(6, 4, 3, 3), "w1": weight(4, 6, 3, 3)}), pattern="2:4")
    assert [layer.status for layer in result.report.layers] == ["pruned", "left"]
    assert "6 input channels" in result.report.layers[1].reason


# --- nothing else changes ------------------------------------------------------------------------------------------


def restored(result: onnx.ModelProto, source: onnx.ModelProto, *names: str) -> bytes:
    """The result with the source's own tensors of these names, and without the mark."""
    copy = onnx.ModelProto()
    copy.CopyFrom(result)
    originals = {tensor.name: tensor for tensor in source.graph.initializer}
    originals |= {node.output[0]: node.attribute[0].t for node in source.graph.node if node.op_type == "Constant"}
    for tensor in copy.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(originals[tensor.name])
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.output[0] in names:
            node.attribute[0].t.CopyFrom(originals[node.output[0]])
    (mark,) = [index for index, entry in enumerate(copy.metadata_props) if entry.key == SPARSITY_KEY]
    del copy.metadata_props[mark]
    return copy.SerializeToString()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("form", ["initialiser", "constant node", "typed field"])
def test_only_the_weights_change(dtype: Any, form: str) -> None:
    source = two(dtype=dtype)
    kind = KINDS[np.dtype(dtype).name]
    for value in (*source.graph.input, *source.graph.output):
        value.type.tensor_type.elem_type = kind
    source.graph.doc_string, source.producer_name = "kept", "someone"
    source.metadata_props.add(key="own", value="kept")
    source.graph.initializer.append(numpy_helper.from_array(weight(3), "unused"))
    source.graph.initializer[0].doc_string = "kept too"
    if form == "constant node":
        moved = [source.graph.initializer[index] for index in (0, 1)]
        for tensor in reversed(moved):
            source.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        del source.graph.initializer[:2]
    if form == "typed field":
        for tensor in source.graph.initializer[:2]:
            values = decode(tensor)
            tensor.ClearField("raw_data")
            if values.dtype == np.float32:
                tensor.float_data.extend(values.ravel().tolist())
            elif values.dtype == np.float64:
                tensor.double_data.extend(values.ravel().tolist())
            else:
                tensor.int32_data.extend(values.view(np.uint16).ravel().tolist())
    before = source.SerializeToString()
    result = prune(source, sparsity=0.5)
    assert source.SerializeToString() == before
    assert restored(result.proto, source, "w0", "w1") == before
    old, new = tensors(source), tensors(result.proto)
    flat = np.concatenate([np.abs(old[name].astype(np.float64)).ravel() for name in ("w0", "w1")])
    limit = np.sort(flat)[len(flat) // 2 - 1]
    for name in ("w0", "w1"):
        assert new[name].dtype == old[name].dtype
        stays = np.abs(old[name].astype(np.float64)) > limit
        assert (new[name][stays] == old[name][stays]).all()
        changed = new[name] != old[name]
        assert (new[name][changed] == 0).all()
        assert not (changed & stays).any()
    assert sum((values == 0).sum() for name, values in new.items() if name != "unused") == len(flat) // 2
    assert result.report.verification.ran, result.report.verification.reason


def test_initialisers_that_are_inputs(shared: Path) -> None:
    source = load(shared / "models" / "cifar10_resnet32_ts_bn_op10.onnx")
    result = prune(source, sparsity=0.5)
    weights = [item.weight.name for item in find_sites(source).found if isinstance(item, ConvSite)]
    assert restored(result.proto, source.proto, *weights) == source.proto.SerializeToString()


def test_weights_in_graphs_and_functions() -> None:
    function = """
    <domain: "own", opset_import: ["" : 17]> f (v) => (r) { w = Constant<value: tensor = W>() r = Conv(v, w) }
    """.replace("W>", "float[1,4,1,1] {4.0, 3.0, 2.0, 1.0}>")
    nodes = """
    c = Constant<value = bool {1}>()
    t = If(c) <then_branch = a () => (float q) { q = Conv(x, w0) }, else_branch = b () => (float r) { r = Conv(x, w1) }>
    u = own.f(t)
    v = own.f(t)
    y = Add(u, v)
    """
    source = make(nodes, {"w0": weight(4, 4, 1, 1), "w1": weight(4, 4, 1, 1)}, extra=function)
    result = prune(source, sparsity=0.5, scope="layer")
    assert [layer.zeros_after for layer in result.report.layers] == [8, 8, 2]
    body = decode(result.proto.functions[0].node[0].attribute[0].t)
    assert body.ravel().tolist() == [4, 3, 0, 0]
    assert all((values == 0).sum() == 8 for values in tensors(result.proto).values() if values.size == 16)
    assert result.report.verification.ran


def test_a_shared_weight_counts_once() -> None:
    source = make("a = Conv(x, w)\n b = Neg(a)\n y = Conv(b, w)", {"w": weight(4, 4, 1, 1)})
    result = prune(source, sparsity=0.25)
    assert (tensors(result.proto)["w"] == 0).sum() == 4
    assert result.report.totals.weights_before == 16
    assert "shares the weight" in result.report.layers[1].notes[0]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("a = Conv(x, w)\n b = ReduceSum<keepdims = 0>(w)\n y = Add(a, b)", "ReduceSum"),
        ("t = Transpose<perm = [1, 0, 2, 3]>(w)\n y = Conv(x, t)", "expression of constants"),
        ("a = Conv(x, w)\n s = Shape(x)\n y = ConvTranspose(a, w)", "ConvTranspose"),
    ],
)
def test_a_weight_that_something_else_uses_is_left_alone(nodes: str, words: str) -> None:
    source = make(nodes, {"w": weight(4, 4, 1, 1)})
    result = prune(source, sparsity=0.5)
    assert result.model.proto is source
    layer = result.report.layers[0]
    assert layer.status == "left"
    assert words in layer.reason


def test_a_weight_shared_with_a_layer_that_is_left_out() -> None:
    source = make("a = Conv(x, w)\n b = Neg(a)\n y = Conv(b, w)", {"w": weight(4, 4, 1, 1)})
    result = prune(source, sparsity=0.5, skip="a")
    assert [layer.status for layer in result.report.layers] == ["left", "left"]
    assert "left out by skip 'a'" in result.report.layers[0].reason
    assert "also used by Conv 'a', which is left out by skip" in result.report.layers[1].reason


def test_nan_is_left_alone() -> None:
    values = weight(8, 4, 3, 3)
    values[0, 0, 0, 0] = np.nan
    result = prune(make(TWO, {"w0": values, "w1": weight(4, 8, 3, 3)}), sparsity=0.5, verify="none")
    assert "NaN" in result.report.layers[0].reason
    assert result.report.layers[1].zeros_after == 4 * 8 * 9 // 2


def test_linear_layers_only_where_asked_for() -> None:
    nodes = "a = Conv(x, w0)\n p = GlobalAveragePool(a)\n f = Flatten(p)\n y = Gemm(f, w1)"
    source = make(nodes, {"w0": weight(4, 4, 1, 1), "w1": weight(4, 8)})
    assert [layer.op_type for layer in prune(source, sparsity=0.5).report.layers] == ["Conv"]
    result = prune(source, sparsity=0.5, linear=True)
    assert result.report.totals.weights_before == 48
    assert sum((values == 0).sum() for values in tensors(result.proto).values()) == 24


def test_external_data(tmp_path: Path) -> None:
    source = two()
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.graph.initializer.append(numpy_helper.from_array(weight(40, 40), "other"))
    plain = prune(source, sparsity=0.4)
    onnx.save(source, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = prune(path, sparsity=0.4)
    assert set(result.new_initializers) == {"w0", "w1"}
    files = result.save(out)
    assert files.data_path is not None
    saved = load(out)
    expected = tensors(plain.proto)
    for tensor in saved.proto.graph.initializer:
        assert tensor.data_location == TensorProto.EXTERNAL
        assert (read_tensor(saved, tensor) == expected[tensor.name]).all()
    onnx.checker.check_model(str(out))


# --- what is told --------------------------------------------------------------------------------------------------


def test_report_of_the_digits_model(tmp_path: Path) -> None:
    result = prune(DIGITS, sparsity=0.6)
    path = tmp_path / "out.onnx"
    result.save(path)
    sizes = result.report.sizes
    assert sizes is not None
    assert (sizes.bytes_before, sizes.zipped_before) == (
        DIGITS.stat().st_size,
        len(zlib.compress(DIGITS.read_bytes(), 6)),
    )
    assert (sizes.bytes_after, sizes.zipped_after) == (path.stat().st_size, len(zlib.compress(path.read_bytes(), 6)))
    assert sizes.zipped_after < 0.6 * sizes.zipped_before
    assert "no speed" in result.report.notes[0]
    again = load(path)
    assert {entry.key: entry.value for entry in again.proto.metadata_props}[SPARSITY_KEY] == "0.600001 magnitude"


def test_dry_run_changes_nothing() -> None:
    source = two()
    result = prune(source, sparsity=0.5, dry_run=True)
    assert result.model.proto is source
    assert result.report.totals.zeros_after == 288
    assert not result.report.verification.ran


def test_rewrite_is_warned_of_zeros() -> None:
    def notes(proto: onnx.ModelProto) -> list[str]:
        model = load(proto)
        sites = find_sites(model)
        return dense_factor_notes(model, sites, [site for site in sites.found if isinstance(site, ConvSite)])

    source = two()
    assert notes(source) == []
    (note,) = notes(prune(source, sparsity=0.1).proto)  # few zeros, but the mark is there
    assert "58 of the 576 weights" in note
    assert "dense" in note
    plain = two()
    values = decode(plain.graph.initializer[0]).copy()
    values[:4] = 0
    plain.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w0"))
    assert "144 of the 576" in notes(plain)[0]  # no mark, but many zeros


def test_verification_fails_above_max_error() -> None:
    with pytest.raises(VerificationError, match="above max_error") as caught:
        prune(two(), sparsity=0.9, max_error=1e-6)
    assert caught.value.report.verification.relative > 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "none is given"),
        ({"sparsity": 0.5, "step": 0.2}, "sparsity and step contradict"),
        ({"sparsity": 1.0}, "out of range"),
        ({"step": 0.0}, "out of range"),
        ({"step": 0.2, "steps": 0}, "1 or more"),
        ({"sparsity": 0.5, "steps": 2}, "add step=0.2"),
        ({"pattern": "4:2"}, "no N:M"),
        ({"pattern": "2:4", "scope": "layer"}, "leave out scope"),
        ({"pattern": "2:4", "channels": True}, "contradict"),
        ({"sparsity": 0.5, "channels": True, "linear": True}, "; linear is for"),
        ({"sparsity": 0.5, "multiple": 8}, "multiple is for channels"),
        ({"sparsity": 0.5, "only": "nothing*"}, "matches the name of no layer"),
        ({"sparsity": 0.5, "max_error": 0.1, "verify": "none"}, "switches it off"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        prune(two(), **options)


def test_a_goal_counts_what_is_zero_already() -> None:
    assert Goal(sparsity=0.5).left(100, zeros=20) == (50,)
    assert Goal(sparsity=0.1).left(100, zeros=20) == (80,)
    assert Goal(step=0.5, steps=2).left(100, zeros=20) == (40, 20)


# --- the command ---------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = run("prune", DIGITS, out, "--step", "0.2", "--steps", "4", "--report", report)
    assert done.returncode == 0, done.stderr
    assert "147,686 -> 118,149 -> 94,519 -> 75,615" in done.stdout
    assert "no speed" in done.stdout
    assert "after zip" in done.stdout
    data = json.loads(report.read_text())
    assert data["surviving"][-1] == 75_615
    assert data["output_bytes"] == out.stat().st_size
    values = [decode(tensor) for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4]
    assert sum(int(np.count_nonzero(array)) for array in values) == 75_615
    assert (
        json.loads(run("prune", DIGITS, "--pattern", "2:4", "--dry-run", "--json").stdout)["totals"]["zeros_after"]
        == 92_160
    )


def test_exit_statuses(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    for arguments, status, words in (
        ((DIGITS, out), 1, "give one of --sparsity"),
        ((tmp_path / "none.onnx", out, "--sparsity", "0.5"), 1, "does not exist"),
        ((DIGITS, "--sparsity", "0.5"), 2, "OUT.onnx is missing"),
        ((DIGITS, out, "--sparsity", "0.5", "--scope", "here"), 2, "--scope"),
        ((DIGITS, out, "--sparsity", "0.9", "--max-error", "1e-9"), 3, "above --max-error"),
    ):
        done = run("prune", *arguments)
        assert done.returncode == status, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()


@pytest.mark.parametrize(
    "name", ["cifar10_resnet20_dynamo", "basic_pitch_tf2onnx", "silero_vad_spox", "squeezenet_fp16_caffe2"]
)
def test_models_of_other_exporters(shared: Path, name: str, tmp_path: Path) -> None:
    source = load(shared / "models" / f"{name}.onnx")
    result = prune(source, step=0.2, steps=4)
    path = tmp_path / "out.onnx"
    save(result.model, path)
    left, survived = nonzero(source), nonzero(load(path))
    for _ in range(4):
        left -= (2 * left + 5) // 10  # a fifth, rounded; no half can come up
    assert survived == left == result.report.surviving[-1]
    assert result.report.verification.ran


def nonzero(model: Model) -> int:
    """Weights of all Convs that are not zero, a shared one once."""
    sites = find_sites(model)
    weights = {site.weight for site in sites.found if isinstance(site, ConvSite)}
    return sum(int(np.count_nonzero(read_constant(model, sites.scopes, weight))) for weight in weights)
