"""Labels of a dataset: the class of each sample, as a number."""

import csv
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxsep.errors import DataError
from onnxsep.files import open_regular

_NAME_HEADERS = {"file", "filename", "file_name", "id", "image", "image_id", "index", "name", "path", "sample"}
_CLASS_HEADERS = {"category", "class", "class_id", "class_name", "label", "labels", "target", "y"}
_MISSING = {"nan", "<na>", "nat"}  # what tables write where there is no value
_LARGEST = 2**31


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
    """Labels from an array of whole numbers, [samples] or [samples, 1]; floats that are whole will do.

    Args:
        values: The array.
        count: Number of samples.
        where: Names the array in messages.

    Returns:
        int64 [samples].

    Raises:
        DataError: they are no whole numbers, negative, or not as many as the samples.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    array = _whole(array, where)
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


def _whole(array: np.ndarray, where: str) -> np.ndarray:
    """The same as integers where it holds whole numbers as floats, as tables that had gaps do.

    Raises:
        DataError: a float is NaN; the message names its sample.
    """
    if array.ndim != 1 or array.dtype.kind != "f":
        return array
    if (missing := np.flatnonzero(np.isnan(array))).size:
        raise DataError(f"{where}: the label of sample {missing[0]} is NaN; give each sample a class, or leave it out")
    whole = (array == np.round(array)) & (np.abs(array) < 2**31)
    return array.astype(np.int64) if whole.all() else array


def read_labels(
    path: Path, names: Sequence[str] | None, count: int, classes: list[str] | None
) -> tuple[np.ndarray, list[str] | None, tuple[str, ...]]:
    """Read labels from a CSV file: a line ``name,class`` for each sample, in any order.

    Args:
        path: The file; a first line of column titles may stand in it, and a column of line numbers in front. Of more
            columns the titles say which two are meant. Whole numbers may be written as 3.0, as pandas does.
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
    rows = _name_and_class(path, _rows(path), places, named=names is not None)
    found: dict[int, tuple[int, str]] = {}
    unused = 0
    for line, name, label in rows:
        stripped = _unquoted(name)
        spellings = (name, stripped, stripped.replace("\\", "/"), *([] if names else [_as_whole(stripped)]))
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


_Row = tuple[int, list[str]]  # number of the line, cells


def _rows(path: Path) -> list[_Row]:
    """Every line that is not empty."""
    try:
        with TextIOWrapper(open_regular(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise DataError(f"cannot read the labels {str(path)!r}: {error.strerror or error}") from error
    except (csv.Error, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a CSV file of names and classes: {error}") from error


def _name_and_class(
    path: Path, rows: Sequence[_Row], places: Mapping[str, int], *, named: bool
) -> list[tuple[int, str, str]]:
    """(line, name, class) of every line but the titles."""
    if not rows:
        return []
    titles = [_unquoted(cell).lower() for cell in rows[0][1]]
    width = len(titles)
    columns = _titled(titles, named=named) if not {cell.strip() for cell in rows[0][1]} & set(places) else None
    if columns is None and titles[0] == "" and width in (2, 3):
        columns = width - 2, width - 1
    body = rows if columns is None else rows[1:]
    if columns is None:
        columns = (1, 2) if width == 3 and _numbered(rows) else (0, 1)
        width = 1 if len(titles) == 1 and not named else columns[1] + 1
    found = []
    for number, (line, row) in enumerate(body):
        if width == 1 and len(row) == 1 and not named:  # one class a line, in the order of the samples
            row = [str(number), *row]
        elif len(row) != width or not all(row[column].strip() for column in columns):
            raise DataError(
                f"{str(path)!r}, line {line}: expected a name and a class, with a comma between"
                f" them, not {','.join(row)[:80]!r}"
            )
        found.append((line, row[columns[0]], _unquoted(row[columns[1]])))
    return found


def _titled(titles: Sequence[str], *, named: bool) -> tuple[int, int] | None:
    """The columns of names and classes by their titles; None where the first line holds none."""
    if len(titles) == 1:
        return (0, 1) if titles[0] in _CLASS_HEADERS and not named else None
    name = next((place for place, title in enumerate(titles) if title in _NAME_HEADERS), None)
    label = next((place for place, title in enumerate(titles) if title in _CLASS_HEADERS and place != name), None)
    if len(titles) == 2:
        return None if name is None and label is None else (0, 1)
    if label is None:
        return None
    return (0 if name is None else name), label


def _numbered(rows: Sequence[_Row]) -> bool:
    """Whether the first column counts the lines, from 0 or 1."""
    first = [row[0].strip() for _, row in rows]
    return any(first == [str(number + start) for number in range(len(rows))] for start in (0, 1))


def _unquoted(cell: str) -> str:
    """A cell without spaces around it, and without quotes that a space in front had hidden."""
    text = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _as_whole(text: str) -> str:
    """The digits of a whole number that is written as a float (3.0, 1e2); other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if value.is_integer() and abs(value) < _LARGEST and not text.isdecimal() else text


def _numbers(
    path: Path, found: list[tuple[int, str]], classes: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """Numbers of classes that are given as names or numbers; names come first, as they may be digits."""
    texts = {label for _, label in found}
    for line, label in found:
        if label.lower() in _MISSING and label not in (classes or ()):
            raise DataError(f"{str(path)!r}, line {line}: the class is {label!r}; give each sample one")
    whole = {text: _as_whole(text) for text in texts}
    if classes is None and not all(text.lstrip("+-").isdecimal() for text in whole.values()):
        classes = sorted(texts)
    if classes is not None and texts <= set(classes):
        numbers = {name: number for number, name in enumerate(classes)}
    else:
        numbers = {text: int(one) for text, one in whole.items() if one.isdecimal() and int(one) < _LARGEST}
    for line, label in found:
        if label not in numbers:
            known = "" if classes is None else f" nor one of: {', '.join(classes[:20])}"
            raise DataError(f"{str(path)!r}, line {line}: the class {label!r} is no number from 0 up{known}")
    return np.array([numbers[label] for _, label in found], np.int64), classes
