"""Curves in pages: the trade-off of plans and what ranks keep of weights, drawn where they belong."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import images
from onnx import TensorProto, helper, numpy_helper
from plan_models import conv
from test_pages import EVIL, Texts, in_browser, needs_browser

import onnxsep
from onnxsep.reporting.document import Curve, Curves, Document, Line, Point
from onnxsep.reporting.drawing import drawings
from onnxsep.reporting.html import html
from onnxsep.reporting.markdown import markdown
from onnxsep.reporting.page import page
from onnxsep.reporting.saved import read_report

# Where marked points are on the screen, beside what they should say.
LOOK = """
<script>
const found = {
  wide: document.documentElement.scrollWidth,
  room: innerWidth,
  chosen: [...document.querySelectorAll(".chosen")].map(dot => {
    const own = dot.getBoundingClientRect(), frame = dot.ownerSVGElement.getBoundingClientRect();
    return {inside: own.left >= frame.left && own.right <= frame.right && own.top >= frame.top, shown: own.width > 0};
  }),
};
document.body.dataset.found = JSON.stringify(found);
</script>
"""


def model(name: str = "mixed") -> onnx.ModelProto:
    """Two 3 x 3 Convs; the second's weight has squared singular values 16, 4 and 1 as spatial splits it."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.normal(size=(8 * 3, 3)))
    right, _ = np.linalg.qr(random.normal(size=(8 * 3, 3)))
    split = (left * [4.0, 2.0, 1.0]) @ right.T  # [in * kh, out * kw]
    second = split.reshape(8, 3, 8, 3).transpose(2, 0, 1, 3)
    weights = {"w1": random.normal(size=(8, 3, 3, 3)), "w2": second}
    nodes = [conv("x", "w1", "a", "first"), helper.make_node("Relu", ["a"], ["b"]), conv("b", "w2", "y", name)]
    shape: list[str | int | None] = ["N", 3, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_spectrum_is_that_of_the_weight() -> None:
    report = onnxsep.rewrite(model(), mode="spatial", rank=2, verify="none").report
    first, second = report.convs
    assert first.spectrum is None  # it was left alone
    assert second.spectrum is not None
    assert second.spectrum.ranks[:3] == (1, 2, 3)
    assert second.spectrum.kept[:3] == pytest.approx((16 / 21, 20 / 21, 1.0), abs=1e-4)
    assert "rank 2 keeps 95.2%" in page(report)


@pytest.mark.parametrize(("mode", "rank"), [("tucker", 3), ("channel", 4), ("depthwise", 2)])
def test_spectra_of_other_modes_grow_to_the_whole(mode: str, rank: int) -> None:
    (_, second) = onnxsep.rewrite(model(), mode=mode, rank=rank, force=True, verify="none").report.convs
    assert second.spectrum is not None
    kept = second.spectrum.kept
    assert list(kept) == sorted(kept)
    assert kept[-1] == pytest.approx(1.0)
    assert second.rank is not None
    assert second.rank[-1] in second.spectrum.ranks


def test_a_mode_without_singular_values_has_no_spectrum() -> None:
    report = onnxsep.rewrite(model(), mode="cp", rank=3, verify="none").report
    assert [conv.spectrum for conv in report.convs] == [None, None]
    assert "<svg" not in page(report)


def test_many_ranks_are_some_of_them_with_the_chosen_one() -> None:
    random = np.random.default_rng(1)
    wide = model()
    tensors = {"w1": (48, 3, 3, 3), "w2": (64, 48, 3, 3)}
    for tensor in wide.graph.initializer:
        value = random.normal(size=tensors[tensor.name]).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    (_, second) = onnxsep.rewrite(wide, mode="spatial", rank=17, verify="none").report.convs
    assert second.spectrum is not None
    assert 17 in second.spectrum.ranks
    assert second.spectrum.ranks[-1] == 144
    assert len(second.spectrum.ranks) <= 26


def test_a_plan_shows_its_trade_off_and_what_was_chosen(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=images(40, (3, 8, 8)))
    given: dict[str, Any] = {"data": tmp_path / "x.npz", "target": "params=0.7", "modes": ("spatial",), "rounds": 0}
    report = onnxsep.plan(model(EVIL), **given).report
    assert report.frontier == ()
    assert [point.plan for point in report.curve] == [""] * len(report.curve)
    asked = onnxsep.plan(model(EVIL), **given, frontier=tmp_path / "curve").report
    assert [point.estimated for point in asked.frontier] == [point.estimated for point in report.curve]
    text = page(report)
    found = Texts(text)
    assert (found.scripts, found.addresses) == (1, [])
    assert EVIL not in text
    share = report.targets[0].after / report.targets[0].before  # type: ignore[operator]
    assert f"this plan: {share:.3f} of the parameters" in text
    assert text.count("<circle") == len(report.curve) + 1


def test_a_plan_within_a_rewrite_shows_it_too(tmp_path: Path) -> None:
    done = onnxsep.rewrite(model(), target="params=0.7", data={"x": images(40, (3, 8, 8))}, mode="spatial")
    assert "<h2>trade-off</h2>" in page(done.report)
    (tmp_path / "r.json").write_text(done.report.model_dump_json())
    assert page(read_report(tmp_path / "r.json")) == page(done.report)


def test_other_writers_leave_curves_out() -> None:
    curve = Curves("secret", "x", "y", (Curve("c", (Point(0, 1), Point(1, 2))),))
    document = Document("t", (Line("told"), curve, Line("last")))
    for text in (html(document), markdown(document)):
        assert "told" in text
        assert "last" in text
        assert "secret" not in text


def test_points_lie_where_their_numbers_are() -> None:
    points = (Point(0, 0.0), Point(1, 0.001), Point(2, 1.0))
    (plain,) = drawings(Curves("n", "x", "y", (Curve("c", points, Point(1, 0.5, "half")),)))
    places = [tuple(map(float, pair.split(","))) for pair in plain.line.split()]
    left, top, right, bottom = plain.frame
    assert places[0] == (left, bottom)
    assert places[2] == (right, top)
    assert plain.chosen is not None
    assert (plain.chosen.x, plain.chosen.y) == ((left + right) / 2, (top + bottom) / 2)
    (logarithmic,) = drawings(Curves("n", "x", "y", (Curve("c", points),), logarithmic=True))
    assert [tick.text for tick in logarithmic.up] == ["0.001", "0.0316", "1"]
    assert drawings(Curves("n", "x", "y", (Curve("c", (Point(0, 0), Point(1, float("nan")))),))) == []
    (flat,) = drawings(Curves("n", "x", "y", (Curve("c", (Point(0, 3), Point(1, 3))),)))
    assert re.fullmatch(r"[\d., ]+", flat.line)


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_drawings_fit_in_a_browser(tmp_path: Path, shared: Path, width: int, dark: bool) -> None:
    report = onnxsep.rewrite(shared / "models" / "cifar10_resnet20_ts.onnx", mode="spatial", verify="none").report
    text = page(report)
    assert len(text.encode()) < 100_000
    (tmp_path / "r.html").write_text(text.replace("</body>", LOOK + "</body>"))
    found, said = in_browser(tmp_path / "r.html", width, dark)
    assert "CONSOLE" not in said
    assert found["wide"] <= found["room"]
    assert len(found["chosen"]) == report.totals.replaced > 10
    assert all(one["inside"] and one["shown"] for one in found["chosen"])
