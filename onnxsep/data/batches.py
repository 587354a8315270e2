"""What Python programs iterate over: batches of a torch DataLoader, pairs of samples and classes, feeds.

No library is imported for it: a tensor is what can be detached and taken to the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeGuard

import numpy as np

from onnxsep.data.dataset import Dataset
from onnxsep.data.labels import as_labels
from onnxsep.data.samples import FeedSamples, Given, from_arrays
from onnxsep.errors import DataError
from onnxsep.running.inputs import Input, fits, show_inputs

MOST_KEPT = 4 << 30  # bytes of what is read once and kept
LABEL_NAMES = ("y", "label", "labels")
INPUT_NAMES = ("x", "image", "images", "img", "pixel_values", "input", "inputs")


class Numbered(Protocol):
    """Samples by their numbers, as a dataset of torch gives them."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True)
class Batch:
    """One item of a source.

    Attributes:
        inputs: Arrays by name, or in the order of the model's inputs.
        labels: What stands beside them; None where there is nothing.
        is_feed: Arrays have the shapes of the inputs, so that they are one sample unless a batch axis is free.
    """

    inputs: Mapping[str, np.ndarray] | tuple[np.ndarray, ...]
    labels: Any = None
    is_feed: bool = False


def kept(source: Iterable[Any] | Numbered) -> list[Batch]:
    """All items of a source that can be read once, or that would give others when it is read again.

    Raises:
        DataError: an item is no batch, or they are larger than what may be kept.
    """
    found: list[Batch] = []
    size = 0
    for number, item in enumerate(_items(source)):
        batch = _batch(item, number)
        size += sum(array.nbytes for array in _arrays(batch))
        if size > MOST_KEPT:
            raise DataError(
                f"the data are read once and kept, and hold more than {MOST_KEPT / 2**30:.3g} GB (after {number:,}"
                " items): give fewer (itertools.islice), or a folder of images or an .npy file, read when needed"
            )
        found.append(_copied(batch))
    return found


def is_read_once(source: object) -> TypeGuard[Iterable[Any] | Numbered]:
    """Whether a source must be kept: an iterator, or what makes its items anew each time, such as a DataLoader."""
    if _is_map(source):
        return True
    plain = isinstance(source, str | bytes | Mapping | Sequence | np.ndarray) or is_tensor(source)
    return isinstance(source, Iterable) and not plain


def open_batches(source: Iterable[Any] | Numbered, entries: tuple[Input, ...]) -> Dataset:
    """The samples of all items of a source, one after another.

    Raises:
        DataError: there are none, or one does not fit the model.
    """
    items: Iterable[Any] = kept(source) if is_read_once(source) else _items(source)
    parts: list[Given] = []
    beside: list[np.ndarray | None] = []
    notes: tuple[str, ...] = ()
    count = 0
    for number, item in enumerate(items):
        batch = _batch(item, number)
        arrays, classes = _by_name(batch, entries, number)
        if not batch.is_feed:
            arrays = _with_batch_axis(arrays, classes, entries)
        parts.append(from_arrays(arrays, entries, f"feed {number}", is_feed=batch.is_feed, first=count))
        size = len(parts[-1].samples)
        count += size
        found, note = _classes(classes, size, f"feed {number}")
        beside.append(parts[-1].labels if found is None else found)
        notes = notes or note
    if not parts:
        raise DataError("the data holds no feeds: the iterable is empty (was it an iterator that is used up?)")
    known = [one for one in beside if one is not None]
    if known and len(known) < len(parts):
        raise DataError(f"{len(known)} of {len(parts)} feeds have labels ('y'): give them with all or with none")
    labels, note = as_known(np.concatenate(known), "the labels of the data") if known else (None, ())
    return Dataset(
        FeedSamples([part.samples for part in parts]),
        "the data",
        labels=labels,
        notes=(*parts[0].notes, *notes, *note),
        batch=parts[0].batch,
    )


def as_known(labels: np.ndarray, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as classes; none, and a note, where all are -1, as in test sets whose classes are kept secret."""
    if (labels == -1).all():
        return None, (f"{where} are -1 everywhere: there are none",)
    return as_labels(labels, len(labels), where), ()


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor of torch."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def as_array(value: Any, where: str) -> np.ndarray:
    """A tensor, or what numpy takes, as an array.

    Raises:
        DataError: it is neither.
    """
    try:
        if is_tensor(value):
            value = value.detach().cpu().numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} cannot be read as an array ({type(value).__name__}): {error}") from error
    if array.dtype == np.object_ and not isinstance(value, np.ndarray):
        raise DataError(f"{where} is a {type(value).__name__}, and no array or tensor")
    return array


def _items(source: Any) -> Iterable[Any]:
    return (source[number] for number in range(len(source))) if _is_map(source) else source


def _is_map(source: Any) -> bool:
    """Whether a source is a dataset of torch that gives its samples by their numbers, and is not iterable."""
    return not isinstance(source, Iterable) and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _batch(item: Any, number: int) -> Batch:
    where = f"feed {number}"
    if isinstance(item, Batch):
        return item
    if isinstance(item, np.ndarray):
        return Batch((item,), is_feed=True)
    if isinstance(item, Mapping):
        tensors = any(map(is_tensor, item.values()))
        return Batch({name: as_array(one, f"{where}, {name!r}") for name, one in item.items()}, is_feed=not tensors)
    if is_tensor(item):
        return Batch((as_array(item, where),))
    if not isinstance(item, list | tuple) or not item:
        raise DataError(
            f"{where} is a {type(item).__name__}: a feed must be arrays by input name, a dict; or an array; or samples"
            " and their classes, (x, y)"
        )
    first, *others = item
    if len(item) == 2 and isinstance(first, Mapping | list | tuple):  # (inputs, classes)
        inner = _batch(first, number)
        return Batch(inner.inputs, as_array(others[0], f"{where}, its second part"))
    return Batch(tuple(as_array(one, f"{where}, part {place}") for place, one in enumerate(item)))


def _by_name(batch: Batch, entries: tuple[Input, ...], number: int) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays by input name, and what may be classes."""
    if isinstance(batch.inputs, Mapping):
        named, names = dict(batch.inputs), {entry.name for entry in entries}
        labels = batch.labels
        if labels is None and "y" not in named:
            label = next((name for name in LABEL_NAMES if name in named and name not in names), None)
            labels = None if label is None else named.pop(label)
        if len(entries) == 1 and entries[0].name not in named:
            alias = next((name for name in INPUT_NAMES if name in named), None)
            if alias is not None:
                named[entries[0].name] = named.pop(alias)
        return named, labels
    arrays, labels = batch.inputs, batch.labels
    if labels is None and len(arrays) == len(entries) + 1:
        arrays, labels = arrays[:-1], arrays[-1]
    if len(arrays) != len(entries):
        raise DataError(
            f"feed {number} has {len(arrays)} arrays, and the model {len(entries)} inputs: give one for each, and then"
            f" the classes of the samples; {show_inputs(entries)}"
        )
    if batch.is_feed:  # one array, which may be named so
        return {"x": arrays[0]}, labels
    return {entry.name: array for entry, array in zip(entries, arrays, strict=True)}, labels


def _with_batch_axis(arrays: dict[str, np.ndarray], labels: Any, entries: tuple[Input, ...]) -> dict[str, np.ndarray]:
    """One sample, which has one class, as a batch of one."""
    shapes = {entry.name: entry.dims for entry in entries}
    alone = [dims is not None and dims and fits(arrays[n].shape, dims[1:]) for n, dims in shapes.items() if n in arrays]
    if labels is None or np.ndim(labels) or not alone or not all(alone):
        return arrays
    return {name: array[None] if name in shapes else array for name, array in arrays.items()}


def _classes(labels: Any, count: int, where: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The classes of samples, where that is what stands beside them; else a note."""
    if labels is None:
        return None, ()
    array = np.atleast_1d(as_array(labels, f"{where}, its classes"))
    if array.dtype.kind in "iu" and array.shape in ((count,), (count, 1)):
        return array.reshape(count), ()
    return None, (
        f"what stands beside the samples is no class of each ({array.dtype.name} {list(array.shape)} for {count}"
        " samples): it is not used",
    )


def _copied(batch: Batch) -> Batch:
    """A generator may fill the same arrays again for its next item."""
    own = {id(array): np.array(array) for array in _arrays(batch)}
    inputs = batch.inputs
    copied: Any = (
        {name: own[id(array)] for name, array in inputs.items()}
        if isinstance(inputs, Mapping)
        else tuple(own[id(array)] for array in inputs)
    )
    return replace(batch, inputs=copied, labels=None if batch.labels is None else np.array(batch.labels))


def _arrays(batch: Batch) -> list[np.ndarray]:
    return list(batch.inputs.values() if isinstance(batch.inputs, Mapping) else batch.inputs)
