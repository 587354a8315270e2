"""Labels of a dataset: the class of each sample, as a number."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from onnxsep.data.label_table import name_and_class, read_rows, unquoted
from onnxsep.errors import DataError

AnyLabels = str | os.PathLike[str] | npt.ArrayLike

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
    rows = name_and_class(path, read_rows(path), places, count, named=names is not None)
    found: dict[int, tuple[int, str]] = {}
    others = []
    for row in rows:
        place = next((places[one] for one in _spellings(row[1], named=names is not None) if one in places), None)
        if place is None:
            others.append(row)
        else:
            _enter(found, place, row, path)
    unused = len(others) - (0 if names is None else _enter_near(found, others, names, path))
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


def _spellings(name: str, *, named: bool) -> tuple[str, ...]:
    """What the name of a sample may stand for: spaces and quotes left out, folders as on Windows, 3.0 or 003 for 3."""
    stripped = unquoted(name)
    if named:
        return name, stripped, stripped.replace("\\", "/")
    whole = _as_whole(stripped)
    return name, stripped, str(int(whole)) if whole.isdecimal() else whole


def _enter(found: dict[int, tuple[int, str]], place: int, row: tuple[int, str, str], path: Path) -> None:
    line, name, label = row
    if found.setdefault(place, (line, label))[1] != label:
        raise DataError(f"{str(path)!r}: lines {found[place][0]} and {line} give {name!r} different classes")


def _enter_near(
    found: dict[int, tuple[int, str]], rows: Sequence[tuple[int, str, str]], names: Sequence[str], path: Path
) -> int:
    """Find samples that have no label yet by what tables write besides: paths from elsewhere, no suffix of the file.

    Returns:
        How many rows have named a sample.
    """
    left = [place for place in range(len(names)) if place not in found]
    whole = {one: place for one, place in _places(names, len(names)).items() if place in left}
    stems: dict[str, list[int]] = {}
    for one, place in whole.items():
        stems.setdefault(one.removesuffix(PurePosixPath(one).suffix), []).append(place)
    alone = {stem: places[0] for stem, places in stems.items() if len(set(places)) == 1}
    taken = 0
    for known in (whole, alone):
        for row in rows:
            near = next((known[one] for one in _ends(row[1]) if one in known), None)
            if near is not None and near in left:
                _enter(found, near, row, path)
                taken += 1
        left = [place for place in left if place not in found]
    return taken


def _ends(name: str) -> Iterator[str]:
    """A path, and what is left of it without its first folders."""
    parts = [part for part in unquoted(name).replace("\\", "/").split("/") if part not in ("", ".")]
    for first in range(len(parts)):
        yield "/".join(parts[first:])


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
    if classes is None:
        _check_alike(path, found, whole)
    if classes is None and not all(_is_number(text) for text in texts):
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


def _check_alike(path: Path, found: Sequence[tuple[int, str]], whole: Mapping[str, str]) -> None:
    """Refuse a word among numbers: it would make names of all of them, which are ordered otherwise."""
    digits = next(((line, text) for line, text in found if whole[text].isdecimal() and _is_plain(text)), None)
    word = next(((line, text) for line, text in found if not _is_number(text)), None)
    if digits and word:
        raise DataError(
            f"{str(path)!r}, line {word[0]}: the class {word[1]!r} is no number, and {digits[1]!r} in line {digits[0]}"
            " is one; give the numbers of all classes, or the names of all"
        )


def _is_plain(text: str) -> bool:
    return text.lstrip("+-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
