"""The two columns of a labels file that count: the name of each sample and its class, as tables write them."""

import csv
import re
from collections.abc import Collection, Sequence
from io import StringIO
from pathlib import Path

from onnxsep.errors import DataError
from onnxsep.model.files import open_regular

_NAME_HEADERS = {"file", "filename", "file_name", "id", "image", "image_id", "index", "name", "path", "sample"}
_CLASS_HEADERS = {"category", "class", "class_id", "class_name", "label", "labels", "target", "y"}
_SEPARATORS = ",;\t"  # a spreadsheet takes the second where numbers have a decimal comma, the third for "text"
_DECIMAL_COMMA = re.compile(r"(\d+),(\d+)")
_DECLARED = "sep="  # a first line by which a spreadsheet is told the separator

Row = tuple[int, list[str]]  # number of the line, cells


def read_rows(path: Path) -> list[Row]:
    """Every line that is not empty, of UTF-8 or (with its mark at the beginning) UTF-16.

    Raises:
        DataError: The file cannot be read or parsed.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
        separator = _separator(text)
        reader = csv.reader(StringIO(text, newline=""), delimiter=separator)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except OSError as error:
        raise DataError(f"cannot read the labels {str(path)!r}: {error.strerror or error}") from error
    except (csv.Error, ValueError) as error:
        raise DataError(f"{str(path)!r} is not a CSV file of names and classes: {error}") from error
    if rows and rows[0][1][0].lower().startswith(_DECLARED):
        rows = rows[1:]
    if separator == ";":
        rows = [(line, [_with_point(cell) for cell in row]) for line, row in rows]
    return _without_empty_ends(rows)


def name_and_class(
    path: Path, rows: Sequence[Row], places: Collection[str], count: int, *, named: bool
) -> list[tuple[int, str, str]]:
    """(line, name, class) of every line but the titles.

    Args:
        path: The file, for messages.
        rows: What is in it.
        places: What the samples are called.
        count: Number of samples.
        named: Whether they have names of their own; else a single column holds the classes in their order.

    Raises:
        DataError: A line has no name or no class.
    """
    if not rows:
        return []
    titles = [unquoted(cell).lower() for cell in rows[0][1]]
    width = len(titles)
    single = width == 1 and not named
    in_order = single and len(rows) == count
    columns = None
    if not in_order and not {cell.strip() for cell in rows[0][1]} & set(places):
        columns = _titled(titles, named=named)
    if columns is None and titles[0] == "" and width in (2, 3):
        columns = width - 2, width - 1
    body = rows if columns is None else rows[1:]
    if columns is None and not in_order:
        columns = (1, 2) if width == 3 and _numbered(rows) else (0, 1)
        width = columns[1] + 1
    found = []
    for number, (line, row) in enumerate(body):
        if single and len(row) == 1:
            found.append((line, str(number), unquoted(row[0])))
        elif columns is None or len(row) != width or not all(row[column].strip() for column in columns):
            raise DataError(
                f"{str(path)!r}, line {line}: expected a name and a class, with a comma between"
                f" them, not {','.join(row)[:80]!r}"
            )
        else:
            found.append((line, row[columns[0]], unquoted(row[columns[1]])))
    return found


def unquoted(cell: str) -> str:
    """A cell without spaces around it, and without quotes that a space in front had hidden."""
    text = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _separator(text: str) -> str:
    """What stands between the cells: the first line that is not empty says it."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    if line.lower().startswith(_DECLARED) and line[len(_DECLARED) :].strip(" ")[:1] in _SEPARATORS:
        return line[len(_DECLARED) :].strip(" ")[:1] or ","
    cells = {one: len(next(csv.reader([line], delimiter=one), [])) for one in _SEPARATORS}
    # Names may hold a comma: "3, big.png";4. In "0;1,0" it is the decimal point.
    return max(_SEPARATORS, key=lambda one: (cells[one] > 1 and one != ",", cells[one]))


def _with_point(cell: str) -> str:
    """A number with a decimal comma as one with a point."""
    number = _DECIMAL_COMMA.fullmatch(unquoted(cell))
    return cell if number is None else f"{number[1]}.{number[2]}"


def _without_empty_ends(rows: list[Row]) -> list[Row]:
    """The rows without columns at their end in which no row has anything."""
    width = max((len(row) for _, row in rows), default=0)
    while width and all(len(row) < width or not row[width - 1].strip() for _, row in rows):
        width -= 1
    if width and any(len(row) > width for _, row in rows):
        return [(line, row[:width]) for line, row in rows]
    return rows


def _titled(titles: Sequence[str], *, named: bool) -> tuple[int, int] | None:
    """The columns of names and classes by their titles; None where the first line holds none."""
    if len(titles) == 1:
        return (0, 1) if titles[0] in _CLASS_HEADERS and not named else None
    name = next((place for place, title in enumerate(titles) if title in _NAME_HEADERS), None)
    label = next((place for place, title in enumerate(titles) if title in _CLASS_HEADERS and place != name), None)
    if len(titles) == 2:
        if name is None and label is None:
            return None
        return (1, 0) if name == 1 or (name is None and label == 0) else (0, 1)
    if label is None:
        return None
    return (0 if name is None else name), label


def _numbered(rows: Sequence[Row]) -> bool:
    """Whether the first column counts the lines, from 0 or 1."""
    first = [row[0].strip() for _, row in rows]
    return any(first == [str(number + start) for number in range(len(rows))] for start in (0, 1))
