"""Targets of plans beside sums of costs: what may be lost, activation memory, a file that is filled, a metric."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import BLOCK, MODEL, ONE_THREAD, SHAPES, block, images, network, outputs
from command_line import run

import onnxsep
from onnxsep import PlanResult
from onnxsep.compression import Rewrite
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import Plan
from onnxsep.engine.sites import find_sites
from onnxsep.errors import DataError, EvaluationError, OptionError, TargetError
from onnxsep.model.io import load
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured
from onnxsep.planner.peak_memory import PeakMemory
from onnxsep.planner.plan_file import PlanFile
from onnxsep.planner.report import PlanReport
from onnxsep.planner.targets import CHEAPEST, LossTarget, Target, as_loss_target, parse_targets
from onnxsep.rewriting.report import RewriteReport
from onnxsep.running.sizes import find_sizes, peak_activation_bytes

X = images(60, (3, 8, 8))
Y = outputs(MODEL, {"x": X})["y"].argmax(axis=1)  # the model is right about all of them
FEW = slice(0, 20)
QUICK: dict[str, Any] = {"positions": 4, "rounds": 0, "runtime": ONE_THREAD, "modes": ["spatial"]}
REWRITTEN: dict[str, Any] = {"positions": 4, "runtime": ONE_THREAD, "mode": "spatial"}


def plan(target: Any, model: Any = MODEL, **options: Any) -> PlanResult:
    return onnxsep.plan(model, target=target, **{"data": {"x": X, "y": Y}, **QUICK, **options})


def losing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """What one network loses against another, by the definitions."""
    one, other = a["y"].astype(float), b["y"].astype(float)
    p, q = (np.exp(y - y.max(1, keepdims=True)) for y in (one, other))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return {
        "error": float(np.linalg.norm(one - other) / np.linalg.norm(one)),
        "kl": float((p * np.log(p / q)).sum(1).mean()),
        "drop": 100 * float((one.argmax(1) != other.argmax(1)).mean()),  # of labels that are the first one's choice
    }


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("drop=1", LossTarget("drop", 1.0, "drop=1")),
        (" DROP = 0.5", LossTarget("drop", 0.5, "DROP = 0.5")),
        ("drop=0", LossTarget("drop", 0.0, "drop=0")),
        ("error=5e-2", LossTarget("error", 0.05, "error=5e-2")),
        ("kl=.02", LossTarget("kl", 0.02, "kl=.02")),
        ("ram=0.5", Target("ram", 0.5, share=True, text="ram=0.5")),
        ("ram=64KiB", Target("ram", 65536, share=False, text="ram=64KiB")),
        ("ram=3000", Target("ram", 3000, share=False, text="ram=3000")),
    ],
)
def test_targets_are_read(text: str, wanted: Target | LossTarget) -> None:
    assert parse_targets([text]) == (wanted,)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["drop=-1"], "'-1' is no loss; give a number of points such as 1"),
        (["drop=nan"], "'nan' is no loss"),
        (["error=inf"], "'inf' is no loss; give a relative error of the outputs such as 0.05"),
        (["kl="], "'' is no loss; give a divergence in nats such as 0.02"),
        (["drop=1%"], "'1%' is no loss"),
        (["drop"], "cannot be read"),
        (["eror=0.1"], "did you mean 'error'"),
        (["drop=1", "drop=2"], "drop is given twice: drop=1 and drop=2"),
        (["ram=5ms"], "a number of bytes such as 80kB"),
        (["ram=1.5"], "a share is above 0 and at most 1"),
    ],
)
def test_targets_that_cannot_be_read(texts: list[str], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        parse_targets(texts)


@pytest.mark.parametrize(("value", "text"), [(2.34, "2.4"), (2.4, "2.4"), (0.01234, "0.013"), (0, "0"), (99.1, "100")])
def test_the_target_that_allows_a_loss_is_rounded_up(value: float, text: str) -> None:
    assert as_loss_target("drop", value) == f"drop={text}"
    (back,) = parse_targets([f"drop={text}"])
    assert isinstance(back, LossTarget)
    assert back.most >= value


# ---------------------------------------------------------------- what may be lost


@pytest.mark.parametrize("target", ["kl=0.002", "drop=5"])
def test_the_model_that_is_written_keeps_to_it_on_samples_that_nothing_has_seen(target: str) -> None:
    most = target.split("=")[1]
    made = onnxsep.rewrite(MODEL, target=target, data={"x": X, "y": Y}, **REWRITTEN)
    planned = made.report.planning
    assert planned is not None
    (loss,) = planned.losses
    assert loss.measured is not None
    assert loss.measured.value is not None
    assert loss.measured.value <= float(most)
    assert loss.held_out
    assert made.report.totals.replaced > 0
    # The same figure, by hand, from the model as it is written, on the samples that were verified on.
    parts = made.report.verification.measured_on
    assert parts is not None
    assert parts.kind == "unseen"
    assert parts.samples == loss.measured.samples
    (row,) = planned.targets
    assert (row.kind, row.target, row.after) == ("params", "", made.report.totals.parameters_after)


def test_the_figure_is_that_of_the_definition() -> None:
    """On data that hold the samples of the verdict alone, whatever their order."""
    made = plan(["error=0.5", "kl=0.5", "drop=50"])
    judge = made.judge
    assert judge is not None
    held = list(judge.held)
    data = X[[index for index in range(len(X)) if index not in held]]
    done = onnxsep.rewrite(MODEL, plan=made.plan, data=data, positions=4, runtime=ONE_THREAD)
    wanted = losing(outputs(MODEL, {"x": X[held]}), outputs(done.proto, {"x": X[held]}))
    for loss in judge.verdict(done.model):
        assert loss.value == pytest.approx(wanted[loss.kind], rel=1e-3, abs=1e-9)
        assert loss.samples == len(held)


@pytest.mark.parametrize("target", ["drop=5", "error=0.1"])
def test_the_verdict_is_on_samples_that_are_neither_fitted_nor_chosen_by(target: str) -> None:
    judge = plan(target).judge
    assert judge is not None
    assert len(judge.held) == (30 if "drop" in target else 12)
    assert not set(judge.held) & set(judge.choosing)
    assert set(judge.held) <= set(judge.asked.data.reserved)
    assert not set(judge.held) & set(judge.asked.data.sample(None))


def test_less_may_be_lost_of_a_dearer_model() -> None:
    costs = []
    for most in (0.3, 0.06):
        report = plan(f"error={most}").report
        (loss,) = report.losses
        assert loss.measured is not None
        assert loss.measured.value is not None
        assert loss.measured.value <= most
        costs.append(report.targets[0].after)
    assert costs == sorted(costs, key=lambda cost: cost or 0)
    assert costs[0] != costs[-1]


def test_the_first_budget_is_made_small_and_the_others_are_kept() -> None:
    report = plan(["size=0.95", "error=0.1", "macs=0.9"]).report
    size, macs = report.targets
    assert size.after is not None
    assert macs.after is not None
    assert size.after <= size.allowed
    assert macs.after <= macs.allowed
    cheaper = [one for one in report.tries if one.cost < size.after]
    assert all((one.chosen_by[0].value or 1) > 0.095 or one.verdict for one in cheaper)
    (taken,) = [one for one in report.tries if one.taken]
    assert taken.cost == size.after


def test_what_cannot_be_met_is_not_written_and_the_nearest_is_said(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    words = ["--data", "d.npz", "-m", "spatial", "--positions", "4", "--threads", "1", "--report", "r.json"]
    failed = run("rewrite", "m.onnx", "o.onnx", *words, "--target", "kl=0", cwd=tmp_path)
    assert failed.returncode == 3, failed.stderr
    assert not (tmp_path / "o.onnx").exists()
    message = " ".join(failed.stderr.split())
    assert "kl=0 cannot be met: the nearest plan loses KL " in message
    assert "nothing was written" in message
    report = onnxsep.read_report(tmp_path / "r.json")
    assert isinstance(report, PlanReport)
    (loss,) = report.losses
    assert loss.measured is not None
    assert loss.measured.value is not None
    assert loss.measured.value > 0
    assert report.targets[0].after is None
    near = message.split("(--target ")[1].split(")")[0]
    assert float(near.removeprefix("kl=")) >= loss.measured.value
    done = run("rewrite", "m.onnx", "o.onnx", *words, "--target", near, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reached = onnxsep.read_report(tmp_path / "r.json")
    assert isinstance(reached, RewriteReport)
    assert reached.planning is not None
    assert (tmp_path / "o.onnx").exists()


def test_targets_that_exclude_each_other_are_one_error() -> None:
    with pytest.raises(
        TargetError, match=r"params=0\.4 and error=0\.06 exclude each other: the nearest plan"
    ) as caught:
        plan(["params=0.4", "error=0.06"])
    assert "\n" not in str(caught.value)
    report = caught.value.report
    assert report.losses[0].measured.value > 0.06
    assert all(one.cost <= report.targets[0].allowed for one in report.tries)
    assert "error=0.06 needs about params=0" in str(caught.value)
    with pytest.raises(TargetError, match="the least that can be had is"):
        plan(["params=0.05", "error=0.5"])


def test_losses_need_labels_and_scores() -> None:
    with pytest.raises(DataError, match="has no labels, which are needed here"):
        plan("drop=1", data={"x": X})
    with pytest.raises(DataError, match="the label of sample"):
        plan("drop=1", data={"x": X, "y": Y + 50})
    dense = network(f"g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] h) {{ {BLOCK} }}", **SHAPES)
    for target, words in (("kl=1", "kl= is for classifiers: no output holds"), ("drop=1", "drop= is about accuracy")):
        with pytest.raises(OptionError, match=words):
            plan(target, dense)
    assert plan("error=0.5", dense, data=X[FEW]).report.losses[0].measured is not None


def test_options_that_would_do_nothing() -> None:
    for options, words in (
        ({"labels": Y}, "labels is for target drop="),
        ({"output": "y"}, "output is for target drop="),
    ):
        with pytest.raises(OptionError, match=words):
            plan("params=0.8", **options)
    with pytest.raises(OptionError, match="metric is for target"):
        onnxsep.rewrite(MODEL, mode="spatial", metric=agreement)


def test_labels_beside_the_data() -> None:
    (loss,) = plan("drop=5", data={"x": X}, labels=Y).report.losses
    assert loss.measured is not None
    assert loss.measured.samples == 30


def test_a_step_of_a_recipe_says_what_it_sees_and_needs() -> None:
    data = open_data({"x": X, "y": Y}, load(MODEL))
    assert len(list(Rewrite(target="drop=1", samples=10).sees(data, 0))) == len(X)
    assert len(list(Rewrite(target="params=0.5", samples=10).sees(data, 0))) == 10
    assert Rewrite(target=["params=0.5", "drop=1"]).needs_labels()
    assert not Rewrite(target="drop=1", metric="m:f").needs_labels()
    assert not Rewrite(target="error=0.1").needs_labels()


def test_of_few_samples_all_are_used_for_both_and_that_is_said() -> None:
    report = plan("error=0.5", data={"x": X[:12]}).report
    (loss,) = report.losses
    assert not loss.held_out
    assert "samples that the choice has seen too" in str(report)


def test_the_plan_says_what_was_measured(tmp_path: Path) -> None:
    made = plan("drop=5")
    said = dict(made.plan.measured)
    (loss,) = made.report.losses
    assert loss.measured is not None
    assert said["target"] == "drop=5"
    assert said["drop"] == loss.measured.value
    assert said["drop_samples"] == loss.measured.samples
    made.save(tmp_path / "p.toml")
    assert isinstance(onnxsep.read_plan(tmp_path / "p.toml"), PlanFile)
    assert CHEAPEST.text == ""
    assert "drop=5: " in str(made.report)


# ---------------------------------------------------------------- activation memory


def test_the_peak_of_the_result_is_within_the_budget() -> None:
    before = peak_activation_bytes(MODEL)
    assert before is not None
    made = onnxsep.rewrite(MODEL, target="ram=0.9", data=X[FEW], **REWRITTEN)
    after = peak_activation_bytes(made.proto)
    assert made.report.planning is not None
    (row,) = made.report.planning.targets
    assert (row.before, row.after) == (before, after)
    assert after is not None
    assert after <= 0.9 * before


def test_the_least_memory_can_be_had_and_less_cannot() -> None:
    with pytest.raises(TargetError, match="ram=1000 allows 1,000 of ") as caught:
        plan("ram=1000", data=X[FEW])
    least = caught.value.report.targets[0].least
    assert plan(f"ram={least}", data=X[FEW]).report.targets[0].after == least
    with pytest.raises(TargetError):
        plan(f"ram={least - 1}", data=X[FEW])


def test_memory_is_that_of_the_worst_layer_not_a_sum() -> None:
    """Of all choices of forms for three layers, those within a budget are those whose real peak is."""
    model = load(MODEL)
    sites = find_sites(model)
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    memory = PeakMemory(sites, find_sizes(model))
    measured = {}
    for site in layers:
        rows = list(candidates(site, forms(["spatial", "depthwise", "channel"]), (0.1, 0.4, 0.7)))
        measured[site.place] = [
            Measured.as_it_is(site),
            *(Measured(row.site, row, row.parameters, row.macs, 0, 0.0, 0.0) for row in rows),
        ]
    found = memory.added(measured)
    others = memory.others(layers)
    checked = 0
    for chosen in itertools.product(*found.values()):
        real = memory.of(Plan([one.row for one in chosen if one.row]))
        assert real == max(others, *(one.ram for one in chosen))
        checked += 1
    assert checked > 10


def test_memory_needs_sizes() -> None:
    free = network(f"g (float[N, 3, H, W] x) => (float[N, 5] y) {{ {BLOCK} }}", **SHAPES)
    with pytest.raises(OptionError, match="ram= needs the sizes of all tensors"):
        plan("ram=0.9", free, data=X[FEW])
    assert plan("ram=0.9", free, data=X[FEW], input_shapes={"x": (1, 3, 8, 8)}).report.targets[0].after is not None


def test_memory_with_other_targets() -> None:
    report = plan(["ram=0.9", "params=0.9", "error=0.5"], data=X[:60]).report
    ram, params = report.targets
    assert ram.after is not None
    assert ram.after <= ram.allowed
    assert params.after is not None
    assert params.after <= params.allowed
    assert report.losses[0].measured is not None


# ---------------------------------------------------------------- a file that is filled


@pytest.mark.parametrize("share", [0.71, 0.86])
def test_a_file_is_at_most_as_large_as_asked_for_and_nearly_so(share: float, tmp_path: Path) -> None:
    onnx.save(
        block(w1=(16, 3, 3, 3), b1=(16,), w2=(16, 16, 3, 3), w3=(16, 16, 3, 3), w4=(8, 16, 1, 1)), tmp_path / "m.onnx"
    )
    whole = (tmp_path / "m.onnx").stat().st_size
    planned = plan(f"size={share}", tmp_path / "m.onnx", data=X[FEW], only="conv_c")
    made = onnxsep.rewrite(tmp_path / "m.onnx", plan=planned.plan, data=X[FEW], positions=4, runtime=ONE_THREAD)
    size = made.save(tmp_path / "o.onnx").size_bytes
    assert 0.97 * share * whole <= size <= share * whole
    assert planned.report.targets[0].after == size == (tmp_path / "o.onnx").stat().st_size


# ---------------------------------------------------------------- a metric


def agreement(found: Any, labels: Any) -> float:
    return float((found["y"].argmax(1) == labels).mean())


def nothing(found: Any, labels: Any) -> float:
    return 1.0


def test_the_users_metric_is_what_plans_are_chosen_by_and_what_a_drop_counts() -> None:
    made = plan(["drop=0.05"], metric=agreement)
    (loss,) = made.report.losses
    assert loss.of_metric
    assert loss.measured is not None
    assert loss.measured.value is not None
    assert loss.measured.value <= 0.05
    assert made.report.measured is not None
    assert made.report.measured.kind == "metric"
    assert "the metric falls by" in str(made.report)


def test_a_metric_that_tells_nothing_apart_leaves_the_choice_to_the_outputs() -> None:
    own = plan("params=0.6", data=X[FEW], metric=nothing)
    assert own.report.measured is not None
    assert own.report.measured.value == 0
    plain = plan("params=0.6", data=X[FEW])
    forms = [[(one.mode, one.rank) for one in made.report.layers] for made in (own, plain)]
    assert forms[0] == forms[1]


def test_metrics_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets_metric.py").write_text("def bad(outputs, labels):\n    return 'x'\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EvaluationError, match=r"'targets_metric:bad' gave a str"):
        plan("params=0.8", data=X[FEW], metric="targets_metric:bad")
    with pytest.raises(OptionError, match="there is no module 'targets_none'"):
        plan("params=0.8", data=X[FEW], metric="targets_none:bad")
