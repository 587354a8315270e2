"""The manifest of a run: what it was made from and with, so that it can be repeated and checked."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from onnxsep._version import __version__
from onnxsep.data import Decided, Preprocessing
from onnxsep.errors import OptionError
from onnxsep.model.content import model_hash
from onnxsep.model.files import printable
from onnxsep.model.io import Model
from onnxsep.model.paths import RECIPE, Kind, read_record
from onnxsep.planner.plan_file import PlanFile
from onnxsep.reporting.records import Record
from onnxsep.running.runtime import RuntimeOptions

_PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "scipy", "torch")


class Content(Record):
    """A model or data that a run read or made."""

    path: str | None
    """As it was named; None for what came from memory."""
    sha256: str
    """Of a model: of the file, or of the model and all its weights where these lie in other files. Of data: of samples,
    labels and preprocessing, in their order, without names."""


class DoneStep(Record):
    """A finished step."""

    number: int
    command: str
    options: dict[str, Any]
    """All of them, defaults too."""
    file: str | None = None
    """The result in the work folder."""
    sha256: str
    seconds: float


class Manifest(Record):
    """What a run was made from and with."""

    onnxsep: str = __version__
    kind: Literal["onnxsep compress 1"] = "onnxsep compress 1"
    packages: dict[str, str]
    """Versions of those that are installed."""
    python: str = Field(default_factory=platform.python_version)
    platform: str = Field(default_factory=platform.platform)
    recipe: str
    description: str = ""
    recipe_text: str | None = None
    """As it was written; None for steps from Python."""
    source: Content
    data: Content | None = None
    test: Content | None = None
    other_models: dict[str, Content] = Field(default_factory=dict)
    plans: dict[str, Content] = Field(default_factory=dict)
    """What is in the plans that steps carry out."""
    preprocessing: dict[str, Any] | None = None
    skip_bad: bool = False
    output: str | None = None
    inputs: str | None = None
    input_shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    seed: int = 0
    """Of the steps that name none."""
    device: str = "auto"
    threads: int = 0
    provider: str
    custom_op_libraries: tuple[str, ...] = ()
    planned: tuple[str, ...]
    """The steps of the recipe."""
    steps: tuple[DoneStep, ...] = ()
    result: Content | None = None

    def runtime(self, given: RuntimeOptions | None) -> RuntimeOptions:
        """How models were run; or as it is given now, where that says more than a time limit."""
        limit = RuntimeOptions().time_limit if given is None else given.time_limit
        if given is not None and given != RuntimeOptions(time_limit=limit):
            return given
        libraries = tuple(map(Path, self.custom_op_libraries))
        return RuntimeOptions(
            threads=self.threads, provider=self.provider, custom_op_libraries=libraries, time_limit=limit
        )

    def image_preprocessing(self) -> Preprocessing | None:
        """How images were read."""
        return None if self.preprocessing is None else Preprocessing.from_values(self.preprocessing)


def packages() -> dict[str, str]:
    """Versions of the packages that results depend on; none of them is imported."""
    found = {name: _version(name) for name in _PACKAGES}
    return {name: text for name, text in found.items() if text is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def preprocessing_fields(preprocessing: Preprocessing | None) -> dict[str, Any] | None:
    """Preprocessing as :meth:`Manifest.image_preprocessing` reads it."""
    if preprocessing is None or preprocessing == Decided():  # nothing but defaults, and it may be for no images at all
        return None
    fields = dataclasses.asdict(preprocessing)
    found: dict[str, Any] = json.loads(json.dumps({key: value for key, value in fields.items() if value is not None}))
    return found


def model_content(model: Model) -> Content:
    """A model for the manifest."""
    return Content(path=None if model.path is None else printable(model.path), sha256=model_hash(model))


def plan_content(plan: PlanFile) -> Content:
    """A plan for the manifest; comments in it do not count."""
    path = None if plan.path is None else printable(plan.path)
    return Content(path=path, sha256=hashlib.sha256(plan.text().encode()).hexdigest())


def path_of(source: object) -> str | None:
    """The path of data, where they have one."""
    return printable(source) if isinstance(source, str | os.PathLike) else None


def read_manifest(path: Path) -> Manifest:
    """A manifest from its file.

    Raises:
        OptionError: It cannot be read, or is no manifest of this version of onnxsep.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise OptionError(
            f"{str(path)!r} is no manifest that this version of onnxsep reads: {where + ': ' if where else ''}"
            f"{first['msg']}"
        ) from error


def is_manifest(path: Path) -> bool:
    """Whether a file is the manifest of a run, of any version of onnxsep."""
    return str(read_record(path).get("kind")).startswith("onnxsep compress ")


MANIFEST = Kind("the manifest of the result", "manifest of onnxsep", is_manifest, replaces=frozenset({RECIPE}))


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """How the versions of packages differ, in words; empty where they do not."""
    return ", ".join(
        f"{name} {one.get(name, 'missing')} -> {other.get(name, 'missing')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )
