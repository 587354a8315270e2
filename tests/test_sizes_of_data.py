"""Sizes that a model leaves free are those of the data that a rewrite is given."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.rewriting.report import RewriteReport

CHANNELS, SIZE = 8, 10


def _model(folder: Path, size: tuple[int | str, int | str], pad: int = 1, image: int = SIZE) -> None:
    """A first Conv and one that a rewrite takes, on images of this size."""
    source = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(source.normal(size=shape).astype(np.float32), name)
        for name, shape in (("a", (CHANNELS, 3, 1, 1)), ("b", (CHANNELS, CHANNELS, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first"),
        helper.make_node("Conv", ["y", "b"], ["z"], name="second", pads=[pad] * 4),
    ]
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, *size])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "in.onnx")
    np.savez(folder / "data.npz", x=source.normal(size=(6, 3, image, image)).astype(np.float32))


def _report(folder: Path, *, rank: int = 2, data: bool = True, dry_run: bool = False) -> RewriteReport:
    given = folder / "data.npz" if data else None
    return onnxsep.rewrite(folder / "in.onnx", mode="spatial", rank=rank, data=given, dry_run=dry_run).report


@pytest.mark.parametrize("dry_run", [False, True])
def test_macs_are_those_of_the_data(tmp_path: Path, dry_run: bool) -> None:
    _model(tmp_path, ("height", "width"))
    report = _report(tmp_path, dry_run=dry_run)
    first, second = report.convs
    assert first.macs_before == 3 * CHANNELS * SIZE**2
    assert second.macs_before == 9 * CHANNELS**2 * SIZE**2
    assert second.macs_after == 2 * 2 * 3 * CHANNELS * SIZE**2
    assert report.totals.macs_unknown == 0
    (told,) = [note for note in report.notes if "leaves free" in note]
    assert told.endswith("x 1x3x10x10")
    assert not any("not in the model" in note for note in report.notes)


def test_what_pays_is_decided_for_the_data(tmp_path: Path) -> None:
    """3 x 1 to 7 channels, then 1 x 3: half of the parameters, but on 3 x 3 pixels 672 MACs in place of 576."""
    _model(tmp_path, ("height", "width"), pad=0, image=3)
    assert _report(tmp_path, rank=7, data=False).convs[1].status == "replaced"
    left = _report(tmp_path, rank=7).convs[1]
    assert left.status == "left"
    assert "576 -> 672 MACs" in left.reason


def test_without_data_they_are_unknown(tmp_path: Path) -> None:
    _model(tmp_path, ("height", "width"))
    report = _report(tmp_path, data=False)
    assert [conv.macs_before for conv in report.convs] == [None, None]
    assert any("not in the model" in note for note in report.notes)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (SIZE, "width")])
def test_only_what_is_free_is_told(tmp_path: Path, size: tuple[int | str, int | str]) -> None:
    _model(tmp_path, size)
    report = _report(tmp_path)
    assert any("leaves free" in note for note in report.notes) == (size[1] == "width")
    assert report.convs[1].macs_before == 9 * CHANNELS**2 * SIZE**2
