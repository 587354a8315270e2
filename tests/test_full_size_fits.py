"""What makes fits of large networks quick: layers that run for a Conv, fewer products."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from calibration_models import fitted, images, network, replaced
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxsep.calibration import layerwise
from onnxsep.calibration.dense import as_dense
from onnxsep.calibration.factored import as_layers
from onnxsep.layers.conv import Conv
from onnxsep.modes.base import Mode, Task, get_mode

Array = NDArray[Any]
SHAPES: dict[str, Any] = {"w1": (12, 3, 3, 3), "w2": (12, 12, 3, 3), "w3": (12, 12, 3, 3), "b": (12,)}
BODY = """g (float[N, 3, 9, 9] x) => (float[N, 12, 5, 5] z) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    r = Relu(a)
    c = Conv<pads = [1, 0, 0, 1], strides = [2, 2]>(r, w2, b)
    s = Relu(c)
    z = Conv<pads = [1, 1, 1, 1], dilations = [1, 1]>(s, w3)
}"""
X = images(12, (3, 9, 9))
MODES = ["depthwise", "spatial", "channel", "tucker", "cp", "linear-bottleneck"]


def model(**changes: Any) -> onnx.ModelProto:
    return network(BODY.replace("5, 5", "4, 4"), **{**SHAPES, **changes})


def run(nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], x: Array) -> Array:
    """What nodes make of the tensor that the first one reads."""
    read, made = nodes[0].input[0], nodes[-1].output[0]
    given = helper.make_tensor_value_info(read, onnx.TensorProto.FLOAT, None)
    wanted = helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [given], [wanted], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {read: x})[0])


@pytest.mark.parametrize("mode", MODES)
def test_layers_compute_what_the_dense_conv_computes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def noted(*given: Any, **more: Any) -> Any:
        found = as_layers(*given, **more)
        calls.append((given, more, found))
        return found

    monkeypatch.setattr(layerwise, "as_layers", noted)
    source = model()
    assert len(replaced(fitted(source, X, mode=mode, rank="0.5", samples=10, verify="none"))) == 3
    kept = {tensor.name: tensor for tensor in source.graph.initializer}
    assert len(calls) == 3
    for (node, replacement, factors, bias, _), more, found in calls:
        assert found is not None
        nodes, tensors = found
        assert len(nodes) == len(replacement.layers) > 1
        assert nodes[-1].output[0] == node.output[0]
        site = replacement.site
        x = np.random.default_rng(0).standard_normal((2, site.conv.in_channels, 9, 9)).astype(np.float32)
        dense, others = as_dense(node, site, replacement.mode.reconstruct(site.conv, factors), bias, **more)
        own = [kept[name] for one in [dense, *nodes] for name in one.input if name in kept]
        wanted = run([dense], [*others, *own], x)
        np.testing.assert_allclose(run(nodes, [*tensors, *own], x), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("options", "why"),
    [({"rank": "0.9"}, "hardly fewer MACs"), ({"rank": "full", "force": True}, "exact")],
)
def test_where_layers_save_nothing_the_dense_conv_runs(
    options: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(layerwise, "as_layers", lambda *given, **more: made.append(as_layers(*given, **more)))
    fitted(model(), X, mode="channel", samples=10, verify="none", **options)
    assert made == [None] * 3, why


def test_half_precision_keeps_the_dense_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between two layers may be too large for it where the Conv's output is not."""
    made: list[Any] = []
    monkeypatch.setattr(layerwise, "as_layers", lambda *given, **more: made.append(as_layers(*given, **more)))
    source = model()
    for tensor in source.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in [*source.graph.input, *source.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    fitted(source, X.astype(np.float16), mode="spatial", rank="0.5", samples=10, verify="none")
    assert made == [None] * 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", [1, 2])
def test_predictions_through_factors_are_those_of_their_product(mode: str, group: int) -> None:
    one = get_mode(mode)
    conv = Conv(16, 24, (3, 3), (1, 1), (1,) * 4, (1, 1), group=group)
    if one.accepts(conv) is not None:
        pytest.skip("the mode takes no groups")
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(conv.weight_shape)
    axis = one.rank_axis(conv, ())
    assert axis is not None
    rank: tuple[int, ...] = (axis.clamp(4),)
    while (axis := one.rank_axis(conv, rank)) is not None:
        rank = (*rank, axis.clamp(4))
    factors = one.factorize(Task(conv, weight), rank)
    for rows in (1, 1024, 2500):
        inputs = rng.standard_normal((rows, 16 * 9))
        np.testing.assert_allclose(
            one.apply(conv, factors, inputs), Mode.apply(one, conv, factors, inputs), atol=1e-12 * rows
        )
