"""Budgets in the place of a mode and a rank: a plan is made, and carried out."""

from collections.abc import Callable, Mapping
from typing import Any

from onnxsep.calibration import Fitting
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError, spelled
from onnxsep.model.io import Model
from onnxsep.planner.api import plan
from onnxsep.planner.forms import forms
from onnxsep.planner.targets import parse_targets
from onnxsep.rewriting.choosing import ByPlan, Choice, Chosen


class ByTarget(Choice):
    """What a plan for these budgets says.

    Args:
        asked: The options of ``onnxsep.plan``, but for the data.
    """

    mode = rank = "plan"
    force = True
    measures = True

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._asked = asked
        texts = asked["target"]
        self._targets = parse_targets([texts] if isinstance(texts, str) else texts)
        self._modes = forms(asked["modes"])
        self.plan = "for " + ", ".join(one.text for one in self._targets)

    def check(self, fitting: Fitting, *, images: bool = False) -> None:  # noqa: D102 - the base class says it
        if fitting.data is None:
            raise OptionError(f"{spelled('target')} needs data to measure on; add {spelled('data')}")
        if fitting.wanted is not None:
            raise OptionError(f"{spelled('target')} fits each form as well as it can; leave {spelled('init')} out")
        for mode in self._modes:
            fitting.check(mode, images=images)

    def sites(self, find: Callable[[bool], Sites]) -> Sites:  # noqa: D102
        return find(any(mode.linear_layers for mode in self._modes))

    def rows(self, model: Model, sites: Sites, fitting: Fitting) -> Chosen:  # noqa: D102
        assert fitting.data is not None
        found = plan(model, data=fitting.data, **self._asked)
        chosen = ByPlan(found.plan).rows(model, sites, fitting)
        return Chosen(chosen.plan, chosen.init, chosen.said, planned=found)
