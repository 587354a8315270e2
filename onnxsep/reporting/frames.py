"""The rows of a report as a table of pandas, which is imported when it is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from onnxsep.errors import MissingDependencyError


def flat(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records, as dicts, with one value for each column.

    What stands deeper gets the names above it in front, with points. All have the same columns, in the same order; None
    where a record has no such value.
    """
    found = [dict(_flat(row, "")) for row in rows]
    columns = list(dict.fromkeys(key for row in found for key in row))
    above = {key[:place] for key in columns for place, char in enumerate(key) if char == "."}
    kept = [key for key in columns if key not in above or any(row.get(key) is not None for row in found)]
    return [{key: row.get(key) for key in kept} for row in found]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif (
            isinstance(value, list | tuple)
            and value
            and all(isinstance(one, Mapping) and "name" in one for one in value)
        ):
            for one in value:
                yield from _flat(
                    {name: item for name, item in one.items() if name != "name"}, f"{prefix}{key}.{one['name']}."
                )
        else:
            yield prefix + key, value


def frame(records: list[dict[str, Any]]) -> Any:
    """A ``pandas.DataFrame`` with a row for each record.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise MissingDependencyError(
            f"to_frame() needs pandas ({error}); install it with: pip install pandas. to_records() gives the same as"
            " dicts"
        ) from error
    return pandas.DataFrame.from_records(records)
