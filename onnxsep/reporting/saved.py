"""Reading a saved report of any command, also one that an older onnxsep has written."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onnxsep.errors import ReportError, worded
from onnxsep.model.files import open_regular
from onnxsep.reporting.commands import HOMES, document_of, record_of
from onnxsep.reporting.records import Report
from onnxsep.reporting.upgrades import Content, command_of, schema_of, upgraded


def read_report(path: str | os.PathLike[str]) -> Report:
    """A report that the command line has written, or the ``model_dump_json()`` of one.

    JSON has no NaN and no infinity: a figure that was one of them is NaN in the report that is read.

    Args:
        path: The file; UTF-8, or UTF-16 as some shells write it.

    Returns:
        The record of the command, such as ``onnxsep.rewriting.report.RewriteReport``, in the present schema.

    Raises:
        ReportError: The file cannot be read, holds no report or a damaged one, or one of a newer onnxsep.
    """
    place = repr(str(path))
    content = _read_json(Path(path), place)
    if not isinstance(content, dict) or command_of(content) is None:
        writer = worded(
            "--report or --json has written", "the command line, or a report's model_dump_json(), has written"
        )
        raise ReportError(f"{place} is no report of onnxsep: give a file that {writer}")
    report = _read(content, place)
    try:  # records alone do not know which figures contradict each other, or which texts cannot be written
        document_of(report)
        report.model_dump_json()
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise _damaged(place, f"its parts do not fit together ({type(error).__name__}: {error})") from error
    return report


def _read_json(path: Path, place: str) -> Any:
    try:
        with open_regular(path) as file:
            return json.loads(file.read())
    except OSError as error:
        raise ReportError(f"cannot read the report {place}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{place} is no report of onnxsep: it is no JSON ({error})") from error


def _read(content: Content, place: str) -> Report:
    """The record of a report, and of those within it."""
    command, schema = command_of(content), schema_of(content)
    if command not in HOMES:
        raise ReportError(
            f"{place} holds a report of the command {command!r}, which this onnxsep does not know (it knows "
            f"{', '.join(HOMES)}): update onnxsep"
        )
    record = record_of(command)
    newest = record.model_fields["schema_version"].default
    if schema is None:
        raise _damaged(place, f"schema is {content['schema']!r}, which is no number of a schema")
    if schema > newest:
        raise ReportError(
            f"{place} holds a report of {command} in schema {schema}, and this onnxsep reads up to {newest}: update"
            " onnxsep"
        )
    content = upgraded(content, command, schema)
    return _validated(record, _with_inner(content, place), place)


def _with_inner(content: Content, place: str) -> Content:
    """A report of several steps, with the reports of its steps and its evaluation read."""
    evaluation, steps = content.get("evaluation"), content.get("steps")
    if isinstance(evaluation, dict):
        content = {**content, "evaluation": _inner(evaluation, "evaluate", place)}
    if isinstance(steps, list):
        content = {**content, "steps": [_step(step, place) for step in steps]}
    return content


def _step(step: Any, place: str) -> Any:
    if not isinstance(step, dict) or not isinstance(step.get("report"), dict):
        return step
    return {**step, "report": _inner(step["report"], step.get("command"), place)}


def _inner(content: Content, command: object, place: str) -> Report:
    if command_of(content) != command:
        raise _damaged(place, f"it holds no report of {command!r} where there should be one")
    return _read(content, place)


def _validated(record: type[Report], content: Content, place: str) -> Report:
    try:
        return record.model_validate(content)
    except ValidationError as error:
        lost = [one["loc"] for one in error.errors() if one["type"] == "float_type" and one["input"] is None]
    for loc in lost:
        content = _with_nan(content, loc)
    try:
        return record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _damaged(place, f"{where}: {first['msg']}") from error


def _with_nan(content: Any, loc: tuple[int | str, ...]) -> Any:
    """The content with NaN at a place."""
    if not loc:
        return math.nan
    if isinstance(content, Mapping) and loc[0] in content:
        return {**content, loc[0]: _with_nan(content[loc[0]], loc[1:])}
    if isinstance(content, list) and isinstance(loc[0], int):
        return [_with_nan(item, loc[1:]) if number == loc[0] else item for number, item in enumerate(content)]
    return content


def _damaged(place: str, why: str) -> ReportError:
    return ReportError(f"the report {place} is damaged: {why}")
