"""Plans as files: what is carried out is what the run that wrote the plan would have done, byte for byte."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from calibration_models import ONE_THREAD
from marked import marked
from plan_models import HOSTILE, X, network, plan_in, rewrite

import onnxsep
from onnxsep import PlanFile
from onnxsep.modes import get_mode
from onnxsep.planner.plan_file import LayerPlan

WHICH = ("force", "include_first", "recurse", "only", "skip", "round_ranks", "mode", "rank")
RUNS: dict[str, dict[str, Any]] = {
    "paper": {"mode": "depthwise"},
    "share": {"mode": "spatial", "rank": "0.4"},
    "energy": {"mode": "tucker", "rank": "energy=0.3", "round_ranks": 8},
    "exact": {"mode": "spatial", "rank": "full", "force": True, "include_first": True},
    "clamped": {"mode": "depthwise", "rank": 50, "force": True},
    "linear": {"mode": "pointwise", "rank": "0.5"},
    "no rank": {"mode": "lean", "force": True},
    "some": {"mode": "channel", "rank": "0.5", "skip": ("tw*",)},
    "none": {"mode": "spatial", "rank": "0.0001"},
    "fitted": {"mode": "depthwise", "data": X},
    "fitted linear": {"mode": "pointwise", "rank": "0.5", "data": X},
    "fitted otherwise": {"mode": "depthwise", "data": X, "init": "compensated", "samples": 12},
    "not fitted": {"mode": "spatial", "rank": "0.4", "data": X, "init": "svd"},
    "refined": {"mode": "depthwise", "data": X, "refine": 1, "force": True},
}


@pytest.mark.parametrize(
    ("name", "ir"), [*((name, 8) for name in RUNS), *((name, 3) for name in ("paper", "linear", "fitted"))]
)
def test_carried_out_is_what_the_run_would_have_given(name: str, ir: int, tmp_path: Path) -> None:
    model, options = network(ir), {"positions": 16, **RUNS[name]}
    plan = plan_in(tmp_path, model, **options)
    expected = rewrite(model, **options)
    rest = {key: value for key, value in options.items() if key not in WHICH}
    found = rewrite(model, plan=tmp_path / "plan.toml", **rest)
    assert found.proto.SerializeToString() == expected.proto.SerializeToString()
    assert (expected.report.totals.replaced == 0) == (name == "none")
    assert found.report.totals == expected.report.totals
    rows = [
        [(row.name, row.status, row.mode, row.rank, row.reason) for row in one.report.convs]
        for one in (expected, found)
    ]
    assert rows[0] == rows[1]
    assert found.report.plan == str(tmp_path / "plan.toml")
    assert (found.report.calibration and found.report.calibration.init) == (
        expected.report.calibration and expected.report.calibration.init
    )
    assert len(plan.layers) == len(expected.report.convs)
    assert found.plan.layers == plan_of_run(found)
    assert found.plan.text() == rewrite(model, dry_run=True, **options).plan.text()


def plan_of_run(result: onnxsep.Result) -> tuple[LayerPlan, ...]:
    """What a plan must say of each row of a report; keys and comments are taken from it."""
    assert len(result.plan.layers) == len(result.report.convs)
    return tuple(
        LayerPlan(layer.key, row.where, get_mode(row.mode), row.rank or (), init=layer.init, note=layer.note)
        if row.mode
        else LayerPlan(layer.key, row.where, left=row.reason)
        for layer, row in zip(result.plan.layers, result.report.convs, strict=True)
    )


def test_fitted_to_recorded_statistics(tmp_path: Path) -> None:
    model, file = network(), tmp_path / "s.npz"
    rewrite(model, mode="depthwise", data=X, positions=8, statistics=file)
    plan = plan_in(tmp_path, model, mode="depthwise", statistics=file)
    expected = rewrite(model, mode="depthwise", statistics=file)
    assert rewrite(model, plan=plan, statistics=file).proto == expected.proto
    assert rewrite(model, plan=plan).proto != expected.proto


def test_one_readable_line_for_each_layer(tmp_path: Path) -> None:
    model = network(second="twice")
    model.graph.node[0].name = "näher/0"
    plan = plan_in(tmp_path, model, mode="spatial", rank=4)
    text = rewrite(model, mode="spatial", rank=4, dry_run=True).plan.text()
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("schema")] == ["schema = 1"]
    assert f'onnxsep = "{onnxsep.__version__}"' in lines
    # 16 * 16 * 9 weights; 3 * 1 of 16 -> 4 and 1 * 3 of 4 -> 16 channels.
    costs = "# 2,304 -> 384 parameters, 147,456 -> 24,576 MACs"
    wanted = [
        '"näher/0" = { left = "first Conv, reached straight from an input; include_first=True replaces it" }',
        f'"twice" = {{ mode = "spatial", rank = [4] }} {costs}',
        f'"twice#2" = {{ mode = "spatial", rank = [4] }} {costs}',
        '"a \\"b\\"\\\\c\\u000A[layers]\\u001B[31m#2" = { mode = "spatial", rank = [4] } ' + costs,
        f'"h" = {{ mode = "spatial", rank = [4] }} {costs}',
    ]
    start = lines.index("[layers]") + 1
    assert [" ".join(line.split()) for line in lines[start : start + 5]] == wanted
    tables = [line for line in lines if line.startswith("[inside.")]
    assert (
        tables
        == [
            "[inside.\"If 'which', then_branch\"]",
            "[inside.\"If 'which', else_branch\"]",
            '[inside."function demo:Block"]',
        ]
        or len(tables) == 3
    )
    assert all(
        lines[lines.index(table) + 1].startswith('"inner" = { mode = "spatial", rank = [4] }') for table in tables
    )
    assert len(plan.layers) == 8
    (tmp_path / "again.toml").write_text(text, encoding="utf-8")
    assert onnxsep.read_plan(tmp_path / "again.toml").layers == plan.layers


def changed(plan: PlanFile, **lines: str) -> str:
    """The text of a plan with other lines for some layers of the main graph; an empty one takes the line out."""
    text = []
    for line in plan.text().splitlines():
        key = line.split('"')[1] if line.startswith('"') else ""
        text.append(lines.get(key, line))
    return "\n".join(line for line in text if line) + "\n"


def factors(result: onnxsep.Result, source: str) -> dict[str, bytes]:
    """The new nodes that were made of a Conv, and their weights."""
    weights = {one.name: one.raw_data for one in result.proto.graph.initializer}
    made = {}
    for node in marked(result.proto).graph.node:
        if any(entry.key == "onnxsep.source" and entry.value == source for entry in node.metadata_props):
            made[node.name] = b"".join(weights.get(name, b"") for name in node.input)
    return made


def test_each_layer_gets_its_own_mode_and_rank(tmp_path: Path) -> None:
    model = network()
    plan = plan_in(tmp_path, model, mode="spatial", rank=4)
    text = changed(
        plan,
        first='"first" = { mode = "channel", rank = [5] }',
        twice='"twice" = { mode = "depthwise", rank = [2] }',
        h='"h" = { left = true }',
        other='"other" = { mode = "tucker", rank = "0.5" }',
    )
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    found = rewrite(model, plan=str(tmp_path / "plan.toml"))
    rows = {(row.name, row.weight_shape, index): row for index, row in enumerate(found.report.convs)}
    modes = [(row.mode, row.rank) for row in found.report.convs]
    tucker = rewrite(model, mode="tucker", rank="0.5").report.convs[2]
    assert modes[:5] == [
        ("channel", (5,)),
        ("depthwise", (2,)),
        ("tucker", tucker.rank),
        ("spatial", (4,)),
        (None, None),
    ]
    assert found.report.convs[4].reason == "by the plan"
    assert len(rows) == 8
    for source, options in (
        ("first", {"mode": "channel", "rank": 5, "force": True, "include_first": True}),
        (HOSTILE, {"mode": "spatial", "rank": 4, "force": True}),
    ):
        expected = factors(rewrite(model, **options), source)
        assert len(expected) == 2
        assert factors(found, source) == expected
    assert len(factors(found, "twice")) > 2


def test_each_layer_is_fitted_in_its_own_way(tmp_path: Path) -> None:
    """What a Conv reads does not depend on those behind it: the first of the chain is as in a run of its own."""
    model = network()
    plan = plan_in(tmp_path, model, mode="depthwise", data=X, positions=16)
    text = changed(
        plan,
        twice='"twice" = { mode = "depthwise", rank = [1], init = "response" }',
        other='"other" = { mode = "spatial", rank = [4], init = "svd" }',
    )
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    found = rewrite(model, plan=tmp_path / "plan.toml", data=X, positions=16)
    assert found.report.calibration is not None
    assert found.report.calibration.init == "response, svd, joint"
    alone = rewrite(model, mode="depthwise", data=X, positions=16, init="response")
    assert found.report.convs[1].held_out_error == alone.report.convs[1].held_out_error
    plain = rewrite(model, mode="spatial", rank=4, data=X, positions=16, init="svd")
    second = [row.weight_error for row in (found.report.convs[2], plain.report.convs[2])]
    assert second[0] == second[1]
    every = rewrite(model, plan=tmp_path / "plan.toml", data=X, positions=16, init="svd")  # the command wins
    assert every.report.calibration is not None
    assert every.report.calibration.init == "svd"
    assert 'init = "svd"' in every.plan.text()
    assert 'init = "response"' not in every.plan.text()


def test_rules_choose_ranks_as_the_option_does(tmp_path: Path) -> None:
    model = network()
    plan = plan_in(tmp_path, model, mode="spatial", rank="0.4")
    for rule, rank in (
        ('"paper"', "paper"),
        ('"energy=0.7"', "energy=0.7"),
        ("0.4", "0.4"),
        ("4", 4),
        ('"full"', "full"),
    ):
        line = f'"twice" = {{ mode = "spatial", rank = {rule}, round_ranks = 8 }}'
        (tmp_path / "p.toml").write_text(changed(plan, twice=line), encoding="utf-8")
        found = rewrite(model, plan=tmp_path / "p.toml").report.convs[1]
        expected = rewrite(model, mode="spatial", rank=rank, round_ranks=8, force=True).report.convs[1]
        assert found.rank == expected.rank is not None
        assert found.notes == expected.notes
    (tmp_path / "p.toml").write_text(
        changed(plan, twice='"twice" = { mode = "spatial", rank = 0.001 }'), encoding="utf-8"
    )
    row = rewrite(model, plan=tmp_path / "p.toml").report.convs[1]
    assert row.status == "left"
    assert row.reason.startswith("no rank keeps 0.001 of its 2,304 weights")


def test_layers_without_a_line_are_left_alone(tmp_path: Path) -> None:
    model = network()
    plan = plan_in(tmp_path, model, mode="spatial", rank=4)
    (tmp_path / "p.toml").write_text(changed(plan, twice="", h=""), encoding="utf-8")
    rows = rewrite(model, plan=tmp_path / "p.toml").report.convs
    assert [(row.status, row.reason) for row in rows if row.name in ("twice", "h")] == [
        ("left", "the plan has no line for it"),
        ("left", "the plan has no line for it"),
    ]


def test_a_plan_may_cost_more_than_it_saves_and_replaces_what_onnxsep_made(tmp_path: Path) -> None:
    once = rewrite(network(), mode="channel", rank=8).proto
    text = 'schema = 1\n[layers]\n"twice_in" = { mode = "spatial", rank = "full" }\n'
    names = [node.name for node in once.graph.node if node.name.startswith("twice")]
    (tmp_path / "p.toml").write_text(text.replace("twice_in", names[0]), encoding="utf-8")
    found = rewrite(once, plan=tmp_path / "p.toml").report
    assert found.totals.replaced == 1
    assert found.totals.parameters_after > found.totals.parameters_before


def test_gemm_is_found_whatever_the_modes_take(tmp_path: Path) -> None:
    """The plan was made with a mode that takes it, and all lines that name such a mode were changed since."""
    model = network()
    plan = plan_in(tmp_path, model, mode="pointwise", rank="0.5")
    assert [layer.key for layer in plan.layers if layer.mode] == ["dense"]
    text = changed(plan, dense='"dense" = { left = "head" }', twice='"twice" = { mode = "spatial", rank = [4] }')
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    rows = rewrite(model, plan=tmp_path / "p.toml").report.convs
    assert [(row.name, row.mode) for row in rows if row.mode] == [("twice", "spatial")]
    assert [row.reason for row in rows if row.name == "dense"] == ["head"]


class Own(type(get_mode("spatial"))):  # type: ignore[misc]  # the class of an installed mode
    """A mode that no package lists."""

    name = "own"
    summary = "of a test"


def test_a_plan_in_memory_keeps_modes_that_are_not_installed(tmp_path: Path) -> None:
    model = network()
    made = rewrite(model, mode=Own(), rank=4, dry_run=True)
    found = rewrite(model, plan=made.plan)
    assert found.proto == rewrite(model, mode=Own(), rank=4).proto
    assert found.report.plan == "in memory"
    made.plan.save(tmp_path / "p.toml")
    with pytest.raises(onnxsep.OnnxsepError, match=r"p\.toml, layer 'twice': unknown mode 'own'"):
        rewrite(model, plan=tmp_path / "p.toml")


def test_what_was_carried_out_is_the_plan_of_a_run_too(tmp_path: Path) -> None:
    """Of a run with a result, and when the source's file is no longer there."""
    onnx.save(network(), tmp_path / "m.onnx")
    result = onnxsep.rewrite(tmp_path / "m.onnx", mode="spatial", rank=4, runtime=ONE_THREAD)
    made = result.plan
    result.save(tmp_path / "m.onnx")
    made.save(tmp_path / "p.toml")
    again = rewrite(network(), plan=tmp_path / "p.toml")
    assert again.proto.SerializeToString() == (tmp_path / "m.onnx").read_bytes()
    assert result.report.verification.ran
