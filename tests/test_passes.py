"""The algebra of each mode, against numpy's own decompositions and weights that are of the mode's form."""

import importlib.util
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import onnxsep
from onnxsep.algebra.statistics import Statistics
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import AddLayer, ConvLayer, macs, parameters
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Task, factor_shapes, get_mode

Array = npt.NDArray[np.float64]


def conv_of(in_channels: int, out_channels: int, kernel: tuple[int, ...], group: int = 1, stride: int = 1) -> Conv:
    ones = (1,) * len(kernel)
    half = tuple(k // 2 for k in kernel)
    strides = (stride,) * len(kernel)
    return Conv(in_channels, out_channels, kernel, strides, half + half, ones, group=group, bias=True)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def error(mode: str, conv: Conv, weight: Array, rank: Rank) -> float:
    """||W - W'|| / ||W|| of the weights' own factors."""
    chosen = get_mode(mode)
    product = chosen.reconstruct(conv, chosen.factorize(Task(conv, weight), rank))
    return float(np.linalg.norm(product - weight) / np.linalg.norm(weight))


def discarded(matrices: Sequence[Array], rank: int, weight: Array) -> float:
    """The same for the best approximation of every matrix by one of that rank."""
    lost = sum(float((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum()) for matrix in matrices)
    return math.sqrt(lost) / float(np.linalg.norm(weight))


def paper_rank(mode: str, conv: Conv) -> Rank:
    chosen = get_mode(mode)
    rank: Rank = ()
    while (axis := chosen.rank_axis(conv, rank)) is not None:
        rank += (axis.paper,)
    return rank


def kernels(mode: str, conv: Conv, rank: Rank) -> list[tuple[int, ...]]:
    return [layer.conv.weight_shape for layer in get_mode(mode).layers(conv, rank) if isinstance(layer, ConvLayer)]


@pytest.mark.parametrize("group", [1, 2])
def test_channel_truncates_the_matrix_of_outputs(group: int) -> None:
    conv = conv_of(6, 8, (3, 2), group)
    weight = random(*conv.weight_shape)
    matrices = [part.reshape(len(part), -1) for part in np.split(weight, group)]
    for rank in range(1, 8 // group + 1):
        assert error("channel", conv, weight, (rank * group,)) == pytest.approx(
            discarded(matrices, rank, weight), abs=1e-12
        )
    assert kernels("channel", conv, (2 * group,)) == [(2 * group, 6 // group, 3, 2), (8, 2, 1, 1)]


def sample(conv: Conv, columns: int) -> tuple[Array, Array, Statistics]:
    """Patches [group, d, columns], targets [group, n, columns] and their statistics."""
    group, size = conv.group, conv.weight_size // conv.out_channels
    x = random(group, size, size) @ random(group, size, columns, seed=1)
    y = random(group, conv.out_channels // group, columns, seed=2) + random(group, conv.out_channels // group, size) @ x
    transposed = np.swapaxes(x, 1, 2) / columns
    return x, y, Statistics(x @ transposed, y @ transposed)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("mode", ["channel", "pointwise"])
def test_joint_channels_are_the_singular_vectors_of_the_fitted_targets(mode: str, group: int) -> None:
    """The sum of squares, worked out on the sample: what no linear map reaches, and what the rank leaves out of it."""
    conv = conv_of(6, 10, (3, 1) if mode == "channel" else (1, 1), group)
    chosen = get_mode(mode)
    x, y, statistics = sample(conv, 200)
    weight = random(*conv.weight_shape, seed=3)
    for rank in (1, 2, 3):
        factors = chosen.fit(Task(conv, weight, statistics), (rank * group,), "joint")
        assert [factor.shape for factor in factors.weights] == kernels(mode, conv, (rank * group,))
        matrix = chosen.reconstruct(conv, factors).reshape(group, -1, x.shape[1])
        expected = 0.0
        for inputs, targets in zip(x, y, strict=True):
            fitted = targets @ np.linalg.pinv(inputs) @ inputs
            s = np.linalg.svd(fitted, compute_uv=False)
            expected += float((targets**2).sum() - (s[:rank] ** 2).sum())
        assert float(((y - matrix @ x) ** 2).sum()) == pytest.approx(expected, rel=1e-9)
        norms = [np.linalg.norm(np.asarray(factor), axis=axis) for factor, axis in _sides(conv, factors)]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-9)


def _sides(conv: Conv, factors: Factors) -> list[tuple[Array, int]]:
    """Both factors as matrices, and the axis that leaves the channels in between."""
    first, second = factors.weights
    between = np.concatenate([part.reshape(len(part), -1) for part in np.split(second, conv.group)], axis=1)
    return [(first.reshape(len(first), -1), 1), (between, 0)]


def test_response_channels_are_the_principal_components_of_the_responses() -> None:
    conv = conv_of(4, 7, (3, 3))
    weight = random(*conv.weight_shape, seed=3)
    x, _, statistics = sample(conv, 500)
    responses = weight.reshape(7, -1) @ x[0]
    u, s, _ = np.linalg.svd(responses, full_matrices=False)
    for rank in (1, 3, 7):
        factors = get_mode("channel").fit(Task(conv, weight, statistics), (rank,), "response")
        matrix = get_mode("channel").reconstruct(conv, factors).reshape(7, -1)
        np.testing.assert_allclose(matrix, u[:, :rank] @ u[:, :rank].T @ weight.reshape(7, -1), atol=1e-9)
        lost = float(((responses - matrix @ x[0]) ** 2).sum())
        assert lost == pytest.approx(float((s[rank:] ** 2).sum()), abs=1e-9 * float((s**2).sum()))


def test_pointwise_takes_linear_layers() -> None:
    """A Gemm comes as a Conv without spatial dimensions."""
    mode, conv = get_mode("pointwise"), Conv(9, 6, (), (), (), (), bias=True)
    assert mode.linear_layers
    assert mode.accepts(conv) is None
    weight = random(6, 9)
    for rank in range(1, 7):
        assert factor_shapes(mode.layers(conv, (rank,))) == [(rank, 9), (6, rank)]
        assert error("pointwise", conv, weight, (rank,)) == pytest.approx(discarded([weight], rank, weight), abs=1e-12)
    np.testing.assert_allclose(
        mode.spectrum(Task(conv, weight), ()), [np.linalg.svd(weight, compute_uv=False) ** 2], rtol=1e-9
    )


def test_pointwise_strides_first() -> None:
    """So the second layer costs as little as the Conv's own output."""
    conv = conv_of(16, 32, (1, 1), stride=2)
    assert macs(get_mode("pointwise").layers(conv, (4,)), (8, 8)) == 16 * 4 * (16 + 32)


@pytest.mark.parametrize("mode", ["channel", "pointwise", "cp", "tucker"])
@pytest.mark.parametrize("group", [1, 2])
def test_paper_rank_is_the_largest_with_half_of_the_parameters(mode: str, group: int) -> None:
    conv = conv_of(12, 20, (1, 1) if mode == "pointwise" else (3, 3), group)
    rank = paper_rank(mode, conv)
    above = tuple(channels + group for channels in rank)
    assert 2 * parameters(get_mode(mode).layers(conv, rank)) <= conv.parameters
    assert 2 * parameters(get_mode(mode).layers(conv, above)) > conv.parameters


def test_pointwise_depthwise_truncates_the_slice_of_every_output() -> None:
    conv = conv_of(5, 4, (2, 3))
    weight = random(*conv.weight_shape)
    slices = [kernel.reshape(5, -1) for kernel in weight]
    for rank in range(1, 6):
        assert error("pointwise-depthwise", conv, weight, (rank,)) == pytest.approx(
            discarded(slices, rank, weight), abs=1e-12
        )


def test_pointwise_depthwise_wins_with_more_inputs_than_outputs_at_stride_1() -> None:
    size = (16, 16)
    costs = {
        (mode, channels, stride): macs(get_mode(mode).layers(conv_of(*channels, (3, 3), stride=stride), (1,)), size)
        for mode, channels, stride in itertools.product(
            ("depthwise", "pointwise-depthwise"), ((64, 16), (16, 64)), (1, 2)
        )
    }
    assert costs["pointwise-depthwise", (64, 16), 1] < costs["depthwise", (64, 16), 1]
    assert costs["pointwise-depthwise", (16, 64), 1] > costs["depthwise", (16, 64), 1]
    for channels in ((64, 16), (16, 64)):
        assert costs["pointwise-depthwise", channels, 2] > costs["depthwise", channels, 2]


def test_tucker_finds_weights_of_its_form_and_is_at_least_as_near_as_its_start() -> None:
    conv = conv_of(7, 9, (3, 3))
    formed = np.einsum("ri,srk,os->oik", random(3, 7), random(4, 3, 9), random(9, 4)).reshape(conv.weight_shape)
    assert error("tucker", conv, formed, (3, 4)) < 1e-12
    assert kernels("tucker", conv, (3, 4)) == [(3, 7, 1, 1), (4, 3, 3, 3), (9, 4, 1, 1)]
    weight = formed + random(*conv.weight_shape, seed=5)
    tensor = weight.reshape(9, 7, 9)
    u = np.linalg.svd(tensor.transpose(1, 0, 2).reshape(7, -1))[0]
    v = np.linalg.svd(tensor.reshape(9, -1))[0]
    better = 0
    for before, after in itertools.product(range(1, 8), range(1, 10)):
        if after > 9 * before or before > 9 * after:
            continue
        bases = u[:, :before] @ u[:, :before].T, v[:, :after] @ v[:, :after].T
        hosvd = np.einsum("ij,ojk,op->pik", bases[0], tensor, bases[1])
        start = float(np.linalg.norm(tensor - hosvd) / np.linalg.norm(tensor))
        found = error("tucker", conv, weight, (before, after))
        assert found <= start + 1e-12
        better += found < start - 1e-4
    assert better > 10


def test_tucker_spectrum_of_the_second_rank_is_of_what_the_first_one_keeps() -> None:
    conv = conv_of(6, 8, (3, 3))
    weight = random(*conv.weight_shape)
    mode = get_mode("tucker")
    tensor = weight.reshape(8, 6, 9)
    u, s, _ = np.linalg.svd(tensor.transpose(1, 0, 2).reshape(6, -1), full_matrices=False)
    np.testing.assert_allclose(mode.spectrum(Task(conv, weight), ()), [s**2], rtol=1e-9)
    kept = np.einsum("ir,oik->ork", u[:, :2], tensor).reshape(8, -1)
    second = np.linalg.svd(kept, compute_uv=False) ** 2
    np.testing.assert_allclose(mode.spectrum(Task(conv, weight), (2,)), [second], rtol=1e-9)


@pytest.mark.parametrize("kernel", [(3, 3), (4,), (2, 3, 2)])
@pytest.mark.parametrize("group", [1, 2])
def test_cp_finds_weights_of_its_form(kernel: tuple[int, ...], group: int) -> None:
    """Two terms in each group; and one depthwise Conv for each axis."""
    conv = conv_of(8, 10, kernel, group)
    mode = get_mode("cp")
    form = mode.layers(conv, (2 * group,))
    drawn = Factors([random(*shape, seed=6) for shape in factor_shapes(form)])
    weight = mode.reconstruct(conv, drawn)
    assert error("cp", conv, weight, (2 * group,)) < 1e-2
    assert parameters(form) == 2 * (8 + group * sum(kernel) + 10) + 10
    assert [layer.conv.group for layer in form if isinstance(layer, ConvLayer)] == [
        *(group, *[2 * group] * len(kernel), group)
    ]


def test_cp_is_nearer_than_its_orthogonal_start() -> None:
    """The start at rank one is the leading singular vectors; the sweeps leave it for something nearer."""
    conv = conv_of(6, 8, (3, 3))
    weight = random(*conv.weight_shape)
    unfolded = weight.transpose(0, 2, 3, 1).reshape(8, -1)
    largest = np.linalg.svd(unfolded, compute_uv=False)[0]
    found = error("cp", conv, weight, (1,))
    # No rank-one tensor explains more than the best rank-one matrix of an unfolding.
    assert found > math.sqrt(1 - largest**2 / float((weight**2).sum()))
    assert found < 1
    by_power = max(_power(weight.reshape(8, 6, 3, 3), seed) for seed in range(20))
    assert 1 - found**2 > 0.8 * by_power / float((weight**2).sum())


def _power(tensor: Array, seed: int) -> float:
    """What a rank-one tensor explains after alternating power steps from a random start: an independent reference."""
    vectors = [random(extent, seed=seed) for extent in tensor.shape]
    size = 0.0
    for _ in range(60):
        for axis in range(4):
            others = [vectors[place] / np.linalg.norm(vectors[place]) for place in range(4) if place != axis]
            letters = "oiab"
            rest = [letters[place] for place in range(4) if place != axis]
            vectors[axis] = np.einsum(f"oiab,{','.join(rest)}->{letters[axis]}", tensor, *others)
        size = float((vectors[3] ** 2).sum())
    return size


def test_depthwise_spatial_finds_weights_of_its_form() -> None:
    conv = conv_of(5, 9, (3, 4))
    mode = get_mode("depthwise-spatial")
    for terms, limit in ((1, 1e-12), (2, 1e-2)):
        form = mode.layers(conv, (terms,))
        drawn = Factors([random(*shape, seed=7) for shape in factor_shapes(form)])
        assert error("depthwise-spatial", conv, mode.reconstruct(conv, drawn), (terms,)) < limit
        assert parameters(form) == terms * (5 * (3 + 4) + 5 * 9) + 9
        assert sum(isinstance(layer, AddLayer) for layer in form) == terms - 1


def test_depthwise_spatial_cannot_be_nearer_than_depthwise() -> None:
    """Its depthwise kernels are of rank one, those of depthwise are not limited; with two-column kernels two terms
    of it hold one term of depthwise.
    """
    conv = conv_of(6, 8, (3, 2))
    weight = random(*conv.weight_shape)
    free = error("depthwise", conv, weight, (1,))
    assert free < error("depthwise-spatial", conv, weight, (1,))
    assert error("depthwise-spatial", conv, weight, (2,)) < free + 0.02


def test_spatial_depthwise_finds_weights_of_its_form() -> None:
    conv = conv_of(6, 8, (3, 3))
    mode = get_mode("spatial-depthwise")
    form = mode.layers(conv, (2,))
    drawn = Factors([random(*shape, seed=8) for shape in factor_shapes(form)])
    weight = mode.reconstruct(conv, drawn)
    assert error("spatial-depthwise", conv, weight, (2,)) < 1e-2
    assert not mode.is_exact(conv, paper_rank("spatial-depthwise", conv))
    assert factor_shapes(form) == [(6, 1, 3, 1), (2, 6, 1, 1), (2, 1, 1, 3), (8, 2, 1, 1)]


def test_spatial_depthwise_limit_is_one_vertical_kernel_for_each_input() -> None:
    """With enough channels all that is lost is what no single k x 1 kernel of each input channel explains."""
    conv = conv_of(4, 6, (3, 3))
    weight = random(*conv.weight_shape)
    axis = get_mode("spatial-depthwise").rank_axis(conv, ())
    assert axis is not None
    slices = [weight[:, channel].transpose(1, 0, 2).reshape(3, -1) for channel in range(4)]
    assert error("spatial-depthwise", conv, weight, (axis.full,)) == pytest.approx(
        discarded(slices, 1, weight), rel=1e-9
    )


@pytest.mark.parametrize(
    ("mode", "kernel", "group", "words"),
    [
        ("channel", (1, 1), 1, "pointwise"),
        ("tucker", (1, 1), 1, "pointwise"),
        ("cp", (1,), 1, "pointwise"),
        ("pointwise", (1, 3), 1, "a kernel of 1 x 3"),
        ("pointwise-depthwise", (3, 3), 2, "2 groups"),
        ("pointwise-depthwise", (1, 1), 1, "nothing to separate"),
        ("depthwise-spatial", (3, 3), 2, "2 groups"),
        ("depthwise-spatial", (1, 3), 1, "along one axis"),
        ("depthwise-spatial", (1, 1), 1, "nothing to separate"),
        ("spatial-depthwise", (3, 3), 2, "2 groups"),
        ("spatial-depthwise", (5,), 1, "along one axis"),
        ("spatial-depthwise", (3, 3, 3), 1, "along 3 axes"),
        ("spatial-depthwise", (1, 1), 1, "nothing to separate"),
    ],
)
def test_refusals_say_why(mode: str, kernel: tuple[int, ...], group: int, words: str) -> None:
    assert words in (get_mode(mode).accepts(conv_of(6, 8, kernel, group)) or "")


@pytest.fixture(scope="module")
def resnet50v2() -> onnx.ModelProto:
    path = Path(__file__).resolve().parents[1] / "models" / "resnet50v2.py"
    spec = importlib.util.spec_from_file_location("resnet50v2", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: onnx.ModelProto = module.build(image_size=64)
    return model


# Of the whole network, the four vectors of each BatchNormalization counted. spatial-depthwise: the published code of
# paper 000. The others differ from its depthwise 13,559,498 by arithmetic: the sixteen 3 x 3 Convs have p inputs and p
# outputs, p = 64 (3 of them), 128 (4), 256 (6), 512 (3), so that the order does not matter, and k x 1 and 1 x k save 3
# of 9 taps.
@pytest.mark.parametrize(
    ("mode", "total"),
    [
        ("spatial-depthwise", 14_805_642),
        ("pointwise-depthwise", 13_559_498),
        ("depthwise-spatial", 13_559_498 - 3 * (3 * 64 + 4 * 128 + 6 * 256 + 3 * 512)),
    ],
)
def test_counts_on_resnet50v2(resnet50v2: onnx.ModelProto, mode: str, total: int) -> None:
    totals = onnxsep.inspect(resnet50v2, modes=[mode]).totals
    assert totals.mode_convs == {mode: 16}
    assert totals.mode_parameters == {mode: total}
