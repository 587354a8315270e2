"""The user's own metric: a function of a model's outputs and the labels, a number, higher is better."""

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

from onnxsep.errors import EvaluationError, OptionError

Metric = Callable[[Mapping[str, Any], npt.NDArray[np.int64] | None], float]
"""Outputs by name and the labels of the samples, in the order of the data, to a number; higher is better."""


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
