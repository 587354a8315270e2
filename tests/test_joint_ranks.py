"""More rank, less error: the joint fits of every mode on what a trained network really reads."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from digits import split

import onnxsep
from onnxsep.algebra.linalg import Array
from onnxsep.calibration.fitting import fit
from onnxsep.calibration.sampled import Samples
from onnxsep.calibration.schedule import Step, make_schedule
from onnxsep.calibration.walk import CalibrationOptions, Walk
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites, find_sites, read_weight
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import conv_modes, get_mode
from onnxsep.modes.ranks import rank_axes
from onnxsep.running.runtime import RuntimeOptions

ROOT = Path(__file__).resolve().parents[1]
RISE = 0.02
"""Stated tolerance, of the error before: alternating least squares ends in a local minimum, each rank in its own."""


def captured(name: str) -> tuple[Step, Samples, Array]:
    """The samples of one Conv of the digits network, before any other is replaced."""
    model = onnxsep.load(ROOT / "models" / "digits" / "digits_cnn.onnx")
    sites: Sites = find_sites(model, linear_layers=True)
    (site,) = (found for found in sites.found if isinstance(found, ConvSite) and found.name == name)
    walk = Walk(model, [{"image": split()[0].images[:30]}], CalibrationOptions(), RuntimeOptions(threads=1))
    (step,) = make_schedule(model, sites.scopes, [site])
    walk.advance(step)
    (rows,) = walk.rows(site)
    weight = read_weight(model, sites, site)
    targets = (rows.patches @ weight.reshape(len(weight), -1).T).astype(np.float32)
    return step, Samples(rows.patches, targets, None, rows.held_out), weight


@pytest.fixture(scope="module")
def block() -> tuple[Step, Samples, Array]:
    return captured("block1_conv1")


@pytest.fixture(scope="module")
def head() -> tuple[Step, Samples, Array]:
    model = onnxsep.load(ROOT / "models" / "digits" / "digits_cnn.onnx")
    (gemm,) = (site for site in find_sites(model, linear_layers=True).found if site.op_type == "Gemm")
    return captured(gemm.name)


@pytest.mark.parametrize("mode", [name for name, mode in conv_modes().items() if "joint" in mode.inits])
def test_held_out_error_does_not_rise_with_rank(mode: str, request: pytest.FixtureRequest) -> None:
    step, samples, weight = request.getfixturevalue("head" if mode == "pointwise" else "block")
    chosen, conv = get_mode(mode), step.site.conv
    if chosen.rank_axis(conv, ()) is None:
        pytest.skip("it has no rank")
    ranks: list[Rank] = []
    for wanted in (1, 2, 6, 24):
        rank: Rank = ()
        while (axis := chosen.rank_axis(conv, rank)) is not None:
            rank += (axis.clamp(wanted),)
        if rank not in ranks:
            ranks.append(rank)
    errors = [
        fit(chosen, conv, rank, weight, samples, step.tail, init="joint", old_bias=None, new_bias=True).held_out
        for rank in ranks
    ]
    assert len(errors) >= 3
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + RISE) + 1e-6, list(zip(ranks, errors, strict=True))
    full = ranks[-1] == tuple(axis.full for axis in rank_axes(chosen, conv, ranks[-1]))
    if full and chosen.is_exact(conv, ranks[-1]):
        assert errors[-1] < 1e-5
