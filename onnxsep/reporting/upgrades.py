"""Saved reports of older schemas, brought up to the present one, a step for each schema of a command.

Reports say their ``command`` and ``schema`` since schema 1; what was written before is called schema 0 and is
recognised by its keys. What changes a record so that saved ones can no longer be read adds its step to ``_STEPS``.
"""

from collections.abc import Callable, Mapping
from typing import Any

Content = dict[str, Any]
"""A report as it is in its file."""

_KEYS_OF_OLD = {
    "compress": {"recipe", "steps", "evaluation"},
    "evaluate": {"models", "latency_batch", "provider"},
    "finetune": {"epochs", "best_epoch", "teacher"},
    "quantize": {"nodes", "calibration_samples", "bytes_before"},
    "prune": {"method", "layers", "totals"},
    "rewrite": {"mode", "rank", "convs", "totals"},
    "inspect": {"rank", "convs", "totals"},
    "check": {"parts", "model", "reference", "same"},
}
"""Keys that every report of schema 0 has, and that tell it from those below it in this list."""


def command_of(content: Mapping[str, Any]) -> str | None:
    """The command that a report is of, None where it is no report."""
    if "command" in content:
        command = content["command"]
        return command if isinstance(command, str) else None
    found = (command for command, keys in _KEYS_OF_OLD.items() if keys <= content.keys())
    return next(found, None)


def schema_of(content: Mapping[str, Any]) -> int | None:
    """Its schema, None where what stands there is none."""
    schema = content.get("schema", 0)
    return schema if type(schema) is int and schema >= 0 else None


def upgraded(content: Content, command: str, schema: int) -> Content:
    """A report of an older schema as the present one has it."""
    while (command, schema) in _STEPS:
        content = _STEPS[command, schema](content)
        schema = content["schema"]
    return content


def _named(command: str) -> Callable[[Content], Content]:
    """From schema 0 to 1: the report names its command and its schema."""
    return lambda content: {**content, "command": command, "schema": 1}


def _once(content: Content) -> Content:
    """From schema 1 to 2: the options do not repeat the command."""
    options = content.get("options")
    if isinstance(options, dict):
        content = {**content, "options": {key: value for key, value in options.items() if key != "command"}}
    return {**content, "schema": 2}


_STEPS: dict[tuple[str, int], Callable[[Content], Content]] = {
    **{(command, 0): _named(command) for command in _KEYS_OF_OLD},
    **{(command, 1): _once for command in _KEYS_OF_OLD},
}
"""By command and schema: what makes the next schema of it."""
