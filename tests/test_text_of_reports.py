"""The text of a report is the same wherever it is asked for."""

import builtins
from pathlib import Path

import pytest

import onnxsep
from onnxsep.rewriting.report import RewriteReport

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def report() -> RewriteReport:
    return onnxsep.rewrite(DIGITS, mode="spatial").report


class ZMQInteractiveShell:
    """By this name rich knows a notebook."""


def test_text_in_a_notebook_goes_where_it_is_printed(report: RewriteReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    outside = str(report)
    assert "block1_conv1" in outside
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    assert str(report) == outside


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_text_has_no_control_characters_whatever_the_environment_says(
    report: RewriteReport, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = str(report)
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert str(report) == plain
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) > 80
