"""Fitting the factors of one Conv to samples of what it reads and of what should come out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_modes import ranks_at

from onnxsep.algebra.statistics import SiteMoments
from onnxsep.calibration.fitting import Fit, Fitter, fit, fit_bias
from onnxsep.calibration.fitting_moments import fit_moments
from onnxsep.calibration.recording import _moments
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.schedule import Tail
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Mode, Task, conv_modes, get_mode
from onnxsep.passes.depthwise import Depthwise

Array = NDArray[Any]
MODES = {name: mode for name, mode in conv_modes().items() if "joint" in mode.inits}
CONV = Conv(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
POINTWISE = Conv(8, 6, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
GROUPED = Conv(4, 6, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group=2)


def conv_for(mode: Mode) -> Conv:
    return next(conv for conv in (CONV, POINTWISE) if mode.accepts(conv) is None)


def weight_of(conv: Conv, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(conv.weight_shape)


def apply(conv: Conv, weight: Array, rows: Array) -> Array:
    """The Conv without its bias on rows of patches."""
    matrices = weight.reshape(conv.group, conv.out_channels // conv.group, -1)
    parts = rows.reshape(len(rows), conv.group, -1)
    outputs: Array = np.einsum("rgd,god->rgo", parts, matrices).reshape(len(rows), -1)
    return outputs


def no_tail(conv: Conv) -> Tail:
    size = conv.out_channels
    return Tail(np.ones(size), np.zeros(size), None, np.ones(size))


def samples_of(conv: Conv, weight: Array, rows: Array, bias: float | Array = 0.0, **other: Any) -> Samples:
    """A fifth of the rows is held out."""
    mask = np.arange(len(rows)) % 5 == 0
    return Samples(rows.astype(np.float32), (apply(conv, weight, rows) + bias).astype(np.float32), None, mask, **other)


def patches(conv: Conv, rows: int, seed: int = 1, mean: float = 0.5) -> Array:
    """Correlated rows."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(conv.weight_shape[1:])) * conv.group
    mixing = rng.standard_normal((size, size)) * np.logspace(0, -2, size)
    return rng.standard_normal((rows, size)) @ mixing + mean


def fit_all(mode: Mode, conv: Conv, weight: Array, samples: Samples, tail: Tail, **options: Any) -> Fit:
    chosen: dict[str, Any] = {"init": "joint", "old_bias": None, "new_bias": True}
    rank: Rank = options.pop("rank", ranks_at(mode, conv, 1))
    return fit(mode, conv, rank, weight, samples, tail, **{**chosen, **options})


def measured(mode: Mode, conv: Conv, found: Fit, samples: Samples, tail: Tail, held: bool, bias: Any = None) -> float:
    """The error that a fit reports, computed from its definition in double precision."""
    rows = samples.held_out if held else ~samples.held_out
    made = apply(conv, np.asarray(mode.reconstruct(conv, found.factors)), samples.inputs[rows].astype(np.float64))
    made = made + (found.bias if found.bias is not None else (0 if bias is None else bias))
    skips = (0.0, 0.0) if samples.skip is None else tuple(tail.skip_scale * part[rows] for part in samples.skip)
    wanted, got = (
        np.clip(tail.scale * value + tail.shift + skip, tail.low, tail.high)
        for value, skip in ((samples.targets[rows], skips[0]), (made, skips[1]))
    )
    return float(np.linalg.norm(wanted - got) / np.linalg.norm(wanted - wanted.mean(axis=0)))


RELU = replace(no_tail(CONV), scale=np.array([1, -0.5, 2, 0.1, 1, 3.0]), shift=np.linspace(-1, 1, 6), low=0.0)


@pytest.mark.parametrize("init", ["svd", "response", "compensated", "joint"])
@pytest.mark.parametrize("tail", [no_tail(CONV), RELU, replace(RELU, high=1.5)])
def test_reported_errors_are_those_of_the_result(init: str, tail: Tail) -> None:
    mode, weight = get_mode("depthwise"), weight_of(CONV)
    bias = np.linspace(-1, 1, 6)
    samples = samples_of(CONV, weight, patches(CONV, 600), bias)
    found = fit_all(mode, CONV, weight, samples, tail, init=init, old_bias=bias)
    assert found.held_out == pytest.approx(measured(mode, CONV, found, samples, tail, held=True), rel=1e-4)
    assert found.fitted == pytest.approx(measured(mode, CONV, found, samples, tail, held=False), rel=1e-4)
    assert found.held_out <= found.before
    if init == "svd":
        assert found.bias is not None
        assert (found.bias == bias).all()


@pytest.mark.parametrize("name", sorted(MODES))
def test_joint_lowers_the_error_of_every_mode(name: str) -> None:
    mode = MODES[name]
    conv = conv_for(mode)
    weight = weight_of(conv)
    samples = samples_of(conv, weight, patches(conv, 1500))
    found = fit_all(mode, conv, weight, samples, no_tail(conv))
    assert found.held_out < 0.99 * found.before
    assert not found.fell_back


@pytest.mark.parametrize("new_bias", [True, False])
@pytest.mark.parametrize("conv", [CONV, GROUPED])
def test_full_rank_is_exact_whatever_the_data(conv: Conv, new_bias: bool) -> None:
    bias = np.linspace(-1, 1, 6)
    for name in ("channel", "spatial", "tucker", "depthwise"):
        mode = get_mode(name)
        if mode.accepts(conv) is None:
            rank: Rank = ()
            while (axis := mode.rank_axis(conv, rank)) is not None:
                rank += (axis.full,)
            weight = weight_of(conv)
            samples = samples_of(conv, weight, patches(conv, 60), bias)  # a sixth fewer rows than unknowns
            found = fit_all(mode, conv, weight, samples, no_tail(conv), rank=rank, old_bias=bias, new_bias=new_bias)
            assert found.held_out < 1e-4, name
            dense = np.asarray(mode.reconstruct(conv, found.factors))
            assert np.allclose(dense, weight, atol=1e-3), name
            assert (found.bias is not None) == new_bias
            if found.bias is not None:
                assert np.allclose(found.bias, bias, atol=1e-3), name


def test_what_the_skip_has_lost_is_made_up_for() -> None:
    """s - s' is linear in x here, so a fit of full rank can restore all of the sum."""
    weight, rows = weight_of(CONV), patches(CONV, 800)
    lost = weight_of(CONV, 3)
    tail = Tail(np.array([1, -2, 0.5, 1, 1, 3]), np.linspace(0, 1, 6), "s", np.array([1, 1, -2, 0.3, 1, 1]))
    rng = np.random.default_rng(4)
    after = rng.standard_normal((800, 6))
    before = after + apply(CONV, lost, rows) + 2.0
    samples = replace(samples_of(CONV, weight, rows), skip=(before.astype(np.float32), after.astype(np.float32)))
    mode = get_mode("channel")
    found = fit_all(mode, CONV, weight, samples, tail, rank=(6,), prior=1e-9)
    assert found.held_out < 1e-3 < 0.1 < found.before


@pytest.mark.parametrize("tail", [RELU, replace(RELU, high=1.5), replace(RELU, low=-np.inf, high=0.3)])
def test_target_of_a_round_bounds_the_error_behind_the_activation(tail: Tail) -> None:
    """For any prediction; and exactly at the present one, but where it alone is clipped."""
    mode, weight, rng = get_mode("depthwise"), weight_of(CONV), np.random.default_rng(0)
    samples = samples_of(CONV, weight, patches(CONV, 300))
    fitter = Fitter(mode, CONV, (1,), weight, samples, tail, None, True, 1e-3)
    wanted = tail.scale * samples.targets + tail.shift
    for now in (samples.targets * 0.5, rng.standard_normal(samples.targets.shape).astype(np.float32)):
        target = fitter._target(now)
        assert np.isfinite(target).all()
        for other in (now, samples.targets, *(rng.standard_normal((3, *now.shape)) * 3)):
            value = tail.scale * other + tail.shift
            true = np.abs(np.clip(wanted, tail.low, tail.high) - np.clip(value, tail.low, tail.high))
            bound = np.abs(tail.scale * (target - other))
            assert (bound >= true - 1e-4).all()
            if other is now:
                below = (value <= tail.low) & (wanted <= tail.low)
                above = (value >= tail.high) & (wanted >= tail.high)
                tight = below | above | ((value >= tail.low) & (value <= tail.high))
                assert tight.mean() > 0.5
                assert np.allclose(bound[tight], true[tight], atol=1e-4)


def test_the_activation_is_taken_into_account() -> None:
    """Most outputs are clipped: errors among them do not count, and the fit uses that."""
    mode, weight = get_mode("depthwise"), weight_of(CONV)
    samples = samples_of(CONV, weight, patches(CONV, 3000))
    tail = replace(no_tail(CONV), shift=np.full(6, -float(samples.targets.std())), low=0.0)
    linear = fit_all(mode, CONV, weight, samples, no_tail(CONV))
    found = fit_all(mode, CONV, weight, samples, tail)
    behind = measured(mode, CONV, linear, samples, tail, held=True)
    assert found.held_out < 0.99 * behind


def test_channel_that_its_normalization_switches_off_does_not_spoil_the_others() -> None:
    """BatchNormalization with gamma = 0: no division by it, and no say in the error."""
    mode, weight = get_mode("channel"), weight_of(CONV)
    samples = samples_of(CONV, weight, patches(CONV, 500))
    scale = np.array([1, 0, 1e-12, 1, 1, 1.0])
    for tail in (replace(no_tail(CONV), scale=scale), replace(RELU, scale=scale)):
        found = fit_all(mode, CONV, weight, samples, tail, rank=(6,))
        assert all(np.isfinite(array).all() for array in found.factors.weights)
        assert found.held_out < 1e-3
    dead = fit_all(mode, CONV, weight, samples, replace(no_tail(CONV), scale=np.zeros(6)), rank=(6,))
    assert all(np.isfinite(array).all() for array in dead.factors.weights)


def without(rows: Array, channels: slice) -> Array:
    rows = rows.copy()
    rows.reshape(len(rows), 4, 9)[:, channels] = 0
    return rows


def centre_only(rows: Array) -> Array:
    """A 1 x 1 map: all taps but the centre see padding."""
    kept = np.zeros_like(rows).reshape(len(rows), 4, 9)
    kept[:, :, 4] = rows.reshape(len(rows), 4, 9)[:, :, 4]
    return kept.reshape(len(rows), -1)


HARD: dict[str, Array] = {
    "dead channels": without(patches(CONV, 400), slice(1, 3)),
    "all dead": without(patches(CONV, 400), slice(0, 4)),
    "1 x 1 map": centre_only(patches(CONV, 400)),
    "few rows": patches(CONV, 12),
    "two rows": patches(CONV, 2),
    "constant": np.tile(patches(CONV, 1), (400, 1)),
    "constant channel": np.where(np.arange(36) < 9, 3.0, patches(CONV, 400)),
    "large mean": patches(CONV, 400, mean=1e4),
    "large": patches(CONV, 400) * 1e15,
    "small": patches(CONV, 400) * 1e-18,
    "one row often": np.vstack([np.tile(patches(CONV, 1), (399, 1)), patches(CONV, 1, seed=9)]),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("name", sorted(MODES))
def test_hard_data_give_finite_factors_that_are_no_worse(name: str, case: str) -> None:
    mode = MODES[name]
    if mode.accepts(CONV):
        pytest.skip("the mode takes no 3 x 3 kernel")
    weight, rows = weight_of(CONV), HARD[case]
    with np.errstate(all="raise", under="ignore"):
        samples = samples_of(CONV, weight, rows)
        for tail in (no_tail(CONV), replace(no_tail(CONV), low=0.0)):
            for init in (init for init in mode.inits if init != "svd"):
                found = fit_all(mode, CONV, weight, samples, tail, init=init)
                assert all(np.isfinite(array).all() for array in found.factors.weights), init
                assert found.bias is not None
                assert np.isfinite(found.bias).all()
                assert np.isfinite([found.fitted, found.held_out, found.before]).all()
                assert found.held_out <= found.before


def test_unseen_inputs_keep_what_the_weight_says() -> None:
    """Dead in the calibration data, alive later: the fit has not moved the factors there."""
    mode, weight = get_mode("depthwise"), weight_of(CONV)
    for rows in (HARD["dead channels"], HARD["1 x 1 map"]):
        samples = samples_of(CONV, weight, rows)
        found = fit_all(mode, CONV, weight, samples, no_tail(CONV))
        unseen = ~rows.any(axis=0)
        difference = (np.asarray(mode.reconstruct(CONV, found.factors)) - weight).reshape(6, -1)[:, unseen]
        plain = np.asarray(mode.reconstruct(CONV, mode.factorize(Task(CONV, weight), (1,))))
        own = (plain - weight).reshape(6, -1)[:, unseen]
        assert np.linalg.norm(difference) < 1.5 * np.linalg.norm(own)


def test_what_is_worse_on_held_out_rows_is_not_taken() -> None:
    """A mode that fits noise: its own factors are taken instead, and the fit says so."""

    class Fitted(Depthwise):
        def fit(self, task: Task, rank: Rank, init: str) -> Factors:
            first, second = self.factorize(task, rank).weights
            return Factors([-first, second])

    mode, weight = Fitted(), weight_of(CONV)
    samples = samples_of(CONV, weight, patches(CONV, 300))
    moments = SiteMoments(*(_moments(CONV, samples.inputs[mask]) for mask in (~samples.held_out, samples.held_out)))
    plain = mode.factorize(Task(CONV, weight), (1,))
    for found in (
        fit_all(mode, CONV, weight, samples, RELU),
        fit_moments(mode, CONV, (1,), weight, moments, init="joint", old_bias=None, new_bias=True),
    ):
        assert found.fell_back
        assert found.held_out == found.before
        assert all((one == other).all() for one, other in zip(found.factors.weights, plain.weights, strict=True))


@pytest.mark.parametrize("new_bias", [True, False])
@pytest.mark.parametrize("conv", [CONV, GROUPED])
def test_moments_tell_the_same_as_samples(conv: Conv, new_bias: bool) -> None:
    """Where nothing is known of what follows, statistics are enough."""
    weight, bias = weight_of(conv), np.linspace(-1, 1, 6)
    samples = samples_of(conv, weight, patches(conv, 500), bias)
    moments = SiteMoments(*(_moments(conv, samples.inputs[mask]) for mask in (~samples.held_out, samples.held_out)))
    for name in ("channel", "tucker", "depthwise"):
        mode = get_mode(name)
        if mode.accepts(conv) is None:
            rank = ranks_at(mode, conv, 2)
            for init in mode.inits:
                options: dict[str, Any] = {"init": init, "old_bias": bias, "new_bias": new_bias and init != "svd"}
                one = fit(mode, conv, rank, weight, samples, no_tail(conv), **options)
                other = fit_moments(mode, conv, rank, weight, moments, **options)
                for field in ("before", "fitted", "held_out"):
                    assert getattr(one, field) == pytest.approx(getattr(other, field), rel=2e-3), (name, init, field)
                assert (one.bias is None) == (other.bias is None)
                if one.bias is not None and other.bias is not None:
                    assert np.allclose(one.bias, other.bias, atol=1e-2)


def test_moments_survive_a_large_mean() -> None:
    """A spread that is small beside the mean is not lost to rounding."""
    rows = patches(CONV, 500, mean=0) * 1e-3 + 100
    found = _moments(CONV, rows.astype(np.float32)).centred[0].dense()
    expected = np.cov(rows.astype(np.float32).astype(np.float64).T, bias=True)
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_bias_of_a_shared_weight_makes_the_mean_right() -> None:
    mode, weight = get_mode("depthwise"), weight_of(CONV)
    samples = samples_of(CONV, weight, patches(CONV, 500), 3.0)
    factors = mode.factorize(Task(CONV, weight), (1,))
    found = fit_bias(mode, CONV, factors, samples, no_tail(CONV), old_bias=np.full(6, 3.0), new_bias=True)
    assert found.bias is not None
    rows = ~samples.held_out
    made = apply(CONV, np.asarray(mode.reconstruct(CONV, factors)), samples.inputs[rows]) + found.bias
    assert np.allclose(made.mean(axis=0), samples.targets[rows].mean(axis=0), atol=1e-4)
    left = fit_bias(mode, CONV, factors, samples, no_tail(CONV), old_bias=np.full(6, 3.0), new_bias=False)
    assert left.bias is None
    assert left.held_out > found.held_out
