"""The mode linear-bottleneck: its algebra by the definition, its rank, its form, and what it is good for."""

import numpy as np
import pytest

import onnxsep
from onnxsep.layers.conv import Conv
from onnxsep.layers.layer import ConvLayer, parameters
from onnxsep.modes import Task, get_mode

MODE = get_mode("linear-bottleneck")


def conv_of(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], group: int = 1, *, bias: bool = False
) -> Conv:
    ones, pads = (1,) * len(kernel), tuple(size // 2 for size in kernel) * 2
    return Conv(in_channels, out_channels, kernel, ones, pads, ones, group=group, bias=bias)


def of_its_form(conv: Conv, terms: int, seed: int = 0) -> np.ndarray:
    """A weight that so many channels for each group compute exactly, by the definition: the sum over r."""
    random, taps = np.random.default_rng(seed), int(np.prod(conv.kernel_shape))
    groups = []
    for _ in range(conv.group):
        total = np.zeros((conv.out_channels // conv.group, conv.in_channels // conv.group, taps))
        for _ in range(terms):
            p, q, d = (random.standard_normal(size) for size in total.shape)
            total += np.multiply.outer(np.multiply.outer(p, q), d)
        groups.append(total)
    return np.concatenate(groups).reshape(conv.weight_shape)


def error(conv: Conv, weight: np.ndarray, rank: int) -> float:
    product = MODE.reconstruct(conv, MODE.factorize(Task(conv, weight), (rank,)))
    return float(np.linalg.norm(product - weight) / np.linalg.norm(weight))


@pytest.mark.parametrize("kernel", [(3, 3), (5,), (2, 3, 2), (1, 4)])
@pytest.mark.parametrize("group", [1, 2])
def test_it_finds_weights_of_its_form(kernel: tuple[int, ...], group: int) -> None:
    conv = conv_of(10, 12, kernel, group)
    assert error(conv, of_its_form(conv, terms=2), 2 * group) < 2e-2
    assert error(conv, of_its_form(conv, terms=1), group) < 1e-6


def test_layers() -> None:
    conv = conv_of(8, 12, (3, 5), bias=True)
    layers = [layer for layer in MODE.layers(conv, (6,)) if isinstance(layer, ConvLayer)]
    assert [layer.conv.weight_shape for layer in layers] == [(6, 8, 1, 1), (6, 1, 3, 5), (12, 6, 1, 1)]
    assert [layer.conv.bias for layer in layers] == [False, False, True]
    assert [layer.conv.group for layer in layers] == [1, 6, 1]
    assert [layer.conv.pads for layer in layers] == [(0, 0, 0, 0), conv.pads, (0, 0, 0, 0)]
    assert parameters(layers) == 6 * (8 + 12 + 15) + 12


@pytest.mark.parametrize(("group", "kernel"), [(1, (3, 3)), (2, (3, 3)), (1, (7,))])
def test_paper_rank_is_the_largest_with_a_quarter_of_the_weights(group: int, kernel: tuple[int, ...]) -> None:
    conv = conv_of(24, 40, kernel, group)
    axis = MODE.rank_axis(conv, ())
    assert axis is not None
    assert axis.step == group
    assert 4 * parameters(MODE.layers(conv, (axis.paper,))) <= conv.weight_size
    assert 4 * parameters(MODE.layers(conv, (axis.paper + group,))) > conv.weight_size


def test_a_depthwise_pair_is_a_special_case() -> None:
    """With as many channels as inputs it can do all that one depthwise term can, and more."""
    conv = conv_of(6, 9, (3, 3))
    weight = np.random.default_rng(3).standard_normal(conv.weight_shape)
    depthwise = get_mode("depthwise")
    pair = depthwise.reconstruct(conv, depthwise.factorize(Task(conv, weight), (1,)))
    assert error(conv, pair, 6) < 1e-2
    assert error(conv, weight, 6) < float(np.linalg.norm(pair - weight) / np.linalg.norm(weight))


def test_a_1_x_1_kernel_is_refused() -> None:
    assert "pointwise" in (MODE.accepts(conv_of(4, 4, (1, 1))) or "")


def test_it_is_a_mode_like_any_other() -> None:
    assert "linear-bottleneck" in onnxsep.available_modes()
