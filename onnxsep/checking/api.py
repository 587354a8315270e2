"""Comparing a model with a reference: structure, weights, outputs.

A reference is an .onnx file, or the text form of :mod:`onnxsep.checking.structure` (suffix .txt), which holds the
structure only. Structure is compared as text in both cases: lines are aligned, then each difference is reported for the
node that it belongs to. :func:`check` is what ``onnxsep check`` calls.
"""

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx

from onnxsep.checking.diff import StructureDiff, structure_part
from onnxsep.checking.feeding import Feeding, layers_report
from onnxsep.checking.options import CheckOptions
from onnxsep.checking.outputs import compare_outputs
from onnxsep.checking.render import layer_summary
from onnxsep.checking.result import CheckResult, PartResult
from onnxsep.checking.structure import HEADER, describe
from onnxsep.checking.structure_statements import Statement, read_statements
from onnxsep.checking.weights import compare_weights, tensor_pairs
from onnxsep.data import Dataset, ImageJudge, Preprocessing, open_data
from onnxsep.errors import ModelLoadError, OptionError, spelled
from onnxsep.model import io
from onnxsep.model.files import open_regular, write_text
from onnxsep.model.paths import Kind, Reads, check_paths, is_model
from onnxsep.model.saving import save
from onnxsep.options.progress import Progress, announce
from onnxsep.options.taking import takes
from onnxsep.running.integer_io import as_real
from onnxsep.running.runtime import RuntimeOptions

Source = str | os.PathLike[str] | onnx.ModelProto | io.Model
_TEXT_SUFFIX = ".txt"
_RUN: tuple[Literal["outputs", "layers"], ...] = ("outputs", "layers")


@takes(CheckOptions)
def check(model: Source, reference: Source, options: CheckOptions) -> CheckResult:
    """Compare a model with a reference.

    Args:
        model: The model to check: a path, or a model in memory.
        reference: A .txt file in the text form of a structure, or a model.
        options: each by its name.

    Returns:
        The parts that were asked for. A part that cannot be compared (a text has no weights; the runtime cannot run
        the reference) is skipped with its reason.

    Raises:
        ModelLoadError: the model or the reference cannot be read, or is no reference.
        ModelSaveError: the reference cannot be written.
        OptionError: an option cannot be used, or nothing is left to compare; the new reference would overwrite the
            model, or something that is no reference.
        FeedError: the given inputs do not fit the reference.
        DataError: the data cannot be read, or do not fit the reference.
    """
    runtime, ignore_names, asked, data = options.run_with, options.ignore_names, options.asked, options.data
    preprocessing = Preprocessing.of(options.preprocessing)
    feeding = Feeding(
        data=data,
        preprocessing=preprocessing,
        samples=options.samples,
        inputs=options.inputs,
        input_shapes=options.shapes,
        seed=options.seed,
    )
    feeding.check()
    reads = Reads.of(model, options.reads())
    target = _target(reference, reads) if options.update else None
    if options.update and (feeding.given or asked["layers"]):
        what = ", ".join(map(spelled, ("data", "inputs", "input_shapes")))
        raise OptionError(
            f"{spelled('update', True)} writes the reference and runs nothing; leave out {what} and {spelled('layers')}"
        )
    progress = options.teller
    announce(progress, "reading the model")
    checked = io.load(model, follow_links=options.follow_links)
    parts: list[PartResult]
    found = None
    if target is not None:
        parts = [_update(checked, target)]
    elif isinstance(reference, (str, os.PathLike)) and _is_text(Path(reference)):
        parts = _against_text(checked, _existing(reference), asked, ignore_names)
    else:
        if isinstance(reference, (str, os.PathLike)):
            _existing(reference)
        other = io.load(reference, follow_links=options.follow_links)
        announce(progress, "comparing structure and weights")
        parts = _against_model(checked, other, asked, ignore_names, options.rtol, options.atol)
        if data is not None and not isinstance(data, Dataset) and (asked["layers"] or asked["outputs"]):
            judge = ImageJudge(other, runtime)
            opened = open_data(
                data, as_real(other), preprocessing=preprocessing, judge=judge, skip_bad=options.skip_bad
            )
            feeding, found = replace(feeding, data=opened), opened.preprocessing  # read once
        if asked["outputs"]:
            announce(progress, "comparing the outputs")
            parts.append(
                compare_outputs(
                    checked, other, ignore_names, feeding, runtime, options.output_rtol, options.output_atol
                )
            )
        if asked["layers"]:
            said = parts[-1].notes if asked["outputs"] else ()
            announce(progress, "comparing the layers")
            parts.append(_layers(checked, other, feeding, runtime, said, progress))
    return CheckResult(
        model=_title(model),
        reference=_title(reference),
        options=options.as_json(model=model, reference=reference),
        preprocessing=found,
        parts=tuple(parts),
    )


def _layers(
    model: io.Model,
    reference: io.Model,
    feeding: Feeding,
    runtime: RuntimeOptions,
    said: Sequence[str],
    progress: Progress | None,
) -> PartResult:
    """The part that compares inner tensors; notes that were ``said`` before are left out."""
    report, reason = layers_report(reference, model, feeding, runtime, progress)
    if report is None:
        return PartResult(name="layers", status="skipped", reason=reason)
    report = report.model_copy(update={"notes": tuple(note for note in report.notes if note not in said)})
    return PartResult(name="layers", status="measured", reason=layer_summary(report), layers=report)


def _against_text(model: io.Model, path: Path, asked: Mapping[str, bool], ignore_names: bool) -> list[PartResult]:
    if not asked["structure"]:
        raise OptionError("nothing to compare: a text reference holds the structure only")
    diff = StructureDiff(_read_text(path), read_statements(describe(model).lines), ignore_names)
    parts = [structure_part(diff, numbered=True)]
    reason = "the reference is a text: it holds the structure only"
    if asked["weights"]:
        parts.append(PartResult(name="weights", status="skipped", reason=reason))
    parts += [PartResult(name=name, status="skipped", reason=reason) for name in _RUN if asked[name]]
    return parts


def _against_model(
    model: io.Model, reference: io.Model, asked: Mapping[str, bool], ignore_names: bool, rtol: float, atol: float
) -> list[PartResult]:
    """Structure and weights, as far as they are asked for; weights are paired by their places in the structure."""
    parts: list[PartResult] = []
    if asked["structure"] or asked["weights"]:
        expected, actual = describe(reference), describe(model)
        diff = StructureDiff(read_statements(expected.lines), read_statements(actual.lines), ignore_names)
        if asked["structure"]:
            parts.append(structure_part(diff, numbered=False))
        if asked["weights"]:
            pairs = tensor_pairs(expected, actual, diff.pairs if ignore_names else None)
            parts.append(compare_weights(model, reference, pairs, rtol, atol))
    return parts


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == _TEXT_SUFFIX


def _existing(reference: str | os.PathLike[str]) -> Path:
    path = Path(reference)
    if not path.exists():
        raise ModelLoadError(
            f"the reference {str(path)!r} does not exist; write it from the model with {spelled('update', True)}"
        )
    return path


def _title(source: Source) -> str:
    if isinstance(source, io.Model):
        source = source.path if source.path is not None else source.proto
    if isinstance(source, onnx.ModelProto):
        return "(a model in memory)"
    return os.fsdecode(source).encode("utf-8", "backslashreplace").decode("utf-8")


def _target(reference: Source, reads: Reads) -> Path:
    """Where a new reference goes."""
    if isinstance(reference, (onnx.ModelProto, io.Model)):
        raise OptionError("a reference can only be updated in a file: give its path")
    path = Path(reference)
    if path.suffix.lower() not in (_TEXT_SUFFIX, ".onnx"):
        raise OptionError(f"the reference {str(path)!r} is neither .txt nor .onnx: nothing was written")
    check_paths(reads, {_TEXT if _is_text(path) else _MODEL: path})
    return path


def _update(model: io.Model, path: Path) -> PartResult:
    existed = path.exists()
    if not _is_text(path):
        save(model, path)
        return PartResult(name="reference", status="updated", reason="rewritten" if existed else "created")
    text = describe(model).text
    if existed and path.read_bytes() == text.encode():
        return PartResult(name="reference", status="updated", reason="was up to date")
    write_text(Path(os.path.realpath(path)), text)
    return PartResult(name="reference", status="updated", reason="rewritten" if existed else "created")


def is_reference(path: Path) -> bool:
    """Whether a file is the text of a structure, of any version of onnxsep."""
    try:
        with path.open("rb") as file:
            start = file.read(len(codecs.BOM_UTF8) + len(HEADER))
    except OSError:
        return False
    return start.removeprefix(codecs.BOM_UTF8).startswith(HEADER.rstrip("0123456789").encode())


_TEXT = Kind("the reference", "reference of onnxsep", is_reference)
_MODEL = Kind("the reference", "ONNX model", is_model)


def _read_text(path: Path) -> list[Statement]:
    hint = f"write it from the model with {spelled('update', True)}"
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise ModelLoadError(f"cannot read the reference {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"the reference {str(path)!r} is no text in UTF-8 ({error}); {hint}") from error
    lines = text.replace("\r\n", "\n").split("\n")
    first = lines[0].strip()
    if first != HEADER:
        if re.fullmatch(r"onnxsep structure, version \d+", first):
            raise ModelLoadError(
                f"the reference {str(path)!r} has the format {first!r}, and this onnxsep reads {HEADER!r}; {hint}"
            )
        raise ModelLoadError(f"{str(path)!r} is no reference of onnxsep: its first line is not {HEADER!r}; {hint}")
    return read_statements(lines)
