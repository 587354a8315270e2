"""Where a search begins if sums of effects mislead it: choices that cut all layers alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pytest
from calibration_models import MODEL

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.graph.places import Place
from onnxsep.model.io import load
from onnxsep.planner.cut_alike import LEVELS, MOST, cut_alike
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured
from onnxsep.planner.selection import Selection, select

RANKS = 2  # levels that a rank of such small layers may be below its own: ranks are whole numbers
Layers = Mapping[Place, Sequence[Measured]]


def layers(*modes: str) -> dict[Place, list[Measured]]:
    """Candidates of a small network; what each loses is the share of parameters that it lacks, squared."""
    model = load(MODEL)
    found: dict[Place, list[Measured]] = {}
    for site in find_sites(model, linear_layers=True).found:
        if isinstance(site, ConvSite):
            rows = list(candidates(site, forms(modes)))
            whole = site.conv.parameters
            errors = [(1 - row.parameters / whole) ** 2 for row in rows]
            made = zip(rows, errors, strict=True)
            found[site.place] = [
                Measured.as_it_is(site),
                *(Measured(site, row, row.parameters, None, 0, error, error) for row, error in made),
            ]
    return found


def level_of(one: Measured) -> float:
    """The least share of the parameters that a form is within."""
    return min(level for level in LEVELS if level >= one.parameters / one.site.conv.parameters)


def within(share: float, measured: Layers) -> Selection | None:
    whole = sum(several[0].parameters for several in measured.values())
    return select(list(measured.values()), {"params": share * whole})


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_every_layer_is_cut_to_about_the_same_share(share: float) -> None:
    measured = layers("spatial", "cp", "linear-bottleneck")
    found = cut_alike(measured, lambda some: within(share, some))
    assert 1 <= len(found) <= MOST
    for choice in found:
        whole = sum(several[0].parameters for several in measured.values())
        assert sum(one.parameters for one in choice.chosen) <= share * whole
        assert all(any(one is other for several in measured.values() for other in several) for one in choice.chosen)
        levels = [LEVELS.index(level_of(one)) for one in choice.chosen if one.row]
        assert max(levels) - min(levels) <= 1 + RANKS


def test_of_a_mode_there_is_the_largest_share_that_fits() -> None:
    measured = layers("spatial")
    smaller, larger = (cut_alike(measured, partial(within, share))[0] for share in (0.5, 0.8))
    assert sum(one.parameters for one in smaller.chosen) < sum(one.parameters for one in larger.chosen)
    assert {one.row.mode.name for one in larger.chosen if one.row} == {"spatial"}


def test_a_layer_without_a_form_stays_and_one_without_the_mode_gets_another() -> None:
    measured = layers("spatial", "cp")
    places = [place for place, several in measured.items() if len(several) > 1]
    measured[places[0]] = [one for one in measured[places[0]] if one.row is None or one.row.mode.name == "cp"]
    measured[places[1]] = measured[places[1]][:1]
    for choice in cut_alike(measured, lambda some: within(0.8, some)):
        first, second = (next(one for one in choice.chosen if one.site.place == place) for place in places[:2])
        assert first.row is None or first.row.mode.name == "cp"
        assert second.row is None


def test_nothing_where_nothing_fits() -> None:
    assert cut_alike(layers("spatial"), lambda some: within(0.001, some)) == []


def test_of_alike_layers_the_one_that_sums_would_ruin_is_not() -> None:
    """Effects alone are nothing for one layer, so that a choice by sums gives it its smallest form."""
    measured = layers("spatial")
    cheap = max(measured, key=lambda place: measured[place][0].parameters)
    measured[cheap] = [measured[cheap][0], *(replace(one, effect=0.0) for one in measured[cheap][1:])]
    by_sums = within(0.8, measured)
    alike = cut_alike(measured, lambda some: within(0.8, some))[0]
    assert by_sums is not None
    ruined, kept = (
        next(one for one in choice.chosen if one.site.place == cheap).parameters for choice in (by_sums, alike)
    )
    assert ruined < kept
