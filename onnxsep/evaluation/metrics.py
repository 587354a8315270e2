"""From outcomes of single samples to figures: shares with their errors, distances of outputs."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.algebra.output_parts import PartTally, worst
from onnxsep.evaluation.report import Accuracy, OutputError, Share
from onnxsep.reporting.records import part_reports
from onnxsep.running.scores import paired


def share(outcomes: npt.NDArray[np.bool_]) -> Share:
    """How many of the samples, [samples], have a property."""
    count, total = int(np.count_nonzero(outcomes)), len(outcomes)
    value = count / total
    return Share(count=count, total=total, value=value, standard_error=math.sqrt(value * (1 - value) / total))


def top(k: int, ranks: npt.NDArray[np.int64], first: npt.NDArray[np.int64] | None) -> Accuracy:
    """Top-k accuracy from the place of the right class in each sample; ``first``: the first model's, if another."""
    right = ranks < k
    return Accuracy(share=share(right), against_first=None if first is None else paired(right, first < k))


class OutputDistance:
    """||a - b|| / ||a|| of one output over all samples, a the reference's; values that a has not as numbers count not.

    Attributes:
        notes: What could not be compared.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self._difference = self._norm = 0.0
        self._parts = PartTally()
        self._comparable = True

    def add(self, reference: Any, value: Any, samples: int | None = None) -> None:
        """Add the output for one feed of so many samples."""
        if not all(isinstance(item, np.ndarray) and item.dtype.kind in "fiub" for item in (reference, value)):
            self._cannot("no tensor of numbers")
        elif reference.shape != value.shape:
            self._cannot("not of the same shape in both models for every sample")
        else:
            a, b = reference.astype(np.float64), value.astype(np.float64)
            known = np.isfinite(a)
            if not known.all():
                self.notes[f"output {self.name!r}: values NaN or infinite in the reference are left out"] = None
            broken = ~np.isfinite(b[known])
            if broken.any():
                self.notes[f"output {self.name!r} holds NaN or infinity where the reference has numbers"] = None
                self._difference = math.inf
            else:
                self._difference = math.hypot(self._difference, float(np.linalg.norm(a[known] - b[known])))
            self._norm = math.hypot(self._norm, float(np.linalg.norm(a[known])))
            self._parts.add(a, b, samples)

    def _cannot(self, why: str) -> None:
        self._comparable = False
        self.notes[f"output {self.name!r} is {why}: its error is not computed"] = None

    def result(self) -> OutputError:
        """The error over everything added; infinite where the reference is zero and the model is not."""
        if not self._comparable:
            return OutputError(name=self.name, relative=None)
        if self._difference == 0.0:
            return OutputError(name=self.name, relative=0.0)
        relative = self._difference / self._norm if self._norm else math.inf
        parts = self._parts.parts()
        return OutputError(name=self.name, relative=worst(relative, parts), parts=part_reports(parts))

    def losses(self) -> list[str]:
        """A note for each part that has lost its variation."""
        return self._parts.losses(f"output {self.name!r}")
