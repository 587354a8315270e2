"""Datasets whose rows have named columns, as those of Hugging Face's ``datasets``: images or arrays, and classes.

The library is not imported: a dataset is what has ``features`` and ``column_names``. Images are decoded when they are
read; arrays are read once.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from onnxsep.data.batches import INPUT_NAMES, LABEL_NAMES, MOST_KEPT, as_array, as_known
from onnxsep.data.images import Picture
from onnxsep.errors import DataError, spelled
from onnxsep.running.inputs import Input, show_inputs

SOURCE = "the dataset"


@dataclass(frozen=True)
class Table:
    """What a model can be given of a dataset.

    Attributes:
        pictures: Its images, where these are what it holds.
        arrays: Otherwise arrays by input name, [rows, ...].
        labels: Class of each row, int64 [rows], or None.
        classes: Their names, where they have some.
        notes: What the user should know.
    """

    pictures: tuple[Picture, ...]
    arrays: dict[str, np.ndarray]
    labels: np.ndarray | None
    classes: list[str] | None
    notes: tuple[str, ...]


def has_rows(source: object) -> bool:
    """Whether a source is such a dataset, or the splits of one."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(has_rows, source.values()))
    return hasattr(source, "features") and hasattr(source, "column_names")


def read_rows(source: Any, entries: tuple[Input, ...], *, labelled: bool = False) -> Table:
    """Find the columns that a model can be given.

    Args:
        source: The dataset.
        entries: The model's inputs.
        labelled: The user gives the labels, so that none are looked for.

    Raises:
        DataError: there are no rows, or it is not clear which columns are meant; or values cannot be used.
    """
    if isinstance(source, Mapping):
        raise DataError(
            f"{SOURCE} has the splits {', '.join(map(repr, source))}: give one of them, such as"
            f" {spelled('data')}=dataset[{next(iter(source))!r}]"
        )
    rows = _sequence(source)
    if not len(rows):
        raise DataError(f"{SOURCE} has no rows")
    first, features = rows[0], getattr(source, "features", None) or {}
    notes: list[str] = []
    column = _image_column(first, entries)
    others = {column, *(entry.name for entry in entries)}
    label = None if labelled else _label_column(first, features, notes, others)
    labels, classes = (None, None) if label is None else _labels(rows, label, features, notes)
    if column is not None:
        pictures = tuple(
            Picture(f"row {number} of {SOURCE}", _Load(rows, number, column)) for number in range(len(rows))
        )
        return Table(pictures, {}, labels, classes, tuple(notes))
    return Table((), _arrays(rows, first, entries), labels, classes, tuple(notes))


def _sequence(source: Any) -> Any:
    """The rows by number, as Python's own objects: what a format of torch or numpy makes of images is no image."""
    if _format(source) not in (None, "custom") and hasattr(source, "with_format"):
        source = source.with_format(None)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return source
    rows: list[Any] = []
    size = 0
    for row in source:  # a stream
        size += sum(map(_bytes, row.values()))
        if size > MOST_KEPT:
            raise DataError(
                f"{SOURCE} is a stream, which is read once and kept, and holds more than {MOST_KEPT / 2**30:.3g} GB"
                f" (after {len(rows):,} rows): take fewer, with its method take"
            )
        rows.append(row)
    return rows


def _format(source: Any) -> str | None:
    """What a dataset makes of its rows: "numpy", "torch", ..., "custom" for a transform; None: Python's objects."""
    form = getattr(source, "format", None)
    return form.get("type") if isinstance(form, Mapping) else None


def _bytes(value: Any) -> int:
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return int(getattr(value, "nbytes", 0)) or (8 * np.size(value) if isinstance(value, list | tuple) else 0)


def _image_column(first: Mapping[str, Any], entries: tuple[Input, ...]) -> str | None:
    images = [name for name, value in first.items() if _is_image(value)]
    if not images or len(entries) != 1:
        return None
    named = [name for name in (entries[0].name, *INPUT_NAMES) if name in images]
    if len(images) > 1 and not named:
        raise DataError(
            f"{SOURCE} has several columns of images ({', '.join(map(repr, images))}): keep one of them"
            " (select_columns)"
        )
    return (named or images)[0]


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Mapping) and {"bytes", "path"} <= set(value))


@dataclass(frozen=True)
class _Load:
    """Opens the image of a row."""

    rows: Any
    number: int
    column: str

    def __call__(self) -> Image.Image:
        value = self.rows[self.number][self.column]
        if isinstance(value, Mapping):  # not decoded
            return Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))
        if not isinstance(value, Image.Image):
            raise ValueError(f"there is no image, but {type(value).__name__}")
        return value


def _label_column(
    first: Mapping[str, Any], features: Mapping[str, Any], notes: list[str], others: set[str | None]
) -> str | None:
    known = [name for name in first if name not in others and hasattr(features.get(name), "names")]
    named = [name for name in LABEL_NAMES if name in first and name not in others]
    if named:
        return named[0]
    if len(known) > 1:
        notes.append(
            f"{SOURCE} has several columns of classes ({', '.join(map(repr, known))}), of which none is used: give"
            f" {spelled('labels')}=dataset[{known[0]!r}]"
        )
    return known[0] if len(known) == 1 else None


def _labels(
    rows: Any, label: str, features: Mapping[str, Any], notes: list[str]
) -> tuple[np.ndarray | None, list[str] | None]:
    array = np.asarray(_column(rows, label))
    names = getattr(features.get(label), "names", None)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        notes.append(f"the column {label!r} of {SOURCE} holds no class of each row: it is not used")
        return None, None
    labels, found = as_known(array, f"the labels of {SOURCE} (column {label!r})")
    notes += found
    return labels, None if names is None or labels is None else list(names)


def _column(rows: Any, name: str) -> list[Any]:
    """One column, without the others, which may be images; a transform of the user's may need these."""
    if hasattr(rows, "select_columns") and _format(rows) is None:
        return list(rows.select_columns([name])[name])
    return [row[name] for row in rows]


def _arrays(rows: Any, first: Mapping[str, Any], entries: tuple[Input, ...]) -> dict[str, np.ndarray]:
    columns = {entry.name: entry.name for entry in entries}
    if len(entries) == 1 and entries[0].name not in first:
        columns = {entries[0].name: next((name for name in INPUT_NAMES if name in first), entries[0].name)}
    missing = [column for column in columns.values() if column not in first]
    if missing:
        raise DataError(
            f"{SOURCE} has no column {missing[0]!r}; it has: {', '.join(map(repr, first))}. Columns are named after the"
            f" inputs; {show_inputs(entries)}"
        )
    return {entry.name: _stacked(rows, columns[entry.name], entry) for entry in entries}


def _stacked(rows: Any, column: str, entry: Input) -> np.ndarray:
    """A column as one array [rows, ...]; numbers of Python have no type of their own, and get the input's."""
    found: list[np.ndarray] = []
    size = 0
    for number, row in enumerate(rows):
        value = row[column]
        where = f"row {number} of {SOURCE}, column {column!r}"
        plain = isinstance(value, list | tuple | int | float)
        try:
            array = np.asarray(value, entry.dtype) if plain else as_array(value, where)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} is no array of numbers: {error}") from error
        size += array.nbytes
        if size > MOST_KEPT:
            raise DataError(f"{SOURCE}, column {column!r} holds more than {MOST_KEPT / 2**30:.3g} GB: give fewer rows")
        found.append(array)
    if len({array.shape for array in found}) > 1:
        shapes = sorted({array.shape for array in found})[:2]
        raise DataError(f"{SOURCE}, column {column!r} holds arrays of several shapes, such as {shapes}")
    return np.stack(found)
