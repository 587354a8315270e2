"""The data of a plan: what candidates are fitted to, and what their effects are measured on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import Dataset, partition
from onnxsep.engine.sites import Sites
from onnxsep.model.io import Model
from onnxsep.planner.effects import EffectWalk
from onnxsep.planner.measured_samples import Divided, divide
from onnxsep.planner.measuring import Dense, Samples
from onnxsep.planner.own_metric import OwnMetric, batches_of
from onnxsep.running.runtime import RuntimeOptions


@dataclass(frozen=True)
class PlanningData:
    """A dataset whose samples are divided.

    Attributes:
        dataset: The data.
        divided: Which of them are fitted to, and which measured on.
        options: How the fits sample them.
        runtime: How models are run.
        metric: The user's metric, where it is what counts.
        as_error: Whether effects are relative errors, of classifiers too.
    """

    dataset: Dataset
    divided: Divided
    options: CalibrationOptions
    runtime: RuntimeOptions
    metric: OwnMetric | None = None
    as_error: bool = False

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        samples: int,
        options: CalibrationOptions,
        runtime: RuntimeOptions,
        metric: OwnMetric | None = None,
    ) -> "PlanningData":
        """At most so many samples of a dataset, drawn at random."""
        divided = divide(dataset, partition(dataset, samples, options.seed), options.seed)
        return cls(dataset, divided, options, runtime, metric)

    @property
    def all_samples(self) -> Samples:
        """What the layers of a plan that is carried out are fitted to: those that measured candidates too."""
        every = sorted({*self.divided.fitted, *self.divided.measured})
        return Samples(lambda: self._feeds(every), self.options, self.runtime)

    @property
    def samples(self) -> Samples:
        """What candidates are fitted to."""
        return Samples(lambda: self._feeds(self.divided.fitted), self.options, self.runtime)

    def measured(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """What effects are measured on."""
        return self._feeds(self.divided.measured)

    def walk(self, model: Model, sites: Sites, around: Dense | None) -> EffectWalk:
        """What measures effects, in the source or around a plan."""
        score = None
        if self.metric is not None:
            score = self.metric.on(self.dataset, batches_of(self.dataset, self.divided.measured))
        return EffectWalk(
            model, sites, self.measured(), self.runtime, around=around, score=score, as_error=self.as_error
        )

    def _feeds(self, indices: list[int]) -> Iterator[Mapping[str, NDArray[Any]]]:
        return map(self.dataset.feed, batches_of(self.dataset, indices))
