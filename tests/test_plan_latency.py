"""Time as a budget of plans: what is promised and kept, what is left alone, caches, and times of another device."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import latency_models
import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, images
from command_line import run
from latency_models import residual, rows_of

import onnxsep
from onnxsep import PlanResult
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.engine.sites import find_sites
from onnxsep.errors import OptionError, TargetError
from onnxsep.model.content import content_hashes
from onnxsep.model.io import Model
from onnxsep.options.tomlfile import read_toml
from onnxsep.planner import latency, timings
from onnxsep.planner.cache import MARKER
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.latency_work import row_key, work_of
from onnxsep.planner.plan_file import is_plan

MODEL, X = residual(8, 8), images(24, (3, 8, 8))
MODES = ["spatial", "depthwise"]
QUICK: dict[str, Any] = {"modes": MODES, "positions": 8, "rounds": 0, "data": X, "runtime": ONE_THREAD}
SHARES, ERROR = {"one": 0.3, "two": 0.3, "three": 0.2}, 0.001
SLOWER = 1.5  # of layer "three", the only one of its kind: times are those of kinds


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((latency, "PIECES"), (latency, "SHARES"), (timings, "THOROUGH")):
        monkeypatch.setattr(place, name, latency_models.QUICK)


@dataclass(frozen=True)
class Device:
    """A device on which each form of a layer takes a time that is known."""

    model: onnx.ModelProto

    def ratio(self, row: ConvReplacement) -> float:
        """Layer "three" gets slower; others take their share of the parameters in spatial, half of it in depthwise."""
        if row.site.name == "three":
            return SLOWER
        share = row.parameters / row.site.conv.parameters
        return share if row.mode.name == "spatial" else share / 2

    def file(self, path: Path, modes: list[str] | None = None, **changed: Any) -> Path:
        """What the kit's script would write there, with layers of equal shapes told apart."""
        model = Model(self.model)
        sites = find_sites(model, linear_layers=True)
        _, _, some = rows_of(self.model, *(modes or MODES))
        layers = list({row.site.place: row.site for row in some}.values())
        rows = [row for site in layers for row in candidates(site, forms(modes or MODES))]
        work = work_of(model, sites, rows)
        pieces: dict[str, Any] = {}
        several: dict[str, Any] = {}
        for row in rows:
            found, layer = work.forms[row_key(row)], row.site.name
            assert not isinstance(found, str)
            key, form = found
            pieces[key] = {"ms": 1.0, "share": SHARES.get(layer, 0.05), "error": ERROR}
            ratio = self.ratio(row)
            several.setdefault(key, {})[form] = {"ms": ratio, "ratio": ratio, "error": ERROR}
        machine = {"runtime": "1.2", "provider": "P", "threads": 2, "processor": "a phone", "system": ""}
        content = {
            "kind": "onnxsep latencies",
            "schema": 1,
            "onnxsep": "0.1.0",
            "model": {"name": "m.onnx", "graph": content_hashes(model).graph, "layers": [s.name for s in layers]},
            "times": {"machine": machine, "whole_ms": 10.0, "pieces": pieces, "forms": several},
        }
        path.write_text(json.dumps({**content, **changed}))
        return path


def plan(**options: Any) -> PlanResult:
    return onnxsep.plan(MODEL, **{**QUICK, **options})


def by_name(result: PlanResult) -> dict[str, Any]:
    return {entry.name: entry for entry in result.report.layers}


def expected(result: PlanResult) -> float:
    """What the layers of a plan come to on the device."""
    device, model = Device(MODEL), Model(MODEL)
    sites = find_sites(model, linear_layers=True)
    total = 1.0
    for entry in result.report.layers:
        if entry.mode:
            site = next(one for one in sites.found if one.name == entry.name)
            assert isinstance(site, ConvSite)
            row = next(one for one in candidates(site, forms([entry.mode])) if one.rank == entry.rank)
            total += SHARES.get(entry.name, 0.05) * (device.ratio(row) - 1)
    return total


@pytest.mark.parametrize("target", ["latency=0.75", "latency=7.5ms", "latency=7500us"])
def test_a_plan_for_another_device(target: str, tmp_path: Path) -> None:
    found = plan(target=target, latency_from=Device(MODEL).file(tmp_path / "latency.json"))
    report, (budget,) = found.report, found.report.targets
    assert (budget.before, budget.allowed) == (10_000_000, 7_500_000)
    assert report.latency is not None
    assert report.latency.promised == pytest.approx(expected(found))
    assert 0.5 < report.latency.promised <= 0.75
    assert budget.after == pytest.approx(1e7 * report.latency.promised, abs=5)
    assert report.latency.measured is None  # nothing of that device is here
    assert "a phone" in report.latency.machine
    last = by_name(found)["three"]
    assert (last.mode, last.reason, last.candidates) == (None, "no form of it is faster", 0)
    found.save(tmp_path / "p.toml")
    said = read_toml(tmp_path / "p.toml")["measured"]
    assert said["latency_promised"] == pytest.approx(report.latency.promised, rel=1e-3)
    assert "latency_measured" not in said


def test_a_slower_form_is_chosen_only_where_it_is_smaller(tmp_path: Path) -> None:
    file = Device(MODEL).file(tmp_path / "latency.json")
    small = plan(target=["latency=1.0", "params=0.62"], latency_from=file)
    chosen = by_name(small)["three"]
    assert chosen.candidates > 0
    assert all(one.after is not None and one.after <= one.allowed for one in small.report.targets)
    alone = plan(target=["latency=1.0", "macs=0.8"], latency_from=file)
    assert by_name(alone)["three"].candidates == 0


def test_a_time_that_cannot_be_had(tmp_path: Path) -> None:
    file = Device(MODEL).file(tmp_path / "latency.json")
    with pytest.raises(TargetError, match=r"latency=0\.2 allows 2 ms of 10 ms, and the least") as caught:
        plan(target="latency=0.2", latency_from=file)
    (target,) = caught.value.report.targets
    assert target.after is None
    near = str(caught.value).split("target ")[1].split(")")[0]
    reached = plan(target=near, latency_from=file).report.targets[0]
    assert reached.after == target.least


def test_measured_here_promised_and_measured_as_a_whole(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    words = ["plan", "m.onnx", "p.toml", "--data", "x.npy", "--threads", "1", "--positions", "8", "--rounds", "1"]
    words += ["-m", "spatial", "--only", "two", "--target", "latency=20ms", "--target", "params=0.9"]
    done = run(*words, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the sum over layers promises" in done.stdout.replace("\n", " ")
    first = (tmp_path / "p.toml").read_bytes()
    kept = sorted(path.name for path in (tmp_path / "p.cache").iterdir())
    assert MARKER in kept
    said = read_toml(tmp_path / "p.toml")["measured"]
    assert said["latency_promised"] > 0
    assert said["latency_measured"] > 0
    assert onnxsep.read_report(tmp_path / "r.json").latency.kept == "p.cache"  # type: ignore[attr-defined]
    assert run(*words, "--quiet", cwd=tmp_path).returncode == 0
    assert (tmp_path / "p.toml").read_bytes() == first  # the same cache, the same plan
    assert sorted(path.name for path in (tmp_path / "p.cache").iterdir()) == kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused = run(*words, "--cache", "mine", cwd=tmp_path)
    assert refused.returncode == 1
    assert "no cache of onnxsep" in refused.stderr.replace("\n", " ")
    assert is_plan(tmp_path / "p.toml")


def test_rewrite_for_a_time() -> None:
    done = onnxsep.rewrite(
        MODEL, mode="spatial", target="latency=1.0", only="two", data=X, positions=8, runtime=ONE_THREAD, verify="none"
    )
    assert done.report.planning is not None
    assert done.report.planning.latency is not None
    assert done.report.planning.latency.kept is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "params=0.5", "latency_from": "l.json"}, "latency_from is for target latency="),
        ({"target": "latency=0.5", "latency_from": "l.json"}, "latency_from l.json is not there"),
        ({"target": ["latency=0.5", "latency=5ms"]}, "latency is given twice"),
        ({"target": "latency=0.5", "only": "three", "modes": ["pointwise"]}, "so there is nothing that could change"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        plan(**options)


def test_files_of_other_models_and_forms(tmp_path: Path) -> None:
    other = Device(residual(8, 8, names="other_")).file(tmp_path / "other.json")
    with pytest.raises(OptionError, match="the latencies of another model"):
        plan(target="latency=0.9", latency_from=other)
    with pytest.raises(OptionError, match="has none of the forms that are asked for"):
        plan(target="latency=0.9", latency_from=Device(MODEL).file(tmp_path / "l.json"), modes=["cp"])
