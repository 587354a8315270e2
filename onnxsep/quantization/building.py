"""A prepared model and its ranges: any choice of nodes can be quantised from them, without calibrating again."""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from onnxsep.errors import CalibrationError
from onnxsep.io import Model
from onnxsep.quantization.correcting import Corrections, set_biases
from onnxsep.quantization.errors import QuantizationError
from onnxsep.quantization.finishing import finish
from onnxsep.quantization.nodes import outcome
from onnxsep.quantization.preparing import Prepared, raise_opset
from onnxsep.quantization.report import QuantizedNode
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.toolkit import apply

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
    ranges: Any
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
        proto, corrections = self._float(), None
        if self.ranges is not None:
            if self.correct is not None and not quick:
                corrections = self._corrections(self.correct, left)
                set_biases(proto, corrections)
            proto = self._apply(proto, self.settings, left)
        rows = outcome(self.prepared.proto, proto, self.op_types, left, self.prepared.renamed)
        if not any(row.status == "quantized" for row in rows):
            return Built(self.source, tuple(_unchanged(row) for row in rows))
        finish(proto, self.source.proto, self.prepared.renamed, keep_names=self.settings.keep_names)
        return Built(Model(proto), rows, corrections)

    def _float(self) -> onnx.ModelProto:
        proto = onnx.ModelProto()
        proto.CopyFrom(self.prepared.proto)
        return proto

    def _apply(self, proto: onnx.ModelProto, settings: Settings, left: Collection[str]) -> onnx.ModelProto:
        # The quantiser adjusts the ranges that it is given, as the nodes that it takes ask for.
        return apply(proto, copy.deepcopy(self.ranges), settings, self.op_types, left)

    def _corrections(self, correct: Correct, left: Mapping[str, str]) -> Corrections:
        """Integer operators hide what the bias is added to, so the other format stands for them."""
        settings = replace(self.settings, format="qdq")
        try:
            proto, _ = raise_opset(self._float(), settings.opset)
            simulated = self._apply(proto, settings, left)
            rows = outcome(self.prepared.proto, simulated, self.op_types, left, {})
            quantized = frozenset(row.name for row in rows if row.status == "quantized")
            return correct(self.prepared.proto, simulated, quantized)
        except (QuantizationError, CalibrationError) as error:
            return Corrections(failed=str(error))

    def layers(self, rows: Collection[QuantizedNode]) -> list[str]:
        """Names, as :meth:`build` takes them, of the quantised nodes that have weights."""
        shown = {row.name for row in rows if row.status == "quantized"}
        weights = {tensor.name for tensor in self.prepared.proto.graph.initializer}
        return [
            node.name
            for node in self.prepared.proto.graph.node
            if node.op_type in _WEIGHTED and weights & set(node.input[:2]) and self.shown(node.name) in shown
        ]

    def shown(self, name: str) -> str:
        """What the report calls a node."""
        return self.prepared.renamed.get(name) or name


def _unchanged(row: QuantizedNode) -> QuantizedNode:
    return row if row.status == "left" else row.model_copy(update={"status": "left", "reason": "nothing was quantised"})
