"""Fitting two Convs in a row once more: slopes, which pairs there are, and that nothing gets worse."""

from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import EXACT, ONE_THREAD, images, network, outputs
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxsep.calibration import refinement
from onnxsep.calibration.calibrated import Calibrated
from onnxsep.calibration.fitting import Fit
from onnxsep.calibration.layerwise import calibrate
from onnxsep.calibration.refinement import Half, Pair
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.schedule import Step, make_schedule
from onnxsep.calibration.slopes import Convolution
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Options, Plan, make_plan
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import Model
from onnxsep.modes.base import Task, get_mode

Array = NDArray[Any]
RNG = np.random.default_rng(3)
BLOCK = """
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    n = BatchNormalization(c, gamma, beta, mean, variance)
    d = Clip(n, zero, six)
    e = Conv<pads = [1, 1, 1, 1]>(d, w3, b3)
    f = Add(e, b)
    g = Relu(f)
    y = GlobalAveragePool(g)
"""
TENSORS: dict[str, Any] = {
    "w1": (6, 3, 3, 3),
    "b1": (6,),
    "w2": (8, 6, 3, 3),
    "gamma": np.array([1, -0.7, 0.8, 2, 1, 1.5, 1, -1.2], np.float32),
    "beta": RNG.uniform(-0.2, 1, 8).astype(np.float32),
    "mean": RNG.standard_normal(8).astype(np.float32),
    "variance": RNG.uniform(0.5, 2, 8).astype(np.float32),
    "zero": np.float32(0),
    "six": np.float32(3),
    "w3": (6, 8, 3, 3),
    "b3": (6,),
}
X = images(30, (3, 10, 10))


def block(body: str = BLOCK, **changes: Any) -> onnx.ModelProto:
    """A stem and a residual block of two Convs in a row."""
    return network(f"g (float[N, 3, 10, 10] x) => (float[N, 6, 1, 1] y) {{ {body} }}", **{**TENSORS, **changes})


def steps(model: onnx.ModelProto) -> list[Step]:
    source = Model(model)
    sites = find_sites(source)
    found = [site for site in sites.found if isinstance(site, ConvSite)]
    return make_schedule(source, sites.scopes, found, pairs=True)


def pairs(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(step.before.name, step.site.name) for step in steps(model) if step.before is not None]


def run(
    model: onnx.ModelProto,
    mode: str = "depthwise",
    rank: str = "1",
    batch: int = 30,
    init: str = "joint",
    **options: Any,
) -> tuple[Calibrated, Plan]:
    source = Model(model)
    sites = find_sites(source)
    choice = Options(rank=RankPolicy.parse(rank), force=True, include_first=True, init=init)
    plan = make_plan(sites.found, get_mode(mode), choice, lambda site: read_weight(source, sites, site))
    feeds = [{"x": X[start : start + batch]} for start in range(0, len(X), batch)]
    return calibrate(
        source, sites, plan, feeds, CalibrationOptions(positions=40, **{"refine": 2, **options}), ONE_THREAD
    ), plan


def held_out(found: Calibrated, plan: Plan) -> dict[str, float]:
    errors = {row.site.name: found.by_place[row.site.place].errors for row in plan.replacements}
    return {name: error.held_out for name, error in errors.items() if error is not None}


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (Conv(3, 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), (6, 5)),
        (Conv(3, 4, (3, 2), (2, 3), (1, 0, 2, 1), (1, 1)), (8, 9)),
        (Conv(2, 3, (3, 3), (2, 2), (0, 0, 0, 0), (2, 1)), (8, 8)),  # the last rows are read by nothing
        (Conv(2, 3, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1)), (6, 6)),
        (Conv(2, 3, (2, 4), (2, 1), (0, 0, 0, 0), (1, 1), auto_pad="SAME_UPPER"), (7, 6)),
        (Conv(2, 3, (2, 4), (1, 2), (0, 0, 0, 0), (1, 1), auto_pad="SAME_LOWER"), (7, 6)),
        (Conv(2, 3, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), auto_pad="VALID"), (5, 6)),
        (Conv(3, 2, (5,), (2,), (2, 1), (1,)), (11,)),
        (Conv(2, 3, (2, 3, 2), (1, 2, 1), (0, 1, 1, 1, 0, 1), (1, 1, 2)), (4, 5, 6)),
    ],
    ids=lambda value: f"{value.kernel_shape}" if isinstance(value, Conv) else None,
)
def test_transposed_is_the_slope_by_finite_differences(conv: Conv, size: tuple[int, ...]) -> None:
    convolution = Convolution(conv, EXACT)
    weight, zero = RNG.standard_normal(conv.weight_shape), np.zeros(conv.out_channels)
    x = RNG.standard_normal((2, conv.in_channels, *size))

    def loss(values: Array) -> float:
        return float(0.5 * (convolution.outputs(values, weight, zero).astype(np.float64) ** 2).sum())

    slope = convolution.transposed(convolution.outputs(x, weight, zero), weight, size)
    assert slope.shape == x.shape
    for _ in range(5):
        way = RNG.standard_normal(x.shape)
        expected = (loss(x + way) - loss(x - way)) / 2  # exact, as the loss is quadratic
        scale = float(np.linalg.norm(slope) * np.linalg.norm(way))
        assert abs(float(np.vdot(slope, way)) - expected) < 1e-4 * scale


def changed(model: onnx.ModelProto, **tensors: Array) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name].astype(np.float32), tensor.name))
    return copy


def test_slopes_of_a_block_by_finite_differences() -> None:
    """The slope at all positions together is the derivative with respect to the first Conv's bias."""
    model = block(b2=(8,), body=BLOCK.replace("w2)", "w2, b2)"))
    source = Model(model)
    walk = Walk(source, [{"x": X[:18]}, {"x": X[18:]}], CalibrationOptions(positions=1000), EXACT)
    mode, halves = get_mode("depthwise"), []
    sites = find_sites(source)
    plan = make_plan(
        sites.found,
        mode,
        Options(rank=RankPolicy.parse("1"), force=True),
        lambda site: read_weight(source, sites, site),
    )
    rows = {row.site.place: row for row in plan.convs}
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    for step in [step for step in steps(model) if step.site.place in rows]:
        walk.advance(step)
        number = step.site.name[-1] == "e"
        weight, bias = tensors["w3" if number else "w2"], tensors["b3" if number else "b2"]
        factors = mode.factorize(Task(step.site.conv, weight), (1,))
        fit = Fit(factors, bias + 0.1, 0, 0, 0, fell_back=False)
        halves.append(Half(step, rows[step.site.place], step.tail, weight, bias, 1e-3, fit))
    first, second = halves

    def unused(half: Half) -> Samples:
        raise AssertionError(half)

    pair = Pair(first, second, walk, walk.frontier.fork(), unused, EXACT)
    effective = second.dense * second.tail.scale[:, None, None, None]
    slope = np.concatenate([part for _, part in pair._slopes(first, second, effective)]).astype(np.float64)
    found = slope.sum(axis=0) * first.tail.scale
    wanted = outputs(model, {"x": X}, ["f"])["f"]

    def loss(bias: Array) -> float:
        now = changed(model, w2=first.dense, b2=bias, w3=second.dense, b3=second.bias)
        got = outputs(now, {"x": X}, ["f"])["f"]
        error = np.where(wanted > 0, got - wanted, np.maximum(got, 0)).astype(np.float64)
        return float(0.5 * (error**2).sum())

    for channel in range(8):
        way = np.zeros(8)
        way[channel] = 2e-3
        expected = (loss(first.bias + way) - loss(first.bias - way)) / 4e-3
        assert abs(found[channel] - expected) < 0.01 * np.abs(found).max()


def test_pairs_are_convs_in_a_row() -> None:
    assert pairs(block()) == [("conv_c", "conv_e")]
    last = next(step for step in steps(block()) if step.site.name == "conv_e")
    assert last.tail.skip == "b"
    assert {"b", "d"} <= last.keep  # what both read


@pytest.mark.parametrize(
    "body",
    [
        BLOCK.replace("f = Add(e, b)", "h = Conv(d, w4)\n k = Add(e, b)\n f = Add(k, h)"),  # d is read twice
        BLOCK.replace("d = Clip(n, zero, six)", "d = Sigmoid(n)"),
        BLOCK.replace("d = Clip(n, zero, six)", "k = Clip(n, zero, six)\n d = Mul(k, k)"),
    ],
    ids=["two readers", "no activation that clips", "something in between"],
)
def test_what_is_no_pair(body: str) -> None:
    model = block(body, w4=(6, 8, 1, 1))
    assert pairs(model) == []
    again, plan = run(model)
    once, _ = run(model, refine=0)
    assert held_out(again, plan) == held_out(once, plan)


def test_a_graph_output_in_between_is_no_pair() -> None:
    model = block()
    model.graph.output.extend([onnx.ValueInfoProto(name="d")])
    assert pairs(model) == []


def test_chains_overlap() -> None:
    body = "a = Conv(x, w1)\n b = Relu(a)\n c = Conv(b, w2)\n d = Conv(c, w3)\n y = GlobalAveragePool(d)"
    assert pairs(block(body)) == [("conv_a", "conv_c"), ("conv_c", "conv_d")]
    again, plan = run(block(body))
    once, _ = run(block(body), refine=0)
    assert held_out(again, plan)["conv_d"] < held_out(once, plan)["conv_d"]


@pytest.mark.parametrize(("mode", "rank"), [("depthwise", "1"), ("channel", "2"), ("spatial", "3")])
def test_the_error_behind_the_pair_falls(mode: str, rank: str) -> None:
    again, plan = run(block(), mode, rank)
    once, _ = run(block(), mode, rank, refine=0)
    after, before = held_out(again, plan), held_out(once, plan)
    assert after["conv_e"] < before["conv_e"]
    assert after["conv_a"] == before["conv_a"]  # its output has two readers
    for row in plan.replacements:
        errors = again.by_place[row.site.place].errors
        assert errors is not None
        assert errors.held_out <= errors.svd


def test_nothing_changes_where_every_round_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = BLOCK.replace("y = Global", "h = Conv(g, w4)\n y = Global")
    model = block(body, w4=(6, 6, 3, 3))
    once, plan = run(model, refine=0)
    monkeypatch.setattr(refinement, "_GAMMA", 1e-6)  # steps far beyond the least error
    again, _ = run(model)
    assert again.by_place.keys() == once.by_place.keys()
    for place, outcome in once.by_place.items():  # the Conv behind the pair read the same too
        for one, other in zip(outcome.arrays, again.by_place[place].arrays, strict=True):
            assert np.array_equal(one, other)
    assert held_out(again, plan) == held_out(once, plan)


@pytest.mark.parametrize("change", ["shared", "exact", "svd"])
def test_pairs_that_are_left_alone(change: str) -> None:
    body = BLOCK if change != "shared" else BLOCK.replace("w3, b3", "w2, b3")
    tensors = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3)} if change == "shared" else {}
    if change == "shared":
        tensors |= {name: TENSORS[name][:6] for name in ("gamma", "beta", "mean", "variance")}
    options: dict[str, Any] = {"init": "svd"} if change == "svd" else {}
    rank = "full" if change == "exact" else "1"
    again, plan = run(block(body, **tensors), rank=rank, **options)
    once, _ = run(block(body, **tensors), rank=rank, refine=0, **options)
    assert len(plan.replacements) == 3
    assert held_out(again, plan) == held_out(once, plan)


def test_batches_do_not_matter() -> None:
    whole, plan = run(block(), batch=30)
    parts, _ = run(block(), batch=7)
    assert held_out(parts, plan) == pytest.approx(held_out(whole, plan), rel=1e-3)
