"""Figures of an evaluation as text, for the tables that show them: "" where a model has no such figure."""

from onnxsep.evaluation.report import Accuracy, EvaluatedModel, EvaluationReport, OutputError, Share


def percent(found: Share | None) -> str:
    """A share and its standard error."""
    return "" if found is None else f"{found.value:.2%} +- {found.standard_error:.2%}"


def count(found: Share | None) -> str:
    """How many of how many."""
    return "" if found is None else f"{found.count:,} of {found.total:,}"


def difference(found: Accuracy | None) -> str:
    """Points that a model has more than the first one, and their standard error."""
    if found is None or found.against_first is None:
        return ""
    return f"{100 * found.against_first.difference:+.2f} +- {100 * found.against_first.standard_error:.2f}"


def accuracy_share(found: Accuracy | None) -> Share | None:
    """The share that an accuracy is."""
    return None if found is None else found.share


def metric(model: EvaluatedModel) -> str:
    """What the user's own metric gave."""
    return f"{model.metric.value:.6g}" if model.metric else ""


def agreed(model: EvaluatedModel) -> Share | None:
    """The samples for which it gives the same class as the reference model."""
    return model.against_reference.agreement if model.against_reference else None


def errors(model: EvaluatedModel) -> tuple[OutputError, ...]:
    """How far its outputs are from the reference model's."""
    return model.against_reference.outputs if model.against_reference else ()


def ratio(model: EvaluatedModel, figure: str) -> float | None:
    """A figure as a share of the first model's."""
    found: float | None = getattr(model.ratios, figure, None)
    return found


def with_ratio(text: str, share: float | None) -> str:
    """A figure and its share of the first model's."""
    return text if share is None else f"{text} ({share:.3f})"


def whole(model: EvaluatedModel, figure: str) -> str:
    """A figure that is a whole number, such as ``file_bytes``, and its share of the first model's."""
    return with_ratio(f"{getattr(model, figure):,}", ratio(model, figure))


def macs(model: EvaluatedModel) -> str:
    """Multiply-accumulates, as far as sizes are known."""
    if model.macs_unknown:
        return f"{model.macs:,} and {model.macs_unknown} nodes of unknown size"
    return whole(model, "macs")


def latency(model: EvaluatedModel) -> str:
    """The median, in milliseconds, and its share of the first model's."""
    if model.latency is None:
        return ""
    return with_ratio(milliseconds(model.latency.median_ms), ratio(model, "latency"))


def milliseconds(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:,.1f}"


def latency_legend(report: EvaluationReport) -> list[str]:
    """How latency was measured, where it was."""
    found = report.models[0].latency
    if found is None:
        return []
    threads = f"{report.threads} threads" if report.threads > 1 else "1 thread"
    if report.threads == 0:
        threads = f"threads as the runtime chooses ({report.cores} cores)"
    return [
        f"latency: median of {found.runs} warm runs, batch {report.latency_batch}, {threads}, {report.provider}, the"
        " models in turn"
    ]


def in_short(model: EvaluatedModel) -> str:
    """The figures that matter."""
    known = [one.relative for one in errors(model) if one.relative is not None]
    found = {
        "top-1": "" if model.top1 is None else f"{model.top1.share.value:.2%}",
        "metric": metric(model),
        "agreement": "" if (share := agreed(model)) is None else f"{share.value:.2%}",
        "error": f"{max(known):.3g}" if known else "",
        "file": f"{whole(model, 'file_bytes')} bytes",
        "latency": "" if model.latency is None else f"{latency(model)} ms",
    }
    return ", ".join(f"{name} {text}" for name, text in found.items() if text)
