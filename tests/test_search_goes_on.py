"""What the ways of a search share, and how a run goes on in the middle of a plan."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from calibration_models import images
from onnx import TensorProto, helper
from plan_models import conv, tensor

import onnxsep
from onnxsep.compression import Pipeline, Plan, Quantize, Rewrite
from onnxsep.compression.api import run_recipe
from onnxsep.compression.given import CompressOptions
from onnxsep.compression.recipe import Recipe
from onnxsep.compression.report import StepReport
from onnxsep.compression.search_options import SearchOptions
from onnxsep.compression.searching import Search
from onnxsep.data import opening
from onnxsep.errors import OptionError, VerificationError
from onnxsep.planner.cache import MARKER
from onnxsep.planner.report import PlanReport
from onnxsep.running import inputs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network and its data."""
    folder = tmp_path_factory.mktemp("goes_on")
    nodes = [
        conv("x", "w1", "a", "first"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "w2", "c", "second"),
        helper.make_node("Relu", ["c"], ["d"]),
        conv("d", "w3", "e", "third"),
        helper.make_node("GlobalAveragePool", ["e"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    weights = [tensor("w1", 8, 3, 3, 3), tensor("w2", 16, 8, 3, 3), tensor("w3", 6, 16, 3, 3)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "in.onnx")
    np.savez(folder / "train.npz", x=images(60, (3, 8, 8)))
    return folder


_PLAN = (Plan(target="params=0.6", modes=("spatial", "channel"), rounds=0), Rewrite(plan="planned"))


def interrupted(place: Path, work: Path) -> list[Path]:
    """What a plan has measured that was stopped after its first layer."""

    def measured() -> list[Path]:
        return [path for path in work.glob("01-plan.cache/measured-*/*.json") if path.name != "about.json"]

    def stop(what: str, done: int, all_: int) -> None:
        if measured():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pipeline(_PLAN)(place / "in.onnx", data=place / "train.npz", runs=0, work=work, progress=stop)
    return measured()


def test_a_plan_goes_on_with_what_was_measured(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    kept = interrupted(place, work)
    assert kept
    whole = Pipeline(_PLAN)(place / "in.onnx", data=place / "train.npz", runs=0, work=work, keep_steps=True)
    planned = whole.report.steps[0].report
    assert isinstance(planned, PlanReport)
    (said,) = planned.measuring[:1]
    assert f"holds {len(kept)} measurements of this model on these data: they are used" in said
    assert not (work / "01-plan.cache").exists()
    plain = Pipeline(_PLAN)(place / "in.onnx", data=place / "train.npz", runs=0)
    assert plain.model.proto.SerializeToString() == whole.model.proto.SerializeToString()


def test_a_folder_that_is_no_cache_of_ours_is_left_alone(place: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    interrupted(place, work)
    mine = work / "01-plan.cache" / "mine.txt"
    mine.write_text("mine")
    (work / "01-plan.cache" / MARKER).unlink()
    for fresh in (False, True):
        with pytest.raises(OptionError, match="cache of onnxsep"):
            Pipeline(_PLAN)(place / "in.onnx", data=place / "train.npz", runs=0, work=work, fresh=fresh)
        assert mine.read_text() == "mine"


def test_steps_that_another_way_has_done_are_not_done_again(place: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def tell(step: StepReport) -> None:
        told.append(step.command)

    options = SearchOptions(target="size=0.9", data=place / "train.npz", runs=0)
    shared = Search(place / "in.onnx", options)._shared
    begin = Rewrite(mode="spatial", rank=0.5)
    first, second = (Recipe("r", (begin, Quantize(names=names))) for names in ("keep", "short"))

    def run(recipe: Recipe, work: Path | None) -> onnxsep.CompressResult:
        given = CompressOptions(data=place / "train.npz", runs=0, told=tell, work=work)
        return run_recipe(recipe, place / "in.onnx", given, shared)

    run(first, tmp_path / "first")
    found = run(second, tmp_path / "second")
    assert told == ["rewrite", "quantize", "quantize"]
    alone = Pipeline(second)(place / "in.onnx", data=place / "train.npz", runs=0)
    assert found.model.proto.SerializeToString() == alone.model.proto.SerializeToString()
    # The second folder is whole: a run that shares nothing goes on from it.
    told.clear()
    again = Pipeline(second)(place / "in.onnx", data=place / "train.npz", runs=0, work=tmp_path / "second")
    assert [step.resumed for step in again.report.steps] == [True, True]


def test_ways_do_not_open_the_data_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = inputs.read_arrays

    def counting(path: Path, **options: bool) -> object:
        opened.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(opening, "read_arrays", counting)
    counts = []
    for target in ("size=0.9", "size=0.001"):
        opened.clear()
        options = SearchOptions(target=target, data=place / "train.npz", runs=0)
        search = Search(place / "in.onnx", options)
        search._ways = tuple(planned for planned in search._ways if planned.way.form != "plan")
        with nullcontext() if target == "size=0.9" else pytest.raises(VerificationError, match="no way"):
            search()
        counts.append(len(opened))
    assert counts[0] == counts[1] <= 2
