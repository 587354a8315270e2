"""Command lines from options: what to type for the values that a record, or a report, holds."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxsep.cli.derived import flag_of, typed
from onnxsep.errors import OptionError
from onnxsep.options.specs import Options, default_of, specs_of
from onnxsep.planner.budget_options import Quantizing

_OUT = "OUT.onnx"


def words_of(kind: type[Options], name: str, value: Any) -> list[str]:
    """What to type for an option of a record, nothing for its default.

    Args:
        kind: The record.
        name: The option.
        value: As a report holds it.

    Raises:
        OptionError: the command line cannot say it.
    """
    spec, default = specs_of(kind)[name], default_of(kind, name)
    if spec.expands is not None:
        texts = spec.expands.texts(value)
        if texts is None:
            raise OptionError(f"the command line cannot say the {name} of that run; rerun without --print can")
        return [word for inner, text in texts.items() for word in words_of(spec.expands, inner, text)]
    if value is None or plain(value) == default:
        return []
    positive, _, negative = flag_of(name, spec).partition("/")
    if typed(kind, name, spec) is bool:
        return [positive if value or not negative else negative]
    if isinstance(value, dict) and spec.entry is not None:
        return [word for key, one in value.items() for word in (positive, spec.entry(key, one))]
    items = value if isinstance(value, list | tuple) else [value]
    return [word for item in items for word in (positive, str(item))]


def plain(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, list):
        return tuple(map(plain, value))
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def following(options: Quantizing, model: Path, out: Path | None, plan: Path | None = None) -> tuple[str, ...]:
    """The commands that go on from a plan for a quantised model; none for another plan.

    Args:
        options: Of ``plan`` or ``rewrite``.
        model: That it is for.
        out: The rewritten model, where it is written.
        plan: The plan, where it is to be carried out.
    """
    from onnxsep.quantization.options import QuantizeOptions
    from onnxsep.rewriting.options import RewriteOptions

    if options.quantized is None:
        return ()
    asked = options.as_json()
    target = Path(_OUT) if out is None else out
    lines = []
    if plan is not None:
        lines.append(_line("rewrite", RewriteOptions, asked, (model, target), {"plan": str(plan)}))
    quantized = target.with_suffix(".int8.onnx")
    lines.append(_line("quantize", QuantizeOptions, asked, (target, quantized), options.quantized))
    return tuple(lines)


def _line(
    command: str, kind: type[Options], asked: Mapping[str, Any], places: tuple[Path, ...], own: Mapping[str, Any]
) -> str:
    """A command line with what it shares with the run about files and the runtime, and options of its own."""
    shared = {name for name, spec in specs_of(kind).items() if spec.per_run and name in asked} - {"dry_run"}
    given = {**{name: asked[name] for name in specs_of(kind) if name in shared}, **own}
    words = [word for name, value in given.items() for word in words_of(kind, name, value)]
    return shlex.join(["onnxsep", command, *map(str, places), *words])
