"""The ranges of the parts of a tensor (``parts``), over several samples."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxsep.quantization.part_labels import Labels

_ROUNDING = 1e-7  # of the range of all: what varies less does not vary


class Ranges:
    """The smallest and the largest value of each part of one tensor, over several samples.

    Args:
        labels: The parts of its values.

    Attributes:
        axes: Along these the parts differ.
        places: For each place along these axes, which of the parts is there.
        low: Smallest value of each part; infinite where it was not seen.
        high: Largest value of each part.
    """

    def __init__(self, labels: Labels) -> None:
        self.axes = tuple(axis for axis in range(labels.ndim) if _varies(labels, axis))
        self._others = tuple(axis for axis in range(labels.ndim) if axis not in self.axes)
        corner = labels[tuple(slice(None) if axis in self.axes else 0 for axis in range(labels.ndim))]
        self._numbers, places = np.unique(corner, return_inverse=True)
        self.places: Labels = places.reshape(corner.shape)
        self.low = np.full(len(self._numbers), np.inf)
        self.high = np.full(len(self._numbers), -np.inf)

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Take in another sample; one whose shape differs along the axes of the parts is left out."""
        if not values.size or tuple(values.shape[axis] for axis in self.axes) != self.places.shape:
            return
        for extremes, reduced, ufunc in (
            (self.low, values.min(axis=self._others), np.minimum),
            (self.high, values.max(axis=self._others), np.maximum),
        ):
            ufunc.at(extremes, self.places.ravel(), np.ravel(reduced).astype(np.float64))

    @property
    def widths(self) -> npt.NDArray[np.float64]:
        """The range of each part, with 0, as a scale must hold it; 0 where the part was not seen."""
        return np.where(self.low <= self.high, np.maximum(self.high, 0) - np.minimum(self.low, 0), 0.0)

    def smallest(self, origins: Sequence[int] | None = None) -> float:
        """The smallest range of a part that varies, with 0, relative to the range of all; 1 where nothing varies.

        Args:
            origins: Taken together are parts with the same of these numbers.
        """
        seen = self.low <= self.high
        if not seen.any():
            return 1.0
        whole = max(self.high[seen].max(), 0.0) - min(self.low[seen].min(), 0.0)
        ours = seen & (self._numbers != 0)
        low, high = self.low[ours], self.high[ours]
        if origins is not None:
            kinds, places = np.unique(np.asarray(origins)[self._numbers[ours]], return_inverse=True)
            joint = np.full(len(kinds), np.inf), np.full(len(kinds), -np.inf)
            np.minimum.at(joint[0], places, low)
            np.maximum.at(joint[1], places, high)
            low, high = joint
        live = high - low > _ROUNDING * whole
        own = (np.maximum(high, 0) - np.minimum(low, 0))[live]
        return float(own.min() / whole) if own.size else 1.0


def _varies(labels: Labels, axis: int) -> bool:
    return labels.strides[axis] != 0 and not bool((labels == labels.take([0], axis)).all())
