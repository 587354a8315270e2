"""The four outputs of a check: what they say, and that no name can break them."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, parser

from onnxsep.checking import CheckResult, Difference, PartResult, check
from onnxsep.checking.formats import render_github, render_json, render_junit, render_text
from onnxsep.errors import on_the_command_line
from onnxsep.reporting.printable import printable

CHANGED = Difference(
    where="Relu @last",
    message="operator is Abs, expected Relu",
    reference_line=7,
    expected="%y = Relu(%x) @last",
    actual="%y = Abs(%x) @last",
)
WEIGHT = Difference(where="%kernel", message="1 of 2 elements differ")
LONG = Difference(where="Conv %z", message="missing: 30 statements", expected="\n".join(f"line {i}" for i in range(30)))
SAME = CheckResult(
    model="out.onnx",
    reference="golden.txt",
    parts=(
        PartResult(name="structure", status="same"),
        PartResult(name="weights", status="skipped", reason="the reference is a text"),
    ),
)
DIFFERENT = CheckResult(
    model="out.onnx",
    reference="golden.txt",
    parts=(
        PartResult(name="structure", status="differs", differences=(CHANGED, LONG)),
        PartResult(name="weights", status="differs", differences=(WEIGHT,)),
        PartResult(name="outputs", status="same", notes=("input 'x': free dimension 'n' set to 1",)),
    ),
)
NOTHING = CheckResult(
    model="out.onnx",
    reference="golden.onnx",
    parts=(PartResult(name="outputs", status="skipped", reason="the runtime cannot run the reference: why"),),
)
UPDATED = CheckResult(
    model="out.onnx",
    reference="golden.txt",
    parts=(PartResult(name="reference", status="updated", reason="rewritten"),),
)
RESULTS = [SAME, DIFFERENT, NOTHING, UPDATED]


def many(count: int) -> CheckResult:
    differences = tuple(Difference(where=f"Relu @n{index}", message="missing") for index in range(count))
    return CheckResult(
        model="m.onnx",
        reference="r.onnx",
        parts=(PartResult(name="structure", status="differs", differences=differences),),
    )


def network(operator: str) -> ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> main (float[4] x) => (float[4] y) {{ y = {operator} (x) }}'
    )


def test_text_of_a_difference() -> None:
    assert render_text(DIFFERENT).startswith(
        "out.onnx against golden.txt\n"
        "structure: differs (2 differences)\n"
        "  line 7, Relu @last: operator is Abs, expected Relu\n"
        "    - %y = Relu(%x) @last\n"
        "    + %y = Abs(%x) @last\n"
        "  Conv %z: missing: 30 statements\n"
        "    - line 0\n"
    )
    assert render_text(DIFFERENT).endswith(
        "    - line 7\n"
        "    - ... and 22 more lines\n"
        "weights: differs (1 difference)\n"
        "  %kernel: 1 of 2 elements differ\n"
        "outputs: same\n"
        "  note: input 'x': free dimension 'n' set to 1\n"
        "the model differs from the reference in structure, weights\n"
    )


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (SAME, "the model is the same as the reference in structure (not compared: weights)"),
        (NOTHING, "nothing could be compared (not compared: outputs)"),
        (UPDATED, "reference golden.txt rewritten"),
    ],
)
def test_text_ends_with_the_verdict(result: CheckResult, verdict: str) -> None:
    assert render_text(result).split("\n")[-2] == verdict


def test_text_shows_some_differences_and_says_how_many_more() -> None:
    assert "  ... and 5 more\n" in render_text(many(25))  # in Python
    with on_the_command_line():
        text = render_text(many(25))
    assert text.count("missing") == 20
    assert "  ... and 5 more; --format json lists them all\n" in text
    assert render_text(many(25), limit=None).count("missing") == 25
    assert "more" not in render_text(many(20))


@pytest.mark.parametrize("result", RESULTS)
def test_json_holds_everything(result: CheckResult) -> None:
    data = json.loads(render_json(result))
    assert data["same"] is result.same
    assert data["exit_status"] == result.exit_status
    assert CheckResult.model_validate({key: data[key] for key in ("model", "reference", "parts")}) == result


def parse_command(line: str) -> tuple[str, dict[str, str], str]:
    """As GitHub's runner reads it: ``::name key=value,key=value::message``."""
    match = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert match is not None

    def unescape(text: str, *pairs: tuple[str, str]) -> str:
        for escaped, plain in (*pairs, ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            text = text.replace(escaped, plain)
        return text

    properties = dict(entry.split("=", 1) for entry in match[2].split(","))
    return (
        match[1],
        {key: unescape(value, ("%3A", ":"), ("%2C", ",")) for key, value in properties.items()},
        unescape(match[3]),
    )


def test_github_annotations() -> None:
    first, second, third, verdict, end = render_github(DIFFERENT).split("\n")
    assert parse_command(first) == (
        "error",
        {"file": "golden.txt", "line": "7", "title": "check structure: Relu @last"},
        "operator is Abs, expected Relu\n- %y = Relu(%x) @last\n+ %y = Abs(%x) @last",
    )
    assert parse_command(second)[1] == {"file": "out.onnx", "title": "check structure: Conv %z"}
    assert parse_command(third) == (
        "error",
        {"file": "out.onnx", "title": "check weights: %kernel"},
        "1 of 2 elements differ",
    )
    assert verdict == "the model differs from the reference in structure, weights"
    assert end == ""


def test_github_notices_for_what_was_skipped() -> None:
    assert parse_command(render_github(SAME).split("\n")[0]) == (
        "notice",
        {"file": "out.onnx", "title": "check weights"},
        "skipped: the reference is a text",
    )
    commands = [parse_command(line) for line in render_github(NOTHING).split("\n") if line.startswith("::")]
    assert [name for name, _, _ in commands] == ["notice", "error"]


def test_github_shows_ten_errors_and_says_how_many_more() -> None:
    commands = [parse_command(line) for line in render_github(many(25)).split("\n") if line.startswith("::")]
    assert [name for name, _, _ in commands] == ["error"] * 10
    assert commands[-1][2] == "missing\n... and 15 more differences"
    assert "more" not in render_github(many(10))


def test_junit() -> None:
    [suite] = ET.fromstring(render_junit(DIFFERENT))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "0")
    structure, weights, outputs = suite
    assert (structure.get("classname"), structure.get("name")) == ("golden.txt", "structure")
    [failure] = structure
    assert failure.get("message") == "differs (2 differences)"
    assert failure.text is not None
    assert failure.text.startswith("line 7, Relu @last: operator is Abs, expected Relu\n  - %y = Relu(%x) @last\n")
    assert failure.text.endswith("line 29"), "nothing is cut off"
    assert [child.tag for child in weights] == ["failure"]
    assert [(child.tag, child.text) for child in outputs] == [("system-out", "input 'x': free dimension 'n' set to 1")]

    [suite] = ET.fromstring(render_junit(SAME))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    assert [[child.tag for child in case] for case in suite] == [[], ["skipped"]]
    assert suite[1][0].get("message") == "the reference is a text"

    [suite] = ET.fromstring(render_junit(NOTHING))
    assert suite.get("failures") == "1", "a check that compared nothing is no success"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_a_format(text: str) -> None:
    difference = Difference(where=text, message=text, reference_line=1, expected=text, actual=text)
    part = PartResult(name="structure", status="differs", differences=(difference,), notes=(text,))
    skipped = PartResult(name="outputs", status="skipped", reason=text)
    result = CheckResult(model=text, reference=text, parts=(part, skipped))
    assert json.loads(render_json(result))["parts"][0]["differences"][0]["where"] == text

    commands = [line for line in re.split(r"\r\n|\r|\n", render_github(result)) if line.startswith("::")]
    notice, error = (parse_command(line) for line in commands[:2])
    # What a terminal would obey is escaped; line ends are GitHub's own escapes.
    shown = "\n".join("\r".join(map(printable, line.split("\r"))) for line in text.split("\n"))
    assert (notice[0], notice[2]) == ("notice", f"skipped: {shown}")
    assert error[:2] == ("error", {"file": shown, "line": "1", "title": f"check structure: {shown}"})
    assert error[2].startswith(f"{shown}\n")

    [suite] = ET.fromstring(render_junit(result))
    if text.isprintable():
        assert suite[0].get("classname") == text
        assert suite[1][0].get("message") == text


def test_a_real_difference_in_all_formats(tmp_path: Path) -> None:
    path = tmp_path / "golden.txt"
    check(network("Relu"), path, update=True)
    result = check(network("Abs"), path)
    line = path.read_text(encoding="utf-8").split("\n").index("  %y = Relu(%x) -> float32[4]") + 1
    assert f"line {line}, Abs %y: operator is Abs, expected Relu" in render_text(result)
    assert f"line={line}," in render_github(result)
    assert json.loads(render_json(result))["parts"][0]["differences"][0]["reference_line"] == line
    assert "operator is Abs, expected Relu" in render_junit(result)
