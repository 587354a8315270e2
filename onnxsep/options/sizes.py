"""Sizes in bytes as people write them."""

import re

from onnxsep.errors import OptionError, spelled

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]i?)?b?\s*", re.IGNORECASE)


def bytes_of(name: str, value: int | str) -> int:
    """The bytes that an option says: a number, or 500MB, 8GB, 7.5GiB.

    Args:
        name: of the option, for messages.
        value: as given.

    Raises:
        OptionError: it says no size, or none above 0.
    """
    found = _SIZE.fullmatch(str(value))
    size = 0 if found is None else int(float(found[1]) * _UNITS[(found[2] or "").lower()])
    if size < 1:
        raise OptionError(f"{spelled(name)} {value!r} is no size: give bytes, or 500MB, 8GB, 7.5GiB")
    return size


def in_bytes(size: float) -> str:
    """A size in the words of ``bytes_of``, rounded: 512 MB, 2.1 GB."""
    unit, factor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"{size / factor:.1f} {unit}" if size >= 1e9 else f"{max(size / factor, 1):.0f} {unit}"
