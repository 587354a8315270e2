"""Plans for what ``onnxsep.quantize`` makes of a result: bytes, times and effects are those of the quantised models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxsep.data import Dataset
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.sites import Sites
from onnxsep.engine.surgery import replace_matches
from onnxsep.model.io import Model
from onnxsep.options.progress import Progress, announce
from onnxsep.planner.file_size import FileSize
from onnxsep.planner.int8 import QUICK, int8
from onnxsep.planner.latency import Then
from onnxsep.planner.latency_work import Work, row_key, work_of
from onnxsep.planner.pieces import key_of, random_factors
from onnxsep.quantization import quantize
from onnxsep.reporting.model_info import size_bytes
from onnxsep.running.runtime import CannotRun, RuntimeOptions

_FEW = 8  # samples: bytes do not depend on the ranges
_ENDS = 2  # forms, between which bytes of others are found
_FLOAT = 4  # times the bytes of an int8 weight


@dataclass(frozen=True)
class Shipped:
    """A model quantised.

    Attributes:
        model: It, with float inputs and outputs.
        size: Bytes of its file.
    """

    model: Model
    size: int


class Quantized:
    """One model, and results of it, quantised with the same options.

    Args:
        model: The source.
        sites: Its layers.
        options: Of ``onnxsep.quantize``, but for the data.
        data: What it calibrates with.
        runtime: How models are run.
        progress: Told of what takes long.

    Attributes:
        options: The same.
        then: What is done to pieces before they are timed.
    """

    def __init__(
        self,
        model: Model,
        sites: Sites,
        options: Mapping[str, Any],
        data: Dataset,
        runtime: RuntimeOptions,
        progress: Progress | None = None,
    ) -> None:
        self.options = options
        self._model, self._sites, self._data, self._runtime, self._progress = model, sites, data, runtime, progress
        self._pieces = int8(**options)
        self._bytes: dict[str, int] = {}
        self.then = Then(self._pieces.name, self._made)

    @cached_property
    def source(self) -> Shipped:
        """The source, quantised alone."""
        return self.of(self._model)

    @cached_property
    def size(self) -> "QuantizedSize":
        """Bytes of quantised files."""
        return QuantizedSize(self, self._model, self._sites, self._progress)

    def of(self, model: Model) -> Shipped:
        """A model as ``onnxsep quantize`` with these options gives it.

        Raises:
            OnnxsepError: As ``onnxsep.quantize`` raises it.
        """
        announce(self._progress, "quantising the whole model")
        made = self._quantize(model, self.options)
        run = self._quantize(model, {**self.options, "int8_io": False}) if self.options.get("int8_io") else made
        return Shipped(run, size_bytes(made))

    def quick_size(self, model: Model) -> int:
        """Bytes of a model quantised, but for biases that a correction adds."""
        return size_bytes(self._quantize(model, {**self.options, **QUICK, "samples": _FEW}))

    def piece_size(self, key: str, model: Model, feeds: Mapping[str, Any]) -> int | None:
        """Bytes of a piece quantised; None where it cannot be.

        Args:
            key: Its key.
            model: The piece, as it is or with a form.
            feeds: Inputs of it.
        """
        if key not in self._bytes:
            try:
                self._made(model, feeds, key)
            except CannotRun:
                return None
        return self._bytes[key]

    def _made(self, model: Model, feeds: Mapping[str, Any], key: str = "") -> Model:
        if model is self._model:
            return self.source.model
        made = self._pieces.make(model, feeds)
        self._bytes[key or key_of(model)] = size_bytes(made)
        return made

    def _quantize(self, model: Model, options: Mapping[str, Any]) -> Model:
        return quantize(model, data=self._data, runtime=self._runtime, **{**options, "verify": "none"}).model


class QuantizedSize:
    """How large quantised files of one model are with some of its layers replaced.

    Of a form alone it is what its piece takes more than that of its layer, and what the real nodes have beyond those of
    pieces: some bytes, and a share of the names and texts that the float file has more. Of a plan as a whole it is a
    quantised file with random weights.

    Args:
        quantized: What quantises.
        model: The source.
        sites: Its layers.
        progress: Told of the forms that are quantised.

    Attributes:
        original: Bytes of the source as it is.
    """

    def __init__(self, quantized: Quantized, model: Model, sites: Sites, progress: Progress | None) -> None:
        self._quantized, self._model, self._sites, self._progress = quantized, model, sites, progress
        self._floats = FileSize(model, sites.light)
        self._whole: dict[frozenset[Any], int] = {}
        self._changes: dict[Any, tuple[int, int]] = {}
        self._beyond = np.zeros(2)
        self.original = self._floats.original

    @property
    def source(self) -> int:
        """Bytes of the source, quantised."""
        return self.of(())

    def of(self, rows: Sequence[Replacement]) -> int:
        """Bytes of the quantised file with these forms."""
        key = frozenset(map(row_key, rows))
        if key not in self._whole:
            self._whole[key] = self._quantized.quick_size(self._with(rows))
        return self._whole[key]

    def change(self, row: Replacement) -> int:
        """Bytes that the quantised file has more with a form, about."""
        if row_key(row) not in self._changes:
            self.prepare([row])
        change, named = self._changes[row_key(row)]
        return change + round(float(np.dot(self._beyond, (1, named))))

    def prepare(self, rows: Iterable[Replacement]) -> None:
        """Quantise the pieces of forms, each kind once."""
        new = [row for row in rows if row_key(row) not in self._changes]
        if not new:
            return
        work = work_of(self._model, self._sites, new)
        announce(self._progress, "quantising forms of layers", 0, len(new))
        for done, several in enumerate(kinds := list(_kinds(work, new)), start=1):
            self._add(work, several)
            if self._progress is not None:
                self._progress("quantising forms of layers", done, len(kinds))
        if not self._beyond.any():
            self._beyond = self._beyond_pieces(new)

    def _add(self, work: Work, rows: Sequence[Replacement]) -> None:
        """The bytes of forms of one mode and of layers of one kind.

        Bytes are linear in a rank that is one number: two of them are quantised, the others lie between.
        """
        if len(rows) <= _ENDS or len(rows[0].rank) != 1:
            for row in rows:
                self._changes[row_key(row)] = self._change(work, row, None)
            return
        ordered = sorted(rows, key=lambda row: row.rank)
        low, high = ordered[0], ordered[-1]
        ends = [self._form_bytes(work, row) for row in (low, high)]
        steps = max(high.rank[0] - low.rank[0], 1)
        for row in rows:
            between = None
            if ends[0] is not None and ends[1] is not None:
                between = ends[0] + round((ends[1] - ends[0]) * (row.rank[0] - low.rank[0]) / steps)
            self._changes[row_key(row)] = self._change(work, row, between)

    def _change(self, work: Work, row: Replacement, after: int | None) -> tuple[int, int]:
        """Bytes of a form beyond those of its layer, and what its names and texts in the float file add to that.

        Args:
            work: Its piece.
            row: The form.
            after: Bytes of the piece with the form, quantised, where they are known.
        """
        form, whole = work.forms[row_key(row)], self._floats.change(row)
        after = self._form_bytes(work, row) if after is None else after
        if isinstance(form, str) or after is None:
            return whole // _FLOAT, 0
        piece, made = work.pieces[form[0]], work.models[form]
        before = self._quantized.piece_size(form[0], piece.model, piece.feeds())
        if before is None:
            return whole // _FLOAT, 0
        return after - before, whole - (size_bytes(made) - size_bytes(piece.model))

    def _form_bytes(self, work: Work, row: Replacement) -> int | None:
        form = work.forms[row_key(row)]
        if isinstance(form, str):
            return None
        return self._quantized.piece_size(form[1], work.models[form], work.pieces[form[0]].feeds())

    def _beyond_pieces(self, rows: Sequence[Replacement]) -> NDArray[np.float64]:
        """What each form takes beyond its piece, and of each byte of names: found with two forms of every layer."""
        several: dict[Any, list[Replacement]] = {}
        for row in rows:
            several.setdefault(row.site.place, []).append(row)
        known, beyond = [], []
        for which in (0, -1):
            some = [own[which] for own in several.values()]
            found = [self._changes[row_key(row)] for row in some]
            known.append([len(some), sum(named for _, named in found)])
            beyond.append(self.of(some) - self.source - sum(change for change, _ in found))
        solved: NDArray[np.float64] = np.linalg.lstsq(np.array(known, float), np.array(beyond, float), rcond=1e-3)[0]
        return solved

    def _with(self, rows: Sequence[Replacement]) -> Model:
        if not rows:
            return self._model
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        # Of unlike values: tensors that are alike are written once.
        factors = {row.site.place: random_factors(row, seed) for seed, row in enumerate(rows, start=1)}
        replace_matches(proto, rows, factors)
        source = self._model
        return Model(proto, path=source.path, base_dir=source.base_dir, follow_links=source.follow_links)


def _kinds(work: Work, rows: Iterable[Replacement]) -> Iterable[Sequence[Replacement]]:
    """Forms of one mode, of layers of one kind, together."""
    found: dict[object, list[Replacement]] = {}
    for row in rows:
        form = work.forms[row_key(row)]
        found.setdefault((row.site.place if isinstance(form, str) else form[0], row.mode.name), []).append(row)
    return found.values()
