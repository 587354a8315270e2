"""Labels of a dataset: the class of each sample, as a number."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxsep.errors import DataError

_NAME_HEADERS = {"file", "filename", "file_name", "id", "image", "image_id", "index", "name", "path", "sample"}
_CLASS_HEADERS = {"category", "class", "class_id", "class_name", "label", "labels", "target", "y"}


def check_labels(labels: npt.ArrayLike, classes: int, names: Sequence[str] | None = None) -> None:
    """Refuse labels that are no classes of the model.

    Args:
        labels: Class of each sample, integers [samples].
        classes: How many classes the model tells apart: labels are 0 to classes - 1.
        names: Names of the samples for the message.

    Raises:
        DataError: names the first sample whose label is out of range.
    """
    values = np.asarray(labels)
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if wrong.size:
        first = int(wrong[0])
        name = f" ({names[first]!r})" if names is not None else ""
        hint = ""
        if values.min() == 1 and values.max() == classes:
            hint = "; they seem to be counted from 1: subtract 1"
        raise DataError(
            f"the label of sample {first}{name} is {values[first]}, but the model has {classes} classes,"
            f" 0 to {classes - 1}; {wrong.size} of {values.size} labels are out of range{hint}"
        )


def as_labels(values: npt.ArrayLike, count: int, where: str) -> np.ndarray:
    """Labels from an array of integers, [samples] or [samples, 1].

    Args:
        values: The array.
        count: Number of samples.
        where: Names the array in messages.

    Returns:
        int64 [samples].

    Raises:
        DataError: they are not integers, negative, or not as many as the samples.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        hint = "; give the number of the class instead, array.argmax(1)" if array.ndim == 2 else ""
        raise DataError(
            f"{where}: labels must be integers of shape [samples], not {array.dtype.name} of {list(array.shape)}{hint}"
        )
    if len(array) != count:
        raise DataError(f"{where}: there are {len(array)} labels for {count} samples")
    if count and int(array.min()) < 0:
        first = int(np.flatnonzero(array < 0)[0])
        raise DataError(f"{where}: the label of sample {first} is {array[first]}; classes are counted from 0")
    return array.astype(np.int64)


def read_labels(
    path: Path, names: Sequence[str] | None, count: int, classes: list[str] | None
) -> tuple[np.ndarray, list[str] | None, tuple[str, ...]]:
    """Read labels from a CSV file: a line ``name,class`` for each sample, in any order.

    Args:
        path: The file; a first line of column titles may stand in it.
        names: Names of the samples: paths relative to the data folder; a file's name alone will do where it is the
            only one. None: samples have no names, and the file gives their numbers, counted from 0.
        count: Number of samples.
        classes: Names of the classes, where they are known. A class in the file is one of these names or a number;
            otherwise all are numbers, or all are names, which are then sorted.

    Returns:
        Labels, int64 [samples]; the names of the classes, if known now; notes for the user.

    Raises:
        DataError: the file cannot be read or parsed, or samples have no label, two, or one that is no class.
    """
    places = _places(names, count)
    rows = _rows(path)
    if (
        rows
        and rows[0][1] not in places
        and (rows[0][1].strip().lower() in _NAME_HEADERS or rows[0][2].lower() in _CLASS_HEADERS)
    ):
        rows = rows[1:]
    found: dict[int, tuple[int, str]] = {}
    unused = 0
    for line, name, label in rows:
        spellings = (name, name.strip(), name.strip().replace("\\", "/"))
        place = next((places[spelling] for spelling in spellings if spelling in places), None)
        if place is None:
            unused += 1
        elif found.setdefault(place, (line, label))[1] != label:
            raise DataError(f"{str(path)!r}: lines {found[place][0]} and {line} give {name!r} different classes")
    missing = [place for place in range(count) if place not in found]
    if missing:
        name = repr(names[missing[0]]) if names is not None else str(missing[0])
        expected = "file names" if names is not None else f"numbers of samples, 0 to {count - 1}"
        raise DataError(
            f"{str(path)!r} has no label for {len(missing)} of {count} samples, such as {name}; {unused} of its lines"
            f" name no sample. The first column must hold {expected}"
        )
    labels, classes = _numbers(path, [found[place] for place in range(count)], classes)
    return labels, classes, (f"{unused} lines of {path.name!r} name no sample",) if unused else ()


def _places(names: Sequence[str] | None, count: int) -> dict[str, int]:
    """Number of the sample by what a file may call it."""
    if names is None:
        return {str(place): place for place in range(count)}
    places: dict[str, int] = {}
    repeated = set()
    for place, name in enumerate(names):
        base = name.rpartition("/")[2]
        if places.setdefault(base, place) != place:
            repeated.add(base)
    for base in repeated:
        del places[base]
    return places | {name: place for place, name in enumerate(names)}


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """(line, name, class) of every line that is not empty."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != 2 or not all(cell.strip() for cell in row):
                    raise DataError(
                        f"{str(path)!r}, line {reader.line_num}: expected a name and a class, with a comma between"
                        f" them, not {','.join(row)[:80]!r}"
                    )
                rows.append((reader.line_num, row[0], row[1].strip()))
    except OSError as error:
        raise DataError(f"cannot read the labels {str(path)!r}: {error.strerror or error}") from error
    except (csv.Error, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a CSV file of names and classes: {error}") from error
    return rows


def _numbers(
    path: Path, found: list[tuple[int, str]], classes: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """Numbers of classes that are given as names or numbers; names come first, as they may be digits."""
    texts = {label for _, label in found}
    if classes is None and not all(text.lstrip("+-").isdecimal() for text in texts):
        classes = sorted(texts)
    if classes is not None and texts <= set(classes):
        numbers = {name: number for number, name in enumerate(classes)}
    else:
        numbers = {text: int(text) for text in texts if text.isdecimal() and len(text) < 10}
    for line, label in found:
        if label not in numbers:
            known = "" if classes is None else f" nor one of: {', '.join(classes[:20])}"
            raise DataError(f"{str(path)!r}, line {line}: the class {label!r} is no number from 0 up{known}")
    return np.array([numbers[label] for _, label in found], np.int64), classes
