"""Rewrites with calibration data, from end to end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import (
    CONV6,
    MODEL,
    ONE_THREAD,
    X,
    block,
    constants,
    difference,
    fitted,
    network,
    outputs,
    replaced,
    row,
    stored_parameters,
)
from numpy.typing import NDArray

import onnxsep
from onnxsep.calibration import layerwise
from onnxsep.calibration import samples as sampled_rows
from onnxsep.calibration.fitting import Fit, fit
from onnxsep.calibration.outcomes import FELL_BACK
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.sampling import gather_outputs, gather_patches
from onnxsep.calibration.schedule import Tail
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Task, conv_modes
from onnxsep.passes.depthwise import Depthwise

Array = NDArray[Any]

ALL = X[:19]  # so few that no sample is left out of the fit
JOINT = sorted(name for name, mode in conv_modes().items() if "joint" in mode.inits)


@pytest.mark.parametrize("name", JOINT)
def test_full_rank_with_data_is_the_original(name: str) -> None:
    for init in conv_modes()[name].inits:
        result = fitted(MODEL, X, mode=name, rank="full", init=init, positions=16)
        onnx.checker.check_model(result.proto, full_check=True)
        assert replaced(result)
        exact = name not in ("lean", "spatial-depthwise")
        assert difference(MODEL, result.proto) < (1e-4 if exact else 0.5), init
        assert result.report.verification.ran
        assert not any(row.notes for row in replaced(result) if exact)
        if exact:
            assert all(row.held_out_error is not None and row.held_out_error < 1e-4 for row in replaced(result))


@pytest.mark.parametrize("name", JOINT)
def test_joint_is_never_worse_than_the_weights_alone(name: str) -> None:
    result = fitted(MODEL, X, mode=name, rank=1 if name != "spatial" else 3, positions=24)
    assert result.report.calibration is not None
    assert result.report.calibration.init == "joint"
    for entry in replaced(result):
        assert entry.svd_error is not None
        assert entry.held_out_error is not None
        assert entry.fitted_error is not None
        assert entry.held_out_error <= entry.svd_error
        assert (FELL_BACK in entry.notes) == (entry.held_out_error == entry.svd_error)
    assert sum(FELL_BACK not in entry.notes for entry in replaced(result)) >= 1
    plain = fitted(MODEL, None, mode=name, rank=1 if name != "spatial" else 3)
    assert difference(MODEL, result.proto) < difference(MODEL, plain.proto)


def test_data_without_a_fit_measure_the_errors_of_the_weights_own_factors() -> None:
    with_data = fitted(MODEL, X, init="svd", positions=8)
    plain = fitted(MODEL, None)
    assert with_data.proto.SerializeToString() == plain.proto.SerializeToString()
    assert all(entry.held_out_error is not None for entry in replaced(with_data))
    assert plain.report.calibration is None


def test_first_replaced_conv_reads_what_the_original_delivers() -> None:
    """With a later Conv alone replaced, the two networks do not differ before it: recorded statistics tell the same."""
    result = fitted(MODEL, X, only="conv_h", mode="pointwise", rank=3, positions=64)
    (entry,) = replaced(result)
    assert entry.op_type == "Conv"
    g = outputs(MODEL, {"x": X}, ["g"])["g"]
    alone = network("g (float[N, 6, 8, 8] x) => (float[N, 8, 8, 8] h) { h = Conv(x, w4) }", w4=constants(MODEL)["w4"])
    other = fitted(alone, g, mode="pointwise", rank=3, positions=64)
    # The same rows, but for rounding; the split is the same as well.
    made, expected = (constants(done.proto) for done in (result, other))
    assert [array.shape for array in made.values()][-3:] == [array.shape for array in expected.values()][-3:]
    for one, two in zip(list(made.values())[-3:], list(expected.values())[-3:], strict=True):
        assert np.allclose(one, two, atol=1e-3 * np.abs(two).max())


@pytest.mark.parametrize("init", ["response", "joint", "compensated"])
def test_rows_come_from_the_rewritten_network_and_targets_from_the_original(
    init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 10 of paper 002, and the same for the skip; Algorithm 1 knows the original network alone."""
    seen: list[tuple[Samples, Tail]] = []

    def spy(*arguments: Any, **options: Any) -> Fit:
        seen.append(next(arguments[at : at + 2] for at in range(6) if isinstance(arguments[at], Samples)))
        return fit(*arguments, **options)

    monkeypatch.setattr(layerwise, "fit", spy)
    result = fitted(MODEL, ALL, init=init, positions=64)
    assert len(seen) == 3
    names = {"a": "x", "c": "b", "e": "d"}
    made = list({*names, *names.values()} - {"x"})
    original, rewritten = ({"x": ALL, **outputs(model, {"x": ALL}, made)} for model in (MODEL, result.proto))
    positions = np.tile(np.arange(64), (len(ALL), 1))
    for (output, read), (samples, tail) in zip(names.items(), seen, strict=True):
        conv = CONV6 if output != "a" else replace(CONV6, in_channels=3)
        source = original if init == "response" else rewritten
        assert np.allclose(samples.inputs, gather_patches(conv, source[read], positions), atol=1e-4), output
        assert np.allclose(samples.targets, gather_outputs(conv, original[output], positions), atol=1e-4), output
        assert (samples.mixed is not None) == (init == "compensated")
        assert tail.skip == ("b" if output == "e" else None)
        if samples.skip is not None:
            for rows, network_ in zip(samples.skip, (original, source), strict=True):
                assert np.allclose(rows, gather_outputs(conv, network_["b"], positions), atol=1e-4)
    assert not np.allclose(original["d"], rewritten["d"], atol=0.1)


def test_compensation_knows_both_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of x0 x^T, both centred, over the rows of the fit."""
    seen: list[Samples] = []

    def spy(*arguments: Any, **options: Any) -> Fit:
        seen.extend(argument for argument in arguments if isinstance(argument, Samples))
        return fit(*arguments, **options)

    monkeypatch.setattr(layerwise, "fit", spy)
    fitted(MODEL, ALL, init="compensated", positions=64)
    original = outputs(MODEL, {"x": ALL}, ["d"])["d"]
    x0 = gather_patches(CONV6, original, np.tile(np.arange(64), (len(ALL), 1))).astype(np.float64)
    kept = ~seen[2].held_out
    x0, x = x0[kept], seen[2].inputs[kept].astype(np.float64)
    expected = (x0 - x0.mean(axis=0)).T @ (x - x.mean(axis=0)) / kept.sum()
    assert seen[2].mixed is not None
    assert np.allclose(seen[2].mixed[0].dense(), expected, atol=1e-4 * np.abs(expected).max())


def test_later_convs_make_up_for_earlier_losses(tmp_path: Path) -> None:
    """Against fits of each Conv alone, which recorded statistics give."""
    path = tmp_path / "statistics.npz"
    asymmetric = fitted(MODEL, X, statistics=path, positions=64)
    symmetric = onnxsep.rewrite(
        MODEL, mode="depthwise", force=True, include_first=True, statistics=path, runtime=ONE_THREAD
    )
    assert symmetric.report.calibration is not None
    assert any("as if it were the only one" in note for note in symmetric.report.calibration.notes)
    assert difference(MODEL, asymmetric.proto) < difference(MODEL, symmetric.proto)
    # The first Conv has nothing before it. What stands behind it only its fit to data knows.
    first = [row(done, "conv_a").held_out_error for done in (asymmetric, symmetric)]
    assert None not in first


@pytest.mark.parametrize("mode", ["depthwise", "channel", "pointwise"])
def test_same_seed_same_bytes(mode: str) -> None:
    def made(seed: int) -> bytes:
        result = fitted(MODEL, X, mode=mode, rank=2, samples=10, positions=9, seed=seed, verify="none")
        return result.proto.SerializeToString()

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_samples_and_positions_are_what_was_asked_for() -> None:
    seen: list[tuple[int, ...]] = []
    original = gather_patches

    def spy(conv: Any, values: Array, positions: Array) -> Array:
        seen.append(positions.shape)
        return original(conv, values, positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled_rows, "gather_patches", spy)
        report = fitted(MODEL, X, samples=7, positions=5).report
    assert set(seen) == {(7, 5)}
    assert report.calibration is not None
    assert (report.calibration.samples, report.calibration.positions) == (7, 5)


def test_conv_without_bias_gets_one_and_is_counted_with_it() -> None:
    result = fitted(MODEL, X)
    entry = row(result, "conv_c")
    assert entry.parameters_before == 6 * 6 * 9
    assert entry.parameters_after == 6 * 9 + 6 * 6 + 6
    assert result.report.totals.parameters_before == stored_parameters(MODEL)
    assert result.report.totals.parameters_after == stored_parameters(result.proto)
    plain = fitted(MODEL, None)
    assert row(plain, "conv_c").parameters_after == 6 * 9 + 6 * 6
    # Three Convs have no bias, and the old ones of the others are gone.
    convs = [node for node in result.proto.graph.node if node.op_type == "Conv"]
    assert sum(len(node.input) == 3 for node in convs) == len(replaced(result))
    assert "b1" not in constants(result.proto)
    assert "b1" in constants(plain.proto)


def test_dry_run_counts_what_a_run_gives(tmp_path: Path) -> None:
    options: dict[str, Any] = {"positions": 8, "verify": "none"}
    dry, real = (fitted(MODEL, X, dry_run=dry, **options) for dry in (True, False))
    assert dry.report.dry_run
    assert dry.proto.SerializeToString() == MODEL.SerializeToString()
    assert dry.report.totals == real.report.totals
    assert [entry.held_out_error for entry in dry.report.convs] == [entry.held_out_error for entry in real.report.convs]


class Worse(Depthwise):
    """A mode whose fit is never right."""

    def fit(self, task: Task, rank: Rank, init: str) -> Factors:
        first, second = self.factorize(task, rank).weights
        return Factors([-first, second])


def test_fits_that_are_worse_are_not_taken_and_the_report_says_so(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    plain = constants(fitted(MODEL, None).proto)
    for result in (
        fitted(MODEL, X, mode=Worse(), statistics=path),
        onnxsep.rewrite(
            MODEL, mode=Worse(), force=True, include_first=True, statistics=path, runtime=ONE_THREAD, verify="none"
        ),
    ):
        assert [entry.notes for entry in replaced(result)] == [(FELL_BACK,)] * 3
        assert all(entry.held_out_error == entry.svd_error for entry in replaced(result))
        found = constants(result.proto)
        assert all((found[name] == plain[name]).all() for name in plain if "depthwise_weight" in name)


def test_only_and_skip() -> None:
    result = fitted(MODEL, X, only=["conv_c", "conv_e"], skip="conv_e")
    assert [entry.name for entry in replaced(result)] == ["conv_c"]
    assert all(entry.held_out_error is None for entry in result.report.convs if entry.status == "left")


def test_nothing_to_replace_is_no_error() -> None:
    model = network("g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Relu(x) }")
    result = fitted(model, X)
    assert result.proto.SerializeToString() == model.SerializeToString()


def test_samples_that_a_fixed_batch_leaves_over_are_not_counted() -> None:
    model = block()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    report = fitted(model, ALL, positions=8).report
    assert report.calibration is not None
    assert report.calibration.samples == 15 < len(ALL)


def test_constant_images_change_nothing_for_the_worse() -> None:
    result = fitted(MODEL, np.ones((6, 3, 8, 8), np.float32))
    for entry in replaced(result):
        assert entry.held_out_error is not None
        assert entry.svd_error is not None
        assert entry.held_out_error <= entry.svd_error
    assert np.isfinite(difference(MODEL, result.proto))


def test_two_samples_are_enough() -> None:
    result = fitted(MODEL, X[:2], positions=1)
    assert all(entry.held_out_error is not None for entry in replaced(result))
    assert np.isfinite(difference(MODEL, result.proto))
