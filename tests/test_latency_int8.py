"""Layers timed in int8: what is done to each piece before it runs."""

from pathlib import Path
from typing import Any

import latency_models
import numpy as np
import onnx
import pytest
from latency_models import residual, rows_of

from onnxsep.planner import latency
from onnxsep.planner.int8 import int8
from onnxsep.planner.latency import AS_IT_IS, FormLatency, Then, latencies
from onnxsep.planner.latency_work import work_of
from onnxsep.running.runtime import CannotRun, Runner, RuntimeOptions

ONE = RuntimeOptions(threads=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIECES", "SHARES"):
        monkeypatch.setattr(latency, name, latency_models.QUICK)


def test_a_piece_and_its_form_are_quantised_whole() -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    work = work_of(model, sites, [row for row in rows if row.site.name == "one"][:1])
    ((key, piece),) = work.pieces.items()
    (form,) = work.of(key).values()
    feeds = piece.feeds()
    for made, convs in ((int8().make(piece.model, feeds), 3), (int8().make(form, feeds), 4)):
        nodes = made.proto.graph.node
        makers = {node.output[0]: node.op_type for node in nodes}
        quantised = [node for node in nodes if node.op_type == "Conv"]
        assert len(quantised) == convs
        assert {makers[name] for node in quantised for name in node.input[:2]} == {"DequantizeLinear"}
        stored = {tensor.name: tensor.data_type for tensor in made.proto.graph.initializer}
        zeros = [node.input[2] for node in nodes if node.op_type == "QuantizeLinear" and len(node.input) > 2]
        assert zeros  # those without one are uint8 with 0
        assert {stored[name] for name in zeros} == {onnx.TensorProto.UINT8}
        before, after = Runner(piece.model, ONE)(feeds), Runner(made, ONE)(feeds)
        assert {name: value.shape for name, value in before.items()} == {
            name: value.shape for name, value in after.items()
        }


def test_options_of_quantize_tell_times_apart() -> None:
    assert int8().name == int8(activations="uint8").name
    assert len({AS_IT_IS.name, int8().name, int8(activations="int8").name, int8(per_channel=False).name}) == 4


def test_float_and_int8_are_kept_apart_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    rows = [row for row in rows if row.site.name == "three"][:1]
    made: list[int] = []

    def copied(source: Any, feeds: Any) -> Any:
        made.append(len(feeds))
        return source

    first = latencies(model, sites, rows, ONE, cache=tmp_path)
    latencies(model, sites, rows, ONE, cache=tmp_path, then=Then("a copy", copied))
    assert made == [1, 2, 2, 2]  # the whole model, the piece, and both sides of its form
    latencies(model, sites, rows, ONE, cache=tmp_path, then=Then("a copy", copied))
    assert len(made) == 4
    assert isinstance(first.of(rows[0]), FormLatency)


def test_what_cannot_be_quantised_is_a_reason() -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    rows = [row for row in rows if row.site.name == "three"]

    def refusing(source: Any, feeds: Any) -> Any:
        if "skip" in feeds and len(source.proto.graph.node) > 9:
            raise CannotRun("it cannot be quantised: no")
        return source

    found = latencies(model, sites, rows, ONE, then=Then("refusing", refusing))
    assert {found.of(row) for row in rows} == {"the runtime cannot run it: it cannot be quantised: no"}


def test_wrong_inputs_are_a_reason_too() -> None:
    model, sites, rows = rows_of(residual(), "spatial")
    piece = next(iter(work_of(model, sites, rows).pieces.values()))
    with pytest.raises(CannotRun, match="it cannot be quantised: "):
        int8().make(piece.model, {"other": np.zeros((1, 4, 12, 12), np.float32)})
