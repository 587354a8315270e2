"""What was measured of one model on one set of data, kept in a cache, so that an interrupted run can go on.

A folder within that of the cache holds for a model, samples and the options that matter, by their hashes; what they are
stands in it. The figures of a layer are a file, which says what the other layers were like; so are the tensors that a
choice was fitted with. Another folder is never read, but that it is there is said.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxsep._version import __version__
from onnxsep.calibration.own_nodes import OwnNodes
from onnxsep.data import Dataset
from onnxsep.engine.factors import Factorized, OutputErrors
from onnxsep.errors import ModelSaveError, spelled
from onnxsep.graph.element_types import STORED_TYPES
from onnxsep.model.content import content_hashes
from onnxsep.model.files import printable, write_text
from onnxsep.model.io import Model
from onnxsep.model.paths import read_record
from onnxsep.planner.cache import Cache, Items, short_hash
from onnxsep.planner.carried import Outcome
from onnxsep.planner.measured_samples import Divided
from onnxsep.planner.measuring import Dense
from onnxsep.planner.one_layer import LayerFound
from onnxsep.planner.output_distance import Effect, Kind
from onnxsep.reporting.records import Record

_ABOUT = "about.json"
_WORDS = {"model": "another model", "data": "other data", "options": "other options", "onnxsep": "another onnxsep"}


class _Array(Record):
    dtype: str
    shape: tuple[int, ...]
    values: str

    @classmethod
    def of(cls, array: NDArray[Any]) -> "_Array":
        return cls(dtype=array.dtype.name, shape=array.shape, values=base64.b64encode(array.tobytes()).decode())

    def array(self) -> NDArray[Any]:
        found = np.frombuffer(base64.b64decode(self.values), STORED_TYPES[self.dtype])
        array: NDArray[Any] = found.reshape(self.shape).copy()
        return array


class _Layer(Record):
    arrays: tuple[_Array, ...]
    weight_error: float | None
    bias: _Array | None
    errors: tuple[float, float, float] | None

    @classmethod
    def of(cls, made: Factorized) -> "_Layer":
        errors, bias = made.errors, made.bias
        return cls(
            arrays=tuple(map(_Array.of, made.arrays)),
            weight_error=made.weight_error,
            bias=None if bias is None else _Array.of(bias),
            errors=None if errors is None else (errors.svd, errors.fitted, errors.held_out),
        )

    def made(self) -> Factorized:
        errors = None if self.errors is None else OutputErrors(*self.errors)
        bias = None if self.bias is None else self.bias.array()
        return Factorized([one.array() for one in self.arrays], self.weight_error, bias, errors)


class _Outcome(Record):
    layers: tuple[_Layer | str, ...]
    kind: Kind
    effect: float
    samples: int
    softened: float | None = None


def about(
    model: Model, dataset: Dataset, divided: Divided, options: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, str]]:
    """What figures depend on, and what the model and the data are called.

    Args:
        model: The source.
        dataset: The data.
        divided: Which of them are used.
        options: Those that matter beside these.
    """
    hashes = content_hashes(model)
    samples = [dataset.fingerprint(divided.fitted), dataset.fingerprint(divided.measured)]
    found: dict[str, object] = {
        "model": {"graph": hashes.graph, "weights": hashes.weights},
        "data": samples,
        "options": dict(options),
        "onnxsep": __version__,
    }
    name = "a model in memory" if model.path is None else printable(model.path.name)
    return found, {"model": name, "data": dataset.source}


def hash_of(around: Dense | None) -> str:
    """What the other layers are like, as SHA-256 in hexadecimal; "" for the source."""
    if around is None:
        return ""
    hasher = hashlib.sha256()
    for place, stand in sorted(around.items(), key=lambda item: item[0]):
        if isinstance(stand, OwnNodes):
            protos = (*stand.all_nodes, *stand.tensors)
            hasher.update(repr((place, "block", len(protos))).encode())
            for proto in protos:
                hasher.update(proto.SerializeToString(deterministic=True))
            continue
        weight, bias = stand
        hasher.update(repr((place, weight.shape, bias is None)).encode())
        hasher.update(np.ascontiguousarray(weight).tobytes())
        hasher.update(b"" if bias is None else np.ascontiguousarray(bias).tobytes())
    return hasher.hexdigest()


class Kept:
    """What is kept of one model on one set of data.

    Args:
        cache: The folder of the cache.
        what: What figures depend on, as ``about`` gives it.
        names: What the model and the data are called.

    Attributes:
        said: Lines about what is in the cache.

    Raises:
        OptionError: Something else is in the folder.
        ModelSaveError: It cannot be written.
    """

    def __init__(self, cache: Path, what: Mapping[str, object], names: Mapping[str, str]) -> None:
        Cache(cache)
        plain = json.loads(json.dumps(dict(what)))
        folder = cache / f"measured-{short_hash(plain)}"
        others = [read_record(one / _ABOUT) for one in sorted(cache.glob("measured-*")) if one != folder]
        known = folder.is_dir() and read_record(folder / _ABOUT).get("about") == plain
        count = sum(1 for one in folder.glob("*.json") if one.name != _ABOUT) if known else 0
        place = printable(cache)
        self.said: tuple[str, ...] = ()
        if count:
            self.said = (f"{place} holds {count} measurements of this model on these data: they are used",)
        elif others:
            differs = _difference(plain, others)
            self.said = (f"what is in {place} was measured with {differs}, so that it is not used here",)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ModelSaveError(
                f"the cache {folder} cannot be made: {error.strerror or error}; name another with {spelled('cache')}"
            ) from error
        if not known:
            write_text(folder / _ABOUT, json.dumps({"about": plain, "names": dict(names)}, indent=1) + "\n")
        self._items = Items(folder)

    def layer(self, what: Mapping[str, object]) -> LayerFound:
        """What is known of a layer: ``what`` says which, and what the others are like."""
        return self._items.find(LayerFound, {"layer": dict(what)}) or LayerFound()

    def keep_layer(self, what: Mapping[str, object], found: LayerFound) -> None:
        """Keep what is known of a layer.

        Raises:
            ModelSaveError: It cannot be written.
        """
        self._items.keep({"layer": dict(what)}, found)

    def outcome(self, choice: Sequence[object]) -> Outcome | None:
        """What came of a choice; None where that is not known."""
        found = self._items.find(_Outcome, {"choice": list(choice)})
        if found is None:
            return None
        try:
            layers = tuple(one if isinstance(one, str) else one.made() for one in found.layers)
        except (KeyError, ValueError):  # damaged
            return None
        return Outcome(layers, Effect(found.kind, found.effect, found.samples, softened=found.softened))

    def keep_outcome(self, choice: Sequence[object], outcome: Outcome) -> None:
        """Keep what came of a choice.

        Raises:
            ModelSaveError: It cannot be written.
        """
        layers = tuple(one if isinstance(one, str) else _Layer.of(one) for one in outcome.layers)
        effect = outcome.effect
        found = _Outcome(
            layers=layers, kind=effect.kind, effect=effect.value, samples=effect.samples, softened=effect.softened
        )
        self._items.keep({"choice": list(choice)}, found)


def _difference(own: Mapping[str, object], others: Sequence[Mapping[str, object]]) -> str:
    """What is not the same, in the folder that has most in common with this run."""
    best = list(_WORDS)
    called = ""
    for record in others:
        known, names = record.get("about"), record.get("names")
        known = known if isinstance(known, dict) else {}
        differs = [name for name in _WORDS if known.get(name) != own[name]]
        if len(differs) <= len(best):
            best = differs
            called = str(names.get(best[0], "")) if isinstance(names, dict) and best else ""
    words = [_WORDS[name] for name in best]
    if called:
        words[0] += f" ({called})"
    return " and ".join(words)
