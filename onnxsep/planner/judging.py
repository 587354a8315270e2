"""Which samples a loss is held to, and which may be looked at while a plan is chosen for it.

Where there are enough, some samples are set aside before anything is fitted, measured or chosen: the model that is
written is judged by them. A plan is chosen by what it loses on others.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.data import Dataset, open_data
from onnxsep.data.partitioning import FEWEST
from onnxsep.errors import spelled
from onnxsep.model.io import Model
from onnxsep.planner.losing import Asked, LossMeter, meets
from onnxsep.planner.measured_samples import Divided
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.own_metric import OwnMetric
from onnxsep.planner.planning_data import PlanningData
from onnxsep.planner.report import LossReport, MeasuredLoss
from onnxsep.planner.targets import Loss, LossTarget, as_loss_target, shown_loss

_SET_ASIDE = 2  # one of so many samples, for accuracy, which takes many
_SET_ASIDE_OF_OUTPUTS = 5  # the same for distances of outputs
_MOST, _MOST_OF_OUTPUTS = 1_000, 100  # samples
_OTHERS = 3  # makes the choice independent of others with the same seed


def _of_accuracy(targets: Sequence[LossTarget]) -> bool:
    return any(one.kind == "drop" for one in targets)


def set_aside(data: Dataset, targets: Sequence[LossTarget], seed: int) -> tuple[Dataset, list[int]]:
    """Keep samples for the verdict; none where there are too few.

    Returns:
        The data with them reserved, and their numbers.
    """
    usable, whole = data.sample(None), data.batch or 1
    accuracy = _of_accuracy(targets)
    share, most = (_SET_ASIDE, _MOST) if accuracy else (_SET_ASIDE_OF_OUTPUTS, _MOST_OF_OUTPUTS)
    count = min(most, len(usable) // share) // whole * whole
    if len(usable) < FEWEST or count < whole or len(usable) - count < whole:
        return data, []
    places = np.random.default_rng([seed, _OTHERS]).choice(len(usable), count, replace=False)
    held = [usable[place] for place in sorted(places.tolist())]
    kept = copy(data)
    kept.reserved = tuple(sorted({*data.reserved, *held}))
    return kept, held


@dataclass(frozen=True)
class Judge:
    """Says whether models lose too much.

    Attributes:
        asked: What is measured, of what; its data have the samples of the verdict reserved.
        held: The samples of the verdict; none where there are too few, and the others must do.
        choosing: Samples that plans are chosen by.
    """

    asked: Asked
    held: Sequence[int]
    choosing: Sequence[int]

    @classmethod
    def of(cls, asked: Asked, held: Sequence[int], divided: Divided, seed: int) -> "Judge":
        """The judge for data that are divided.

        Args:
            asked: What is measured.
            held: The samples that were set aside.
            divided: Those of the fits, and those that measure candidates.
            seed: Of the choice of samples.
        """
        seen = {*divided.fitted, *divided.measured}
        others = [index for index in asked.data.sample(None) if index not in seen]
        others = [others[place] for place in np.random.default_rng([seed, _OTHERS]).permutation(len(others))]
        most = _MOST if _of_accuracy(asked.targets) else _MOST_OF_OUTPUTS
        found = [*divided.measured, *others]
        if _of_accuracy(asked.targets):  # a fit of single layers hardly knows their labels
            found += [index for index in divided.fitted if index not in set(divided.measured)]
        return cls(asked, held, sorted(found[: max(most, len(divided.measured))]))

    @property
    def targets(self) -> tuple[LossTarget, ...]:
        """What may be lost."""
        return self.asked.targets

    @cached_property
    def _choice(self) -> LossMeter:
        return LossMeter(self.asked, self.choosing)

    @cached_property
    def _verdict(self) -> LossMeter:
        return LossMeter(self.asked, self.held) if self.held else self._choice

    def prepare(self) -> None:
        """Run the original, which shows whether all can be measured that is asked for."""
        _ = self._choice, self._verdict

    def choose(self, result: Model) -> tuple[MeasuredLoss, ...]:
        """What a model loses on the samples that plans are chosen by."""
        return self._choice.of(result)

    def verdict(self, result: Model) -> tuple[MeasuredLoss, ...]:
        """What a model loses on the samples that nothing was chosen by."""
        return self._verdict.of(result)

    def meets(self, losses: Sequence[MeasuredLoss]) -> bool:
        """Whether all is within the targets."""
        return all(meets(target, loss) for target, loss in zip(self.targets, losses, strict=True))

    def report(self, losses: Sequence[MeasuredLoss] | None) -> tuple[LossReport, ...]:
        """A record for each target: what a verdict, or None, says of it."""
        measured: Sequence[MeasuredLoss | None] = losses or [None] * len(self.targets)
        return tuple(
            LossReport(
                kind=target.kind,
                target=target.text,
                allowed=target.most,
                measured=loss,
                held_out=bool(self.held),
                of_metric=self._of_metric(target.kind),
            )
            for target, loss in zip(self.targets, measured, strict=True)
        )

    def in_words(self, losses: Sequence[MeasuredLoss]) -> str:
        """What is lost, of what is too much where anything is; where it was measured, and what would allow it."""
        where = "held-out samples" if self.held else "samples that the choice has seen too"
        pairs = list(zip(self.targets, losses, strict=True))
        over = [loss for target, loss in pairs if not meets(target, loss)] or list(losses)
        amounts = " and ".join(map(self._amount, over))
        return f"{amounts}, measured on {losses[0].samples:,} {where} ({self.nearest(losses)})"

    def _amount(self, loss: MeasuredLoss) -> str:
        if loss.value is None:
            return "everything, its outputs being NaN or infinite,"
        return f"{loss.value:.3g} of the metric" if self._of_metric(loss.kind) else shown_loss(loss.kind, loss.value)

    def _of_metric(self, kind: Loss) -> bool:
        return kind == "drop" and self.asked.metric is not None

    def nearest(self, losses: Sequence[MeasuredLoss]) -> str:
        """The options that allow such losses."""
        return " ".join(self._nearest(losses))

    def _nearest(self, losses: Sequence[MeasuredLoss]) -> Iterator[str]:
        for target, loss in zip(self.targets, losses, strict=True):
            most = target.text if meets(target, loss) or loss.value is None else as_loss_target(loss.kind, loss.value)
            yield spelled("target", most)


def kept_from(judge: Judge, data: Dataset) -> Dataset:
    """The data with the samples of the verdict reserved."""
    kept = copy(data)
    kept.reserved = judge.asked.data.reserved
    return kept


def planning_data(model: Model, dataset: Dataset, options: PlanOptions) -> tuple[PlanningData, Judge | None]:
    """The data of a plan, and what says whether it loses too much, where that is asked for.

    Raises:
        DataError: Labels are needed, and there are none, or they do not fit.
        OptionError: What may be lost cannot be measured of this model; the metric cannot be found.
        CalibrationError: The model cannot be run.
    """
    metric, held = OwnMetric.of(options.metric), list[int]()
    needed = _of_accuracy(options.losses) and metric is None
    if options.labels is not None or (needed and dataset.labels is None):
        dataset = open_data(dataset, model, labels=options.labels, need_labels=needed)
    if options.losses:
        dataset, held = set_aside(dataset, options.losses, options.seed)
    calibration = CalibrationOptions(positions=options.positions, seed=options.seed)
    data = PlanningData.of(dataset, options.samples, calibration, options.run_with, metric)
    if not options.losses:
        return data, None
    if {one.kind for one in options.losses} == {"error"}:
        data = replace(data, as_error=True)
    asked = Asked(model, dataset, options.losses, options.run_with, metric, options.output)
    judge = Judge.of(asked, held, data.divided, options.seed)
    judge.prepare()
    return data, judge
