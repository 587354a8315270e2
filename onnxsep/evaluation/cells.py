"""Figures of an evaluation as text, for the tables that show them: "" where a model has no such figure."""

import math

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


def activations(model: EvaluatedModel) -> str:
    """Peak activation memory in the best order."""
    found = model.activations
    if found is None:
        return ""
    if found.best_order is None:
        return f"unknown: {found.unknown} tensors of unknown size"
    return with_ratio(f"{found.best_order:,}", ratio(model, "activations"))


def activations_in_file_order(model: EvaluatedModel) -> str:
    """The same in the order of the file."""
    found = model.activations
    return "" if found is None or found.file_order is None else f"{found.file_order:,}"


def latency(model: EvaluatedModel) -> str:
    """The median, in milliseconds, and its share of the first model's; no digits that their errors make worthless."""
    found = model.latency
    if found is None:
        return ""
    text = milliseconds(found.median_ms, found.standard_error_ms)
    against = found.against_first
    if against is None:
        return with_ratio(text, ratio(model, "latency"))
    return f"{text} ({uncertain(against.value, against.standard_error)})"


def uncertain(value: float, error: float | None) -> str:
    """A figure with its standard error, which has one digit (two below 2), and both have as many decimals."""
    if error is None:
        return f"{value:.2g}"
    decimals = decimals_worth(error)
    return f"{value:.{decimals}f} +- {max(error, 10.0**-decimals):.{decimals}f}"


def decimals_worth(error: float, most: int = 3) -> int:
    """Decimals of a figure that has this standard error: those down to its first digit, to the second one after a 1."""
    if error <= 0:
        return most
    place = -math.floor(math.log10(error))
    first = round(error * 10.0**place, 6)
    return min(max(place + (first < 2), 0), most)


def milliseconds(value: float, error: float | None = None) -> str:
    """Three digits that count, fewer where a standard error makes them worthless, and no exponent."""
    decimals = 3 if value < 1 else 2 if value < 10 else 1
    if error is not None:
        decimals = min(decimals, decimals_worth(error))
    return f"{value:,.{decimals}f}"


def latency_legend(report: EvaluationReport) -> list[str]:
    """How latency was measured, where it was."""
    found = report.models[0].latency
    if found is None:
        return []
    threads = f"{report.threads} threads" if report.threads > 1 else "1 thread"
    if report.threads == 0:
        threads = f"threads as the runtime chooses ({report.cores} cores)"
    fewest, most = (pick(model.latency.runs for model in report.models if model.latency) for pick in (min, max))
    runs = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return [
        f"latency: median of {runs} warm runs, batch {report.latency_batch}, {threads}, {report.provider}, the"
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
