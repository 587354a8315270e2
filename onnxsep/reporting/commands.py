"""The commands that make reports: for each the class of its record, and what makes a document and a summary of it.

They stand in folders above this one, and are imported when they are first asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

from onnxsep.options.lazy import loaded
from onnxsep.reporting.document import Document
from onnxsep.reporting.records import Report


@dataclass(frozen=True)
class Home:
    """Where a command's report is defined: ``module:name`` of its record, and the module that shows it.

    That module has two functions of the record: ``rewrite_document``, ``rewrite_summary`` for the command rewrite.
    """

    record: str
    shown: str


HOMES = {
    "rewrite": Home("onnxsep.rewriting.report:RewriteReport", "onnxsep.rewriting.render"),
    "inspect": Home("onnxsep.rewriting.report:InspectReport", "onnxsep.rewriting.render"),
    "check": Home("onnxsep.checking.result:CheckResult", "onnxsep.checking.render"),
    "prune": Home("onnxsep.pruning.report:PruneReport", "onnxsep.pruning.render"),
    "quantize": Home("onnxsep.quantization.report:QuantizeReport", "onnxsep.quantization.render"),
    "finetune": Home("onnxsep.finetuning.report:FinetuneReport", "onnxsep.finetuning.render"),
    "evaluate": Home("onnxsep.evaluation.report:EvaluationReport", "onnxsep.evaluation.render"),
    "profile": Home("onnxsep.profiling.report:ProfileReport", "onnxsep.profiling.render"),
    "compress": Home("onnxsep.compression.report:CompressReport", "onnxsep.compression.render"),
    "plan": Home("onnxsep.planner.report:PlanReport", "onnxsep.planner.render"),
}


def record_of(command: str) -> type[Report]:
    """The class of the report of a command."""
    found: type[Report] = loaded(HOMES[command].record)
    return found


def document_of(report: Report) -> Document:
    """A report as a document."""
    make: Callable[[Report], Document] = loaded(f"{HOMES[report.command].shown}:{report.command}_document")
    return make(report)


def summary_of(report: Report) -> str:
    """What matters of a report, in a line or two."""
    say: Callable[[Report], str] = loaded(f"{HOMES[report.command].shown}:{report.command}_summary")
    return say(report)
