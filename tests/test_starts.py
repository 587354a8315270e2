"""Starts without data: errors weighed by what is known of trained networks, in a metric that factorisations undo."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.algebra.weight_metric import Inputs, WeightMetric
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.engine.starts import start_task
from onnxsep.layers.conv import Conv
from onnxsep.model.io import load
from onnxsep.modes.base import Task, conv_modes, get_mode
from onnxsep.modes.multilinear import Multilinear
from onnxsep.running.runtime import Runner

MODES = sorted(name for name, mode in conv_modes().items() if isinstance(mode, Multilinear))
node = helper.make_node


def conv(group: int = 1, in_channels: int = 8, out_channels: int = 6) -> Conv:
    return Conv(in_channels, out_channels, (3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), group=group)


def weight_of(one: Conv, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    sizes = generator.uniform(0.1, 5, (one.out_channels, 1, 1, 1))
    return sizes * generator.standard_normal(one.weight_shape)


def test_the_second_moments_are_those_behind_a_relu_of_normal_values() -> None:
    """A^(1/2) squared is, but for a factor, E[x x^T] of x = max(0, z), z independent and standard normal."""
    metric = WeightMetric.of(np.ones((2, 5, 1, 1)), Inputs())
    root = metric.stretched(np.eye(5)[None], 1, [0])[0]
    off = 1 / (2 * np.pi)  # E[x]^2
    moments = np.full((5, 5), off) + (0.5 - off) * np.eye(5)
    assert np.allclose(root.T @ root * 0.5, moments)
    drawn = np.maximum(np.random.default_rng(0).standard_normal((400_000, 5)), 0)
    assert np.allclose(drawn.T @ drawn / len(drawn), moments, atol=5e-3)


@pytest.mark.parametrize("mode", ["spatial", "depthwise"])
def test_elsewhere_starts_are_plain(mode: str) -> None:
    """Without a Relu before it, and where two factors read the input channels."""
    one, found = replace(conv(), in_channels=6), get_mode(mode)
    weight = weight_of(one)
    plain = found.factorize(Task(one, weight), (2,))
    made = found.from_weights(Task(one, weight, inputs=Inputs() if mode == "depthwise" else None), (2,))
    assert all(np.array_equal(*pair) for pair in zip(plain.weights, made.weights, strict=True))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_metric_is_undone(axis: int) -> None:
    known = Inputs(mean=np.arange(8.0), deviation=np.array([0.5, 2, 1, 0, 3, 1, 1, 7]))
    for metric in (WeightMetric.of(weight_of(conv()), one) for one in (Inputs(), Inputs(smooth=True), known)):
        array = np.random.default_rng(1).standard_normal([1, *(24 if place == axis else 3 for place in range(3))])
        there = metric.stretched(array, axis + 1, [0, 2])  # 8 channels and 3 taps
        assert not np.allclose(there, array)
        assert np.allclose(metric.stretched(there, axis + 1, [0, 2], back=True), array)


@pytest.mark.parametrize("group", [1, 2])
def test_means_and_deviations_make_the_second_moments(group: int) -> None:
    """L L^T = diag(deviation^2) + mean mean^T for each group, times the correlation .2^|k - l| of the taps."""
    draw = np.random.default_rng(3)
    mean, deviation = draw.standard_normal(6), draw.uniform(0.5, 2, 6)
    metric = WeightMetric.of(weight_of(conv(group, 6)), Inputs(mean=mean, deviation=deviation), group)
    size = 6 // group
    eye = np.broadcast_to(np.eye(size * 3), (group, size * 3, size * 3))
    roots = metric.stretched(eye, 1, [0, 1])
    taps = 0.2 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    for number in range(group):
        own = slice(number * size, (number + 1) * size)
        moments = np.diag(deviation[own] ** 2) + np.outer(mean[own], mean[own])
        assert np.allclose(roots[number].T @ roots[number], np.kron(moments, taps))


def distance(one: Conv, weight: np.ndarray, other: np.ndarray) -> float:
    """|D (W - W') A^(1/2)|, from its definition."""
    scales = np.linalg.norm(weight.reshape(len(weight), -1), axis=1) ** -0.5
    difference = (scales[:, None] * (weight - other).reshape(len(weight), -1)).reshape(weight.shape)
    shared, taps = 1 / np.pi, 0.2 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    moments = (1 - shared) * np.eye(one.in_channels // one.group) + shared
    return float(np.sqrt(np.einsum("oiyx,ij,yv,xw,ojvw->", difference, moments, taps, taps, difference)))


@pytest.mark.parametrize(("mode", "rank"), [("channel", 4), ("channel", 2), ("spatial", 6), ("spatial", 4)])
@pytest.mark.parametrize("group", [1, 2])
def test_one_svd_is_optimal_in_the_metric(mode: str, rank: int, group: int) -> None:
    """What an SVD leaves are the singular values behind the rank, of the matrix that is split, in the metric."""
    one = conv(group)
    found = get_mode(mode)
    weight = weight_of(one)
    made = found.reconstruct(one, found.from_weights(Task(one, weight, inputs=Inputs()), (rank,)))
    scaled = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)[:, None, None, None] ** -0.5 * weight
    channels = (1 - 1 / np.pi) * np.eye(8 // group) + 1 / np.pi
    taps = 0.2 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    roots = [np.linalg.cholesky(matrix) for matrix in (channels, taps, taps)]
    scaled = np.einsum("goiyx,ij,yv,xw->gojvw", scaled.reshape(group, -1, 8 // group, 3, 3), *roots)
    if mode == "channel":
        matrices = scaled.reshape(group, scaled.shape[1], -1)
    else:  # rows (in, k x 1), columns (out, 1 x k)
        matrices = scaled.transpose(0, 2, 3, 1, 4).reshape(group, 24 // group, -1)
    left = sum(float((np.linalg.svd(each)[1][rank // group :] ** 2).sum()) for each in matrices)
    assert distance(one, weight, made) == pytest.approx(left**0.5)
    plain = found.reconstruct(one, found.factorize(Task(one, weight), (rank,)))
    assert distance(one, weight, made) < distance(one, weight, plain)
    assert np.linalg.norm(weight - plain) < np.linalg.norm(weight - made)  # factorize keeps to plain errors


@pytest.mark.parametrize("mode", MODES)
def test_large_small_and_dead_kernels(mode: str) -> None:
    found = get_mode(mode)
    one = replace(conv(), in_channels=6)
    weight = weight_of(one)
    weight[2] = 0
    weight[3] *= 1e-20
    if (reason := found.accepts(one)) is not None:
        pytest.skip(reason)
    rank: tuple[int, ...] = ()
    while (axis := found.rank_axis(one, rank)) is not None:
        rank = (*rank, min(axis.step * 2, axis.full))
    for size in (1.0, 1e150, 1e-150):
        made = found.from_weights(Task(one, size * weight, inputs=Inputs()), rank)
        again = found.reconstruct(one, made) / size
        assert np.isfinite(again).all()
        assert np.linalg.norm(again[2]) < 1e-6
        assert np.linalg.norm(weight - again) < 1.2 * np.linalg.norm(weight)


@pytest.mark.parametrize("mode", MODES)
def test_full_rank_is_the_plain_factorisation(mode: str) -> None:
    found, one = get_mode(mode), replace(conv(), in_channels=6)
    if found.accepts(one) is not None:
        pytest.skip("refused")
    rank: tuple[int, ...] = ()
    while (axis := found.rank_axis(one, rank)) is not None:
        rank = (*rank, axis.full)
    weight = weight_of(one)
    if found.is_exact(one, rank):
        assert np.allclose(found.reconstruct(one, found.from_weights(Task(one, weight, inputs=Inputs()), rank)), weight)


def rectified(before: list[onnx.NodeProto], *, inputs: int = 1) -> list[bool]:
    """Whether each Conv of a graph that ends in one, reading h, is taken to read what is never negative."""
    names = [f"x{number}" for number in range(inputs)]
    weight = numpy_helper.from_array(np.ones((2, 2, 3, 3), np.float32), "w")
    zero, below = (numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("below", -1)))
    nodes = [*before, node("Conv", ["h", "w"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 8]) for name in names]
    graph = helper.make_graph(nodes, "g", values, [onnx.ValueInfoProto(name="y")], [weight, zero, below])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return [site.rectified for site in find_sites(load(made)).found if isinstance(site, ConvSite)]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([node("Relu", ["x0"], ["h"])], True),
        ([node("Clip", ["x0", "zero"], ["h"])], True),
        ([node("Clip", ["x0", "below"], ["h"])], False),
        ([node("Clip", ["x0"], ["h"])], False),
        ([node("Relu", ["x0"], ["a"]), node("MaxPool", ["a"], ["h"], kernel_shape=[2, 2])], True),
        ([node("Relu", ["x0"], ["a"]), node("Sigmoid", ["x1"], ["b"]), node("Mul", ["a", "b"], ["h"])], True),
        ([node("Relu", ["x0"], ["a"]), node("Add", ["a", "x1"], ["h"])], False),
        ([node("Relu", ["x0"], ["a"]), node("Neg", ["a"], ["h"])], False),
        ([node("LeakyRelu", ["x0"], ["h"])], False),
        ([node("Identity", ["x0"], ["h"])], False),
    ],
)
def test_what_stands_behind_a_relu(before: list[onnx.NodeProto], expected: bool) -> None:
    assert rectified(before, inputs=2)[-1] is expected


def normalised(*, folded: bool) -> onnx.ModelProto:
    """Relu, Conv and BatchNormalization, or the same with the BatchNormalization in the weight."""
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((6, 4, 3, 3)) * generator.uniform(0.2, 3, (6, 1, 1, 1))
    gamma, variance = generator.uniform(0.5, 2, 6), generator.uniform(0.1, 9, 6)
    gains = gamma / np.sqrt(variance + 1e-3)
    stored = {"w": weight * gains[:, None, None, None] if folded else weight, "b": np.zeros(6)}
    if not folded:
        stored |= {"gamma": gamma, "mean": np.zeros(6), "variance": variance}
    nodes = [node("Relu", ["x"], ["h"]), node("Conv", ["h", "w", "b"], ["y" if folded else "c"], pads=[1] * 4)]
    if not folded:
        nodes.append(node("BatchNormalization", ["c", "gamma", "b", "mean", "variance"], ["y"], epsilon=1e-3))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value], [onnx.ValueInfoProto(name="y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("mode", ["spatial", "channel", "tucker", "linear-bottleneck"])
def test_a_normalisation_behind_counts_as_if_it_were_in_the_weight(mode: str) -> None:
    rank = 3 if mode != "tucker" else "0.6"
    models = [normalised(folded=folded) for folded in (True, False)]
    made = [onnxsep.rewrite(model, mode=mode, rank=rank, force=True, include_first=True).model for model in models]
    feed = {"x": np.random.default_rng(4).standard_normal((1, 4, 8, 8)).astype(np.float32)}
    first, second = (Runner(model)(feed)["y"] for model in made)
    assert np.allclose(first, second, atol=2e-4 * np.abs(first).max())
    assert not np.allclose(first, Runner(load(models[0]))(feed)["y"], atol=1e-2 * np.abs(first).max())


def site_behind(before: list[onnx.NodeProto]) -> tuple[ConvSite, Inputs | None]:
    """The last Conv of a graph, which reads h, and what is known of that."""
    given = {
        "w": np.ones((2, 2, 3, 3)),
        "v": np.ones((2, 2, 3, 3)),
        "one": np.ones(2),
        "g": np.array([2.0, -3]),
        "b": np.array([1.0, 4]),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 16, 16])
    graph = helper.make_graph(
        [*before, node("Conv", ["h", "v"], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")], tensors
    )
    made = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    sites = find_sites(made)
    found = [site for site in sites.found if isinstance(site, ConvSite)][-1]
    return found, start_task(made, sites, found, np.ones((2, 2, 3, 3))).inputs


STEM = node("Conv", ["x", "w"], ["s"])
NORM = node("BatchNormalization", ["s", "g", "b", "one", "one"], ["h"])


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ([STEM, node("Relu", ["s"], ["h"])], True),
        ([STEM, node("Relu", ["s"], ["r"]), node("MaxPool", ["r"], ["h"], kernel_shape=[2, 2])], True),
        ([node("Relu", ["x"], ["h"])], False),  # that Conv is first itself
        ([STEM, node("Conv", ["s", "w"], ["t"]), node("Relu", ["t"], ["h"])], False),
        ([STEM, node("Conv", ["s", "w"], ["t"], pads=[1] * 4), node("Add", ["s", "t"], ["h"])], False),
    ],
)
def test_which_maps_are_as_smooth_as_the_image(before: list[onnx.NodeProto], expected: bool) -> None:
    assert site_behind(before)[0].smooth is expected


def test_a_normalisation_before_gives_means_and_deviations() -> None:
    known = site_behind([STEM, NORM])[1]
    assert known is not None
    assert known.mean is not None
    assert known.deviation is not None
    assert (known.mean.tolist(), known.deviation.tolist()) == ([1, 4], [2, 3])
    norm = node("BatchNormalization", ["s", "g", "b", "one", "one"], ["n"])
    behind_relu = site_behind([STEM, norm, node("Relu", ["n"], ["h"])])[1]
    assert behind_relu is not None
    assert behind_relu.mean is None
    assert site_behind([STEM, norm, node("Tanh", ["n"], ["h"])])[1] is None


def test_statistics_with_svd_take_the_same_start_as_no_data(tmp_path: Path) -> None:
    """A file of statistics only measures such factors: they are those of a rewrite without data, bit by bit."""
    model, file = normalised(folded=False), tmp_path / "s.npz"
    data = np.random.default_rng(5).standard_normal((8, 4, 8, 8)).astype(np.float32)
    given: dict[str, Any] = {"mode": "spatial", "rank": 3, "force": True, "include_first": True}
    onnxsep.rewrite(model, **given, data=data, statistics=file)
    more: dict[str, Any] = {"init": "svd", "statistics": file}
    results = [onnxsep.rewrite(model, **given), onnxsep.rewrite(model, **given, **more)]
    plain, from_file = ({t.name: t.raw_data for t in one.model.proto.graph.initializer} for one in results)
    assert [value for name, value in from_file.items() if "bias" not in name and name in plain] == [
        value for name, value in plain.items() if "bias" not in name and name in from_file
    ]
    assert {name for name in plain if name not in ("b", "gamma", "mean", "variance")} <= from_file.keys()
