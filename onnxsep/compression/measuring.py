"""Measuring the original and the result of every step, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onnxsep.compression.given import Given
from onnxsep.compression.unseen import Unseen
from onnxsep.data import AnyLabels, Preprocessing, Source, open_data
from onnxsep.evaluation import EvaluationReport, evaluate
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.running.feeds import make_feeds
from onnxsep.running.metric import Metric

_MOST = 1000  # samples of the data that steps have seen; on them more would say no more
_RANDOM = 16  # random inputs, where there is nothing else
_TRIAL = 16  # samples on which it is tried, before there is anything to measure, whether it can be measured


@dataclass(frozen=True)
class Measuring:
    """What models are measured on, and how.

    Attributes:
        source: The samples.
        labels: Their classes, where these lie elsewhere.
        kind: What the samples are.
        preprocessing: Of images among them.
        given: What the run gives to its steps.
        metric: The user's own metric, or None.
        samples: Use at most so many; None: all.
        runs: Timed runs of each model; None: as many as it takes.
    """

    source: Source
    labels: AnyLabels | None
    kind: Literal["test", "unseen", "data", "random"]
    preprocessing: Preprocessing | None
    given: Given
    metric: str | Metric | None
    samples: int | None
    runs: int | None

    def check(self, original: Model) -> None:
        """Find out with a few samples whether the original can be measured, before any work is done.

        Raises:
            DataError: The data does not fit the model, or the labels are no classes of it.
            OptionError: The metric cannot be found.
            EvaluationError: The model cannot be run, or the metric fails.
        """
        data = open_data(
            self.source,
            original,
            preprocessing=self.preprocessing,
            labels=self.labels,
            skip_bad=self.given.skip_bad,
        )
        few = min(self.samples or _TRIAL, _TRIAL) if data.batch is None else max(_TRIAL, data.batch)
        alone = data.labels is None and self.metric is None
        self._evaluate([original], samples=few, runs=0, reference=original if alone else None)

    def __call__(
        self, original: Model, results: Sequence[tuple[str, Model]], progress: Progress | None
    ) -> EvaluationReport:
        """Measure the original and the results, which have these names in the report."""
        names = ["original", *(name for name, _ in results)]
        # The path gives a model its name in messages; a model that was saved by us has the size that its proto says.
        models = [original, *(replace(model, path=Path(name), pristine=False) for name, model in results)]
        found = self._evaluate(models, samples=self.samples, runs=self.runs, progress=progress)
        rows = [
            row.model_copy(update={"name": name, "path": row.path if name == "original" else None})
            for name, row in zip(names, found.models, strict=True)
        ]
        reference = None if found.reference is None else "original"
        return found.model_copy(update={"models": tuple(rows), "reference": reference})

    def _evaluate(
        self,
        models: list[Model],
        *,
        samples: int | None,
        runs: int | None,
        reference: Model | None = None,
        progress: Progress | None = None,
    ) -> EvaluationReport:
        return evaluate(
            models,
            data=self.source,
            labels=self.labels,
            metric=self.metric,
            reference=reference,
            output=self.given.output,
            preprocessing=self.preprocessing,
            skip_bad=self.given.skip_bad,
            samples=samples,
            runs=runs,
            memory=False,
            runtime=self.given.runtime,
            progress=progress,
        )


def choose_samples(
    original: Model,
    given: Given,
    *,
    preprocessing: Preprocessing | None,
    test: Source | None,
    test_labels: AnyLabels | None,
    metric: str | Metric | None,
    samples: int | None,
    runs: int | None,
    unseen: Unseen | None,
) -> Measuring:
    """What models are measured on: the test data, else what steps do not see of theirs, else that, else random inputs.

    Raises:
        FeedError: Random inputs cannot be made for the model.
    """
    if test is not None:
        return Measuring(test, test_labels, "test", preprocessing, given, metric, samples, runs)
    if unseen is not None and unseen.measured is not None:
        kept = unseen.measured
        return Measuring(kept, None, "unseen", preprocessing, given, metric, samples or _MOST, runs)
    if given.data is not None:
        return Measuring(given.data, given.labels, "data", preprocessing, given, metric, samples or _MOST, runs)
    inputs = None if given.inputs is None else Path(given.inputs)
    shapes = given.input_shapes
    count = 1 if inputs is not None else _RANDOM
    feeds = [make_feeds(original, inputs=inputs, input_shapes=shapes, seed=seed).arrays for seed in range(count)]
    return Measuring(feeds, None, "random", None, given, metric, samples, runs)
