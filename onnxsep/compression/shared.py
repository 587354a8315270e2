"""What the runs of one search share: data that are opened once, and steps that several of its ways begin with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxsep.compression.manifest import DoneStep
from onnxsep.data import Dataset, Preprocessing, PreprocessingReport
from onnxsep.model.io import Model
from onnxsep.reporting.records import Report

Planned = Sequence[tuple[str, Mapping[str, Any]]]
"""The name of each step and all its options."""


@dataclass(frozen=True)
class Finished:
    """A step that a run of the search has done.

    Attributes:
        done: What its manifest says of it.
        model: Its result.
        report: Its report.
        new_initializers: Weights that may go into a data file.
    """

    done: DoneStep
    model: Model
    report: Report
    new_initializers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shared:
    """Data, how their images are read, and finished steps.

    Attributes:
        data: What steps see.
        test: What results are measured on; None: samples of ``data``.
        images: How images are read; it is decided.
        found: What was found out about that.
        fingerprints: Of the whole ``data`` and ``test``, once they are known.
    """

    data: Dataset
    test: Dataset | None
    images: Preprocessing | None
    found: PreprocessingReport | None
    fingerprints: dict[str, str] = field(default_factory=dict)
    _finished: dict[str, Finished] = field(default_factory=dict)

    def fingerprint(self, name: str, data: Dataset) -> str:
        """That of "data" or "test", which is found once."""
        if name not in self.fingerprints:
            self.fingerprints[name] = data.fingerprint()
        return self.fingerprints[name]

    def find(self, steps: Planned) -> Finished | None:
        """The last of these steps, where a run has done them all, one after another."""
        return self._finished.get(_key(steps))

    def keep(self, steps: Planned, finished: Finished) -> None:
        """Keep the last of these steps for the runs to come."""
        self._finished[_key(steps)] = finished


def _key(steps: Planned) -> str:
    return json.dumps([[name, dict(options)] for name, options in steps], sort_keys=True)
