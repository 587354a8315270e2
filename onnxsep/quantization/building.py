"""A prepared model and its ranges: any choice of nodes can be quantised from them, without calibrating again."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from onnxsep.io import Model
from onnxsep.quantization.finishing import finish
from onnxsep.quantization.nodes import outcome
from onnxsep.quantization.preparing import Prepared
from onnxsep.quantization.report import QuantizedNode
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.toolkit import apply

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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
    """

    source: Model
    prepared: Prepared
    ranges: Any
    settings: Settings
    op_types: frozenset[str]
    left: Mapping[str, str] = field(default_factory=dict)

    def build(self, spared: Collection[str] = (), why: str = "") -> tuple[Model, tuple[QuantizedNode, ...]]:
        """Quantise.

        Args:
            spared: Names of further nodes that stay in float.
            why: The reason that the report gives for these.

        Returns:
            The model, which is the source where nothing was quantised, and what became of each node.

        Raises:
            QuantizationError: the quantiser fails.
        """
        left = {**dict.fromkeys(spared, why), **self.left}
        proto = onnx.ModelProto()
        proto.CopyFrom(self.prepared.proto)
        if self.ranges is not None:
            # The quantiser adjusts the ranges that it is given, as the nodes that it takes ask for.
            proto = apply(proto, copy.deepcopy(self.ranges), self.settings, self.op_types, left)
        rows = outcome(self.prepared.proto, proto, self.op_types, left, self.prepared.renamed)
        if not any(row.status == "quantized" for row in rows):
            return self.source, tuple(_unchanged(row) for row in rows)
        finish(proto, self.source.proto, self.prepared.renamed, keep_names=self.settings.keep_names)
        return Model(proto), rows

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
