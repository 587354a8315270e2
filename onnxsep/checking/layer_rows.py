"""From sums over two models' tensors to rows of a report: errors, what they grow from, and where they jump."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxsep.algebra.output_parts import PartTally, worst
from onnxsep.checking.layer_report import LayerDifference
from onnxsep.checking.matching import Match
from onnxsep.checking.network import Network, Value
from onnxsep.reporting.records import part_reports

_RISE = 3.0  # times the error of what a tensor is computed from: a jump
_GAINS = 0.1  # from 1: the channels of an equalised tensor have factors further off
# Errors that need no fault: rounding to 8 bits, to float16, in float32.
_USUAL = {"integers": 0.01, "float16": 1e-3, "float32": 3e-5}
_BEHIND = 4  # nodes behind a tensor whose channels are scaled, within which that must be undone


@dataclass
class MatchTally:
    """What is kept of one match."""

    match: Match
    sums: PartTally = field(default_factory=PartTally)
    max_abs: float = 0.0

    def add(self, expected: Any, actual: Any, samples: int | None) -> bool:
        """Add the tensors of one feed; False where they cannot be compared."""
        for array in (expected, actual):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
                return False
        if expected.shape != actual.shape:
            return False
        wide, other = expected.astype(np.float64), actual.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.abs(wide - other)
        self.max_abs = max(self.max_abs, float(np.max(difference, initial=0.0, where=np.isfinite(difference))))
        self.sums.add(wide, other, samples)
        return True


def usual_error(networks: Sequence[Network]) -> float:
    """The relative error that rounding alone may make in these networks."""
    if any(network.quantize_nodes for network in networks):
        return _USUAL["integers"]
    half = any(
        tensor.data_type == onnx.TensorProto.FLOAT16
        for network in networks
        for tensor in network.model.proto.graph.initializer
    )
    return _USUAL["float16" if half else "float32"]


class Rows:
    """What is made of the sums: errors, what they grow from, and where they jump."""

    def __init__(self, reference: Network, tallies: Sequence[MatchTally], usual: float) -> None:
        self._reference, self._tallies, self._usual = reference, tallies, usual
        self._by_value: dict[int, list[MatchTally]] = {}
        for tally in tallies:
            self._by_value.setdefault(id(tally.match.reference), []).append(tally)
        self._whole = {id(tally): tally.sums.plain for tally in tallies}
        self._scaled: dict[int, tuple[float, float, float]] = {}
        self._error: dict[int, float] = {}  # by id of the reference's value, what is computed from it grows from this

    def rows(self) -> list[LayerDifference]:
        """One for each tally."""
        self._find_scaled()
        return [self._row(tally) for tally in self._tallies]

    def _row(self, tally: MatchTally) -> LayerDifference:
        value = tally.match.reference
        before = max((self._error_of(read) for read in self._sources(value)), default=0.0)
        joined = value.is_output or (value.node is not None and self._reference.kind(value.node) == "Concat")
        relative, scaled = self._whole[id(tally)], self._scaled.get(id(tally))
        parts = () if scaled is not None else tally.sums.parts()
        if scaled is not None:
            relative = scaled[0]
        elif joined:
            relative = worst(relative, parts)
        self._error[id(value)] = max(relative, self._error.get(id(value), 0.0))
        return LayerDifference(
            name=value.name,
            other=value.name if value.name in tally.match.actual.aliases else tally.match.actual.name,
            op_type="input" if value.node is None else self._reference.nodes[value.node].op_type,
            relative=relative,
            snr_db=-20 * math.log10(relative) if 0 < relative < math.inf else None,
            max_abs=tally.max_abs,
            before=before,
            jump=relative > _RISE * max(before, self._usual),
            scaled=None if scaled is None else scaled[1:],
            joined=joined,
            parts=part_reports(parts),
        )

    def _error_of(self, value: Value) -> float:
        """The error of a value, or, where it is not compared, the largest of what it is computed from."""
        waiting, seen, largest = [value], set(), 0.0
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if id(one) in self._error:
                largest = max(largest, self._error[id(one)])
            else:
                waiting += self._sources(one)
        return largest

    def _sources(self, value: Value) -> list[Value]:
        return [] if value.node is None else self._reference.reads(value.node)

    def _find_scaled(self) -> None:
        """Tensors whose error is a factor for each channel that the layers behind undo."""
        candidates: dict[int, tuple[MatchTally, tuple[float, float, float]]] = {}
        for tally in self._tallies:
            value, relative = tally.match.reference, self._whole[id(tally)]
            left = None if value.is_output or value.node is None else tally.sums.without_gains()
            if left is None or not left[0] < relative / _RISE or relative < _GAINS / _RISE:
                continue
            # One factor for all channels is no equalisation.
            if left[2] > (1 + _GAINS) * left[1]:
                candidates[id(tally)] = tally, left
        undone: set[int] = set()  # ids of the values
        for key in reversed(candidates):
            tally, left = candidates[key]
            relative = self._whole[key]
            if any(self._undoes(reader, relative, undone) for reader in tally.match.reference.readers):
                undone.add(id(tally.match.reference))
                self._scaled[key] = left

    def _undoes(self, index: int, relative: float, undone: set[int], depth: int = _BEHIND) -> bool:
        """Whether what a node computes, or what stands closely behind it, is much nearer to the reference."""
        found = (self._reference.values.get(name) for name in self._reference.nodes[index].output)
        for value in (value for value in found if value is not None):
            tallies = self._by_value.get(id(value), [])
            if id(value) in undone or any(self._whole[id(tally)] < relative / 2 for tally in tallies):
                return True
            if depth and any(self._undoes(reader, relative, undone, depth - 1) for reader in value.readers):
                return True
        return False
