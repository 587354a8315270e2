"""Weights whose rank is lower than what is asked for: dead, equal or constant filters, at any scale and in any type."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.algebra.linalg import Array, truncated_svd
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import RankPolicy
from onnxsep.modes.base import get_mode
from onnxsep.modes.ranks import choose_rank

RNG = np.random.default_rng(0)
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def two_live(weight: Array) -> Array:
    return np.concatenate([weight[:2], 0 * weight[2:]])


def one_channel(weight: Array) -> Array:
    """One channel, and of that one row of taps."""
    kept = np.zeros(weight.shape[1:])
    kept[0, 0] = 1
    return weight * kept


WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "live": two_live,
    "channel": one_channel,
    "equal": lambda weight: 0 * weight + weight[:1],
    "constant": lambda weight: 0 * weight + 0.3,
    "zero": lambda weight: 0 * weight,
    "uneven": lambda weight: np.concatenate([weight[:1], 1e-9 * weight[1:]]),
}
# (mode, rank) at which each of these weights is exact: they have at most two independent filters or channels.
MODES = [
    ("tucker", 8),
    ("spatial", 8),
    ("channel", 8),
    ("depthwise", "full"),
    ("pointwise-depthwise", "full"),
    ("depthwise-spatial", "full"),
]


def weight_error(weight: np.ndarray, mode: str, rank: Any) -> float:
    kind = TYPES[weight.dtype.name]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "g",
        [value("x", kind, [1, weight.shape[1], 9, 9])],
        [value("y", kind, [1, len(weight), 7, 7])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = onnxsep.rewrite(model, mode=mode, rank=rank, force=True, include_first=True, verify="none")
    (row,) = result.report.convs
    assert row.status == "replaced", row.reason
    for tensor in result.proto.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()
    assert row.weight_error is not None
    return row.weight_error


@pytest.mark.parametrize(("mode", "rank"), MODES, ids=[mode for mode, _ in MODES])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("shape", [(32, 1, 3, 3), (8, 4, 3, 3)], ids=["tall", "wide"])
def test_what_is_of_low_rank_is_exact(mode: str, rank: Any, name: str, shape: tuple[int, ...]) -> None:
    weight = WEIGHTS[name](RNG.standard_normal(shape)).astype(np.float32)
    assert weight_error(weight, mode, rank) < 1e-5


@pytest.mark.parametrize(("mode", "rank"), MODES, ids=[mode for mode, _ in MODES])
@pytest.mark.parametrize(
    ("dtype", "scale", "limit"),
    [
        ("float32", 1e-30, 1e-5),
        ("float32", 1e30, 1e-5),
        ("float16", 1.0, 2e-2),
        ("float64", 1e-250, 1e-12),
        ("float64", 1e250, 1e-12),
    ],
)
def test_at_any_scale(mode: str, rank: Any, dtype: str, scale: float, limit: float) -> None:
    weight = two_live(RNG.standard_normal((32, 1, 3, 3)) * scale).astype(dtype)
    assert weight_error(weight, mode, rank) < limit


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (3, 12, 6), (3, 6, 12), (6, 6)])
@pytest.mark.parametrize("inner", [0, 1, 2, 4])
def test_vectors_are_orthonormal_on_either_side(shape: tuple[int, ...], inner: int) -> None:
    *batch, m, n = shape
    matrices = RNG.standard_normal((*batch, m, inner)) @ RNG.standard_normal((*batch, inner, n))
    if batch:
        matrices[0] = 0  # one of full rank beside one that is zero
    rank = min(m, n)
    u, s, vt = truncated_svd(matrices, rank)
    for vectors in (np.swapaxes(u, -1, -2), vt):
        products = vectors @ np.swapaxes(vectors, -1, -2)
        np.testing.assert_allclose(products, np.broadcast_to(np.eye(rank), products.shape), atol=1e-10)
    np.testing.assert_allclose((u * s[..., None, :]) @ vt, matrices, atol=1e-12)


def test_small_singular_values_keep_their_vectors() -> None:
    """At 1e-9 of the largest one the Gram matrix has nothing left of them."""
    left, right = (np.linalg.qr(RNG.standard_normal((size, 6)))[0] for size in (30, 8))
    values = np.array([1.0, 1e-3, 1e-6, 3e-9, 2e-9, 1e-9])
    u, s, vt = truncated_svd((left * values) @ right.T, 6)
    np.testing.assert_allclose(s, values, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(u * left, axis=0)), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(vt * right.T, axis=1)), 1, atol=1e-5)


def conv_of(in_channels: int, out_channels: int, *, bias: bool) -> Conv:
    return Conv(in_channels, out_channels, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), bias=bias)


def never() -> Array:
    raise AssertionError("a share needs no weight")


def counted(conv: Conv, mode: str, rank: int) -> int:
    """Weight elements by hand, without any bias."""
    i, o, taps = conv.in_channels, conv.out_channels, 9
    return {
        "spatial": rank * 3 * (i + o),
        "channel": rank * (i * taps + o),
        "depthwise": rank * i * (taps + o),
        "pointwise-depthwise": rank * o * (taps + i),
        "cp": rank * (i + 3 + 3 + o),
    }[mode]


@pytest.mark.parametrize("mode", ["spatial", "channel", "depthwise", "pointwise-depthwise", "cp"])
@pytest.mark.parametrize("share", ["0.5", "0.3", "0.75"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_share_is_one_of_the_weights(mode: str, share: str, bias: bool) -> None:

    for channels in ((64, 64), (16, 40), (30, 20)):
        conv = conv_of(*channels, bias=bias)
        (rank,), _ = choose_rank(conv, get_mode(mode), RankPolicy.parse(share), 0, never)
        limit = float(share) * conv.weight_size * (1 + 1e-12)
        assert counted(conv, mode, rank) <= limit < counted(conv, mode, rank + 1)


def test_a_share_of_64_to_64_channels() -> None:
    """48 channels between: 48 * 3 * 128 = 18,432 of 36,864 weights."""
    for bias in (True, False):
        found = choose_rank(conv_of(64, 64, bias=bias), get_mode("spatial"), RankPolicy.parse("0.5"), 0, never)
        assert found == ((48,), ())


def test_the_smallest_weights_that_are_over_the_share() -> None:
    bias = numpy_helper.from_array(np.zeros(8, np.float32), "b")
    weight = numpy_helper.from_array(RNG.standard_normal((8, 8, 3, 3)).astype(np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")],
        "g",
        [value("x", TensorProto.FLOAT, [1, 8, 9, 9])],
        [value("y", TensorProto.FLOAT, None)],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options: dict[str, Any] = {"mode": "depthwise", "include_first": True, "verify": "none"}
    # 8 * 9 + 8 * 8 = 136 of 576; with the bias it would be 144 of 584, which is less than a quarter too, but more
    # than 0.2365.
    assert onnxsep.rewrite(model, rank=0.2365, **options).report.convs[0].status == "replaced"
    left = onnxsep.rewrite(model, rank=0.2361, **options).report.convs[0]
    assert left.reason == "no rank keeps 0.2361 of its 576 weights: the smallest needs 136"
