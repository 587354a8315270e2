"""Reports in terminals of any width: no line is wider, no figure is cut, every row and what matters most of it stay."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from terminal import Terminal, on_terminal, terminal

from onnxsep.reporting.commands import HOMES, document_of
from onnxsep.reporting.document import Cell, Column, Document, Heading, Line, Note, Row, Table, plain
from onnxsep.reporting.printable import printable
from onnxsep.reporting.saved import read_report
from onnxsep.reporting.text import make_console, plain_text, print_document

SAVED = Path(__file__).parent / "saved_reports"
DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_cnn.onnx"
WIDTHS = [60, 80, 100, 120, 200]
FIGURE = re.compile(r"(?<![\w.,])[-+]?\d[\d,.]*\d|\d")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


def texts(document: Document) -> Iterator[str]:
    """Every text that may be shown of a document."""
    for block in document.blocks:
        if isinstance(block, Heading | Note):
            yield block.text
        elif isinstance(block, Line):
            yield plain(block.words)
        elif isinstance(block, Table):
            yield from (column.title for column in block.columns)
            for row in block.rows:
                yield from row.details
                for cell in row.cells:
                    yield from (plain(cell.words), plain(cell.narrow or ""), cell.note, cell.narrow_note)


def assert_fits(shown: Terminal, document: Document, columns: int) -> None:
    """No line is too wide, no figure is another one, and what must stay of each row is there."""
    assert shown.widest <= columns
    said = {figure for text in texts(document) for figure in FIGURE.findall(printable(text))}
    notes = {str(number) for number in range(1, 1000)}
    if columns >= 60:  # below, a name may be folded within a figure
        assert set(FIGURE.findall(shown.text)) <= said | notes
    compact = without_spaces(re.sub(r" \[\d+\]", "", shown.text))
    for block in document.blocks:
        if isinstance(block, Line):
            assert without_spaces(printable(plain(block.words))) in compact
        if not isinstance(block, Table):
            continue
        for row in block.rows:
            for cell, column in zip(row.cells, block.columns, strict=True):
                forms = [without_spaces(printable(plain(words or ""))) for words in (cell.words, cell.narrow)]
                assert column.spare or any(form in compact for form in forms if form or not cell.words)
                assert without_spaces(printable(cell.note)) in compact


def in_terminal(document: Document, columns: int, term: str = "xterm-256color") -> Terminal:
    with terminal(columns, term) as (file, shown):
        print_document(make_console(file), document)
    return shown


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("command", HOMES)
def test_every_report_fits(command: str, columns: int) -> None:
    document = document_of(read_report(SAVED / f"{command}.json"))
    assert_fits(in_terminal(document, columns), document, columns)


@pytest.mark.parametrize("command", HOMES)
def test_a_dumb_terminal_gets_no_control_characters(command: str) -> None:
    document = document_of(read_report(SAVED / f"{command}.json"))
    for columns in (60, 100):
        shown = in_terminal(document, columns, "dumb")
        assert_fits(shown, document, columns)
        assert not CONTROL.search(shown.written.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("columns", [1, 5, 20, 40])
def test_hardly_any_room_is_no_error(columns: int) -> None:
    for command in ("rewrite", "check"):
        document = document_of(read_report(SAVED / f"{command}.json"))
        shown = in_terminal(document, columns)
        assert_fits(shown, document, columns)


def rows(*names: str) -> tuple[Row, ...]:
    return tuple(
        Row(
            (
                Cell(name, note=f"why {number}"),
                Cell(f"{12345 * number:,} -> {4321 * number:,}", narrow=f"{4321 * number:,} (0.35)"),
                Cell(f"{64 + number}x64x3x3 /2x2"),
                Cell(f"0.{1000 + number}"),
            )
        )
        for number, name in enumerate(names, 1)
    )


COLUMNS = (Column("layer"), Column("parameters", "right"), Column("weight", spare=1), Column("weight error", "right"))


def test_the_forms_of_a_table_from_wide_to_narrow() -> None:
    document = Document("t", (Table(COLUMNS, rows("stem", "block1_conv1")),))

    def lines(columns: int) -> list[str]:
        return [line.rstrip() for line in in_terminal(document, columns).lines]

    assert lines(80)[0].split() == ["layer", "parameters", "weight", "weight", "error"]
    assert lines(80)[3].split() == ["block1_conv1", "[2]", "24,690", "->", "8,642", "66x64x3x3", "/2x2", "0.1002"]
    stacked = next(columns for columns in range(80, 20, -1) if lines(columns)[0].split() == ["weight"])
    assert lines(stacked)[1].split() == ["layer", "parameters", "weight", "error"]
    assert lines(stacked)[4].split()[2:5] == ["24,690", "->", "8,642"]
    short = next(columns for columns in range(stacked, 20, -1) if "(0.35)" in lines(columns)[-3])
    assert lines(short)[-3].split()[2:] == ["8,642", "(0.35)", "66x64x3x3", "/2x2", "0.1002"]
    spared = next(columns for columns in range(short, 20, -1) if "/2x2" not in "".join(lines(columns)))
    assert any(line.startswith("no room for: weight (") for line in lines(spared))
    assert [line.split()[-3:] for line in lines(spared) if "conv1" in line] == [["8,642", "(0.35)", "0.1002"]]
    card = next(columns for columns in range(spared, 20, -1) if "block1_conv1 [2]" in lines(columns))
    assert not any("no room" in line for line in lines(card))
    assert "  weight 66x64x3x3 /2x2" in lines(card)
    for columns in range(20, 81):
        assert_fits(in_terminal(document, columns), document, columns)


def test_figures_before_and_after_stay_on_one_line() -> None:
    changed = "parameters 186,314 -> 25,066 (0.135); MACs 3,853,568 -> 514,816 (0.134)"
    chain = " -> ".join(f"{number:,}" for number in range(147_686, 2_000, -7_000))
    for columns in range(40, 100):
        for text in (changed, chain):
            document = Document("t", (Line(text), Note(text, indent=2)))
            shown = in_terminal(document, columns)
            assert_fits(shown, document, columns)
            if columns >= 50 and text == changed:
                assert shown.text.count("186,314 -> 25,066") == shown.text.count("3,853,568 -> 514,816") == 2
            assert set(FIGURE.findall(shown.text)) == set(FIGURE.findall(text))


def test_models_side_by_side_are_shown_some_at_a_time() -> None:
    names = [f"model_{letter}.onnx" for letter in "abcdefg"]
    table = Table(
        (Column(""), *(Column(name, "right") for name in names)),
        (
            Row((Cell("size, bytes"), *(Cell(f"{1000 + number:,}") for number in range(7)))),
            Row((Cell("only of the last"), *[Cell()] * 6, Cell("7,777"))),
        ),
        alike=True,
    )
    for columns in (40, *WIDTHS):
        shown = in_terminal(Document("t", (table,)), columns)
        assert_fits(shown, Document("t", (table,)), columns)
        heads = [line.split() for line in shown.lines if "model" in line]
        assert [name for head in heads for name in head] == names
        sizes = [line.split()[2:] for line in shown.lines if line.startswith("size")]
        assert [len(size) for size in sizes] == [len(head) for head in heads]
        assert sum(line.startswith("only") for line in shown.lines) == 1  # no row without a figure
    assert len([line for line in in_terminal(Document("t", (table,)), 200).lines if "model" in line]) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab/._[1]\u5377\x1b ", min_size=1, max_size=90).filter(str.strip), min_size=1, max_size=4),
    st.sampled_from([30, *WIDTHS]),
    st.booleans(),
)
def test_names_of_any_length_fit(names: list[str], columns: int, framed: bool) -> None:
    document = Document("t", (Table(COLUMNS, rows(*names), framed=framed, indent=int(not framed)),))
    shown = Terminal()
    console = Console(force_terminal=True, width=columns, color_system=None, emoji=False, highlight=False)
    with console.capture() as caught:
        print_document(console, document)
    shown.written = caught.get().encode()
    assert shown.widest <= columns
    compact = without_spaces(shown.text)
    for number, row in enumerate(document.blocks[0].rows, 1):  # type: ignore[union-attr]
        assert without_spaces(printable(plain(row.cells[0].words)) + f" [{number}]") in compact
        assert f"0.{1000 + number}" in shown.text


def test_a_pipe_gets_lines_as_long_as_they_need_to_be() -> None:
    long = "w" * 3000
    document = Document("t", (Line(f"{long} {long}"), Table(COLUMNS, rows(long), notes="why"), Note(long)))
    lines = plain_text(document).splitlines()
    assert lines[0] == f"{long} {long}"
    assert lines[2].split() == [long, "12,345", "->", "4,321", "65x64x3x3", "/2x2", "0.1001", "why", "1"]
    assert lines[3] == f"note: {long}"
    assert len(lines) == 4
    assert not CONTROL.search(plain_text(document))


# Real runs


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of real runs on the digits model, whose Convs have the long names that exporters give."""
    import onnx
    from command_line import run

    folder = tmp_path_factory.mktemp("results")
    model = onnx.load(DIGITS)
    for node in model.graph.node:
        node.name = f"/backbone/stages.0/blocks.1/token_mixer/{node.name}"
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "x.npz", image=np.random.default_rng(0).standard_normal((24, 1, 8, 8), dtype=np.float32))
    modes = ("--mode", "spatial", "--mode", "depthwise", "--mode", "tucker")
    for name, arguments in {
        "rewrite": ("rewrite", "m.onnx", "r.onnx", "--mode", "depthwise", "--data", "x.npz", "--layers"),
        "local": ("rewrite", "m.onnx", "l.onnx", "--mode", "spatial", "--verify", "local"),
        "inspect": ("inspect", "m.onnx", *modes),
        "prune": ("prune", "m.onnx", "p.onnx", "--sparsity", "0.3", "--channels"),
        "quantize": ("quantize", "m.onnx", "q.onnx", "--data", "x.npz", "--no-bias-correction"),
        "evaluate": ("evaluate", *["m.onnx", "r.onnx", "q.onnx"] * 2, "--data", "x.npz", "--runs", "2", "--no-memory"),
    }.items():
        done = run(*arguments, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / f"{name}.json").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("name", ["rewrite", "local", "inspect", "prune", "quantize", "evaluate"])
def test_reports_of_real_runs_fit(name: str, results: Path) -> None:
    document = document_of(read_report(results / f"{name}.json"))
    for columns in WIDTHS:
        assert_fits(in_terminal(document, columns), document, columns)


def test_the_commands_themselves_write_to_the_terminal_what_fits(results: Path) -> None:
    for columns in (60, 100):
        for arguments in (
            ("check", "--layers", results / "r.onnx", results / "m.onnx", "--data", results / "x.npz"),
            ("check", results / "l.onnx", results / "m.onnx"),
            ("report", results / "rewrite.json"),
            ("inspect", results / "m.onnx", "--mode", "spatial"),
            ("modes",),
            ("recipes",),
        ):
            status, shown = on_terminal(*arguments, columns=columns)
            assert status == (3 if arguments[0] == "check" else 0)
            assert len(shown.lines) > 5
            assert shown.widest <= columns


def test_the_layers_of_a_check_keep_names_and_errors(results: Path) -> None:
    _, shown = on_terminal(
        "check", "--layers", results / "r.onnx", results / "m.onnx", "--data", results / "x.npz", columns=60
    )
    report = json.loads((results / "rewrite.json").read_text())["layers"]
    assert [row for row in report["rows"] if without_spaces(row["name"]) not in without_spaces(shown.text)] == []
