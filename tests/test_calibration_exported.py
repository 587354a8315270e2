"""Fitting to data on trained models from nine exporters: every Conv is accounted for, valid, and runs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from exporters import EXPORTED, LONG
from random_examples import DEEP, some

import onnxsep
from onnxsep.running.feeds import make_feeds
from onnxsep.running.runtime import Runner, RuntimeOptions


@pytest.mark.parametrize("name", some((name for name in EXPORTED if DEEP or name != LONG), 3))
def test_fitted_to_random_inputs(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    source = onnxsep.load(path)
    feeds = [make_feeds(source, seed=seed).arrays for seed in range(4)]
    result = onnxsep.rewrite(source, mode="depthwise", data=feeds, samples=4, positions=16, verify="none")
    replaced = [row for row in result.report.convs if row.status == "replaced"]
    inside = [row for row in replaced if row.where]
    for row in replaced:
        if row.where:  # in a nested graph or function, where data are not followed
            assert row.held_out_error is None
            continue
        assert row.held_out_error is not None
        assert row.svd_error is not None
        assert row.held_out_error <= row.svd_error
        assert np.isfinite(row.held_out_error)
    if replaced and not inside:
        assert np.mean([row.held_out_error for row in replaced]) < np.mean([row.svd_error for row in replaced])
    saved = result.save(tmp_path / "out.onnx").path
    onnx.checker.check_model(str(saved), full_check=True)
    outputs = Runner(onnxsep.load(saved), RuntimeOptions(threads=1))(feeds[0])
    assert all(np.isfinite(array).all() for array in outputs.values())
