"""Blocks of several nodes among the candidates of plans: one choice for all their layers, measured and carried out."""

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from block_networks import Net
from latency_models import QUICK
from random_examples import DEEP, some

import onnxsep
from onnxsep.calibration.alone import fit_alone
from onnxsep.calibration.blocks import fit_blocks
from onnxsep.calibration.together import fit_together
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.factors import Factorized
from onnxsep.engine.planning import Plan
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.errors import OptionError
from onnxsep.model.io import Model
from onnxsep.modes.base import get_mode
from onnxsep.planner import latency, timings
from onnxsep.planner.block_candidates import BlockSurvey
from onnxsep.planner.block_rows import block_rows
from onnxsep.planner.carrying_out import Costs, assembled, fitted, plan_of_choice
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.file_size import FileSize
from onnxsep.planner.forms import block_forms
from onnxsep.planner.grid import candidates
from onnxsep.planner.job import Job
from onnxsep.planner.measuring import Measured, Samples
from onnxsep.planner.pieces import Cutter
from onnxsep.planner.reading import plan_from_text
from onnxsep.planner.selection import Selection, least, select
from onnxsep.running.runtime import Runner, RuntimeOptions

THREAD = RuntimeOptions(threads=1)
X = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
MODES = ["pointwise", "ghost-bottleneck"]


@cache
def model(*, norm: bool = False, skip: str = "auto") -> Model:
    """A first Conv, a basic block, one that strides, a bottleneck, and a classifier."""
    net = Net(1)
    y = net.activation("Relu", net.conv("x", (3, 8), 3, norm=norm))
    y = net.residual(y, 8, 8, 8, bottleneck=False, norm=norm, skip=skip)
    y = net.residual(y, 8, 8, 16, bottleneck=False, stride=2, norm=norm, skip=skip)
    y = net.residual(y, 16, 8, 16, bottleneck=True, norm=norm)
    return Model(net.model(3, y, classes=16))


class Setting:
    """What the functions of a plan are given."""

    def __init__(self, of: Model) -> None:
        self.model, self.sites = of, find_sites(of)
        self.layers = [site for site in self.sites.found if not site.first]  # type: ignore[union-attr]
        self.options = CalibrationOptions(positions=16)
        self.samples = Samples(lambda: [{"x": X[:16]}], self.options, THREAD)
        self.job = Job(of, self.sites, (), self.samples, self.walk)

    def walk(self, around: Any = None) -> EffectWalk:
        return EffectWalk(self.model, self.sites, [{"x": X[16:]}], THREAD, around=around)

    def blocks(self, *modes: str) -> Any:
        return block_rows(self.model, self.sites, block_forms(modes), self.layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", some([{"skip": "slice"}, {}, {"norm": True}], 2), ids=str)
def test_costs_and_effects_of_candidates_are_those_of_the_model_with_them(options: dict[str, Any]) -> None:
    here = Setting(model(**options))
    rows = here.blocks("dice", "inverted-bottleneck")
    assert {row.mode.name for row in rows} == {"dice", "inverted-bottleneck"}
    found = list(BlockSurvey(here.job, rows).measured(FileSize(here.model, here.sites.light), lambda _: 0, None))
    costs, walk = Costs(here.model, here.sites), here.walk()
    assert any(one.covers for one in found)
    for one in found[:: len(found) // 3]:
        plan = plan_of_choice(here.sites, [one], {})
        alone = [Measured.as_it_is(here.job.by_place[place]) for place in (one.site.place, *one.covers)]
        changes = {"params": one.parameters, "macs": one.macs or 0}
        whole = costs.of(plan)
        for name, value in changes.items():
            own = sum(other.parameters if name == "params" else other.macs or 0 for other in alone)
            assert whole[name] == costs.source[name] + value - own  # type: ignore[index]
        assert whole["size"] == costs.source["size"] + one.bytes
        made = fit_blocks(here.model, here.sites, plan.replacements, here.samples.fitted(), here.options, THREAD)[0]  # type: ignore[arg-type]
        ((place, tensors),) = made.items()
        assert isinstance(tensors, Factorized)
        assert tensors.errors is not None
        assert tensors.errors.held_out == pytest.approx(one.held_out)
        assert walk.of(assembled(here.model, here.sites, plan, {place: tensors}).model).additive == pytest.approx(
            one.effect, rel=1e-4
        )


def test_blocks_fitted_from_one_walk_are_those_fitted_one_by_one() -> None:
    here = Setting(model())
    rows = here.blocks("ghost-bottleneck")[:3]
    for row, made in fit_alone(here.model, here.sites, rows, here.samples.fitted(), here.options, THREAD):
        alone = fit_blocks(here.model, here.sites, [row], here.samples.fitted(), here.options, THREAD)[0]
        other = alone[row.site.place]
        assert isinstance(made, Factorized)
        assert isinstance(other, Factorized)
        for one, two in zip(made.arrays, other.arrays, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("skip", ["auto", "slice"])
def test_effects_around_a_plan_with_blocks_are_those_of_the_whole(skip: str) -> None:
    """A layer left alone changes nothing; another form of it does what it does in the written model."""
    here = Setting(model(skip=skip))
    block = next(row for row in here.blocks("ghost-bottleneck", "fire") if len(row.site.nodes) > 1)
    behind = [site for site in here.layers if site.place > block.site.place]
    plan = Plan([block])
    factors = fitted(here.model, here.sites, plan, here.samples)
    carried = assembled(here.model, here.sites, plan, factors)
    walk, whole = here.walk(carried.dense), here.walk().of(carried.model).additive
    assert whole > 0
    for site in behind[:2]:
        weight = read_weight(here.model, here.sites, site)  # type: ignore[arg-type]
        effect = walk.at(site)  # type: ignore[arg-type]
        assert effect(weight, None).additive == pytest.approx(whole, rel=1e-3)
        assert effect(weight * 0.5, None).additive != pytest.approx(whole, rel=1e-2)


def brute_force(layers: Any, most: int) -> float | None:
    """The least effect of a choice in which each layer is covered once."""
    places = [layer[0].site.place for layer in layers]
    best = None
    for chosen in product(*([None, *layer] for layer in layers)):
        some = [one for one in chosen if one is not None]
        covered = sorted(place for one in some for place in (one.site.place, *one.covers))
        if covered == sorted(places) and sum(one.parameters for one in some) <= most:
            effect = sum(one.effect for one in some)
            best = effect if best is None else min(best, effect)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_a_block_excludes_the_forms_of_its_layers(seed: int) -> None:
    here, rng = Setting(model()), np.random.default_rng(seed)
    sites = here.layers[:4]
    layers = []
    for number, site in enumerate(sites):
        several = [Measured(site, None, 100, 0, 0, 0.0, 0.0)]  # type: ignore[arg-type]
        several += [
            Measured(site, None, int(rng.integers(10, 90)), 0, 0, 0.0, float(rng.random()))  # type: ignore[arg-type]
            for _ in range(2)
        ]
        for length in range(1, len(sites) - number):
            covers = tuple(one.place for one in sites[number + 1 : number + 1 + length])
            cost = int(rng.integers(10, 60) * (length + 1))
            several.append(Measured(site, None, cost, 0, 0, 0.0, float(rng.random()), covers=covers))  # type: ignore[arg-type]
        layers.append(several)
    costs = [[replace(one, effect=float(one.parameters)) for one in several] for several in layers]
    assert least(layers, "params") == brute_force(costs, 10**6)
    for most in (60, 150, 250):
        wanted, found = brute_force(layers, most), select(layers, {"params": most})
        assert (wanted is None) == (found is None)
        if isinstance(found, Selection):
            assert found.effect == pytest.approx(wanted, abs=1e-3)
            held = [place for one in found.chosen for place in (one.site.place, *one.covers)]
            assert sorted(held) == sorted(site.place for site in sites)


def planned(**options: Any) -> Any:
    return onnxsep.plan(
        model().proto, target="params=0.5", data=X, modes=MODES, samples=24, positions=16, rounds=0, **options
    )


def test_a_plan_chooses_blocks_and_a_rewrite_carries_it_out(tmp_path: Path) -> None:
    """Its text, read again, gives the same file as the plan itself; both keep within the budget, and say the same."""
    result = planned()
    forms = {layer.name: layer for layer in result.report.layers}
    blocks = [layer for layer in forms.values() if layer.mode == "ghost-bottleneck"]
    assert blocks
    assert [layer for layer in forms.values() if layer.reason == f"in the block of {blocks[0].name!r}"]
    text = result.plan.text()
    files = []
    for number, plan in enumerate((result.plan, plan_from_text(text, "p.toml"))):
        done = onnxsep.rewrite(model().proto, plan=plan, data=X, samples=24, positions=16)
        (target,) = result.report.targets
        assert done.report.totals.parameters_after == target.after <= target.allowed
        done.save(tmp_path / f"{number}.onnx")
        files.append((tmp_path / f"{number}.onnx").read_bytes())
        assert done.plan.text().split("[layers]")[1].count("in the block of") == text.count("in the block of")
    assert files[0] == files[1]
    onnx.checker.check_model(onnx.load_model_from_string(files[0]), full_check=True)


@pytest.mark.skipif(not DEEP, reason="two plans of many forms")
def test_blocks_do_not_make_a_plan_worse() -> None:
    """Where the sum of effects promises more than it holds, the plan of layers alone is taken."""
    asked: dict[str, Any] = {"data": X, "samples": 24, "positions": 16, "rounds": 0}
    for target in ("params=0.6", "params=0.4", "params=0.25"):
        effects = []
        for modes in (["spatial", "ghost", "ghost-bottleneck", "fire"], ["spatial"]):
            report = onnxsep.plan(model().proto, target=target, modes=modes, **asked).report
            assert report.measured is not None
            assert report.measured.value is not None
            effects.append(report.measured.value)
        assert effects[0] <= effects[1]


def test_what_was_measured_of_blocks_is_kept(tmp_path: Path) -> None:
    first, again = (planned(cache=tmp_path / "cache") for _ in range(2))
    assert again.plan.text() == first.plan.text()
    kept = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert any('"block"' in one and "ghost-bottleneck" in one for one in kept)
    assert any("holds" in line for line in again.report.measuring)


def test_convs_and_blocks_are_fitted_to_what_both_deliver() -> None:
    """Together they lose less than when each is fitted as if it were the only one."""
    here = Setting(model())
    block = next(row for row in here.blocks("ghost-bottleneck") if len(row.site.nodes) > 1)
    behind = [site for site in here.layers if site.place > block.site.place and max(site.conv.kernel_shape) > 1]  # type: ignore[union-attr]
    rows = [list(candidates(site, [get_mode("spatial")]))[2] for site in behind]  # type: ignore[arg-type]
    plan = Plan([block, *rows])
    found = fit_together(here.model, here.sites, plan, here.samples.fitted, here.options, THREAD)
    alone = {}
    for row in plan.replacements:
        done = fit_together(here.model, here.sites, Plan([row]), here.samples.fitted, here.options, THREAD)
        alone[row.site.place] = done.by_place[row.site.place]
    walk = here.walk()
    errors = [walk.of(assembled(here.model, here.sites, plan, made).model).value for made in (found.by_place, alone)]
    assert errors[0] < errors[1]


def test_times_of_blocks_are_those_of_pieces_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((latency, "PIECES"), (latency, "SHARES"), (timings, "THOROUGH")):
        monkeypatch.setattr(module, name, QUICK)
    here = Setting(model(norm=True))
    rows = here.blocks("inverted-bottleneck", "dice")
    cutter, kinds = Cutter(here.model, here.sites), set()
    for row in rows:
        piece = cutter.block(row.site)
        assert not isinstance(piece, str)
        made = piece.with_row(row)
        assert isinstance(made, Model)
        onnx.checker.check_model(made.proto, full_check=True)
        shapes = [[one.shape for one in Runner(each, THREAD)(piece.feeds()).values()] for each in (piece.model, made)]
        assert shapes[0] == shapes[1]
        kinds.add(piece.key)
    assert len(kinds) < len({row.site.nodes for row in rows}) + 1
    known = latency.latencies(here.model, here.sites, rows[:3], THREAD)
    for row in rows[:3]:
        time = known.of(row)
        assert not isinstance(time, str)
        assert time.ratio > 0


def test_a_piece_of_a_block_computes_what_the_block_does() -> None:
    here = Setting(model(norm=True))
    row = here.blocks("inverted-bottleneck")[0]
    piece = Cutter(here.model, here.sites).block(row.site)
    assert not isinstance(piece, str)
    output = here.model.proto.graph.node[row.site.place[1]].output[0]
    whole = onnx.ModelProto.FromString(here.model.proto.SerializeToString())
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (row.site.input, output))
    seen = Runner(Model(whole), THREAD)({"x": X[:1]})
    names = {node.name for node in piece.model.proto.graph.node}
    assert len(names) >= len(row.site.nodes)
    alone = onnx.ModelProto.FromString(piece.model.proto.SerializeToString())
    del alone.graph.node[: piece.places[row.site.nodes[0]][1]]  # what stands for neighbours
    del alone.graph.node[len(row.site.nodes) :]
    del alone.graph.input[:], alone.graph.output[:]
    shape = seen[row.site.input].shape
    alone.graph.input.append(onnx.helper.make_tensor_value_info(piece.input, onnx.TensorProto.FLOAT, shape))
    alone.graph.output.append(onnx.ValueInfoProto(name=alone.graph.node[-1].output[0]))
    (made,) = Runner(Model(alone), THREAD)({piece.input: seen[row.site.input]}).values()
    np.testing.assert_allclose(made, seen[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modes": ["squeeze-excitation"]}, "it saves nothing by itself"),
        ({"modes": ["fold"]}, "it is exact, and rewrites whole networks"),
        ({"modes": ["gap-head"]}, "its new weights are not fitted block by block"),
        ({"modes": ["narrow-stem"]}, "it changes the widths of layers"),
        ({"modes": ["ghost"], "target": "ram=0.9"}, "ram= is for forms of single layers, and ghost takes blocks"),
        ({"modes": ["ghost"], "then": "int8"}, "then is for forms of single layers, and ghost takes blocks"),
    ],
)
def test_what_is_no_candidate_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        onnxsep.plan(model().proto, **{"target": "params=0.5", "data": X, **options})


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('"conv2" = { mode = "ghost-bottleneck" }\n"conv4" = { mode = "spatial" }', "has a form of its own"),
        ('"conv2" = { mode = "ghost-bottleneck" }\n"conv4" = { mode = "ghost" }', "is also in the block of 'conv"),
        ('"conv4" = { mode = "ghost-bottleneck" }', "finds it in the block of another layer; name that one"),
        ('"conv0" = { mode = "ghost-bottleneck" }', "cannot take it: no residual block"),
        ('"conv2" = { mode = "ghost", rank = [2] }', "has no rank to choose"),
        ('"conv2" = { mode = "ghost", init = "joint" }', "fits its weights in one way; take init out"),
        ('"conv2" = { mode = "ghost", settings = { ratio = 3 } }', "its 8 outputs are no multiple of the ratio 3"),
        ('"conv2" = { mode = "narrow-stem" }', "'narrow-stem' is a width mode"),
        ('"conv2" = { mode = "ghst" }', "unknown mode 'ghst'"),
    ],
)
def test_lines_that_cannot_be_carried_out_are_refused(lines: str, words: str) -> None:
    plan = plan_from_text(f"schema = 1\n[layers]\n{lines}\n", "p.toml")
    with pytest.raises(onnxsep.OnnxsepError, match=words):
        onnxsep.rewrite(model().proto, plan=plan, data=X)


def test_a_line_for_a_block_needs_no_data() -> None:
    """Any block mode may stand in a plan, whose other lines are as before; without data it starts from the weights."""
    lines = (
        '"conv2" = { mode = "fire" }',
        '"conv7" = { mode = "spatial", rank = [2] }',
        '"conv13" = { mode = "squeeze-excitation" }',
    )
    plan = plan_from_text("\n".join(("schema = 1", "[layers]", *lines)), "p.toml")
    done = onnxsep.rewrite(model().proto, plan=plan)
    modes = {row.name: row.mode for row in done.report.convs if row.mode}
    assert modes == {"conv2": "fire", "conv7": "spatial", "conv13": "squeeze-excitation"}
    whole = done.plan.text()
    again = onnxsep.rewrite(model().proto, plan=plan_from_text(whole, "q.toml"))
    assert again.model.proto.SerializeToString() == done.model.proto.SerializeToString()


def test_a_plan_may_be_of_one_block_mode_alone() -> None:
    """What a rewrite by a block mode did is a plan too."""
    done = onnxsep.rewrite(model().proto, mode="ghost-bottleneck", force=True)
    again = onnxsep.rewrite(model().proto, plan=done.plan)
    assert again.model.proto.SerializeToString() == done.model.proto.SerializeToString()
