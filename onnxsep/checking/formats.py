"""The result of a check as plain text, JSON, GitHub annotations or JUnit XML."""

import json
import re
import xml.etree.ElementTree as ET

from onnxsep.checking.render import (
    TEXT_LIMIT,
    check_document,
    details,
    headline,
    jump_line,
    layer_blocks,
    summary,
    verdict,
)
from onnxsep.checking.result import CheckResult, Difference, PartResult
from onnxsep.reporting.document import Document
from onnxsep.reporting.printable import printable
from onnxsep.reporting.text import plain_text

GITHUB_LIMIT = 10  # errors that GitHub shows for one step
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_text(result: CheckResult, limit: int | None = TEXT_LIMIT) -> str:
    """For people: a line for each part, its differences, at most ``limit`` of a part (None: all), and a verdict."""
    return plain_text(check_document(result, limit))


def render_json(result: CheckResult) -> str:
    """For programs: everything, with ``same`` and ``exit_status``."""
    return (
        json.dumps(json.loads(result.model_dump_json()), indent=2) + "\n"
    )  # ASCII: nothing in it that a terminal obeys


def render_github(result: CheckResult, limit: int = GITHUB_LIMIT) -> str:
    """Workflow commands of GitHub Actions: an error for a difference, a notice for a skipped part, then the verdict.

    An error stands at its line of the reference where that is a text, else at the model's file. GitHub shows ten errors
    of a step, so the last of ``limit`` says how many more there are.
    """
    lines = [
        _command("notice", result.model, None, f"check {part.name}", f"skipped: {part.reason}")
        for part in result.parts
        if part.status == "skipped"
    ]
    lines += [
        _command("notice", result.model, None, "check layers", f"{part.reason}; {jump_line(part.layers)}")
        for part in result.parts
        if part.layers is not None
    ]
    found = [(part.name, difference) for part in result.parts for difference in part.differences]
    for index, (name, difference) in enumerate(found[:limit]):
        body = [difference.message, *details(difference)]
        if index == limit - 1 and len(found) > limit:
            body.append(f"... and {len(found) - limit} more differences")
        file = result.model if difference.reference_line is None else result.reference
        title = f"check {name}: {difference.where}"
        lines.append(_command("error", file, difference.reference_line, title, "\n".join(body)))
    if not result.same and not found:
        lines.append(_command("error", result.model, None, "check", verdict(result)))
    # The verdict is no command: GitHub prints it as it is. A line end within it could start a command.
    return _joined([*lines, " ".join(verdict(result).splitlines())])


def render_junit(result: CheckResult) -> str:
    """JUnit XML: a test case for each part, with one failure that lists all its differences, or why it was skipped."""
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", {"name": "onnxsep check"})
    for part in result.parts:
        case = _case(suite, result, part.name)
        if part.status == "skipped":
            ET.SubElement(case, "skipped", {"message": _xml(part.reason)})
        elif part.status == "differs":
            listed = "\n".join("\n".join(_full(difference)) for difference in part.differences)
            ET.SubElement(case, "failure", {"type": "difference", "message": summary(part)}).text = _xml(listed)
        if told := [*part.notes, *([] if part.layers is None else [part.reason]), *_layer_lines(part)]:
            ET.SubElement(case, "system-out").text = _xml("\n".join(told))
    if not result.same and not any(part.status == "differs" for part in result.parts):
        failure = {"type": "nothing compared", "message": verdict(result)}
        ET.SubElement(_case(suite, result, "anything"), "failure", failure)
    for name, tag in {"tests": "testcase", "failures": "failure", "skipped": "skipped"}.items():
        count = str(len(list(suite.iter(tag))))
        suite.set(name, count)
        suites.set(name, count)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ET.Element, result: CheckResult, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"classname": _xml(result.reference), "name": name})


def _layer_lines(part: PartResult) -> list[str]:
    """The tensors of a part, not indented."""
    if part.layers is None:
        return []
    document = Document("", tuple(layer_blocks(part.layers, indent=0)))
    return plain_text(document).splitlines()


def _full(difference: Difference) -> list[str]:
    return [headline(difference), *(f"  {line}" for line in details(difference, limit=None))]


def _command(name: str, file: str, line: int | None, title: str, message: str) -> str:
    properties = {"file": file, "line": None if line is None else str(line), "title": title}
    text = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value is not None)
    return f"::{name} {text}::{_data(message)}"


def _data(text: str) -> str:
    lines = text.replace("%", "%25").replace("\r", "%0D").split("\n")
    return "%0A".join(map(printable, lines))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _xml(text: str) -> str:
    """Characters that XML cannot hold, even escaped, as backslash escapes."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _joined(lines: list[str]) -> str:
    return "".join(f"{printable(line)}\n" for line in lines)
