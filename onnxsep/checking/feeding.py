"""What two models are run on when they are compared: the user's data, the user's inputs, or random values."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxsep.checking.layer_report import LayersReport
from onnxsep.checking.layers import Feeds, compare_layers
from onnxsep.checking.options import SAMPLES
from onnxsep.data import Dataset, Preprocessing, Source, open_data
from onnxsep.errors import FeedError, OptionError, spelled
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress
from onnxsep.reporting.records import MeasuredOn
from onnxsep.running.feeds import make_feeds
from onnxsep.running.integer_io import as_real
from onnxsep.running.runtime import CannotRun, RuntimeOptions


@dataclass(frozen=True)
class Opened:
    """Inputs for a model.

    Attributes:
        feeds: Makes them, so many samples at a time.
        notes: What the reader must know about them.
        measured_on: What they are, for a report.
    """

    feeds: Feeds
    notes: tuple[str, ...]
    measured_on: MeasuredOn | None


@dataclass(frozen=True)
class Feeding:
    """Where inputs come from.

    Attributes:
        data: What :func:`onnxsep.data.open_data` takes, or an open dataset.
        preprocessing: Of images.
        samples: At most so many of the data's samples, drawn with ``seed``.
        inputs: An .npz or .npy file with one set of inputs.
        input_shapes: For random inputs, by name.
        seed: Of random inputs and of the choice of samples.
        indices: The samples to use, where they are chosen already.
    """

    data: Source | Dataset | None = None
    preprocessing: Preprocessing | None = None
    samples: int | None = SAMPLES
    inputs: str | os.PathLike[str] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    indices: tuple[int, ...] | None = None

    @property
    def given(self) -> bool:
        """Whether the user has said anything about the inputs."""
        return self.data is not None or self.inputs is not None or bool(self.input_shapes)

    def check(self) -> None:
        """Refuse what is about data where there are none, before anything is read.

        Raises:
            OptionError: samples or preprocessing are given without data.
        """
        if self.data is None and self.preprocessing is not None:
            raise OptionError(f"preprocessing is for the images of {spelled('data')}, and there is none")
        if self.data is None and self.samples != SAMPLES:
            raise OptionError(f"{spelled('samples')} chooses among those of {spelled('data')}, and there is none")

    def open(self, model: Model) -> Opened:
        """Inputs for a model.

        Raises:
            OptionError: data and inputs are both given, or a number is out of range.
            FeedError: the inputs or shapes do not fit the model, or none can be made for it.
            DataError: the data cannot be read, or do not fit the model.
        """
        if self.data is not None:
            if self.inputs is not None or self.input_shapes:
                raise OptionError(
                    f"{spelled('data')} gives the inputs: leave out {spelled('inputs')} and {spelled('input_shapes')}"
                )
            return self._from_data(self.data, model)
        inputs = None if self.inputs is None else Path(self.inputs)
        made = make_feeds(model, inputs=inputs, input_shapes=self.input_shapes, seed=self.seed)

        def once(batch: int) -> Iterator[Mapping[str, Any]]:
            yield made.arrays

        return Opened(once, made.notes, made.measured_on)

    def _from_data(self, data: Source | Dataset, model: Model) -> Opened:
        dataset = data
        if not isinstance(dataset, Dataset):
            dataset = open_data(dataset, as_real(model), preprocessing=self.preprocessing)
        opened = dataset
        indices = opened.sample(self.samples, self.seed) if self.indices is None else self.indices

        def batches(batch: int) -> Iterator[Mapping[str, Any]]:
            return opened.feeds(indices, batch)

        what = MeasuredOn(kind="data", source=opened.source, samples=sum(map(len, opened.batches(indices))))
        return Opened(batches, opened.notes, what)


def layers_report(
    source: Model, result: Model, feeding: Feeding, options: RuntimeOptions, progress: Progress | None = None
) -> tuple[LayersReport | None, str]:
    """The tensors of a source and of what was made of it, for the report of a command; or why there are none.

    Raises:
        FeedError: the given inputs do not fit the model.
        DataError: the data cannot be read, or do not fit the model.
    """
    try:
        opened = feeding.open(source)
        notes = opened.notes
        if feeding.data is None and feeding.inputs is None:
            real = f"{spelled('data')} or {spelled('inputs')}"
            notes = (*notes, f"the inputs are random: noise tells less than real inputs ({real})")
        return compare_layers(source, result, opened.feeds, options, notes, progress), ""
    except CannotRun as error:
        return None, f"the layers are not compared: {error}"
    except FeedError as error:
        if feeding.given:
            raise
        return None, f"the layers are not compared: no inputs could be made: {error}"
