"""A prepared model and its ranges: any choice of nodes can be quantised from them, without calibrating again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnxsep.errors import CalibrationError, PassError
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.scopes import is_standard
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import Model
from onnxsep.quantization.activations import narrowed, staying
from onnxsep.quantization.agreement import Agreement
from onnxsep.quantization.converting import raise_opset
from onnxsep.quantization.correcting import Corrections, set_biases
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.finishing import finish
from onnxsep.quantization.isolating import isolate
from onnxsep.quantization.nodes import moved_into_nested_graphs, outcome
from onnxsep.quantization.preparing import Prepared
from onnxsep.quantization.report import QuantizedNode
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.toolkit import apply
from onnxsep.quantization.trying import culprits
from onnxsep.running.runtime import CannotRun

# The error of integer operators may be so many times that of the same layers between QuantizeLinear and
# DequantizeLinear, and so much more.
_TIMES, _MORE = 2.0, 0.03
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Correct = Callable[[onnx.ModelProto, onnx.ModelProto, Collection[str]], Corrections]


@dataclass(frozen=True)
class Built:
    """A quantised model.

    Attributes:
        model: The model, which is the source where nothing was quantised.
        rows: What became of each node.
        corrections: What was added to biases; None where they stayed.
    """

    model: Model
    rows: tuple[QuantizedNode, ...]
    corrections: Corrections | None = None


@dataclass(frozen=True)
class Builder:
    """Quantises a model, as often as wanted.

    Attributes:
        source: The user's model.
        prepared: What the quantiser takes.
        ranges: Of the activations, from ``calibrating``; None where there is nothing to quantise.
        settings: Formats and types.
        op_types: Operators that are quantised.
        left: Reasons by the names of nodes that stay in float.
        correct: Finds what biases lack, from the float model, the quantised one and the names of the nodes that are
            quantised; None: biases stay.
    """

    source: Model
    prepared: Prepared
    ranges: Mapping[str, tuple[float, float]] | None
    settings: Settings
    op_types: frozenset[str]
    left: Mapping[str, str] = field(default_factory=dict)
    correct: Correct | None = None

    def build(self, spared: Collection[str] = (), why: str = "", *, quick: bool = False) -> Built:
        """Quantise.

        Args:
            spared: Names of further nodes that stay in float.
            why: The reason that the report gives for these.
            quick: Leave the biases as they are.

        Raises:
            QuantizationError: the quantiser fails.
        """
        left = {**dict.fromkeys(spared, why), **self.left}
        left |= self._staying(left)
        left |= moved_into_nested_graphs(self.prepared.proto, self.op_types, left)
        proto, corrections = self._float(), None
        if self.ranges is not None:
            if self.correct is not None and not quick:
                corrections = self._corrections(self.correct, left)
                set_biases(proto, corrections)
            proto = self._apply(proto, self.settings, left)
        rows = outcome(self.prepared.proto, proto, self.op_types, left, self.prepared.renamed)
        if not any(row.status == "quantized" for row in rows):
            return Built(self.source, tuple(_unchanged(row) for row in rows))
        finish(proto, self.source.proto, self.prepared.renamed)
        return Built(Model(proto), rows, corrections)

    def checked(self, agreement: Agreement) -> "Builder":
        """The same, but for the nodes that the quantiser or the runtime cannot take: they stay in float."""
        if self.ranges is None:
            return self
        left = {**self.left, **self._staying(self.left)}
        candidates = [
            node.name
            for node in self.prepared.proto.graph.node
            if node.op_type in self.op_types and is_standard(node) and node.name not in left
        ]
        everything, layers = set(candidates), set(self._layers())
        twin = replace(self.settings, format="qdq")

        def trial(names: Sequence[str]) -> str:
            out = {*left, *everything.difference(names)}
            errors = self._tried(self.settings, out, agreement)
            if isinstance(errors, str) or self.settings.format == "qdq":
                return errors if isinstance(errors, str) else ""
            expected = self._tried(twin, out, agreement)
            if not isinstance(expected, str):
                for name, error in errors.items():
                    if not error <= _TIMES * expected.get(name, error) + _MORE:
                        return f"its integer operator computes something else (error {error:.2g})"
            return ""

        return replace(self, left={**self.left, **culprits(candidates, layers, trial)})

    def _tried(self, settings: Settings, left: Collection[str], agreement: Agreement) -> str | dict[str, float]:
        """What is wrong with a quantised model, else the relative errors of its outputs."""
        left = {*left, *moved_into_nested_graphs(self.prepared.proto, self.op_types, left)}
        try:
            proto, _ = raise_opset(self._float(), settings.opset)
            proto = self._apply(proto, settings, left)
        except QuantizationError:
            return "the runtime's quantiser cannot take it"
        rows = outcome(self.prepared.proto, proto, self.op_types, dict.fromkeys(left, "-"), {})
        if not any(row.status == "quantized" for row in rows):
            return {}
        finish(proto, self.source.proto, self.prepared.renamed)
        try:
            ensure_valid(self.source, skeleton(proto))
        except PassError:
            return "its quantised form is not valid"
        try:
            return agreement.errors(proto)
        except CannotRun:
            return "the runtime cannot run its quantised form"

    def _staying(self, left: Collection[str]) -> dict[str, str]:
        return staying(self.prepared.proto, self.op_types, left, self.settings.format)

    def _float(self) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.prepared.proto)
        return proto

    def _apply(self, proto: onnx.ModelProto, settings: Settings, left: Collection[str]) -> onnx.ModelProto:
        assert self.ranges is not None
        # A node that only stays because its bounds are no range keeps the ranges of what it reads narrow.
        ranges = narrowed(proto, self.ranges, set(left).difference(self._staying(self.left)))
        isolated = isolate(proto, ranges, self.op_types, left)
        result = apply(isolated.proto, isolated.ranges, settings, self.op_types, isolated.exclude)
        isolated.restore(result)
        return result

    def _corrections(self, correct: Correct, left: Mapping[str, str]) -> Corrections:
        """Integer operators hide what the bias is added to, so the other format stands for them."""
        settings = replace(self.settings, format="qdq")
        try:
            proto, _ = raise_opset(self._float(), settings.opset)
            simulated = self._apply(proto, settings, left)
            rows = outcome(self.prepared.proto, simulated, self.op_types, left, {})
            no_bias = self._without_bias() if settings.per_channel else set()
            quantized = frozenset(row.name for row in rows if row.status == "quantized") - no_bias
            return correct(self.prepared.proto, simulated, quantized)
        except (QuantizationError, CalibrationError) as error:
            return Corrections(failed=str(error))

    def _without_bias(self) -> set[str]:
        """Names of nodes that must get no bias where each channel of a weight has a scale.

        The weight of a ConvTranspose in groups has one for each channel of one group, and the quantiser looks for as
        many as the bias has channels.
        """
        return {
            node.name
            for node in self.prepared.proto.graph.node
            if node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)
        }

    def layers(self, rows: Collection[QuantizedNode]) -> list[str]:
        """Names, as :meth:`build` takes them, of the quantised nodes that have weights."""
        shown = {row.name for row in rows if row.status == "quantized"}
        return [name for name in self._layers() if self.shown(name) in shown]

    def _layers(self) -> list[str]:
        weights = {tensor.name for tensor in self.prepared.proto.graph.initializer}
        return [
            node.name
            for node in self.prepared.proto.graph.node
            if node.op_type in _WEIGHTED and weights & set(node.input[:2])
        ]

    def shown(self, name: str) -> str:
        """What the report calls a node."""
        return self.prepared.renamed.get(name) or name


def _unchanged(row: QuantizedNode) -> QuantizedNode:
    return row if row.status == "left" else row.model_copy(update={"status": "left", "reason": "nothing was quantised"})
