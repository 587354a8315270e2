"""What a run gives to all of its steps."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy.typing as npt

from onnxsep.data import Preprocessing, Source
from onnxsep.running.runtime import RuntimeOptions

Labels = str | os.PathLike[str] | npt.ArrayLike | None


@dataclass(frozen=True)
class Given:
    """What a run gives to each of its steps whose function has a parameter of that name."""

    data: Source | None = None
    labels: Labels = None
    preprocessing: Preprocessing | None = None
    output: str | None = None
    inputs: str | os.PathLike[str] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    follow_links: bool = False
    device: str = "auto"
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
