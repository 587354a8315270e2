"""Layers cut out of a model to be timed; what their times promise for the whole; what is kept of them."""

import json
import math
from pathlib import Path
from typing import Any

import latency_models
import onnx
import pytest
from latency_models import residual, rows_of

from onnxsep.engine.matches import ConvSite
from onnxsep.errors import OptionError, UnsupportedModelError
from onnxsep.graph.index import Index
from onnxsep.graph.scopes import scopes
from onnxsep.graph.shapes import KnownShapes, infer_shapes, skeleton
from onnxsep.modes import Mode, available_modes
from onnxsep.planner import latency
from onnxsep.planner.cache import MARKER
from onnxsep.planner.latency import FormLatency, Latencies, latencies, latencies_of
from onnxsep.planner.latency_times import FormTime, Machine, PieceTime, Times
from onnxsep.planner.latency_work import row_key, work_of
from onnxsep.planner.layouts import blocked_tensors
from onnxsep.planner.pieces import Cutter, Piece
from onnxsep.running.runtime import Runner, RuntimeOptions
from onnxsep.running.timing import Effort, clock_for, measure_times

ONE = RuntimeOptions(threads=1)
MACHINE = Machine(runtime="1", provider="CPUExecutionProvider", threads=1, processor="p")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIECES", "SHARES"):
        monkeypatch.setattr(latency, name, latency_models.QUICK)


def pieces(proto: onnx.ModelProto) -> dict[str, Piece | str]:
    model, sites, _ = rows_of(proto, "spatial")
    cutter = Cutter(model, sites)
    return {site.name: cutter.piece(site) for site in sites.found if isinstance(site, ConvSite)}


def operators(piece: Piece | str) -> list[str]:
    assert isinstance(piece, Piece)
    return [node.op_type for node in piece.model.proto.graph.node]


def test_a_piece_holds_what_the_runtime_fuses_and_neighbours() -> None:
    found = pieces(residual())
    behind = ["BatchNormalization", "Relu", "Conv"]
    assert operators(found["one"]) == ["Conv", "Relu", "Conv", *behind]
    assert operators(found["three"]) == [
        *("Conv", "Relu", "Conv", "BatchNormalization", "Conv", "Relu", "Add", "Relu", "Conv")
    ]
    assert operators(found["stem"]) == ["Conv", "Relu", "Conv"]  # nobody makes the image


def test_equal_pieces_have_one_key_whatever_names_and_weights() -> None:
    found, other = pieces(residual()), pieces(residual(names="net/"))
    keys = {name: piece.key for name, piece in found.items() if isinstance(piece, Piece)}
    assert keys["one"] == keys["two"]
    assert len(set(keys.values())) == 3
    assert set(keys.values()) == {piece.key for piece in other.values() if isinstance(piece, Piece)}
    wider = pieces(residual(channels=24))
    assert not set(keys.values()) & {piece.key for piece in wider.values() if isinstance(piece, Piece)}


@pytest.mark.parametrize(
    "mode", sorted(name for name, mode in available_modes().items() if isinstance(mode, Mode) and name != "pointwise")
)
def test_every_form_runs_in_its_place(mode: str) -> None:
    model, sites, rows = rows_of(residual(), mode)
    work = work_of(model, sites, rows)
    assert rows
    assert len(work.models) * 3 == len(rows) * 2  # two of the three layers are alike
    for (key, _), form in work.models.items():
        piece = work.pieces[key]
        before, after = Runner(piece.model, ONE)(piece.feeds()), Runner(form, ONE)(piece.feeds())
        assert {name: value.shape for name, value in after.items()} == {
            name: value.shape for name, value in before.items()
        }
        assert len(form.proto.graph.node) > len(piece.model.proto.graph.node)


def test_a_gemm_is_a_piece_too() -> None:
    model, sites, rows = rows_of(residual(), "pointwise")
    work = work_of(model, sites, rows)
    ((key, piece),) = work.pieces.items()
    assert operators(piece) == ["Gemm"]
    assert piece.shapes == {"x": (1, 16)}
    for form in work.of(key).values():
        assert [node.op_type for node in form.proto.graph.node] == ["Gemm", "Gemm"]
        assert Runner(form, ONE)(piece.feeds())["layer"].shape == (1, 4)


def test_sizes_that_are_not_known_are_said() -> None:
    found = pieces(residual(size="n"))
    assert found["one"] == "the size of its input is not known (input_shapes gives it)"


def test_old_models_list_weights_as_inputs_also_in_pieces() -> None:
    proto = residual()
    proto.ir_version = 3
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in proto.graph.initializer
    )
    proto.opset_import[0].version = 8
    model, sites, rows = rows_of(proto, "spatial")
    work = work_of(model, sites, rows)
    for model in [*work.models.values(), *(piece.model for piece in work.pieces.values())]:
        stored = {tensor.name for tensor in model.proto.graph.initializer}
        assert stored < {value.name for value in model.proto.graph.input}
    assert operators(pieces(proto)["one"]) == ["Conv", "BatchNormalization", "Relu"]  # such weights are not in blocks


def blocked(proto: onnx.ModelProto) -> set[str]:
    light = infer_shapes(skeleton(proto))
    return set(blocked_tensors(Index(light), KnownShapes(scopes(light))))


def test_tensors_in_blocks_of_channels() -> None:
    everything = {"stem", "a", "one", "one_n", "b", "two", "two_n", "c", "three", "three_n", "sum", "d", "pooled"}
    assert blocked(residual()) == everything
    assert blocked(residual(channels=18)) == {"stem", "a"}  # the others read 18 channels, no multiple of 4


def test_a_sum_with_a_plain_tensor_is_plain() -> None:
    proto = residual()
    at = next(number for number, node in enumerate(proto.graph.node) if node.op_type == "Add")
    proto.graph.node[at].input[1] = "padded"
    proto.graph.node.insert(at, onnx.helper.make_node("Abs", ["a"], ["padded"]))
    assert not {"sum", "d"} & blocked(proto)
    assert "pooled" in blocked(proto)  # the pool copies what it reads


def by_hand() -> tuple[Latencies, list[Any]]:
    """Times that are round numbers, of one layer in two forms and its twin."""
    model, sites, rows = rows_of(residual(), "spatial")
    rows = [row for row in rows if row.site.name in ("one", "two")]
    work = work_of(model, sites, rows)
    (key,) = work.pieces
    forms = [form for _, form in work.models]
    times = {forms[0]: FormTime(ms=0.5, ratio=0.5, error=0.01), forms[1]: FormTime(ms=1.5, ratio=1.5, error=0.2)}
    piece = PieceTime(ms=1.0, share=0.2, error=0.03)
    return latencies_of(work, Times(machine=MACHINE, whole_ms=5.0, pieces={key: piece}, forms={key: times})), rows


def test_a_promise_is_the_sum_of_what_changes() -> None:
    found, rows = by_hand()
    fast, slow, twin, _ = rows
    one = found.of(fast)
    assert isinstance(one, FormLatency)
    assert one.change == pytest.approx(0.2 * (0.5 - 1))
    assert one.change_error == pytest.approx(math.hypot(0.03 * 0.5, 0.2 * 0.01))
    assert found.promised([]) == (1, 0)
    share, error = found.promised([fast, twin])
    assert share == pytest.approx(0.8)
    assert error == pytest.approx(2 * one.change_error)  # twins share what was measured
    assert found.promised([slow])[0] == pytest.approx(1.1)


def test_slower_is_what_chance_does_not_explain() -> None:
    found, rows = by_hand()
    fast, slow = found.of(rows[0]), found.of(rows[1])
    assert isinstance(fast, FormLatency)
    assert isinstance(slow, FormLatency)
    assert not fast.is_slower
    assert slow.is_slower
    assert not FormLatency(1.0, 1.1, 0.06, 0.01, 0.01).is_slower


def count_timings(monkeypatch: pytest.MonkeyPatch, stop_at: int = -1) -> list[int]:
    """How many calls each measuring has; the one of this number is interrupted."""
    counts: list[int] = []

    def counted(calls: Any, *others: Any) -> Any:
        counts.append(len(calls))
        if len(counts) == stop_at:
            raise KeyboardInterrupt
        return measure_times(calls, *others)

    monkeypatch.setattr(latency, "measure_times", counted)
    return counts


def test_equal_pieces_are_timed_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, rows = rows_of(residual(), "spatial", "depthwise")
    counts = count_timings(monkeypatch)
    first = latencies(model, sites, rows, ONE, cache=tmp_path / "cache")
    kinds = len({(row.mode.name, row.rank) for row in rows})
    assert counts == [1 + 2, 1 + kinds, 1 + kinds]  # the whole and two pieces; each piece and its forms
    assert all(isinstance(first.of(row), FormLatency) for row in rows)
    again = latencies(model, sites, rows, ONE, cache=tmp_path / "cache")
    assert len(counts) == 3
    assert again.rows == first.rows
    assert again.whole_ms == pytest.approx(first.whole_ms, rel=0.5)
    latencies(model, sites, rows, RuntimeOptions(threads=2), cache=tmp_path / "cache")
    assert len(counts) == 6  # with other threads nothing of it holds


def test_what_was_timed_before_an_interrupt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    count_timings(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        latencies(model, sites, rows, ONE, cache=tmp_path / "cache")
    counts = count_timings(monkeypatch)
    latencies(model, sites, rows, ONE, cache=tmp_path / "cache")
    assert counts == [3]  # one piece with its two forms was left
    assert not list((tmp_path / "cache").glob(".onnxsep-*"))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"what": 1}', None])
def test_a_damaged_item_is_timed_again(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    rows = [row for row in rows if row.site.name == "three"][:1]
    first = latencies(model, sites, rows, ONE, cache=tmp_path)
    (item,) = (path for path in tmp_path.glob("*.json") if '"form"' in path.read_text(encoding="utf-8"))
    if text is None:  # a number that is none
        text = item.read_text(encoding="utf-8").replace('"ratio": ', '"ratio": "x", "was": ')
    item.write_text(text, encoding="utf-8")
    counts = count_timings(monkeypatch)
    again = latencies(model, sites, rows, ONE, cache=tmp_path)
    assert counts == [2]
    assert isinstance(again.of(rows[0]), FormLatency)
    assert isinstance(first.of(rows[0]), FormLatency)


@pytest.mark.parametrize("name", ["notes.txt", MARKER])
def test_a_folder_of_the_users_is_no_cache(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"kind": "mine"}', encoding="utf-8")
    model, sites, rows = rows_of(residual(), "spatial")
    with pytest.raises(OptionError, match="cache of onnxsep"):
        latencies(model, sites, rows, ONE, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == {"kind": "mine"}


def test_a_provider_that_is_not_there() -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    with pytest.raises(OptionError, match="unknown provider 'NoneExecutionProvider'; the installed onnxruntime has: "):
        latencies(model, sites, rows, RuntimeOptions(provider="NoneExecutionProvider"))


def test_a_model_that_does_not_run_is_said() -> None:
    proto = residual()
    proto.graph.node[1].domain = "nobody"
    proto.opset_import.add(domain="nobody", version=1)
    model, sites, rows = rows_of(proto, "spatial")
    sized = [row for row in rows if row.site.input_size]
    with pytest.raises(UnsupportedModelError, match="cannot run the model, so nothing can be timed"):
        latencies(model, sites, sized, ONE)


def test_the_figure_of_a_turn_may_be_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth millisecond is lost: of ten short runs that hits one, of long runs each, and both by a tenth."""
    now = [0.0]
    monkeypatch.setattr("onnxsep.running.timing.time.perf_counter", lambda: now[0])

    def model(milliseconds: int) -> Any:
        done = [0]

        def call(_: Any) -> None:
            before, done[0] = done[0], done[0] + milliseconds
            now[0] += (milliseconds + done[0] // 10 - before // 10) / 1000

        return call

    effort = Effort(turn=0.04, rounds=8, shortest=0.1, longest=2.0, by_mean=True)
    found = measure_times([model(20), model(1)], [{}], effort=effort)
    assert found[1].against_first is not None
    assert found[1].against_first.value == pytest.approx(1 / 20, rel=0.03)
    assert found[0].figure == pytest.approx(0.022)
    by_median = measure_times([model(20), model(1)], [{}], effort=Effort(turn=0.04, shortest=0.1, longest=2.0))
    assert by_median[1].against_first is not None
    assert by_median[1].against_first.value == pytest.approx(1 / 22)


def test_the_clock_of_one_thread_on_the_processor_is_its_own() -> None:
    import time

    assert clock_for(2, on_cpu=True) is time.perf_counter
    assert clock_for(0, on_cpu=True) is time.perf_counter
    assert clock_for(1, on_cpu=False) is time.perf_counter
    assert clock_for(1, on_cpu=True) in (time.thread_time, time.perf_counter)


def test_rows_are_told_apart_by_layer_mode_and_rank() -> None:
    _, _, rows = rows_of(residual(), "spatial", "depthwise")
    assert len({row_key(row) for row in rows}) == len(rows)
