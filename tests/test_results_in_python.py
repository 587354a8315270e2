"""What results say of themselves in Python: repr, print, notebooks, truth, rows for pandas."""

import importlib.util
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import MissingDependencyError
from onnxsep.reporting.document import Cell, Column, Document, Heading, Line, Note, Row, Series, Span, Table
from onnxsep.reporting.frames import flat
from onnxsep.reporting.html import MOST_ROWS, html
from onnxsep.reporting.records import Report

LONGEST = 600  # characters of a repr: two lines of a wide terminal
SAMPLES = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
SAVED = Path(__file__).parent / "saved_reports"
TAGS = {"div", "p", "b", "h4", "table", "thead", "tbody", "tr", "th", "td", "br"}
STRANGE = "conv <b>&\x1b[31m $x$"


def model() -> onnx.ModelProto:
    """Two 3 x 3 Convs, a pool and a Gemm: five classes."""
    rng = np.random.default_rng(1)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 5)}
    weights = [
        onnx.numpy_helper.from_array((rng.standard_normal(s) / 5).astype(np.float32), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], STRANGE, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w2"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("m") / "net.onnx"
    onnx.save(model(), place)
    return place


MAKERS: dict[str, Callable[[Path], Any]] = {
    "rewrite": lambda path: onnxsep.rewrite(path, mode="depthwise"),
    "inspect": lambda path: onnxsep.inspect(path),
    "check": lambda path: onnxsep.check(path, path),
    "prune": lambda path: onnxsep.prune(path, sparsity=0.5),
    "quantize": lambda path: onnxsep.quantize(path, data=SAMPLES, samples=8, equalize=False, bias_correction=False),
    "evaluate": lambda path: onnxsep.evaluate([path, path], data=SAMPLES, reference=path, runs=1, memory=False),
    "compress": lambda path: onnxsep.compress(
        path, onnxsep.Pipeline([onnxsep.Prune(sparsity=0.5)]), data=SAMPLES, runs=1
    ),
    "finetune": lambda path: onnxsep.read_report(SAVED / "finetune.json"),  # training takes too long
}


@pytest.fixture(scope="module")
def results(path: Path) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def result(command: str) -> Any:
        if command not in made:
            made[command] = MAKERS[command](path)
        return made[command]

    return result


def report_of(result: Any) -> Report:
    found: Report = result if isinstance(result, Report) else result.report
    return found


@pytest.mark.parametrize("command", MAKERS)
def test_a_repr_is_short_and_says_what_matters(command: str, results: Callable[[str], Any]) -> None:
    expected = {
        "rewrite": ["mode depthwise", "1 of 2 convolutions replaced", "parameters 832 -> 392", "relative error"],
        "inspect": ["832 parameters", "MACs"],
        "check": ["the model is the same as the reference in structure, weights, outputs"],
        "prune": ["sparsity 0.5", "of their 792 weights", "relative error"],
        "quantize": ["nodes quantised", "bytes", "relative error"],
        "evaluate": ["24 samples", "agreement 100.00%", "latency"],
        "compress": ["a pipeline (prune)", "original: ", "result: "],
        "finetune": ["1 epoch, weights of epoch 1 kept", "held-out loss 0.05236 -> 0.04853", "100.00% -> 100.00%"],
    }[command]
    result = results(command)
    for one in (result, report_of(result)):
        shown = repr(one)
        assert shown.startswith(f"<{type(one).__name__}: ")
        assert shown.isprintable()
        assert len(shown) < LONGEST
        for words in expected:
            assert words in shown


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rewrite", ["rewrite", "--mode", "depthwise", "--dry-run"]),
        ("inspect", ["inspect"]),
        ("prune", ["prune", "--sparsity", "0.5", "--dry-run"]),
    ],
)
def test_print_shows_the_table_of_the_command(command: str, words: list[str], path: Path) -> None:
    name, *options = words
    told = run(name, path, *options)
    assert told.returncode == 0
    made: dict[str, Callable[[], Any]] = {
        "rewrite": lambda: onnxsep.rewrite(path, mode="depthwise", dry_run=True).report,
        "inspect": lambda: onnxsep.inspect(path),
        "prune": lambda: onnxsep.prune(path, sparsity=0.5, dry_run=True).report,
    }
    expected = [line.rstrip() for line in told.stdout.splitlines()]
    spelled = [
        line.replace("--include-first", "include_first=True").replace("--channels", "channels") for line in expected
    ]
    found = [line.rstrip() for line in str(made[command]()).splitlines()]
    assert [line.split() for line in found] == [line.split() for line in spelled]


@pytest.mark.parametrize("command", MAKERS)
def test_html_holds_the_same_words_as_the_text(command: str, results: Callable[[str], Any]) -> None:
    result = results(command)
    fragment = result._repr_html_()
    assert fragment == report_of(result)._repr_html_()
    tree = ET.fromstring(fragment.replace("&nbsp;", " ").replace("<br>", "<br/>"))  # well-formed
    words = {word for text in tree.itertext() for word in text.split()}
    titles = {"why,", "notes", "why", "not"}  # of a column that is left out where it is empty
    assert {word for line in str(report_of(result)).splitlines() for word in line.split()} - words <= titles
    assert {element.tag for element in tree.iter()} <= TAGS


def test_html_escapes_everything() -> None:
    bad = "<script>alert('&\x1b[31m\"')</script> $x^2$"
    blocks = (
        Heading(bad),
        Line((bad, Span(bad, "warning"), Span(bad, "dim"))),
        Note(bad),
        Table((Column(bad),), (Row((Cell(bad, note=bad),), mark="<", details=(bad,)),), notes=bad),
        Series(bad, (1.0,), (bad,)),
    )
    fragment = html(Document(bad, blocks))
    assert "<script" not in fragment
    assert "\x1b" not in fragment
    assert "'" not in fragment
    assert 'class="onnxsep tex2jax_ignore mathjax_ignore"' in fragment  # no formula between dollars
    tree = ET.fromstring(fragment.replace("<br>", "<br/>"))
    shown = [text for text in tree.itertext() if text.strip()]
    # The heading, three pieces of the line; title, cell, its note and detail, and the title of the notes.
    assert shown.count(bad.replace("\x1b", "\\x1b")) == 1 + 3 + 5
    assert len(tree.findall(".//b")) == 1


def test_html_of_a_long_table_ends() -> None:
    rows = tuple(Row((Cell(str(number)),)) for number in range(MOST_ROWS + 7))
    fragment = html(Document("", (Table((Column("n"),), rows),)))
    assert len(re.findall("<tr>", fragment)) == MOST_ROWS + 1
    assert "... and 7 more rows" in fragment


def test_a_long_name_does_not_make_a_long_repr(tmp_path: Path) -> None:
    proto = model()
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "x" * 3000
    proto.graph.output.extend(helper.make_tensor_value_info(f"o{n}", TensorProto.FLOAT, [1]) for n in range(40))
    assert len(repr(onnxsep.Model(proto))) < LONGEST
    assert "'y', 'o0', 'o1' and 38 more" in repr(onnxsep.Model(proto))
    place = tmp_path / ("a" * 200)
    place.mkdir()
    onnx.save(model(), place / ("b" * 200 + ".onnx"))
    assert len(repr(onnxsep.inspect(place / ("b" * 200 + ".onnx")))) < LONGEST


def test_models_plans_and_files(path: Path, results: Callable[[str], Any], tmp_path: Path) -> None:
    loaded = onnxsep.load(path)
    assert repr(loaded) == f"<Model {str(path)!r}: 6 nodes, opset 13, inputs 'x', outputs 'y'>"
    assert repr(onnxsep.load(model())) == "<Model in memory: 6 nodes, opset 13, inputs 'x', outputs 'y'>"
    plan = results("rewrite").plan
    assert repr(plan) == "<PlanFile the plan: 2 layers: 1 depthwise, 1 left alone>"
    plan.save(tmp_path / "p.toml")
    assert str(plan) == (tmp_path / "p.toml").read_text(encoding="utf-8")
    assert repr(onnxsep.read_plan(tmp_path / "p.toml")).startswith(f"<PlanFile {tmp_path / 'p.toml'}: 2 layers")


def test_what_stands_in_results_is_short_too(path: Path) -> None:
    layers = onnxsep.check(path, path, layers=True).parts[-1].layers
    assert repr(layers) == "<LayersReport: 6 of 6 tensors on 1 samples; no jump>"
    recipe = onnxsep.read_recipe("fitted-int8")
    assert "Quantize(samples=" in repr(recipe)
    assert len(repr(recipe)) < LONGEST
    assert repr(open_data(SAMPLES, onnxsep.load(path))) == "<Dataset the data: 24 samples without labels>"


def test_a_check_is_true_where_the_models_are_the_same(path: Path) -> None:
    other = model()
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), other.graph.initializer[0].name)
    )
    assert bool(onnxsep.check(path, path)) is True
    differs = onnxsep.check(path, other)
    assert bool(differs) is False
    assert not differs
    assert differs.same is False


@pytest.mark.parametrize(
    ("command", "rows", "key", "values"),
    [
        ("rewrite", 2, "status", ["left", "replaced"]),
        ("inspect", 3, "parameters", [216, 576, 40]),
        ("check", 3, "name", ["structure", "weights", "outputs"]),
        ("prune", 2, "weights", [216, 576]),
        ("quantize", 6, "op_type", ["Conv", "Relu", "Conv", "GlobalAveragePool", "Flatten", "MatMul"]),
        ("evaluate", 2, "against_reference.agreement.value", [1.0, 1.0]),
        ("compress", 2, "macs", [50728, 50728]),  # 64 * (8 * 27 + 8 * 72) + 8 * 5
        ("finetune", 1, "epoch", [1]),
    ],
)
def test_rows_as_data(command: str, rows: int, key: str, values: list[Any], results: Callable[[str], Any]) -> None:
    found = report_of(results(command)).to_records()
    assert len(found) == rows
    assert [row[key] for row in found] == values
    assert len({tuple(row) for row in found}) == 1  # all have the same columns
    assert not any(isinstance(value, dict) for row in found for value in row.values())


def test_columns_of_nested_records() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "top": None, "outputs": (), "modes": {"m": {"pays": True}}},
        {"name": "b", "top": {"share": 0.5}, "outputs": ({"name": "y", "error": 1.0},), "modes": {}},
    ]
    assert flat(rows) == [
        {"name": "a", "outputs": (), "modes.m.pays": True, "top.share": None, "outputs.y.error": None},
        {"name": "b", "outputs": None, "modes.m.pays": None, "top.share": 0.5, "outputs.y.error": 1.0},
    ]
    assert flat([]) == []


@pytest.mark.parametrize("command", ["rewrite", "evaluate"])
def test_frame(command: str, results: Callable[[str], Any]) -> None:
    pandas = pytest.importorskip("pandas")
    result = results(command)
    frame = result.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    records = report_of(result).to_records()
    assert list(frame.columns) == list(records[0])
    assert len(frame) == len(records)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is not None, reason="pandas is installed")
def test_no_pandas(results: Callable[[str], Any]) -> None:
    with pytest.raises(MissingDependencyError, match=r"to_frame\(\) needs pandas .*pip install pandas"):
        results("rewrite").to_frame()


def test_options_are_spelled_where_they_are_read(tmp_path: Path) -> None:
    """``onnxsep report`` speaks of options that other commands have; in Python there are no dashes."""
    done = subprocess.run(
        [sys.executable, "-m", "onnxsep", "report", str(SAVED / "inspect.json")],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "400"},
    )
    expected = (SAVED / "inspect.txt").read_text(encoding="utf-8")
    assert "--input-shape NAME:DIMS" in expected
    assert done.stdout == expected
    assert str(onnxsep.read_report(SAVED / "inspect.json")) == expected.replace(
        "--input-shape NAME:DIMS", "input_shapes"
    ).rstrip("\n")
