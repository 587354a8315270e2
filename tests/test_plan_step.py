"""`plan` as a step of a pipeline: what it plans the next step carries out, also where the run goes on later."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from calibration_models import ONE_THREAD, images
from latency_models import residual

import onnxsep
from onnxsep.compression import Pipeline, Plan, Prune, Rewrite, compress, read_recipe
from onnxsep.compression.manifest import Manifest
from onnxsep.errors import OptionError
from onnxsep.rewriting.report import RewriteReport

MODEL, X = residual(16, 8), images(40, (3, 8, 8))
PLAN = Plan(target="params=0.9", modes=["spatial"], rounds=0, positions=8)
CARRY = Rewrite(plan="planned", positions=8)
RUN: dict[str, Any] = {"data": X, "runtime": ONE_THREAD, "runs": 0}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("run") / "work"
    return compress(MODEL, Pipeline([PLAN, CARRY]), work=work, keep_steps=True, **RUN), work


def test_the_next_step_carries_the_plan_out(done: Any) -> None:
    result, _ = done
    planned, carried = (step.report for step in result.report.steps)
    assert {layer.name: (layer.mode, layer.rank) for layer in planned.layers if layer.mode} == {
        layer.name: (layer.mode, layer.rank) for layer in carried.convs if layer.mode
    }
    assert any(layer.mode for layer in planned.layers)
    original, after, last = result.report.evaluation.models
    assert original.parameters == after.parameters  # a plan changes nothing
    assert last.parameters == planned.targets[0].after < 0.9 * original.parameters
    assert not any("step 1" in warning for warning in result.report.warnings)


def test_the_plan_of_a_finished_step_is_found_again(done: Any, tmp_path: Path) -> None:
    result, work = done
    assert (work / "01-plan.json").is_file()
    (work / "02-rewrite.json").unlink()
    manifest = work / "manifest.json"
    content = manifest.read_text(encoding="utf-8")
    found = Manifest.model_validate_json(content)
    manifest.write_text(found.model_copy(update={"steps": found.steps[:1]}).model_dump_json(), encoding="utf-8")
    again = compress(MODEL, Pipeline([PLAN, CARRY]), work=work, keep_steps=True, **RUN)
    assert again.report.resumed_after == 1
    assert [step.sha256 for step in again.report.steps] == [step.sha256 for step in result.report.steps]


def test_a_recipe_says_so(tmp_path: Path) -> None:
    text = '[[steps]]\ncommand = "plan"\ntarget = "params=0.9"\nlatency-from = "l.json"\n\n'
    (tmp_path / "r.toml").write_text(text + '[[steps]]\ncommand = "rewrite"\nplan = "planned"\n')
    one, other = read_recipe(tmp_path / "r.toml").steps
    assert one.options["latency_from"] == str((tmp_path / "l.json").absolute())
    assert other.options["plan"] == "planned"
    assert other.plan() is None
    (tmp_path / "r.toml").write_text('[[steps]]\ncommand = "rewrite"\nplan = "other"\n')
    assert read_recipe(tmp_path / "r.toml").steps[0].options["plan"] == str((tmp_path / "other").absolute())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([CARRY], "step 1 (rewrite) carries out what the step before it plans; put a step 'plan' there"),
        ([PLAN], "step 1 (plan): no step carries it out"),
        ([PLAN, Prune(), CARRY], "step 1 (plan): no step carries it out"),
        ([PLAN, Rewrite(mode="spatial")], "step 1 (plan): no step carries it out"),
        ([Plan(target="params=2.5"), CARRY], "step 1 (plan): target 'params=2.5'"),
        ([Plan(target="params=0.5", then="int8", percentile=99.0), CARRY], "step 1 (plan): percentile needs method"),
    ],
)
def test_steps_that_do_not_go_together(steps: list[Any], said: str) -> None:
    with pytest.raises(OptionError) as failed:
        compress(MODEL, Pipeline(steps), **RUN)
    assert said in str(failed.value)


def test_a_file_of_that_name_is_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    onnxsep.rewrite(MODEL, mode="spatial", rank=4, only="one", dry_run=True).plan.save("planned")
    result = compress("m.onnx", Pipeline([Rewrite(plan="./planned")]), runs=0, runtime=ONE_THREAD)
    report = result.report.steps[0].report
    assert isinstance(report, RewriteReport)
    assert [conv.name for conv in report.convs if conv.mode] == ["one"]
