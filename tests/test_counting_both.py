"""MACs before and after are sums over the same nodes; sizes that no inference finds are read off a run."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from versions import needs_new_runtime

import onnxsep
from onnxsep.graph.counting import compare_macs

pytestmark = needs_new_runtime  # with an old one sizes are not read off runs


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def network(*, annotated: bool = False, free: bool = False) -> onnx.ModelProto:
    """Two Convs, a Reshape to a size that onnx cannot follow, for it is computed in floats, and two Convs more.

    With ``annotated``, the size behind the Reshape is written into the model, as many exporters do.
    """
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="one", pads=[1] * 4),
        helper.make_node("Conv", ["c1", "w2"], ["c2"], name="two", pads=[1] * 4),
        helper.make_node("ReduceSum", ["sizes", "axis"], ["target_f"], keepdims=0),
        helper.make_node("Cast", ["target_f"], ["target"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["c2", "target"], ["r"], name="reshape"),
        helper.make_node("Conv", ["r", "w3"], ["c3"], name="three", pads=[1] * 4),
        helper.make_node("Conv", ["c3", "w4"], ["y"], name="four", pads=[1] * 4),
    ]
    weights = [tensor("w1", 8, 3, 3, 3), tensor("w2", 8, 8, 3, 3), tensor("w3", 8, 8, 3, 3), tensor("w4", 8, 8, 3, 3)]
    weights.append(numpy_helper.from_array(np.array([[1, 8, 4, 9]], np.float32), "sizes"))
    weights.append(numpy_helper.from_array(np.array([0], np.int64), "axis"))
    size = ["H", "W"] if free else [6, 6]
    value = helper.make_tensor_value_info
    infos = [value("r", TensorProto.FLOAT, [1, 8, 4, 9]), value("c3", TensorProto.FLOAT, [1, 8, 4, 9])]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, *size])],
        [value("y", TensorProto.FLOAT, None)],
        weights,
        value_info=infos if annotated else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Padded 3 x 3 Convs of 8 channels on 36 positions; depthwise and 1 x 1 instead of each but the first.
STEM, DENSE, SEPARATED = 36 * 8 * 3 * 9, 36 * 8 * 8 * 9, 36 * 8 * 9 + 36 * 8 * 8


def test_a_node_counts_on_both_sides_or_on_neither() -> None:
    before = {"a": 1, "b": 10, "c": None, "d": 1000}
    after = {"a": 2, "b": None, "c": 30, "e": 5}
    assert compare_macs(before, after) == (1001, 7, 2)


def test_sizes_are_read_off_a_run() -> None:
    report = onnxsep.rewrite(network(), mode="depthwise").report
    assert report.totals.macs_unknown == 0
    assert (report.totals.macs_before, report.totals.macs_after) == (STEM + 3 * DENSE, STEM + 3 * SEPARATED)
    assert any("were read off a run" in note for note in report.notes)


@pytest.mark.parametrize("options", [{"verify": "none"}, {"dry_run": True}, {"verify": "local"}])
def test_sizes_do_not_depend_on_the_verification(options: dict[str, Any]) -> None:
    report = onnxsep.rewrite(network(), mode="depthwise", **options).report
    assert report.totals.macs_unknown == 0
    assert (report.totals.macs_before, report.totals.macs_after) == (STEM + 3 * DENSE, STEM + 3 * SEPARATED)


def test_of_a_model_that_cannot_be_run_the_rest_is_compared() -> None:
    model = network()
    model.graph.node.add(op_type="Odd", domain="somebody's", input=["c1"], output=["odd"])
    model.graph.output.add(name="odd")
    model.opset_import.add(domain="somebody's", version=1)
    report = onnxsep.rewrite(model, mode="depthwise", dry_run=True).report
    assert report.totals.macs_unknown == 2
    assert (report.totals.macs_before, report.totals.macs_after) == (STEM + DENSE, STEM + SEPARATED)
    assert report.totals.activations_before is not None
    assert report.totals.activations_before.best_order is None
    assert report.totals.activations_before.unknown == 4  # r, c3, y and odd


def test_sizes_that_the_user_leaves_free_are_not_made_up() -> None:
    model = network(free=True)
    report = onnxsep.rewrite(model, mode="depthwise", only=["one", "two"], include_first=True, verify="none").report
    assert report.totals.macs_unknown == 4
    sized = onnxsep.rewrite(model, mode="depthwise", input_shapes={"x": (1, 3, 6, 6)}).report
    assert (sized.totals.macs_before, sized.totals.macs_unknown) == (STEM + 3 * DENSE, 0)


def test_inference_that_stops_at_a_node_hides_no_replaced_conv() -> None:
    """The sizes of new tensors are in no annotation, so inference that fails finds them nowhere."""
    model = network(annotated=True)
    odd = helper.make_node("Concat", ["c1", "w1"], ["odd"], name="odd", axis=7)  # its axis does not exist
    sound, broken = (onnx.ModelProto() for _ in range(2))
    sound.CopyFrom(model)
    broken.CopyFrom(model)
    broken.graph.node.append(odd)
    infos = [("c1", [1, 8, 6, 6]), ("c2", [1, 8, 6, 6])]
    broken.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in infos)
    one, two = (onnxsep.rewrite(each, mode="depthwise", dry_run=True).report.totals for each in (sound, broken))
    assert (two.macs_before, two.macs_after, two.macs_unknown) == (one.macs_before, one.macs_after, 0)
    assert (one.macs_before, one.macs_after) == (STEM + 3 * DENSE, STEM + 3 * SEPARATED)


def test_inspect_compares_the_same_nodes() -> None:
    totals = onnxsep.inspect(network(), modes=["depthwise", "spatial"]).totals
    assert totals.macs_unknown == 0
    assert totals.macs == STEM + 3 * DENSE
    assert totals.mode_macs["depthwise"] == STEM + 3 * SEPARATED
    assert totals.mode_macs["spatial"] == STEM + 3 * 2 * 36 * 8 * 8 * 3
