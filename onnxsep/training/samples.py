"""Calibration feeds as samples that can be drawn, shuffled and put together again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep.errors import FeedError, OnnxsepError

Feeds = Mapping[str, NDArray[Any]]
Call = Callable[[Feeds], Mapping[str, NDArray[Any]]]
# Relative difference between a batch and its parts that rounding explains.
_SAME, _SAME_FLOAT16 = 1e-3, 0.02


class Samples:
    """Feeds, cut into single samples where both models allow it.

    A model may have a fixed batch size, in its declaration or in a Reshape, and an output need not have a batch axis at
    all. So this is tried and not concluded from the graph: what the models give for two samples together must be what
    they give for each alone.

    Args:
        batches: Feeds by input name.
        calls: The models: feeds in, outputs by name out.

    Raises:
        FeedError: There are fewer than two samples, or the batches do not have the same inputs.

    Attributes:
        unit: How many samples (elements of the first axis) one item has: 1, or as many as a batch where it cannot be
            cut.
    """

    def __init__(self, batches: Sequence[Feeds], *calls: Call) -> None:
        items: list[Feeds] = [{name: np.asarray(values) for name, values in feeds.items()} for feeds in batches]
        if not items:
            raise FeedError("there are no inputs to tune with")
        if any(set(item) != set(items[0]) for item in items):
            raise FeedError("the batches to tune with do not all have the same inputs")
        for call in calls:
            call(items[0])  # what cannot be run at all is an error, which names its reason
        self.unit = _length(items[0])
        singles = [single for item in items for single in _cut(item)]
        if len(singles) > len(items) and all(_are_independent(call, singles[:2]) for call in calls):
            items, self.unit = singles, 1
        if len(items) < 2:
            raise FeedError("tuning needs at least two samples: one is held out to measure what it brings")
        self._items = items
        same = all(_shapes(item) == _shapes(items[0]) for item in items)
        self._merged = same and (
            (self.unit == 1 and items is singles) or all(_are_independent(call, items[:2]) for call in calls)
        )

    def __len__(self) -> int:
        return len(self._items)

    def feeds(self, chosen: Sequence[int] | NDArray[np.int64]) -> list[Feeds]:
        """The feeds of some samples: one for all of them where the models take batches of any size, else one each."""
        items = [self._items[index] for index in chosen]
        return [_merge(items)] if self._merged else list(items)


def _length(feeds: Feeds) -> int:
    """The number of samples in a batch: the length of the first axis, 1 where inputs differ in it."""
    lengths = {values.shape[0] if values.ndim else 1 for values in feeds.values()}
    return lengths.pop() if len(lengths) == 1 else 1


def _cut(feeds: Feeds) -> list[Feeds]:
    length = _length(feeds)
    if length <= 1 or any(values.ndim == 0 for values in feeds.values()):
        return [feeds]
    return [{name: values[index : index + 1] for name, values in feeds.items()} for index in range(length)]


def _merge(items: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in feeds.items()}


def _are_independent(call: Call, items: Sequence[Feeds]) -> bool:
    """Whether two items together give what each gives alone."""
    try:
        together, alone = call(_merge(items)), [call(item) for item in items]
    except (OnnxsepError, ValueError):  # the model takes another number of samples, or the arrays do not fit together
        return False
    for name, values in together.items():
        try:
            expected = np.concatenate([outputs[name] for outputs in alone])
        except ValueError:
            return False
        if expected.shape != values.shape:
            return False
        scale = max(float(np.nan_to_num(np.abs(expected)).max(initial=0)), 1e-12) if values.dtype.kind == "f" else 1
        tolerance = _SAME_FLOAT16 if values.dtype == np.float16 else _SAME
        if not np.allclose(values / scale, expected / scale, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True
