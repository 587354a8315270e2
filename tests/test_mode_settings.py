"""Settings of modes: declared once, given on the command line, in Python, in recipes and in plans."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from fold_models import model, tensor, value
from onnx import helper

import onnxsep
from onnxsep.compression import Pipeline, Rewrite, read_recipe
from onnxsep.errors import OptionError
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import Rank, RankAxis
from onnxsep.modes import INPUT, Array, ConvLayer, Factors, Layer, Mode, Setting, Task, base
from onnxsep.planner.reading import read_plan


class Thin(Mode):
    """k x k with fewer outputs, then 1 x 1: how many fewer is a setting."""

    name = "thin"
    summary = "k x k with fewer outputs, then 1 x 1"
    settings = (
        Setting("divisor", 4, "so many times fewer channels in between", (lambda number: number >= 1, "1 or more")),
        Setting("share", 0.5, "not used", (lambda share: 0 < share <= 1, "above 0 and at most 1")),
        Setting("wide", False, "not used"),
        Setting("side", "left", "not used", choices=("left", "right")),
    )

    def accepts(self, conv: Conv) -> str | None:
        return None if conv.out_channels % self.setting("divisor") == 0 else "divisor does not divide its channels"

    def rank_axis(self, conv: Conv, chosen: Rank) -> RankAxis | None:
        return None

    def is_exact(self, conv: Conv, rank: Rank) -> bool:
        return False

    def layers(self, conv: Conv, rank: Rank) -> tuple[Layer, ...]:
        between = conv.out_channels // self.setting("divisor")
        narrow = replace(conv, out_channels=between, bias=False)
        wide = conv.pointwise(between, conv.out_channels, bias=conv.bias)
        return ConvLayer("narrow", INPUT, narrow), ConvLayer("wide", "narrow", wide)

    def factorize(self, task: Task, rank: Rank) -> Factors:
        return Factors([np.zeros(layer.tensors[0][1]) for layer in self.layers(task.conv, rank)])

    def reconstruct(self, conv: Conv, factors: Factors) -> Array:
        return np.zeros(conv.weight_shape)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._installed(), "thin", Thin())


def two_convs(*, shared: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["t"], name="a", pads=[1] * 4),
        helper.make_node("Conv", ["t", "w1" if shared else "w2"], ["y"], name="b", pads=[1] * 4),
    ]
    tensors = [tensor(name, rng.normal(size=(8, 8, 3, 3))) for name in (["w1"] if shared else ["w1", "w2"])]
    ends = [value("x", [1, 8, 4, 4])], [value("y", [1, 8, 4, 4])]
    return model(nodes, tensors, inputs=ends[0], outputs=ends[1])


def widths(result: onnxsep.Result) -> list[int]:
    """Channels in between, of every Conv that was replaced."""
    shapes = {one.name: one.dims for one in result.model.proto.graph.initializer}
    return [shapes[node.input[1]][0] for node in result.model.proto.graph.node if node.name.endswith("narrow")]


ALL: dict[str, Any] = {"mode": "thin", "include_first": True, "verify": "none"}


@pytest.mark.parametrize(
    ("given", "between"),
    [(None, 2), ({}, 2), ({"divisor": 8}, 1), ({"divisor": "2"}, 4), ({"divisor": np.int64(2)}, 4)],
)
def test_python_takes_a_dict(given: Mapping[str, Any] | None, between: int) -> None:
    assert widths(onnxsep.rewrite(two_convs(), settings=given, **ALL)) == [between] * 2


def test_a_mode_object_keeps_its_own() -> None:
    mine = Thin().with_settings({"divisor": 2, "side": "right"})
    assert (mine.setting("divisor"), mine.setting("side"), mine.setting("share")) == (2, "right", 0.5)
    assert Thin().with_settings({"wide": "on"}).setting("wide") is True
    assert widths(onnxsep.rewrite(two_convs(), **{**ALL, "mode": mine})) == [4, 4]
    assert widths(onnxsep.rewrite(two_convs(), settings={"divisor": 1}, **{**ALL, "mode": mine}, force=True)) == [8, 8]
    assert mine.setting("divisor") == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"divisr": 2}, "mode thin has no setting 'divisr', did you mean 'divisor'?; it has divisor=4: so many times"),
        ({"divisor": 0}, "mode thin: divisor must be a whole number, 1 or more, not 0"),
        ({"divisor": 2.0}, "mode thin: divisor must be a whole number, 1 or more, not 2.0"),
        ({"divisor": True}, "divisor must be a whole number, 1 or more, not True"),
        ({"divisor": None}, "divisor must be a whole number, 1 or more, not None"),
        ({"divisor": [2]}, "divisor must be a whole number, 1 or more, not [2]"),
        ({"divisor": "2.5"}, "divisor must be a whole number, 1 or more, not '2.5'"),
        ({"share": float("nan")}, "share must be a number, above 0 and at most 1, not nan"),
        ({"share": "inf"}, "share must be a number, above 0 and at most 1, not 'inf'"),
        ({"wide": 2}, "wide must be true or false, not 2"),
        ({"wide": []}, "wide must be true or false, not []"),
        ({"side": "rihgt"}, "side must be one of left, right, not 'rihgt', did you mean 'right'?"),
        ({"side": 1}, "side must be one of left, right, not 1"),
    ],
)
def test_what_there_is_not_is_refused_before_the_model_is_read(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        onnxsep.rewrite("there is none.onnx", settings=given, **ALL)


def test_a_mode_without_settings_says_so() -> None:
    with pytest.raises(OptionError, match="mode spatial has no settings; leave settings out"):
        onnxsep.rewrite(two_convs(), mode="spatial", settings={"groups": 2})
    with pytest.raises(OptionError, match="settings must be a dict"):
        onnxsep.rewrite(two_convs(), mode="thin", settings="divisor=4")  # type: ignore[arg-type]


def test_the_command_line_and_its_report(tmp_path: Path) -> None:
    source, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "r.json"
    onnx.save(two_convs(), source)
    common = ["--include-first", "--no-verify", "-q"]
    words = ["--set", "divisor=2", "--set", "wide=yes"]
    assert run("rewrite", source, out, "-m", "thin", *words, *common, "--report", report).returncode == 0
    assert onnx.load(out).graph.initializer[0].dims[0] == 4
    first = out.read_bytes()
    assert json.loads(report.read_text())["options"]["settings"] == {"divisor": "2", "wide": "yes"}
    assert "mode thin, rank paper, divisor=2, wide=yes" in run("report", report).stdout
    assert "--set divisor=2 --set wide=yes" in run("rerun", report, "--print").stdout
    again = run("rerun", report, tmp_path / "again.onnx")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.onnx").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["divisor"], "--set 'divisor': write it as NAME=VALUE, for example reduction=4"),
        (["=4"], "--set '=4': write it as NAME=VALUE"),
        (["divisor="], "--set 'divisor=': write it as NAME=VALUE"),
        (["divisor=2", "divisor=4"], "--set: 'divisor' is given twice"),
        (["groups=4"], "mode thin has no setting 'groups'; it has divisor=4"),
        (["divisor=many"], "mode thin: divisor must be a whole number, 1 or more, not 'many'"),
    ],
)
def test_bad_words_end_in_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    onnx.save(two_convs(), tmp_path / "in.onnx")
    given = [part for word in words for part in ("--set", word)]
    done = run("rewrite", tmp_path / "in.onnx", tmp_path / "out.onnx", "-m", "thin", *given)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_modes_lists_them() -> None:
    told = run("modes").stdout
    assert "    --set divisor=4: so many times fewer channels in between (a whole number, 1 or more)\n" in told
    assert "    --set side=left: not used (one of left, right)\n" in told


def test_a_recipe_has_them_as_keys(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    step = '[[steps]]\ncommand = "rewrite"\nmode = "thin"\n'
    for form in ("settings.divisor = 2\n", "settings = { divisor = 2 }\n", "[steps.set]\ndivisor = 2\n"):
        recipe.write_text(step + form)
        assert read_recipe(recipe).steps == (Rewrite(mode="thin", settings={"divisor": 2}),)
    assert "settings divisor=2" in str(read_recipe(recipe).steps[0])
    with pytest.raises(OptionError, match="settings' must be a dict"):
        Rewrite(mode="thin", settings=2)
    with pytest.raises(OptionError, match="mode thin has no setting 'grups'"):
        Pipeline([Rewrite(mode="thin", settings={"grups": 2})])("there is no such model.onnx")


def test_a_plan_holds_them(tmp_path: Path) -> None:
    result = onnxsep.rewrite(two_convs(), settings={"divisor": 2, "side": "right", "wide": True, "share": 0.25}, **ALL)
    assert 'settings = { divisor = 2, side = "right", wide = true, share = 0.25 }' in str(result.plan)
    result.plan.save(tmp_path / "plan.toml")
    text = (tmp_path / "plan.toml").read_text()
    again = onnxsep.rewrite(two_convs(), plan=tmp_path / "plan.toml", verify="none")
    assert again.model.proto == result.model.proto
    assert onnxsep.rewrite(two_convs(), plan=result.plan, verify="none").model.proto == result.model.proto
    (tmp_path / "plan.toml").write_text(text.replace("divisor = 2", "divisor = 8", 1))
    assert widths(onnxsep.rewrite(two_convs(), plan=tmp_path / "plan.toml", verify="none")) == [1, 4]
    (tmp_path / "plan.toml").write_text(text.replace("divisor = 2", "divisor = 0", 1))
    with pytest.raises(OptionError, match=r"layer 'a': mode thin: divisor must be a whole number, 1 or more, not 0"):
        onnxsep.rewrite(two_convs(), plan=tmp_path / "plan.toml")
    with pytest.raises(OptionError, match="so settings cannot be given with it"):
        onnxsep.rewrite(two_convs(), plan=result.plan, settings={"divisor": 2})
    (tmp_path / "plan.toml").write_text(re.sub(r"settings = \{[^}]*\}", "settings = 4", text, count=1))
    with pytest.raises(OptionError, match="layer 'a': settings must be a table"):
        read_plan(tmp_path / "plan.toml")


def test_a_shared_weight_gets_factors_for_each_setting(tmp_path: Path) -> None:
    plan = '[layers]\na = { mode = "thin", settings = { divisor = 8 } }\nb = { mode = "thin" }\n'
    (tmp_path / "plan.toml").write_text("schema = 1\n" + plan)
    result = onnxsep.rewrite(two_convs(shared=True), plan=tmp_path / "plan.toml", verify="none")
    assert widths(result) == [1, 2]
