"""From outcomes of single samples to figures: shares with their errors, distances of outputs, the user's own metric."""

import importlib
import math
import numbers
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxsep.algebra.output_parts import PartTally, worst
from onnxsep.errors import OptionError
from onnxsep.evaluation.errors import EvaluationError
from onnxsep.evaluation.report import Accuracy, OutputError, Paired, Share
from onnxsep.reporting.records import part_reports

Metric = Callable[[Mapping[str, Any], npt.NDArray[np.int64] | None], float]
"""Outputs by name and the labels of the samples, in the order of the data, to a number; higher is better."""


def share(outcomes: npt.NDArray[np.bool_]) -> Share:
    """How many of the samples, [samples], have a property."""
    count, total = int(np.count_nonzero(outcomes)), len(outcomes)
    value = count / total
    return Share(count=count, total=total, value=value, standard_error=math.sqrt(value * (1 - value) / total))


def paired(outcomes: npt.NDArray[np.bool_], first: npt.NDArray[np.bool_]) -> Paired:
    """The difference of two shares from their outcomes on the same samples, [samples].

    Each sample contributes d = 1 (won), -1 (lost) or 0; the standard error is that of the mean of d.
    """
    won, lost = int(np.count_nonzero(outcomes & ~first)), int(np.count_nonzero(first & ~outcomes))
    total = len(outcomes)
    difference = (won - lost) / total
    variance = (won + lost) / total - difference**2
    return Paired(difference=difference, standard_error=math.sqrt(variance / total), won=won, lost=lost)


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


def load_metric(text: str) -> Metric:
    """Import the function that ``module:function`` names; the module may lie in the current folder.

    Raises:
        OptionError: the text has another form, or the module or the function cannot be found.
    """
    module_name, colon, function = text.partition(":")
    if not colon or not module_name or not function:
        raise OptionError(f"cannot read the metric {text!r}; write module:function, such as my_metrics:mean_precision")
    try:
        with _current_folder():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise OptionError(f"the metric {text!r}: {module_name} cannot be imported: {error}") from error
        raise OptionError(
            f"the metric {text!r}: there is no module {error.name!r}, neither in the current folder {str(Path.cwd())!r}"
            " nor among the installed ones; name it without .py"
        ) from error
    except Exception as error:  # the user's module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise OptionError(f"the metric {text!r}: {module_name} cannot be imported: {reason}") from error
    found: Any = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        what = "no function" if found is None else f"a {type(found).__name__} and no function"
        where = getattr(module, "__file__", None) or "built in"
        raise OptionError(f"the metric {text!r}: {function!r} is {what} in {module_name} ({where})")
    metric: Metric = found
    return metric


def call_metric(
    metric: Metric, name: str, model: str, outputs: Mapping[str, Any], labels: npt.NDArray[np.int64] | None
) -> float:
    """What the user's metric gives for one model.

    Args:
        metric: The function.
        name: What messages call it.
        model: The model's name.
        outputs: All outputs of the model, by name (:func:`join`).
        labels: [samples], or None where the data has none.

    Raises:
        EvaluationError: it raises, or gives something else than a finite number.
    """
    try:
        with _current_folder():
            value: Any = metric(outputs, labels)
    except Exception as error:  # the user's function may raise anything
        raise EvaluationError(f"the metric {name!r} failed on {model}: {type(error).__name__}: {error}") from error
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, numbers.Real | np.bool_) or not math.isfinite(value):
        shown = repr(value) if isinstance(value, numbers.Real) else f"a {type(value).__name__}"
        raise EvaluationError(f"the metric {name!r} gave {shown} for {model}; it must return one finite number")
    return float(value)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules of the current folder can be imported, as in a script that lies there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)


def join(feeds: Sequence[Mapping[str, Any]], samples: Sequence[int]) -> dict[str, Any]:
    """The outputs of all feeds, for a metric.

    Args:
        feeds: Outputs by name for each feed.
        samples: How many samples each feed holds.

    Returns:
        By name an array [samples, ...] where each feed's output has a row for each of its samples and shapes agree;
        else a list of the outputs for the feeds.
    """
    joined: dict[str, Any] = {}
    for name in feeds[0]:
        values = [feed[name] for feed in feeds]
        rows = all(
            isinstance(value, np.ndarray) and value.ndim and len(value) == count
            for value, count in zip(values, samples, strict=True)
        )
        same = rows and len({value.shape[1:] for value in values}) == 1
        joined[name] = np.concatenate(values) if same else values
    return joined
