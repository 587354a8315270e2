"""One form for all layers, as large as goals allow, and a search that trains it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import images
from random_examples import DEEP
from test_compress_goals import network

import onnxsep
from onnxsep.compression.goals import Goals
from onnxsep.compression.search_options import SearchOptions
from onnxsep.compression.searching import Search
from onnxsep.compression.sizing import Form, begin, fitting_share
from onnxsep.data import open_data
from onnxsep.planner.targets import budgets_of, parse_targets
from onnxsep.reporting.model_info import size_bytes
from onnxsep.running.runtime import Runner, RuntimeOptions

OPTIONS: dict[str, Any] = {"activations": "uint8", "names": "short"}


def share_for(form: Form, target: str) -> float | None:
    model = onnxsep.load(network())
    data = open_data({"x": images(20, (3, 8, 8))}, model)
    goals = Goals(budgets_of(parse_targets([target])), None)
    return fitting_share(form, model, goals, data, OPTIONS, RuntimeOptions())


ALL: list[tuple[Form, str]] = [
    *(("spatial", "size=6000"), ("channels", "params=0.4")),
    *(("channels", "size=6000"), ("spatial", "params=0.4"), ("spatial", "macs=0.4")),
]


@pytest.mark.parametrize(("form", "target"), ALL if DEEP else ALL[:2])
def test_the_largest_share_keeps_within_a_budget_and_a_larger_one_does_not(form: Form, target: str) -> None:
    share = share_for(form, target)
    assert share is not None
    kind = target.partition("=")[0]
    given: dict[str, Any] = {"data": {"x": images(4, (3, 8, 8))}, "metric": lambda *_: 1.0, "runs": 0, "memory": False}
    whole = onnxsep.evaluate([network()], **given).models[0]

    def cost(used: float) -> float:
        step = begin(form, used)
        data = {"x": images(20, (3, 8, 8))}
        if step.name == "prune":
            made = onnxsep.prune(network(), **step.options, verify="none").model
        else:
            made = onnxsep.rewrite(network(), **step.options, data=data, verify="none").model
        small = onnxsep.quantize(made, data=data, verify="none", samples=8, **OPTIONS).model
        row = onnxsep.evaluate([small], **given).models[0]
        if kind == "size":
            return size_bytes(small) / 6000
        figures = {"params": (row.parameters, whole.parameters), "macs": (row.macs, whole.macs)}
        return figures[kind][0] / (0.4 * figures[kind][1])

    assert cost(share) <= 1
    assert cost(min(share + 0.12, 0.97)) > 1


def test_what_cannot_be_has_no_share() -> None:
    assert share_for("spatial", "size=100") is None


@pytest.mark.skipif(not DEEP, reason="it takes 10 seconds: make deep")
def test_a_search_trains_one_form_where_that_is_enough(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install onnxsep[finetune])")
    onnx.save(network(), tmp_path / "in.onnx")
    x = images(80, (3, 8, 8))
    (scores,) = Runner(onnxsep.load(tmp_path / "in.onnx"), RuntimeOptions())({"x": x}).values()
    np.savez(tmp_path / "train.npz", x=x, y=scores.argmax(axis=1))
    options = SearchOptions(target="size=0.25", max_drop=99, data=tmp_path / "train.npz", runs=0, seed=1)
    search = Search(tmp_path / "in.onnx", options)
    search._ways = tuple(planned for planned in search.planned if planned.way.form != "plan")  # it takes longer
    forms = [planned.way.form for planned in search.planned]
    assert set(forms[-3:]) <= {"spatial", "channels"}
    assert "as the goals allow" in " ".join(search.planned[forms.index("channels")].steps)
    result = search()
    assert result.report.ways[-1].reached
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size <= 0.25 * (tmp_path / "in.onnx").stat().st_size
    recipe = (tmp_path / "out.recipe.toml").read_text()
    assert "sparsity" in recipe or "rank" in recipe
