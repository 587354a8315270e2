"""Documents and their writers: nothing of a stranger's text acts in any of them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from onnxsep.reporting.commands import HOMES, document_of
from onnxsep.reporting.document import Block, Cell, Column, Document, Heading, Line, Note, Row, Series, Span, Table
from onnxsep.reporting.markdown import HEADER, markdown
from onnxsep.reporting.printable import printable
from onnxsep.reporting.saved import read_report
from onnxsep.reporting.text import plain_text, print_document

SAVED = Path(__file__).parent / "saved_reports"
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table><img src=x onerror=y>",
    "a | b || c \\| d",
    "`code` ``` ~~~ $x$ *a* _b_ **c** ~~d~~",
    "[text](http://a.b) ![image](c) [red]markup[/red] <http://a.b> www.a.b &amp; &#60;",
    "# title",
    "- item",
    "1. item",
    "> quoted",
    "---",
    "\x1b[31mred\x1b[0m\r\n::error::line\u202egnp\u2028\x07",
    "--> out <!-- in",
    "    code",
    "\\",
]
FREE = {"name", "other", "path", "producer", "reason", "where", "data", "given", "message", "model", "notes", "op_type"}


def tokens(text: str) -> list[Any]:
    """All tokens of a Markdown text, those within lines too."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [inner for token in found for inner in (token, *(token.children or ()))]


def texts_of(text: str) -> list[str]:
    """What a reader sees of each line and cell of a Markdown text."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return ["".join(child.content for child in token.children or ()) for token in found if token.type == "inline"]


def with_hostile(content: Any, text: str) -> Any:
    """A report in which everything that a stranger's file can name has this name."""
    if isinstance(content, list):
        return [with_hostile(item, text) for item in content]
    if not isinstance(content, dict):
        return content
    found: dict[str, Any] = {}
    for key, value in content.items():
        free = key in FREE and bool(value)
        if free and isinstance(value, list) and isinstance(value[0], str):
            found[key] = [text, *value]
        else:
            found[key] = text if free and isinstance(value, str) else with_hostile(value, text)
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_no_writer_lets_a_name_act(text: str, tmp_path: Path) -> None:
    for command in HOMES:
        content = with_hostile(json.loads((SAVED / f"{command}.json").read_text()), text)
        if command == "check":
            for part in content["parts"]:
                part["name"] = "layers" if part["layers"] else "outputs"
        path = tmp_path / "r.json"
        path.write_text(json.dumps(content))
        document = document_of(read_report(path))
        shown = plain_text(document)
        assert not FORBIDDEN.search(shown)
        assert printable(text) in shown
        assert "\n::" not in shown
        found = markdown(document)
        assert not FORBIDDEN.search(found)
        allowed = {"html_block": HEADER, "html_inline": "<br>"}
        for token in tokens(found):
            assert token.type not in {"link_open", "image", "code_inline", "code_block", "fence", "hr", "s_open"}, token
            assert token.type not in allowed or token.content.strip() == allowed[token.type]
            assert token.type not in {"em_open", "blockquote_open", "ordered_list_open"}
        assert any(printable(text).strip() in line for line in texts_of(found)), command


@given(st.text("ab1 .)-+#>|`*_[]<&\\~$:/w!=(\n\x1b", max_size=30))
def test_markdown_of_any_line_reads_as_the_line(text: str) -> None:
    cell = Cell(text)
    blocks = (Line(text), Table((Column(text),), (Row((cell,)),)), Heading(text), Note(text))
    for block in blocks:
        found = texts_of(markdown(Document("title", (block,))))
        assert found[0] == "title"
        lines = [line.replace("\xa0", " ").strip(" ") for line in found[1:]]
        want = printable(text).strip(" ")
        want = f"note: {printable(text)}".strip(" ") if isinstance(block, Note) else want
        assert lines == [want] * (2 if isinstance(block, Table) else 1) or (not want and not any(lines))


TABLE = Table(
    (Column("name"), Column("size", "right")),
    (
        Row((Cell("a", note="why a"), Cell("10 -> 5", 5, narrow="5"))),
        Row((Cell(("b ", Span("(inner)", "dim"))), Cell("7", 7)), style="dim"),
    ),
    notes="why",
)


def shown(blocks: tuple[Block, ...], width: int = 80, *, terminal: bool = True) -> list[str]:
    """The lines that a console without colour shows of blocks, without spaces at their ends."""
    file = io.StringIO()
    print_document(Console(file=file, width=width, force_terminal=terminal, color_system=None), Document("t", blocks))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_notes_of_a_table_are_a_column_or_footnotes() -> None:
    assert shown((TABLE,), terminal=False) == [
        "name          size  why",
        "a          10 -> 5  why a",
        "b (inner)        7",
    ]
    assert shown((TABLE,), 200)[-1] == "[1] why a"
    assert any(line.split() == ["a", "[1]", "10", "->", "5"] for line in shown((TABLE,), 200))


def test_a_terminal_gets_short_cells_where_there_is_no_room_for_long_ones() -> None:
    def row(width: int) -> list[str]:
        return next(line.split() for line in shown((TABLE,), width) if line.split()[:1] == ["a"])

    assert row(19) == ["a", "[1]", "10", "->", "5"]  # as wide as "b (inner)  10 -> 5"
    assert row(18) == ["a", "[1]", "10", "->", "5"]
    assert row(17) == ["a", "[1]", "5"]


def test_lines_go_on_further_to_the_right_in_a_terminal() -> None:
    words = "one two three four five six"
    assert shown((Line(words, indent=1),), 20) == ["  one two three", "    four five six"]
    assert shown((Note("four"), Heading("title"), Line(words, indent=9)), 9) == [
        *("note:", "four"),  # nothing is indented where there is hardly any room
        "title",
        *("one two", "three", "four five", "six"),
    ]
    assert shown((Line(words, indent=1),), 12, terminal=False) == [f"  {words}"]


def test_a_table_without_a_frame_is_aligned_lines() -> None:
    table = Table(
        (Column("error", "right"), Column("kind", spare=1), Column("name")),
        (Row((Cell("0.5"), Cell("Conv"), Cell("a")), mark=">", details=("a part",)), Row((Cell("1"), Cell(), Cell()))),
        framed=False,
        indent=1,
    )
    assert shown((table,), terminal=False) == [
        *("    error  kind  name", "  >   0.5  Conv  a", "        a part", "        1"),
    ]
    wide, narrow = shown((table,), 26), shown((table,), 20)
    assert [wide[0], *wide[2:]] == ["     error  kind  name", "  >    0.5  Conv  a [1]", "         1", "  [1] a part"]
    assert [narrow[0], *narrow[2:5]] == ["     error  name", "  >    0.5  a [1]", "         1", "  [1] a part"]
    assert " ".join(narrow[5:]).split()[:5] == ["no", "room", "for:", "kind", "(a"]
    assert texts_of(markdown(Document("t", (table,))))[1:] == [
        *("", "error", "kind", "name"),
        *(">", "0.5", "Conv", "a<br>a part"),
        *("", "1", "", ""),
    ]


def test_markdown_nests_lists_and_makes_what_matters_bold() -> None:
    blocks = (
        Line((Span("compared", "good"), ": well")),
        Line("deep", indent=2),
        Line("one", indent=1),
        Line("two", indent=2),
        Note("last"),
        Series("loss", (1.0, None)),
        Heading("part"),
    )
    assert markdown(Document("t", blocks)).splitlines()[2:] == [
        "# t",
        *("", "**compared**: well"),
        *("", "- deep", "- one", "  - two", "- note: last"),
        *("", "## part"),
    ]


def test_series_are_for_those_who_plot() -> None:
    assert shown((Series("loss", (1.0, 0.5), ("a", "b")),)) == []
    document = document_of(read_report(SAVED / "finetune.json"))
    series = [block for block in document.blocks if isinstance(block, Series)]
    epochs = json.loads((SAVED / "finetune.json").read_text())["epochs"]
    assert [(one.name, one.values) for one in series] == [
        ("loss", tuple(epoch["training"]["loss"] for epoch in epochs)),
        ("held-out loss", tuple(epoch["validation"]["loss"] for epoch in epochs)),
    ]


@pytest.mark.parametrize("command", HOMES)
def test_each_row_of_a_document_has_a_cell_for_each_column(command: str) -> None:
    tables = [block for block in document_of(read_report(SAVED / f"{command}.json")).blocks if isinstance(block, Table)]
    assert tables
    for table in tables:
        assert table.rows
        assert {len(row.cells) for row in table.rows} == {len(table.columns)}
