"""Where a dataset's samples come from: arrays, several feeds, or image files. Each is read when it is needed."""

import bisect
import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from onnxsep.data.images import ImageReader, Picture
from onnxsep.data.labels import as_labels
from onnxsep.errors import DataError, FeedError
from onnxsep.model.files import open_regular
from onnxsep.running.inputs import Dim, Input, check_type, fits, show_dims, show_inputs

_CHUNK = 2**24  # elements looked at together
_MADE_UP = ("unk__", "dynamic_axes_", "batch")  # so named dimensions may be the same one under two names

# How the arrays of a feed are divided into samples: along the batch axis that the inputs have; along an axis that the
# inputs do not have; not at all; each input in its own way, and then one sample at a time.
Division = Literal["rows", "stacked", "whole", "mixed"]
# For the last: the axis along which the array has samples, an element of an additional first axis, or the same array
# for every sample.
Role = int | Literal["element", "same"]


class Samples(Protocol):
    """Samples that can be read in any order, by their numbers."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> Hashable:
        """Samples with equal keys fit into one feed; None: this one is a feed of its own."""

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """One feed of these samples, whose keys are equal: arrays of the caller's own, in the inputs' types."""

    def digest(self, index: int) -> bytes:
        """A hash of all that decides what is fed for this sample."""


@dataclass(frozen=True)
class ArraySamples:
    """Samples in arrays, one for each input, which may be mapped from a file."""

    entries: tuple[Input, ...]
    arrays: Mapping[str, np.ndarray]
    division: Division
    roles: Mapping[str, Role] = field(default_factory=dict)

    def __len__(self) -> int:
        if self.division == "whole":
            return 1
        for name, array in self.arrays.items():
            role = self.roles.get(name, 0)
            if role != "same":
                return int(array.shape[0 if role == "element" else role])
        raise AssertionError("some array gives the samples")

    def key(self, index: int) -> Hashable:
        """See :meth:`Samples.key`."""
        return tuple(array.shape[1:] for array in self.arrays.values()) if self.division == "rows" else None

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """See :meth:`Samples.read`."""
        if self.division == "mixed":
            return {e.name: np.array(self._one(e.name, indices[0]), dtype=e.dtype, order="C") for e in self.entries}
        places: Any = {"rows": list(indices), "stacked": indices[0], "whole": ...}[self.division]
        # np.array and not asarray: it copies, and makes a plain array of one that is mapped from a file.
        return {e.name: np.array(self.arrays[e.name][places], dtype=e.dtype, order="C") for e in self.entries}

    def _one(self, name: str, index: int) -> np.ndarray:
        array, role = self.arrays[name], self.roles[name]
        if role == "same":
            return array
        return np.asarray(array[index] if role == "element" else np.take(array, [index], axis=role))

    def digest(self, index: int) -> bytes:
        """See :meth:`Samples.digest`."""
        hasher = hashlib.sha256()
        for name, array in self.read([index]).items():
            content = array.tobytes() if array.dtype != np.object_ else repr(array.tolist()).encode()
            hasher.update(f"{name} {array.dtype.name} {array.shape} ".encode("utf-8", "surrogatepass"))
            hasher.update(content)
        return hasher.digest()


class FeedSamples:
    """The samples of several feeds, one after another."""

    def __init__(self, feeds: Sequence[ArraySamples]) -> None:
        self._feeds = feeds
        self._ends = list(itertools.accumulate(map(len, feeds)))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        feed = bisect.bisect_right(self._ends, index)
        return feed, index - (self._ends[feed - 1] if feed else 0)

    def key(self, index: int) -> Hashable:
        """See :meth:`Samples.key`."""
        feed, row = self._find(index)
        return self._feeds[feed].key(row)

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """See :meth:`Samples.read`."""
        groups = itertools.groupby(map(self._find, indices), key=lambda place: place[0])
        parts = [self._feeds[feed].read([row for _, row in places]) for feed, places in groups]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def digest(self, index: int) -> bytes:
        """See :meth:`Samples.digest`."""
        feed, row = self._find(index)
        return self._feeds[feed].digest(row)


@dataclass(frozen=True)
class ImageSamples:
    """Images, decoded when they are read."""

    reader: ImageReader
    paths: tuple[Path | Picture, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> Hashable:
        """See :meth:`Samples.key`."""
        return self.reader.size

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """See :meth:`Samples.read`."""
        return {self.reader.entry.name: np.stack([self.reader.read(self.paths[index]) for index in indices])}

    def digest(self, index: int) -> bytes:
        """See :meth:`Samples.digest`."""
        path = self.paths[index]
        if isinstance(path, Picture):
            return hashlib.sha256(repr(self.reader).encode() + self.reader.read(path).tobytes()).digest()
        try:
            with open_regular(path) as file:
                return hashlib.sha256(repr(self.reader).encode() + file.read()).digest()
        except OSError as error:
            raise DataError(f"cannot read the image {str(path)!r}: {error.strerror or error}") from error


@dataclass(frozen=True)
class Given:
    """What was found among arrays by name.

    Attributes:
        samples: The arrays of the model's inputs.
        labels: The array ``y``, checked, or None.
        notes: What the user should know.
        batch: The only batch size that the model takes, None where it takes any.
    """

    samples: ArraySamples
    labels: np.ndarray | None
    notes: tuple[str, ...]
    batch: int | None


def from_arrays(
    given: Mapping[str, Any], entries: tuple[Input, ...], where: str, *, is_feed: bool = False, first: int = 0
) -> Given:
    """Check arrays for a model's inputs and find out how they divide into samples.

    Args:
        given: Arrays by input name, or ``x`` for the only input; ``y``, if it is no input, holds labels.
        entries: The model's inputs.
        where: Begins the messages.
        is_feed: The arrays are one feed: they have the inputs' own shapes, and divide only where batch axes are free.
            Otherwise they may hold any number of samples, along the batch axis or an additional first one.
        first: Number of the first sample, for messages.

    Raises:
        DataError: an array is missing, or has the wrong type or shape; or holds NaN or infinity; or arrays hold
            different numbers of samples.
    """
    named = dict(given)
    if len(entries) == 1 and entries[0].name not in named and "x" in named:
        named[entries[0].name] = named.pop("x")
    arrays = {}
    for entry in entries:
        if entry.name not in named:
            also = ", or 'x' for the only one" if len(entries) == 1 else ""
            raise DataError(
                f"{where}: there is no array for input {entry}; found: {', '.join(map(repr, named)) or 'none'}. Arrays"
                f" are named after the inputs{also}; {show_inputs(entries)}"
            )
        arrays[entry.name] = _typed(np.asarray(named.pop(entry.name)), entry, where)
    roles = {} if is_feed else _find_roles(entries, arrays)
    division: Division = "mixed" if roles else _divide(entries, arrays, where, is_feed)
    samples = ArraySamples(entries, arrays, division, roles)
    for entry in entries:
        shared = roles.get(entry.name, 0) not in (0, "element")
        _check_values(arrays[entry.name], entry, "whole" if shared else division, where, first)
    labels = as_labels(named.pop("y"), len(samples), f"{where}, array 'y'") if "y" in named else None
    fixed = {entry.dims[0] for entry in entries if entry.dims and isinstance(entry.dims[0], int)}
    batch = fixed.pop() if division == "rows" and fixed else None
    notes = (f"{where}: not used, as no input has the name: {', '.join(map(repr, named))}",) if named else ()
    return Given(samples, labels, notes, batch if isinstance(batch, int) else None)


def _typed(array: np.ndarray, entry: Input, where: str) -> np.ndarray:
    try:
        return check_type(array, entry)
    except FeedError as error:
        hint = ""
        if array.dtype == np.uint8 and entry.is_float:
            hint = (
                "; arrays are taken as they are, images too: convert them as the model was trained, for example"
                f" ((x / 255 - mean) / std).astype({entry.dtype.name!r})"
            )
        raise DataError(f"{where}: {error}{hint}") from None


def _divide(entries: tuple[Input, ...], arrays: Mapping[str, np.ndarray], where: str, is_feed: bool) -> Division:
    pairs = [(entry, arrays[entry.name]) for entry in entries]
    for entry, array in pairs:
        if array.size == 0:
            raise DataError(f"{where}: the array for input {entry} is empty: its shape is {list(array.shape)}")
    exact = all(fits(array.shape, entry.dims) for entry, array in pairs)
    rows = all(array.ndim and fits(array.shape, _batched(entry)) for entry, array in pairs)
    firsts = [entry.dims[0] if entry.dims else None for entry in entries]
    sizes = {dim for dim in firsts if isinstance(dim, int)}
    equal = all(array.ndim for _, array in pairs) and len({len(array) for _, array in pairs}) == 1
    if not sizes and rows:
        if equal:
            return "rows"
        names = {dim for dim in firsts if isinstance(dim, str) and not dim.startswith(_MADE_UP)}
        if len(names) == len(entries):
            return "whole"
    elif is_feed and exact:
        return "whole"
    elif not is_feed and rows and equal and len(sizes) == 1 and not (exact and len(set(firsts)) > 1):
        return "rows"
    elif not is_feed and equal and all(fits(array.shape[1:], entry.dims) for entry, array in pairs):
        return "stacked"
    elif exact:
        return "whole"
    for entry, array in pairs:
        if not fits(array.shape, entry.dims if is_feed else _batched(entry)):
            raise DataError(f"{where}: {_wrong_shape(entry, array.shape, is_feed)}")
    if equal:
        raise DataError(
            f"{where}: the first dimensions of the inputs differ, so that they are no batch; give an array of complete"
            f" inputs for each, [samples, ...]; {show_inputs(entries)}"
        )
    lengths = ", ".join(f"{e.name!r} has {len(array) if array.ndim else 'one for all'}" for e, array in pairs)
    raise DataError(f"{where}: the arrays hold different numbers of samples: {lengths}; {show_inputs(entries)}")


def _find_roles(entries: tuple[Input, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, Role]:
    """How arrays give samples where some inputs have a free first axis and others have none; empty where they do not.

    An input that has none (a scalar, a state [layers, batch, units]) may have one array in its own shape for all
    samples, samples along another free axis, or, as any input, along an additional first axis.
    """
    ranked = [(entry, arrays[entry.name], entry.dims) for entry in entries if entry.dims is not None]
    free = {entry.name for entry, _, dims in ranked if dims and not isinstance(dims[0], int)}
    if len(ranked) < len(entries) or not free or len(free) == len(entries):
        return {}
    roles: dict[str, Role] = {}
    for entry, array, dims in ranked:
        if fits(array.shape, dims):
            roles[entry.name] = 0 if entry.name in free else "same"
        elif array.ndim == len(dims) + 1 and fits(array.shape[1:], dims):
            roles[entry.name] = "element"
        else:
            return {}
    counts = {len(arrays[name]) for name, role in roles.items() if role != "same"}
    count = max(counts, default=0)
    if len(counts) != 1 or count < 2:
        return {}
    for entry, array, dims in ranked:
        if roles[entry.name] == "same":
            batched = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int) and array.shape[axis] == count]
            roles[entry.name] = batched[0] if len(batched) == 1 else "same"
    return roles


def _batched(entry: Input) -> tuple[Dim, ...] | None:
    return ("samples", *entry.dims[1:]) if entry.dims else entry.dims


def _wrong_shape(entry: Input, shape: tuple[int, ...], is_feed: bool) -> str:
    dims = entry.dims if is_feed else _batched(entry)
    text = f"the array for input {entry} has shape {list(shape)}, expected {show_dims(dims)}"
    if len(shape) == 4:
        for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
            if fits(tuple(shape[axis] for axis in axes), dims):
                return f"{text}; it would fit after .transpose{axes}"
    return text


def _check_values(array: np.ndarray, entry: Input, division: Division, where: str, first: int) -> None:
    if not entry.is_float:
        return
    rows = array.reshape(1, -1) if division == "whole" else array
    step = max(1, _CHUNK * len(rows) // rows.size)
    for start in range(0, len(rows), step):
        chunk = np.asarray(rows[start : start + step]).astype(entry.dtype, copy=False)
        finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
        if not finite.all():
            bad = first + start + int(np.flatnonzero(~finite)[0])
            raise DataError(f"{where}: the array for input {entry} holds NaN or infinity in sample {bad}")
