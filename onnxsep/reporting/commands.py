"""The commands that make reports: for each the class of its record, and what makes a document of it.

They stand in folders above this one, and are imported when they are first asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from onnxsep.options.lazy import loaded
from onnxsep.reporting.document import Document
from onnxsep.reporting.records import Report


@dataclass(frozen=True)
class Home:
    """Where a command's report is defined: ``module:name`` of the record and of its document's function."""

    record: str
    document: str


HOMES = {
    "rewrite": Home("onnxsep.rewriting.report:RewriteReport", "onnxsep.rewriting.render:rewrite_document"),
    "inspect": Home("onnxsep.rewriting.report:InspectReport", "onnxsep.rewriting.render:inspect_document"),
    "check": Home("onnxsep.checking.result:CheckResult", "onnxsep.checking.render:check_document"),
    "prune": Home("onnxsep.pruning.report:PruneReport", "onnxsep.pruning.render:prune_document"),
    "quantize": Home("onnxsep.quantization.report:QuantizeReport", "onnxsep.quantization.render:quantize_document"),
    "finetune": Home("onnxsep.finetuning.report:FinetuneReport", "onnxsep.finetuning.render:finetune_document"),
    "evaluate": Home("onnxsep.evaluation.report:EvaluationReport", "onnxsep.evaluation.render:evaluate_document"),
    "compress": Home("onnxsep.compression.report:CompressReport", "onnxsep.compression.render:compress_document"),
}


def record_of(command: str) -> type[Report]:
    """The class of the report of a command."""
    found: type[Report] = loaded(HOMES[command].record)
    return found


def document_of(report: Report) -> Document:
    """A report as a document."""
    make: Callable[[Report], Document] = loaded(HOMES[report.command].document)
    return make(report)
