"""Files of latencies that were measured on another device, by the script of a kit (``onnxsep profile``)."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.errors import OptionError, spelled
from onnxsep.model.content import content_hashes
from onnxsep.model.files import printable
from onnxsep.model.io import Model
from onnxsep.model.paths import read_record
from onnxsep.planner.latency import Latencies, latencies_of
from onnxsep.planner.latency_times import Times
from onnxsep.planner.latency_work import work_of
from onnxsep.reporting.records import Record

KIND = "onnxsep latencies"
SCHEMA = 1
_MADE = "onnxsep profile makes the kit whose script writes one"
_FEW = 3


class ProfiledModel(Record):
    """The model that latencies are of."""

    name: str = ""
    graph: str
    """Hash of its graph (``onnxsep.model.content``); weights do not count."""
    layers: tuple[str, ...] = ()
    """The layers that were timed, by name."""


class LatencyFile(Record):
    """Latencies of a model on a device."""

    kind: Literal["onnxsep latencies"] = "onnxsep latencies"
    schema_version: Literal[1] = Field(default=1, alias="schema")
    onnxsep: str
    """The version that made the kit."""
    model: ProfiledModel
    then: str = ""
    """What was done to models before they were timed; as ``latency.Then.name``."""
    times: Times
    on_cpu: dict[str, int] = Field(default_factory=dict)
    """Nodes of the whole model that the provider leaves to the CPU, by operator."""
    finished: bool = True
    """Whether all of the kit was timed."""


def read_latencies(path: str | os.PathLike[str]) -> LatencyFile:
    """A file of latencies.

    Raises:
        OptionError: It cannot be read, is none, is damaged, or is of another schema.
    """
    name, place = printable(path), Path(path)
    if not place.is_file():
        what = "is a folder; name the latency.json in it" if place.is_dir() else "is not there"
        raise OptionError(f"{spelled('latency_from')} {name} {what}")
    content = read_record(place)
    if content.get("kind") != KIND:
        what = "is no file of latencies" if content else "is damaged, or no file of latencies"
        raise OptionError(f"{spelled('latency_from')} {name} {what}; {_MADE}")
    if content.get("schema") != SCHEMA:
        raise OptionError(
            f"{name} is a file of latencies of schema {content.get('schema')!r}, and this version reads {SCHEMA}; make"
            " a new kit with onnxsep profile"
        )
    try:
        found = LatencyFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:16] for part in first["loc"])
        raise OptionError(f"{name} is damaged: {where}: {first['msg']}; run the kit's script again") from error
    if wrong := _impossible(found.times):
        raise OptionError(f"{name} is damaged: {wrong}; run the kit's script again")
    return found


def _impossible(times: Times) -> str:
    """What no time can be, in words; "" where all can."""
    figures: list[tuple[str, float]] = [("whole_ms", times.whole_ms)]
    if times.original_ms is not None:
        figures.append(("original_ms", times.original_ms))
    figures += [(f"pieces.{key[:8]}", value) for key, one in times.pieces.items() for value in (one.ms, one.share)]
    for several in times.forms.values():
        figures += [(f"forms.{key[:8]}", value) for key, one in several.items() for value in (one.ms, one.ratio)]
    return next((f"{where} is {value}" for where, value in figures if not 0 < value < float("inf")), "")


def latencies_from(
    path: str | os.PathLike[str], model: Model, sites: Sites, rows: Sequence[Replacement], then: str = ""
) -> Latencies:
    """What forms of layers cost on the device that a file of latencies comes from.

    Args:
        path: The file.
        model: The model.
        sites: Its layers.
        rows: Forms that layers may get; those that the kit did not hold are said to be unknown.
        then: What is to be done to models before they run.

    Raises:
        OptionError: It cannot be read, is that of another model, or of models that something else was done to: what
            differs.
    """
    found, name = read_latencies(path), printable(path)
    if found.model.graph != content_hashes(model).graph:
        raise OptionError(f"{name} has the latencies of another model, {_difference(found.model, model, sites)}")
    if found.then != then:
        raise OptionError(
            f"{name} has the latencies of {_done(found.then)}, and the plan is for {_done(then)}; make a kit with the"
            f" same {spelled('then')} and options of the quantiser"
        )
    done = latencies_of(work_of(model, sites, rows), found.times)
    if rows and all(isinstance(one, str) for one in done.rows.values()):
        raise OptionError(
            f"{name} has none of the forms that are asked for: the kit was made with other modes, or by another version"
            f" (onnxsep {found.onnxsep}); make a new one with onnxsep profile"
        )
    before = found.times.original_ms
    return done if before is None else replace(done, share=done.whole_ms / before)


def _done(then: str) -> str:
    return f"models in {then}" if then else "models as they are"


def _difference(made_for: ProfiledModel, model: Model, sites: Sites) -> str:
    here: list[Any] = [item.name for item in sites.found]
    which = f"{made_for.name!r}" if made_for.name else "one without a name"
    gone = [name for name in made_for.layers if name not in here]
    if gone:
        some = ", ".join(map(repr, gone[:_FEW])) + (", ..." if len(gone) > _FEW else "")
        return f"{which}: this one has no layer {some}; make a kit of this one with onnxsep profile"
    return (
        f"{which}, with layers of the same names but another graph around them (attributes, sizes, other nodes); make a"
        " kit of this one with onnxsep profile"
    )
