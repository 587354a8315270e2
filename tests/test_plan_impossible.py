"""Targets that no form is small enough for are refused before anything is measured."""

from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
from calibration_models import images
from test_curves import model

import onnxsep
from onnxsep.errors import TargetError
from onnxsep.planner.report import PlanReport
from onnxsep.planner.survey import Survey


@pytest.mark.parametrize(
    ("target", "then"),
    [
        ("params=0.001", None),
        ("macs=10", None),
        ("size=0.01", None),
        ("size=300", "int8"),
        (("params=0.9", "macs=1"), None),
    ],
)
def test_what_cannot_be_is_said_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, target: str, then: Literal["int8"] | None
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(Survey, "measured", refuse)
    with pytest.raises(TargetError, match="the least that can be had is") as caught:
        onnxsep.plan(model(), data={"x": images(30, (3, 8, 8))}, target=target, then=then, modes=("spatial", "channel"))
    report = caught.value.report
    assert isinstance(report, PlanReport)
    assert report.rounds == ()
    assert "nothing was measured" in str(report)


def test_the_least_that_is_said_can_be_had(tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": {"x": images(30, (3, 8, 8))}, "modes": ("spatial",), "rounds": 0}
    onnx.save(model(), tmp_path / "in.onnx")
    with pytest.raises(TargetError) as caught:
        onnxsep.plan(tmp_path / "in.onnx", **given, target="params=1")
    assert isinstance(caught.value.report, PlanReport)
    least = caught.value.report.targets[0].least
    assert onnxsep.plan(tmp_path / "in.onnx", **given, target=f"params={least}").report.targets[0].after == least
    with pytest.raises(TargetError):
        onnxsep.plan(tmp_path / "in.onnx", **given, target=f"params={least - 1}")
