"""Fits of low ranks come near to where more sweeps end, and forms of a classifier are chosen by softened outputs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from calibration_models import MODEL
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy
from test_fitting import patches, samples_of, weight_of

from onnxsep.calibration import fitting
from onnxsep.calibration.fitting import Fitter
from onnxsep.calibration.schedule import Tail
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.layers.conv import Conv
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode, get_mode
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured
from onnxsep.planner.output_distance import TEMPERATURE, Effect, Original
from onnxsep.planner.selection import select

Array = NDArray[Any]


def logits(seed: int, samples: int = 6, classes: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal((samples, classes)) * 8


def softened(a: Array, b: Array, temperature: float) -> float:
    """As it is defined, in scipy's words."""
    p, q = softmax(a / temperature, axis=1), softmax(b / temperature, axis=1)
    return float(temperature**2 * entropy(p, q, axis=1).mean())


@pytest.mark.parametrize("form", [lambda x: x, lambda x: softmax(x, axis=1)], ids=["logits", "probabilities"])
def test_what_decides_for_a_classifier_is_the_divergence_of_softened_distributions(form: Any) -> None:
    a, b = logits(1), logits(2)
    effect = Original([{"y": form(a)[:2]}, {"y": form(a)[2:]}], [2, 4]).effect([{"y": form(b)[:2]}, {"y": form(b)[2:]}])
    assert effect.deciding == pytest.approx(softened(a, b, TEMPERATURE), rel=1e-6)
    assert effect.value == effect.additive == pytest.approx(softened(a, b, 1), rel=1e-6)


def test_where_the_network_is_sure_softened_distributions_still_tell_changes_apart() -> None:
    """Twice the change of the logits: four times the figure, about; KL itself is nothing for both."""
    sure = np.array([[40.0, 0, 0], [0, 40, 0], [0, 0, 40]])
    change = np.random.default_rng(0).standard_normal(sure.shape)
    original = Original([{"y": sure}], [3])
    one, two = (original.effect([{"y": sure + size * change}]) for size in (1.0, 2.0))
    assert two.value < 1e-12
    assert 3 < two.deciding / one.deciding < 6


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_other_measures_decide_by_themselves(kind: Any) -> None:
    effect = Effect(kind, 0.3, 10)
    assert effect.deciding == effect.additive == pytest.approx(0.09 if kind == "relative" else 0.3)


def test_the_choice_makes_small_what_decides_and_reports_both() -> None:
    site = next(one for one in find_sites(Model(MODEL)).found if isinstance(one, ConvSite) and not one.first)
    alone = Measured.as_it_is(site)
    rows = list(candidates(site, [get_mode("spatial")], (0.3, 0.5, 0.7)))
    assert len(rows) > 1
    one, two = (Measured(site, row, row.parameters, 0, 0, 0.1, 0.2, deciding=0.5) for row in rows[:2])
    better = replace(two, effect=0.3, deciding=0.4)
    found = select([[alone, one, better]], {"params": site.conv.parameters - 1})
    assert found is not None
    assert found.chosen == (better,)
    assert found.effect == pytest.approx(0.3)
    assert found.loss == pytest.approx(0.4)
    other = select([[alone, one, replace(better, deciding=None, effect=0.6)]], {"params": site.conv.parameters - 1})
    assert other is not None
    assert other.chosen == (one,), "without it, the effect is what decides"


def test_fits_of_low_ranks_come_near_to_where_many_more_sweeps_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """CP's factors depend on each other, and sweeps go in small steps; six and four of them end .035 higher here."""
    conv, mode = Conv(12, 12, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)), get_mode("cp")
    assert isinstance(mode, Mode)
    weight = weight_of(conv)
    tail = Tail(np.ones(12), np.zeros(12), None, np.ones(12), low=0.0)
    fitters = [
        Fitter(mode, conv, (6,), weight, samples_of(conv, weight, patches(conv, 1200, seed)), tail, None, True, 1e-3)
        for seed in (1, 2, 3)
    ]
    found = sum(one.run("joint").fitted for one in fitters)
    monkeypatch.setattr(fitting, "sweeps_of", lambda _: (200, 200))
    assert found <= 1.01 * sum(one.run("joint").fitted for one in fitters)
