"""BatchNormalization for training only, reduced precision, and the teacher in torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import ONE, chain, initializers, needs_torch, quick, small_data, small_model
from onnx import helper, numpy_helper

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import OptionError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner
from onnxsep.training import TorchGraph, to_torch
from onnxsep.training.batches import Batches
from onnxsep.training.norms import Norms
from onnxsep.training.teacher import Teacher
from onnxsep.training.torch_teacher import TorchTeacher, fastest_teacher

pytestmark = needs_torch


def images(graph: TorchGraph, batches: int = 3) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(1)
    return (graph.tensors({"x": random.standard_normal((8, 3, 16, 16)).astype(np.float32)}) for _ in range(batches))


def evaluated(graph: TorchGraph, tensors: dict[str, Any]) -> np.ndarray:
    import torch

    with torch.no_grad():
        (values,) = graph.module(tensors).values()
    return np.asarray(values.numpy())


# ---------------------------------------------------------------- the algebra


def test_norms_that_were_put_in_change_nothing_at_first() -> None:
    model = chain(4)
    plain, graph = to_torch(model), to_torch(model)
    norms = Norms(graph, images(graph))
    assert len(norms) == 4
    fresh = next(images(graph))
    np.testing.assert_allclose(evaluated(graph, fresh), evaluated(plain, fresh), rtol=1e-4, atol=1e-5)
    for name, value in norms.folded().items():
        np.testing.assert_allclose(value.numpy(), plain.parameters[name].detach().numpy(), rtol=1e-4, atol=1e-5)
    assert any(
        float((graph.parameters[f"b{i}"] - plain.parameters[f"b{i}"]).detach().abs().max()) > 1e-2 for i in range(4)
    )


def test_first_statistics_are_those_of_the_samples() -> None:
    graph = to_torch(chain(1))
    weight = graph.parameters["w0"].detach().clone()
    norms = Norms(graph, images(graph))
    import torch

    x = torch.cat([tensors["x"] for tensors in images(graph)])
    products = torch.nn.functional.conv2d(x, weight, None, padding=1).numpy()
    mean, variance = norms.statistics.values()
    np.testing.assert_allclose(mean.numpy(), products.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance.numpy(), products.var((0, 2, 3)), rtol=1e-4)


def test_what_is_folded_is_the_norm() -> None:
    """With any statistics and scales, the Conv with the folded weights gives s (w * x - m) / sqrt(v + e) + c."""
    import torch

    random = np.random.default_rng(2)
    graph = to_torch(chain(1))
    norms = Norms(graph, images(graph))
    (scale,), (mean, variance) = norms.scales.values(), norms.statistics.values()
    bias = graph.parameters["b0"]
    s, c, m, v = (random.uniform(0.2, 2, 6).astype(np.float32) for _ in range(4))
    with torch.no_grad():
        for tensor, values in ((scale, s), (bias, c), (mean, m), (variance, v)):
            tensor.copy_(torch.from_numpy(values))
    x = next(images(graph))["x"]
    weight = graph.parameters["w0"].detach()
    product = torch.nn.functional.conv2d(x, weight, None, padding=1).numpy().astype(np.float64)
    rows = (slice(None), None, None)
    expected = s[rows] * (product - m[rows]) / np.sqrt(v[rows] + 1e-5) + c[rows]
    folded = norms.folded()
    found = torch.nn.functional.conv2d(x, folded["w0"], folded["b0"], padding=1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    in_module = evaluated(graph, {"x": x})
    head = graph.parameters["head"].detach().numpy()
    np.testing.assert_allclose(in_module, np.maximum(found, 0).mean((2, 3)) @ head, rtol=1e-4, atol=1e-4)


def test_a_step_uses_the_statistics_of_the_batch() -> None:
    import torch

    graph = to_torch(chain(1))
    Norms(graph, images(graph))
    x = 3 * next(images(graph))["x"] + 1  # far from what the running averages know
    graph.module.train()
    with torch.no_grad():
        (found,) = graph.module({"x": x}).values()
        product = torch.nn.functional.conv2d(x, graph.parameters["w0"], None, padding=1).numpy()
    graph.module.eval()
    centred = product - product.mean((0, 2, 3), keepdims=True)
    normed = centred / np.sqrt(product.var((0, 2, 3), keepdims=True) + 1e-5)
    fresh = to_torch(chain(1))
    own = Norms(fresh, images(fresh))
    (scale,) = own.scales.values()
    y = normed * scale.detach().numpy()[:, None, None] + fresh.parameters["b0"].detach().numpy()[:, None, None]
    head = graph.parameters["head"].detach().numpy()
    np.testing.assert_allclose(found.numpy(), np.maximum(y, 0).mean((2, 3)) @ head, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- which Convs


def test_who_gets_a_norm() -> None:
    """Not the last layer, not what has one, not the first factor of two, nothing that is shared or without a bias."""
    random = np.random.default_rng(4)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(0.2 * random.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1, 1, 1, 1]),  # a factor of the next one
        helper.make_node("Conv", ["a", "second", "bias2"], ["b"]),  # takes part
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "third", "bias3"], ["d"]),  # has a norm
        helper.make_node("BatchNormalization", ["d", "one", "zero", "zero", "one"], ["e"]),
        helper.make_node("Conv", ["e", "shared", "bias4"], ["f"]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Conv", ["g", "shared", "bias5"], ["h"]),
        helper.make_node("Relu", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "sixth"], ["j"]),  # no bias
        helper.make_node("Relu", ["j"], ["k"]),
        helper.make_node("Conv", ["k", "last", "bias7"], ["y"]),
    ]
    weights = [weight("first", 5, 3, 3, 3), weight("second", 6, 5, 1, 1), weight("last", 2, 6, 1, 1)]
    weights += [weight(name, 6, 6, 1, 1) for name in ("third", "shared", "sixth")]
    weights += [weight(f"bias{place}", 6) for place in (2, 3, 4, 5)] + [weight("bias7", 2)]
    weights += [
        numpy_helper.from_array(np.full(6, value, np.float32), name) for name, value in (("one", 1), ("zero", 0))
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "who",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2, 16, 16])],
        weights,
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))
    found = to_torch(model)
    norms = Norms(found, images(found))
    assert set(norms.folded()) == {"second", "bias2"}
    assert norms.without_bias == ("j",)
    result = quick(model, {"x": small_data()["x"]}, teacher=two_channels(), batch_norm="insert", epochs=1)
    assert any(
        "behind 1 Convs" in note and "1 more have no bias" in note and "j" in note for note in result.report.notes
    )


def two_channels() -> Model:
    """Two channels from three."""
    weight = np.random.default_rng(0).standard_normal((2, 3, 1, 1)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "two",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2, 16, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


def test_norms_by_default() -> None:
    """For classifiers with many Convs and no norms, and batches that are large enough."""
    assert quick(chain(8), epochs=1).report.used["batch_norm"] == "insert"
    assert quick(chain(8), epochs=1, batch=4).report.used["batch_norm"] is None
    assert quick(chain(8), epochs=1, batch_norm="frozen").report.used["batch_norm"] is None
    assert quick(chain(7), epochs=1).report.used["batch_norm"] is None
    assert quick(small_model(), epochs=1).report.used["batch_norm"] == "train"
    pictures = chain(9, scores=False)
    assert quick(pictures, {"x": small_data()["x"]}, teacher=pictures, epochs=1).report.used["batch_norm"] is None
    with pytest.raises(OptionError, match="8 or more samples at once for its statistics, not 4"):
        quick(chain(8), batch_norm="insert", batch=4)


# ---------------------------------------------------------------- a whole run


def held_out_loss(model: Model, data: dict[str, np.ndarray], held_out: list[int]) -> tuple[float, float]:
    """Cross-entropy and accuracy in ONNX Runtime."""
    (scores,) = Runner(model, ONE)({"x": data["x"][held_out]}).values()
    labels = data["y"][held_out]
    shifted = scores - scores.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean()), float((scores.argmax(1) == labels).mean())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_result_is_what_was_measured(precision: Any) -> None:
    """The figures of the kept epoch are those of the user's own graph with the folded weights, in ONNX Runtime."""
    model, data = chain(8), small_data(96)
    result = quick(model, data, epochs=6, validation=0.25, batch_norm="insert", precision=precision)
    report = result.report
    assert report.best_epoch > 0
    kept = report.epochs[report.best_epoch - 1].validation
    assert kept is not None
    assert report.before is not None
    held_out = Batches(open_data(data, model), range(96), 16, 0.25, 0).held_out
    for measured, network in ((report.before, model), (kept, result.model)):
        loss, accuracy = held_out_loss(network, data, held_out)
        assert measured.loss == pytest.approx(loss, rel=1e-3)
        assert measured.accuracy == accuracy
    assert kept.loss < report.before.loss
    assert result.proto.graph.node == model.proto.graph.node
    before, after = initializers(model), initializers(result.model)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_norms_keep_zeros() -> None:
    model = onnxsep.prune(chain(8), sparsity=0.5, verify="none").model
    result = quick(model, epochs=3, batch_norm="insert")
    assert result.report.best_epoch > 0
    count = 0
    for before, after in zip(model.proto.graph.initializer, result.proto.graph.initializer, strict=True):
        if len(before.dims) > 1:
            zeros = numpy_helper.to_array(before) == 0
            count += int(zeros.sum())
            assert (numpy_helper.to_array(after)[zeros] == 0).all()
    assert count > 500
    assert result.report.zeros_kept == count


# ---------------------------------------------------------------- precision


def test_bfloat16_is_another_way_to_the_same() -> None:
    wide, narrow = (quick(small_model(), epochs=4, precision=precision) for precision in ("float32", "bfloat16"))
    assert narrow.report.before == wide.report.before  # measured in float32
    assert initializers(narrow.model) != initializers(wide.model)
    for one, other in zip(wide.report.epochs, narrow.report.epochs, strict=True):
        assert other.training.loss != one.training.loss
        assert other.training.loss == pytest.approx(one.training.loss, rel=0.05)


def test_gradients_of_strided_depthwise_convs_in_bfloat16() -> None:
    """They are computed in float32, as those of bfloat16 are slow, and are about the same."""
    import torch

    weight = np.random.default_rng(0).standard_normal((6, 1, 3, 3)).astype(np.float32)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "p"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["y"], group=6, strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    weights = [numpy_helper.from_array(weight, "w")]
    weights.append(numpy_helper.from_array(weight.reshape(-1)[:18].reshape(6, 3, 1, 1), "p"))
    graph = helper.make_graph(
        nodes,
        "strided",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 6, 4, 4])],
        weights,
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))
    gradients = []
    for reduced in (False, True):
        found = to_torch(model)
        x = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16, reduced):
            y = found.module({"x": x})["y"]
        assert y.dtype == torch.float32
        y.square().sum().backward()
        gradients.append(found.parameters["w"].grad.numpy())
    assert (gradients[0] != gradients[1]).any()
    assert np.linalg.norm(gradients[0] - gradients[1]) < 0.02 * np.linalg.norm(gradients[0])


def test_the_teacher_runs_in_torch_where_that_is_faster() -> None:
    import torch

    model, cpu = small_model(), torch.device("cpu")
    feeds = {"x": small_data()["x"]}
    runner = Teacher(model, ONE)
    assert fastest_teacher(model, runner, feeds, cpu, "float32") == (runner, ())
    teacher, notes = fastest_teacher(model, runner, feeds, cpu, "bfloat16")
    assert isinstance(teacher, TorchTeacher)
    assert notes == ()
    ours, theirs = teacher(feeds)["y"], runner(feeds)["y"]
    assert ours.dtype == np.float32
    assert 0 < np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)
    unknown = small_model(end="RandomNormalLike")  # there is nothing to compare
    teacher, notes = fastest_teacher(unknown, Teacher(unknown, ONE), feeds, cpu, "bfloat16")
    assert isinstance(teacher, Teacher)
    assert "RandomNormalLike" in notes[0]
