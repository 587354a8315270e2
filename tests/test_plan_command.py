"""Plans that are made by measurement: budgets that are kept, what is measured, and what a plan says of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import BLOCK, MODEL, ONE_THREAD, SHAPES, X, network, row
from command_line import run

import onnxsep
from onnxsep import PlanResult
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.compression import Pipeline, Rewrite, compress
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.errors import DataError, ModeNotFoundError, OptionError, TargetError
from onnxsep.model.io import Model
from onnxsep.options.tomlfile import read_toml
from onnxsep.planner.carrying_out import Costs, carry_out, plan_of_choice
from onnxsep.planner.file_size import FileSize
from onnxsep.planner.forms import forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.measuring import Measured
from onnxsep.planner.planning_data import PlanningData
from onnxsep.rewriting.report import RewriteReport

QUICK: dict[str, Any] = {
    "modes": ["spatial", "depthwise", "pointwise"],
    "positions": 8,
    "rounds": 1,
    "runtime": ONE_THREAD,
}


def plan(model: Any = MODEL, **options: Any) -> PlanResult:
    return onnxsep.plan(model, **{"data": X, **QUICK, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PlanResult:
    return plan(target=["params=0.8", "size=0.99"], frontier=tmp_path_factory.mktemp("made") / "curve")


def carried(result: PlanResult, **options: Any) -> onnxsep.Result:
    return onnxsep.rewrite(MODEL, plan=result.plan, data=X, positions=8, runtime=ONE_THREAD, **options)


def test_the_plan_keeps_its_budgets_and_says_what_it_costs(made: PlanResult, tmp_path: Path) -> None:
    report, done = made.report, carried(made)
    params, size = report.targets
    assert (params.before, params.after) == (
        done.report.totals.parameters_before,
        done.report.totals.parameters_after,
    )
    assert params.after is not None
    assert params.after <= params.allowed == int(0.8 * params.before)
    onnx.save(MODEL, tmp_path / "m.onnx")
    written = done.save(tmp_path / "o.onnx").size_bytes
    assert size.before == (tmp_path / "m.onnx").stat().st_size
    assert size.after == written <= size.allowed
    assert [entry.mode for entry in report.layers] == [entry.mode for entry in done.report.convs]
    assert [entry.rank for entry in report.layers if entry.mode] == [
        entry.rank for entry in done.report.convs if entry.mode
    ]


def test_what_is_measured(made: PlanResult) -> None:
    report = made.report
    assert report.measured is not None
    assert report.measured.kind == "kl"
    assert report.held_out
    assert 0 < report.measured_samples < report.fitted_samples < len(X)
    assert report.measured.samples == report.measured_samples
    (taken,) = [one for one in report.rounds if one.taken]
    assert taken.measured == report.measured
    values = [one.softened for one in report.rounds]
    assert taken.softened == min(value for value in values if value is not None)
    chosen = [entry for entry in report.layers if entry.mode]
    assert all(entry.effect is not None and entry.held_out_error is not None for entry in chosen)
    first = report.layers[0]
    assert first.candidates == 0
    assert first.reason.startswith("first Conv")
    assert report.to_records()[1]["candidates"] > 3


def test_the_file_says_what_was_measured_and_is_read_again(made: PlanResult, tmp_path: Path) -> None:
    made.save(tmp_path / "p.toml")
    content = read_toml(tmp_path / "p.toml")
    said, report = content["measured"], made.report
    assert said["target"] == "params=0.8, size=0.99"
    assert said["params"] == report.targets[0].after
    assert (said["fitted_samples"], said["measured_samples"]) == (report.fitted_samples, report.measured_samples)
    assert said["fingerprint"] == report.fingerprint
    assert report.measured is not None
    assert said["effect"] == pytest.approx(report.measured.value, rel=1e-5)
    again = onnxsep.read_plan(tmp_path / "p.toml")
    assert dict(again.measured) == said
    assert again.layers == tuple(
        replace(one, mode=None if one.mode is None else getattr(one.mode, "name", one.mode), note="")
        for one in made.plan.layers
    )
    lines = (tmp_path / "p.toml").read_text().splitlines()
    assert [line for line in lines if "mode = " in line] == [line for line in lines if "MACs; KL " in line]
    for bad in ("effect = true", "effect = [1]"):
        (tmp_path / "bad.toml").write_text("\n".join(lines).replace("effect = ", f"{bad}\n# "))
        with pytest.raises(OptionError, match="effect must be a text or a number"):
            onnxsep.read_plan(tmp_path / "bad.toml")


def test_the_same_data_and_seed_give_the_same_plan() -> None:
    one, other = (plan(target="params=0.7", rounds=0, modes=["spatial"]) for _ in range(2))
    assert one.plan.text() == other.plan.text()
    assert one.frontier is None
    assert one.report.frontier == ()


def test_the_curve_falls_and_its_plans_cost_what_it_says(made: PlanResult, tmp_path: Path) -> None:
    assert made.frontier is not None
    points = made.report.frontier
    assert points == made.frontier.points
    assert len(points) > 3
    shares = [point.share for point in points]
    assert shares == sorted(set(shares))
    assert all(point.size <= made.report.targets[1].allowed for point in points)  # the second budget stays
    effects = [point.predicted for point in points]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 0
    made.save(tmp_path / "p.toml")
    assert made.frontier_folder is not None
    assert sorted(path.name for path in made.frontier_folder.iterdir()) == sorted(
        ["frontier.csv", *(point.plan for point in points)]
    )
    made.frontier.save(tmp_path / "curve")
    lines = (tmp_path / "curve" / "frontier.csv").read_text().splitlines()
    assert len(lines) == 1 + len(points)
    done = onnxsep.rewrite(MODEL, plan=tmp_path / "curve" / points[1].plan, data=X, positions=8, dry_run=True)
    assert done.report.totals.parameters_after == points[1].params
    assert done.report.totals.macs_after == points[1].macs
    made.frontier.save(tmp_path / "curve")  # in its own place
    (tmp_path / "curve" / "notes.txt").touch()
    with pytest.raises(OptionError, match="no trade-off curve"):
        made.frontier.save(tmp_path / "curve")
    (tmp_path / "mine").mkdir()
    made.save(tmp_path / "mine" / "params-0.5000.toml")  # a plan, but no curve
    with pytest.raises(OptionError, match="no trade-off curve"):
        made.frontier.save(tmp_path / "mine")


def test_a_budget_that_nothing_keeps(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    words = ["--data", "x.npy", "-m", "spatial", "--positions", "8", "--rounds", "0", "--threads", "1"]
    failed = run("plan", "m.onnx", "p.toml", *words, "--target", "params=0.1", "--report", "r.json", cwd=tmp_path)
    assert failed.returncode == 3
    assert not (tmp_path / "p.toml").exists()
    report = onnxsep.read_report(tmp_path / "r.json")
    (target,) = report.targets  # type: ignore[attr-defined]
    assert target.after is None
    assert f"the least that can be had is {target.least:,}" in failed.stderr.replace("\n", " ")
    near = failed.stderr.split("(--target ")[1].split(")")[0]
    done = run("plan", "m.onnx", "p.toml", *words, "--target", near, "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (reached,) = onnxsep.read_report(tmp_path / "r.json").targets  # type: ignore[attr-defined]
    assert reached.after <= reached.allowed
    assert reached.after == target.least
    with pytest.raises(TargetError, match="the least that can be had is") as caught:
        plan(target="params=0.1", rounds=0, modes=["spatial"])
    assert caught.value.report.targets[0].least == target.least


def test_rewrite_with_a_target_does_what_the_plan_says(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", X)
    words = ["--data", "x.npy", "--target", "macs=0.8", "--positions", "8", "--samples", "20", "--threads", "1"]
    done = run(
        "rewrite",
        "m.onnx",
        "o.onnx",
        *words,
        "-m",
        "spatial",
        "--plan-out",
        "p.toml",
        "--report",
        "r.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = onnxsep.read_report(tmp_path / "r.json")
    assert isinstance(report, RewriteReport)
    assert report.planning is not None
    assert report.totals.macs_after <= 0.8 * report.totals.macs_before
    assert report.planning.targets[0].after == report.totals.macs_after
    again = run("rewrite", "m.onnx", "again.onnx", "--plan", "p.toml", *words[:2], *words[4:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()
    steps = Pipeline([Rewrite(mode="spatial", target="macs=0.8", positions=8, samples=20)])
    (step,) = compress(tmp_path / "m.onnx", steps, data=X, runtime=ONE_THREAD).report.steps
    assert isinstance(step.report, RewriteReport)
    assert step.report.totals.macs_after <= 0.8 * step.report.totals.macs_before


def test_the_effect_of_a_plan_is_that_of_what_is_written() -> None:
    """Around a plan, a layer's own values change nothing; and dense layers stand for the pieces that are written."""
    source = Model(MODEL)
    sites = find_sites(source, linear_layers=True)
    found = [site for site in sites.found if isinstance(site, ConvSite)]
    dataset = open_data(X, source)
    data = PlanningData.of(dataset, 24, CalibrationOptions(positions=8), ONE_THREAD)
    rows = [next(iter(candidates(site, forms(()), (0.5,)))) for site in found[1:4]]
    chosen = [Measured(row.site, row, row.parameters, row.macs, 0, 0.0, 0.0) for row in rows]
    plain = data.walk(source, sites, None)
    done = carry_out(source, sites, plan_of_choice(sites, chosen, {}), data.samples, plain)
    assert done.effect.value > 1e-5
    around = data.walk(source, sites, done.dense)
    for site in found[1:4]:
        own = done.dense[site.place]
        assert isinstance(own, tuple)  # of one layer, and not of a block
        assert around.at(site)(*own).value == pytest.approx(done.effect.value, rel=1e-3)
    costs, size = Costs(source, sites), FileSize(source, sites.light)
    assert costs.of(done.plan)["size"] == size.of(done.plan.convs)
    assert costs.source["params"] == sum(np.prod(one.dims, dtype=int) for one in MODEL.graph.initializer)


def test_layers_that_no_plan_is_for() -> None:
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, w2)
            d = Relu(c)
            e = Conv<pads = [1, 1, 1, 1]>(d, w2)
            f = Relu(e)
            y = Conv<pads = [1, 1, 1, 1]>(f, w3)
        }""",
        w1=(6, 3, 3, 3),
        w2=(6, 6, 3, 3),
        w3=(6, 6, 3, 3),
    )
    report = plan(model, target="params=0.9", rounds=0).report
    assert [entry.mode is None for entry in report.layers] == [True, True, True, False]
    assert "its weight is shared" in report.layers[1].reason
    assert report.measured is not None
    assert report.measured.kind == "relative"
    left = plan(model, target="params=0.95", rounds=0, skip="conv_y", include_first=True).report
    assert left.layers[3].reason
    assert left.layers[0].mode is not None
    whole = plan(model, target="params=1.0").report
    assert [entry.mode for entry in whole.layers] == [None] * 4
    assert whole.measured is not None
    assert whole.measured.value == 0
    assert len(whole.rounds) == 1  # nothing is lost, so there is nothing to be found around it
    none = plan(model, target="params=1.0", modes=["pointwise"]).report
    assert [entry.candidates for entry in none.layers] == [0] * 4
    with pytest.raises(OptionError, match="there is no layer to plan for"):
        plan(model, target="params=0.9", only="conv_c")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": ()}, OptionError, "target is missing"),
        ({"target": "rom=0.5"}, OptionError, "did you mean 'ram'"),
        ({"target": "params=0.5", "modes": ["spatal"]}, ModeNotFoundError, "spatal"),
        ({"target": "params=0.5", "modes": ["fold"]}, OptionError, "it is exact, and rewrites whole networks"),
        ({"target": "params=0.5", "rounds": -1}, OptionError, "rounds must be 0 or more"),
        ({"target": "params=0.5", "round_ranks": 7}, OptionError, "round_ranks=7 is not 8 or 16"),
        ({"target": "params=0.5", "only": "nothing"}, OptionError, "nothing"),
        ({"target": "params=0.5", "data": X[:, :2]}, DataError, "x"),
    ],
)
def test_what_cannot_be_asked_for(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": None}, "target needs data to measure on"),
        ({"rank": 2}, "so rank must be left out"),
        ({"force": True}, "so force must be left out"),
        ({"plan": "p.toml"}, "so plan must be left out"),
        ({"max_effect": 0.1}, "so max_effect must be left out"),
        ({"init": "svd"}, "leave init out"),
        ({"mode": "fold"}, "it is exact, and rewrites whole networks"),
    ],
)
def test_what_goes_with_no_target(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        onnxsep.rewrite(MODEL, **{"target": "params=0.5", "data": X, **options})


def test_macs_that_are_not_known_are_no_budget() -> None:
    free = network(f"g (float[N, 3, H, W] x) => (float[N, 5] y) {{ {BLOCK} }}", **SHAPES)
    with pytest.raises(OptionError, match="needs the sizes of all inputs, and 4 nodes have none"):
        plan(free, target="macs=0.8")
    known = plan(free, target="macs=0.8", input_shapes={"x": (1, 3, 8, 8)}, rounds=0, modes=["spatial"]).report
    assert known.targets[0].before == plan(target="macs=0.8", rounds=0, modes=["spatial"]).report.targets[0].before


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_types_of_weights(kind: str) -> None:
    numpy_type = {"float16": np.float16, "double": np.float64}[kind]
    values: dict[str, Any] = {
        name: (np.random.default_rng(1).standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(numpy_type)
        for name, shape in SHAPES.items()
    }
    model = network(f"g ({kind}[N, 3, 8, 8] x) => ({kind}[N, 5] y) {{ {BLOCK} }}", **values)
    made_for = plan(model, data=X.astype(numpy_type), target="size=0.9", rounds=0, modes=["spatial"])
    done = onnxsep.rewrite(model, plan=made_for.plan, data=X.astype(numpy_type), positions=8, runtime=ONE_THREAD)
    assert done.proto.ByteSize() == made_for.report.targets[0].after
    assert done.proto.ByteSize() <= 0.9 * model.ByteSize()


def test_a_plan_in_memory_is_carried_out_like_its_file(made: PlanResult, tmp_path: Path) -> None:
    made.save(tmp_path / "p.toml")
    from_file = onnxsep.rewrite(MODEL, plan=tmp_path / "p.toml", data=X, positions=8, runtime=ONE_THREAD)
    assert from_file.proto.SerializeToString() == carried(made).proto.SerializeToString()
    assert row(from_file, "conv_a").reason.startswith("first Conv")
