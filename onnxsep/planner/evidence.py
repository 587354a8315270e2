"""What a plan says of its own making, in its file."""

from collections.abc import Iterator

from onnxsep.planner.plan_file import Evidence
from onnxsep.planner.report import PlannedLatency, PlannedQuantization, PlanReport


def asked(report: PlanReport) -> Iterator[str]:
    """The targets as they were written."""
    yield from (one.target for one in report.targets if one.target)
    yield from (one.target for one in report.losses)


def evidence(report: PlanReport) -> tuple[tuple[str, Evidence], ...]:
    """Targets, data, and what was measured on them."""
    found: list[tuple[str, Evidence]] = [
        ("target", ", ".join(asked(report))),
        *((one.kind, one.after) for one in report.targets if one.after is not None and one.kind != "latency"),
        *_latency(report.latency),
        *_quantized(report.quantized),
        ("data", report.data),
        ("fingerprint", report.fingerprint),
        ("fitted_samples", report.fitted_samples),
        ("measured_samples", report.measured_samples),
        ("held_out", "yes" if report.held_out else "no"),
    ]
    if report.measured is not None:
        found.append(("measure", report.measured.kind))
        if report.measured.value is not None:
            found.append(("effect", float(f"{report.measured.value:.6g}")))
    for loss in report.losses:
        if loss.measured is not None and loss.measured.value is not None:
            found += [(loss.kind, float(f"{loss.measured.value:.6g}")), (f"{loss.kind}_samples", loss.measured.samples)]
            if loss.measured.standard_error is not None:
                found.append((f"{loss.kind}_error", float(f"{loss.measured.standard_error:.3g}")))
    for one in report.rounds:
        if one.taken and one.predicted is not None:
            found += [
                ("round", one.number),
                ("predicted", float(f"{one.predicted:.6g}")),
                ("gap", float(f"{one.gap:.3g}")),
            ]
    return tuple(found)


def _quantized(made: PlannedQuantization | None) -> Iterator[tuple[str, Evidence]]:
    """For which quantised model it was made, and how large that is."""
    if made is not None:
        yield "then", "int8, " + ", ".join(f"{name}={made.options[name]}" for name in sorted(made.options))
        yield "quantized_bytes", made.bytes_after
        if made.effect_after.value is not None:
            yield "quantized_effect", float(f"{made.effect_after.value:.6g}")


def _latency(latency: PlannedLatency | None) -> Iterator[tuple[str, Evidence]]:
    """What was promised of the time, what was measured of the whole, and where."""
    if latency is None:
        return
    yield "latency_before_ms", float(f"{latency.whole_ms:.6g}")
    for name in ("promised", "promised_error", "measured", "measured_error"):
        value = getattr(latency, name)
        if value is not None:
            yield f"latency_{name}", float(f"{value:.4g}")
    yield "latency_on", latency.machine
