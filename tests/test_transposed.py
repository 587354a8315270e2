"""ConvTranspose: the modes that take it are exact at full rank, whatever its geometry, and better at higher ranks."""

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import outputs
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_examples import examples
from test_modes import TOLERANCE, Array, as_float32, only_conv, ranks_at, rewrite, run
from transposed_models import MODES, Case, cases, plain_case

import onnxsep
from onnxsep.calibration.sampling import choose_positions, gather_outputs, gather_patches
from onnxsep.engine.sites import find_sites
from onnxsep.graph.geometry import conv_geometry
from onnxsep.graph.transposing import turned
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.modes.base import Task, conv_modes, get_mode


def test_who_takes_them() -> None:
    assert MODES == ["channel", "cp", "linear-bottleneck", "spatial", "tucker"]


def compared(case: Case, original: onnx.ModelProto, result: onnx.ModelProto) -> float:
    """||original - result|| / ||original|| on random input."""
    x = np.random.default_rng(case.seed + 2).standard_normal((2, case.conv.in_channels, *case.size))
    if case.dtype == "float64":
        original, result = (as_float32(model) for model in (original, result))
    x = x.astype(np.float16 if case.dtype == "float16" else np.float32)
    expected, found = run(original, x), run(result, x)
    assert expected.shape == found.shape
    return float(np.linalg.norm(expected - found) / max(np.linalg.norm(expected), 1e-30))


def geometry(case: Case) -> Conv:
    """What onnxsep reads off the node."""
    found = conv_geometry(case.model().graph.node[0], case.weight.shape, case.size)
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, derandomize=True, max_examples=examples(5, deep=150))
@given(data=st.data())
def test_replacement_computes_what_it_reconstructs(mode: str, data: st.DataObject) -> None:
    """At any rank, and at full rank the original: strides, pads, dilations, groups are where they belong."""
    case = data.draw(cases(("float32", "float32", "float64", "float16")))
    wanted: Any = data.draw(st.sampled_from([1, 2, 3, "full", "full"]))
    model, chosen = case.model(), get_mode(mode)
    before = model.SerializeToString()
    result = rewrite(model, mode, wanted)
    row, conv = only_conv(result), geometry(case)
    assert model.SerializeToString() == before
    if refusal := chosen.accepts(conv):
        event("refused")
        assert (row.status, row.reason) == ("left", refusal)
        return
    event(f"replaced at {wanted}, group {conv.group}, {conv.dims}-d")
    assert (row.status, row.reason, row.op_type) == ("replaced", "", "ConvTranspose")
    onnx.checker.check_model(result.proto, full_check=True)
    if wanted != "full":
        assert row.rank == ranks_at(chosen, conv, int(wanted))
    expected = model
    if not chosen.is_exact(conv, row.rank or ()):
        task = Task(conv, turned(case.weight.astype(np.float64), conv.group))
        weight = chosen.reconstruct(conv, chosen.factorize(task, row.rank or ()))
        # Back by hand, group by group: [out, in / group, ...] -> [in, out / group, ...].
        groups = [part.swapaxes(0, 1) for part in np.split(weight, conv.group)]
        expected = case.model(np.concatenate(groups))
    assert compared(case, expected, result.proto) < TOLERANCE[case.dtype]
    stored = [sum(math.prod(w.dims) for w in proto.graph.initializer) for proto in (model, result.proto)]
    assert [row.parameters_before, row.parameters_after] == stored
    counted = onnxsep.inspect(result.proto, modes=["spatial"]).totals.macs
    assert (row.macs_after, onnxsep.inspect(model, modes=["spatial"]).totals.macs) == (counted, row.macs_before)


@settings(deadline=None, derandomize=True, max_examples=examples(25, deep=1000))
@given(case=cases(), count=st.sampled_from([1, 7, 1000]))
def test_rows_are_those_of_the_runtime(case: Case, count: int) -> None:
    """The patches at output positions, times the weight, are what ONNX Runtime computes there."""
    conv = geometry(case)
    x = np.random.default_rng(case.seed).standard_normal((2, conv.in_channels, *case.size)).astype(np.float32)
    model = case.model()
    expected = run(model, x)
    assert expected.shape[2:] == conv.output_size(case.size)
    positions = choose_positions(conv, case.size, 2, count, np.random.default_rng(0))
    patches = gather_patches(conv, x, positions).reshape(-1, conv.group, conv.weight_size // conv.out_channels)
    matrices = turned(case.weight, conv.group).reshape(conv.group, conv.out_channels // conv.group, -1)
    found = np.einsum("rgd,god->rgo", patches, matrices).reshape(len(patches), -1)
    found = found + (numpy_helper.to_array(model.graph.initializer[1]) if conv.bias else 0)
    assert np.allclose(found, gather_outputs(conv, expected, positions), atol=1e-4 * np.abs(expected).max() + 1e-6)


def matrices(mode: str, case: Case) -> list[Array]:
    """Of each group the matrix whose truncation is the mode's best, made from the stored weight tap by tap."""
    found = []
    for part in np.split(case.weight.astype(np.float64), case.conv.group):
        in_channels, out_channels, kh, kw = part.shape
        if mode == "channel":  # the 1 x 1 Conv comes first
            found.append(np.stack([part[i].ravel() for i in range(in_channels)]))
            continue
        matrix = np.empty((in_channels * kh, out_channels * kw))
        for i in range(in_channels):
            for o in range(out_channels):
                matrix[i * kh : (i + 1) * kh, o * kw : (o + 1) * kw] = part[i, o]
        found.append(matrix)
    return found


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_error_falls_with_rank(mode: str, group: int) -> None:
    case = plain_case((3, 2), (4 * group, 3 * group), group)
    spectra = [np.linalg.svd(matrix, compute_uv=False) for matrix in matrices(mode, case)]
    whole = sum(float((s**2).sum()) for s in spectra)
    errors = []
    for rank in range(1, 5):
        row = only_conv(rewrite(case.model(), mode, rank * group))
        assert row.weight_error is not None
        errors.append(row.weight_error)
        if mode in ("channel", "spatial"):
            lost = sum(float((s[rank:] ** 2).sum()) for s in spectra)
            assert row.weight_error == pytest.approx(math.sqrt(lost / whole), rel=1e-5, abs=1e-6)
    allowed = {"tucker": 0.01, "cp": 0.02, "linear-bottleneck": 0.02}.get(mode, 1e-6)  # local optima
    assert all(after <= before + allowed for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_the_1_x_1_convs_run_where_the_image_is_small() -> None:
    """Twelve channels into six, 4 x 4, twice the size of 6 x 6."""
    case = plain_case()
    found = {mode: only_conv(rewrite(case.model(), mode, 3)) for mode in MODES}
    first, core, last = 12 * 3 * 36 * 2, 36 * 2, 3 * 6 * 144 * 2
    assert found["channel"].macs_after == first + core * 3 * 6 * 16
    assert found["tucker"].macs_after == first + core * 3 * 3 * 16 + last
    assert found["linear-bottleneck"].macs_after == first + core * 3 * 16 + last
    # The first of two axes runs on 6 x 6 and doubles one of its sides.
    assert found["spatial"].macs_after == core * 12 * 3 * 4 + 2 * core * 3 * 6 * 4
    assert found["cp"].macs_after == first + core * 3 * 4 + 2 * core * 3 * 4 + last


@pytest.mark.parametrize("mode", MODES)
def test_what_pays_is_the_same_where_sizes_are_not_known(mode: str) -> None:
    """MACs per position tell the ratio: nothing is cut off here, so it is exact."""
    case = plain_case((2, 2))
    case = Case(Conv(12, 6, (2, 2), (2, 2), (0,) * 4, (1, 1), transposed=True), case.size)
    known, free = (
        onnxsep.inspect(case.model(free=free), modes=[mode], rank=2).convs[0].modes[mode] for free in (False, True)
    )
    assert known.mac_ratio == free.mac_ratio
    assert (known.macs is None, free.macs is None) == (False, True)


FIXED = Case(Conv(4, 6, (3, 3), (2, 2), (0,) * 4, (1, 1), transposed=True), (4, 5), output_shape=(8, 10))


@pytest.mark.parametrize("verify", ["full", "local"])
def test_an_output_shape_becomes_pads(verify: Any) -> None:
    result = onnxsep.rewrite(FIXED.model(), mode="spatial", rank="full", force=True, include_first=True, verify=verify)
    assert only_conv(result).status == "replaced"
    assert result.report.verification.ran
    assert all(entry.name != "output_shape" for node in result.proto.graph.node for entry in node.attribute)


@pytest.mark.parametrize("shapes", [{}, {"x": (2, 4, 4, 5)}])
def test_an_output_shape_needs_sizes_that_the_model_fixes(shapes: dict[str, tuple[int, ...]]) -> None:
    """What is said for one run only does not make them fixed."""
    result = onnxsep.rewrite(
        FIXED.model(free=True), mode="spatial", force=True, include_first=True, input_shapes=shapes, verify="none"
    )
    assert only_conv(result).reason.startswith("its output_shape: what it cuts off depends on sizes of its input")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"auto_pad": "SAME_UPPER", "output_padding": [1, 1]}, "auto_pad SAME_UPPER with output_padding: ONNX and"),
        ({"output_shape": [12, 12]}, "the output that it asks for is larger than its strides allow"),
        ({"output_padding": [2, 0]}, "the output that it asks for is larger than"),
        ({"output_padding": [1]}, "its pads, output_padding or output_shape are not what 2 axes have"),
        ({"output_shape": [2, 6, 8, 8]}, "its pads, output_padding or output_shape are not what 2 axes have"),
        ({"pads": [0, -1, 0, 0]}, "its pads, output_padding or output_shape are not what 2 axes have"),
        ({"group": 3}, "it is malformed: group 3"),
    ],
)
def test_what_is_left_alone(attributes: dict[str, Any], reason: str) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], **attributes)
    found = conv_geometry(node, (4, 6, 3, 3), (4, 4))
    assert isinstance(found, str)
    assert found.startswith(reason)


def decoder(body: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A graph x -> y with random weights."""
    rng = np.random.default_rng(3)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[2,4,5,5] x) => (float[2,c,h,v] y) {{{body}}}'
    )
    for name, shape in weights.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model)
    return model


def test_a_conv_and_a_transposed_one_share_their_weight() -> None:
    """One reads the weight's first axis as its outputs, the other as its inputs: each gets factors of its own."""
    model = decoder("s = Conv<pads = [1,1,1,1]>(x, w) y = ConvTranspose<pads = [1,1,1,1]>(s, w)", w=(4, 4, 3, 3))
    for mode in MODES:
        result = onnxsep.rewrite(model, mode=mode, rank="full", force=True, include_first=True)
        assert [row.status for row in result.report.convs] == ["replaced", "replaced"]
        assert len(result.report.removed_weights) == 1
        x = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
        original, found = (outputs(one, {"x": x})["y"] for one in (model, result.proto))
        assert np.abs(original - found).max() < 1e-4 * np.abs(original).max(), mode


def test_a_weight_that_stays_for_a_transposed_one_of_another_geometry() -> None:
    body = "s = ConvTranspose(x, w) y = ConvTranspose<group = 2>(s, w)"
    model = decoder(body, w=(4, 4, 5, 5))
    rows = onnxsep.rewrite(model, mode="spatial", rank=6, include_first=True, verify="none").report.convs
    assert [row.status for row in rows] == ["left", "left"]
    assert {row.reason for row in rows} == {
        "does not pay: its weight is shared and would need 2 different sets of factors (force=True)"
    }


def test_first_and_done_ones_are_left_alone() -> None:
    model = decoder("s = ConvTranspose(x, w) t = Relu(s) y = ConvTranspose(t, v)", w=(4, 8, 3, 3), v=(8, 8, 3, 3))
    result = onnxsep.rewrite(model, mode="spatial", rank=4, verify="none")
    first, second = result.report.convs
    assert first.reason == "first ConvTranspose, reached straight from an input; include_first=True replaces it"
    assert second.status == "replaced"
    again = onnxsep.rewrite(result.proto, mode="spatial", rank=4, verify="none")
    assert again.proto.SerializeToString() == result.proto.SerializeToString()


def test_other_modes_and_pruning_say_that_they_do_not_take_it() -> None:
    model = decoder("s = Conv(x, w) y = ConvTranspose(s, v)", w=(4, 4, 3, 3), v=(4, 4, 3, 3))
    row = onnxsep.inspect(model).convs[1]
    for name, mode in conv_modes().items():
        costs = row.modes[name]
        assert costs.eligible == mode.transposed, name
        assert mode.transposed or costs.reason == f"mode {name} takes no ConvTranspose"
    assert not any(costs.eligible for name, costs in row.modes.items() if name not in conv_modes())
    sites = find_sites(Model(model))
    assert getattr(sites.found[1], "reason", "") == "ConvTranspose is not supported: only Conv is rewritten"


@pytest.mark.parametrize("opset", [9, 17])
def test_constant_nodes_of_functions_and_branches(opset: int) -> None:
    """Its weight is a Constant node in a branch of an If, whose form it takes."""
    weight, value = plain_case((2, 2), (4, 4)).weight, helper.make_tensor_value_info
    branches: dict[str, Any] = {
        name: helper.make_graph(
            [
                helper.make_node("Constant", [], [f"w_{name}"], value=numpy_helper.from_array(scale * weight, "w")),
                helper.make_node("ConvTranspose", ["x", f"w_{name}"], [f"t_{name}"], f"up_{name}", strides=[2, 2]),
            ],
            name,
            [],
            [value(f"t_{name}", 1, [2, 4, 12, 12])],
        )
        for name, scale in (("then_branch", np.float32(1)), ("else_branch", np.float32(2)))
    }
    inputs = [value("x", 1, [2, 4, 6, 6]), value("yes", 9, [])]
    nodes = [helper.make_node("If", ["yes"], ["y"], **branches)]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", 1, [2, 4, 12, 12])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    result = onnxsep.rewrite(model, mode="tucker", rank="full", force=True, include_first=True, verify="none")
    assert [row.status for row in result.report.convs] == ["replaced"] * 2
    for yes in (True, False):
        x = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
        original, found = (outputs(one, {"x": x, "yes": np.array(yes)})["y"] for one in (model, result.proto))
        assert np.abs(original - found).max() < 1e-5 * np.abs(original).max()
