"""What fits at full size save: products in the order that BLAS wants, threads, rounds, starts of a CP, gathering."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from calibration_models import MODEL, X, fitted
from numpy.typing import NDArray
from test_fitting import CONV, apply, no_tail, samples_of, weight_of

from onnxsep.algebra import contraction, polyadic, polyadic_large
from onnxsep.algebra.contraction import Repeated
from onnxsep.algebra.polyadic import exact_rank, improved, orthogonal_terms, squared_errors
from onnxsep.calibration import fitting
from onnxsep.calibration import samples as gathering
from onnxsep.calibration.fitting import fit
from onnxsep.calibration.sampling import gather_patches
from onnxsep.modes.base import get_mode

Array = NDArray[Any]
# The steps of depthwise, spatial and tucker that conjugate gradients take, and sizes of their letters.
STEPS = {
    "toi,ToI,ikIK,TIK->tik": {"t": 2, "T": 2, "o": 5, "i": 7, "I": 7, "k": 3, "K": 3},
    "pbo,PBo,iabIAB,IAP->iap": dict(zip("pPboBiaIA", (4, 4, 3, 5, 3, 7, 2, 7, 2), strict=True)),
    "srk,os,SRK,oS,ikIK,RI->ri": dict(zip("srSRkKoiI", (3, 4, 3, 4, 2, 2, 5, 7, 7), strict=True)),
}


@pytest.mark.parametrize("equation", STEPS)
def test_a_gram_matrix_in_parts_and_kept_in_another_order(equation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contraction, "_SLICED", 1)
    monkeypatch.setattr(contraction, "_PART", 3)  # 7 is 3 + 3 + 1
    terms, rng = equation.split("->")[0].split(","), np.random.default_rng(0)
    shapes = [tuple(STEPS[equation][letter] for letter in term) for term in terms]
    gram, kept = rng.standard_normal(shapes[-2]), dict[Any, Any]()
    for _ in range(2):  # the second time with other factors, but what was kept of the Gram matrix
        operands = [*(rng.standard_normal(shape) for shape in shapes[:-2]), gram]
        product = Repeated(equation, operands, len(operands), shapes[-1], 6, (len(operands) - 1, kept))
        assert len(product._parts) == 3
        for _ in range(2):
            changed = rng.standard_normal(shapes[-1])
            np.testing.assert_allclose(product(changed), np.einsum(equation, *operands, changed), atol=1e-10)
    assert kept


def test_one_blas_thread_for_a_library_that_is_loaded_later() -> None:
    script = (
        "import json, numpy\n"
        "from threadpoolctl import threadpool_info\n"
        "from onnxsep.algebra.threads import one_thread\n"
        "with one_thread():\n"
        "    import scipy.linalg\n"
        "    print(json.dumps([one['num_threads'] for one in threadpool_info() if one['user_api'] == 'blas']))\n"
    )
    several = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=several)
    assert set(json.loads(done.stdout)) == {1}


def words(told: Sequence[str]) -> set[str]:
    """Which fits were begun."""
    return {what.partition(",")[0] for what in told}


def test_a_round_that_gains_nothing_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_LARGE", 0)
    rows, told = np.random.default_rng(1).standard_normal((2000, 36)), list[str]()
    weight = weight_of(CONV)
    samples = samples_of(CONV, weight, rows, bias=-6.0)  # most outputs are clipped
    relu = replace(no_tail(CONV), low=0.0)
    mode = get_mode("spatial")
    exact = fit(mode, CONV, (12,), weight, samples, relu, init="joint", old_bias=None, new_bias=True, told=told.append)
    assert exact.held_out < 1e-5
    assert words(told) == {"fit 1 of 4", "fit 2 of 4"}
    told.clear()
    low = fit(mode, CONV, (2,), weight, samples, relu, init="joint", old_bias=None, new_bias=True, told=told.append)
    assert len(words(told)) > 2  # here rounds gain
    # The result is as good as its own outputs say: measured anew, from the factors alone.
    held = samples.held_out
    predicted = apply(CONV, mode.reconstruct(CONV, low.factors), rows[held]) + low.bias
    wanted = np.maximum(samples.targets[held], 0)
    error = np.linalg.norm(np.maximum(predicted, 0) - wanted) / np.linalg.norm(wanted - wanted.mean(axis=0))
    assert low.held_out == pytest.approx(error, rel=1e-4)


def falling(shape: tuple[int, ...], seed: int) -> Array:
    """A tensor whose channels have a spectrum that falls."""
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(shape)
    for axis in (1, 2):
        basis = np.linalg.qr(rng.standard_normal((shape[axis], shape[axis])))[0]
        scaled = basis * np.arange(1, shape[axis] + 1) ** -0.5
        tensor = np.moveaxis(np.tensordot(tensor, scaled, (axis, 1)), -1, axis)
    return tensor


@pytest.mark.parametrize("shape", [(1, 24, 20, 3, 3), (2, 16, 16, 5), (1, 12, 12, 2, 3, 2)])
def test_large_tensors_end_where_small_ones_do(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = falling(shape, 3)
    rank = exact_rank(shape[1:]) // 3
    start = orthogonal_terms(tensors, rank)
    small = squared_errors(tensors, improved(tensors, start, 11))
    monkeypatch.setattr(polyadic, "LARGE", 0)
    large = squared_errors(tensors, improved(tensors, start, 30))
    assert (large < squared_errors(tensors, start)).all()
    assert np.sqrt(large).sum() < 1.05 * np.sqrt(small).sum()


def test_noise_in_the_start_takes_nothing_from_what_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polyadic, "LARGE", 0)
    monkeypatch.setattr(polyadic_large, "_SWEEPS", 1)
    tensors = falling((1, 14, 12, 3, 3), 4)
    start = orthogonal_terms(tensors, exact_rank(tensors.shape[1:]) - 2)
    before = squared_errors(tensors, start)
    found = improved(tensors, start, 30)
    assert squared_errors(tensors, found) <= before * (1 + 1e-3)
    nothing = np.zeros((1, 6, 5, 3, 3))
    empty = improved(nothing, [np.zeros((1, size, 4)) for size in (6, 5, 3, 3)], 5)
    assert not squared_errors(nothing, empty).any()


def test_what_both_networks_share_is_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = list[int]()
    real = gather_patches

    def counted(*given: Any) -> Any:
        gathered.append(len(given[1]))
        return real(*given)

    monkeypatch.setattr(gathering, "gather_patches", counted)
    first = fitted(MODEL, X, mode="spatial", rank="0.5", samples=len(X) - 1, only="conv_c", verify="none")
    alone = len(gathered)
    fitted(MODEL, X, mode="spatial", rank="0.5", samples=len(X) - 1, verify="none")
    assert first.report.convs
    assert alone == 0
    assert gathered
