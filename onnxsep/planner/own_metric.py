"""The user's own metric in plans, bound to the samples that it is measured on."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxsep.data import Dataset
from onnxsep.planner.output_distance import Outputs, Score
from onnxsep.running.metric import Metric, call_metric, join, load_metric

_BATCH = 50  # samples that are run at a time


def batches_of(data: Dataset, indices: Sequence[int]) -> list[list[int]]:
    """The feeds in which samples are run to measure on them."""
    return list(data.batches(indices, _BATCH))


@dataclass(frozen=True)
class OwnMetric:
    """A metric and what messages call it."""

    function: Metric
    name: str

    @classmethod
    def of(cls, metric: str | Metric | None) -> "OwnMetric | None":
        """What the user gave: a function, or ``module:function``.

        Raises:
            OptionError: It cannot be found.
        """
        if metric is None:
            return None
        if isinstance(metric, str):
            return cls(load_metric(metric), metric)
        return cls(metric, getattr(metric, "__name__", type(metric).__name__))

    def on(self, data: Dataset, batches: Sequence[Sequence[int]]) -> Score:
        """The metric of what a model gives for these samples of a dataset, with their labels where it has some.

        What is returned raises EvaluationError where the metric fails, or gives no finite number.
        """
        indices = [index for batch in batches for index in batch]
        labels = None if data.labels is None else data.labels[indices]

        def score(outputs: Sequence[Outputs], samples: Sequence[int]) -> float:
            own = None if labels is None else labels.copy()  # a metric may change it
            return call_metric(self.function, self.name, "a model of the plan", join(outputs, samples), own)

        return score
