"""Reading the file of a plan; ``onnxsep.planner.plan_file`` shows one."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxsep.errors import OptionError, spelled
from onnxsep.layers.rank import Rank, RankPolicy
from onnxsep.model.files import printable
from onnxsep.options.tomlfile import check_keys, parse_toml, read_toml
from onnxsep.planner.plan_file import SCHEMA, Evidence, LayerPlan, PlanFile, PlannedModel

_KEYS = ("schema", "onnxsep", "model", "measured", "layers", "inside")
_MODEL_KEYS = ("name", "graph", "weights", "layers")
_LAYER_KEYS = ("mode", "rank", "round_ranks", "init", "settings", "left")


def read_plan(path: str | os.PathLike[str]) -> PlanFile:
    """A plan from its file.

    Raises:
        OptionError: It cannot be read, is no plan, is one of another schema, or says something that is not known.
    """
    return _plan(read_toml(Path(path)), printable(path), Path(path))


def plan_from_text(text: str, name: str) -> PlanFile:
    """A plan from the text of a file.

    Args:
        text: As ``PlanFile.text`` gives it.
        name: What messages call it.

    Raises:
        OptionError: It is no plan, or says something that is not known.
    """
    return _plan(parse_toml(text, name), name, None)


def _plan(content: Mapping[str, Any], name: str, path: Path | None) -> PlanFile:
    if "schema" not in content:
        raise OptionError(
            f"{name} is no plan: it has no line `schema = {SCHEMA}`; {spelled('dry_run', True)} {spelled('plan_out')}"
            " makes one"
        )
    if content["schema"] != SCHEMA or isinstance(content["schema"], bool):
        raise OptionError(
            f"{name} is a plan of schema {content['schema']!r}, and this version reads {SCHEMA}; make it anew"
        )
    check_keys(content, _KEYS, name)
    layers = list(_layers(_table(content, "layers", name), "", name))
    for where, table in _table(content, "inside", name).items():
        if not where or not isinstance(table, Mapping):
            raise OptionError(f'{name}, inside: {where!r} must be a table of layers, [inside."NAME OF A GRAPH"]')
        layers += _layers(table, where, name)
    model = _model(_table(content, "model", name), f"{name}, model")
    measured = tuple(_measured(_table(content, "measured", name), f"{name}, measured"))
    return PlanFile(tuple(layers), model, str(content.get("onnxsep", "")), path, measured)


def _measured(table: Mapping[str, Any], where: str) -> Iterator[tuple[str, Evidence]]:
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise OptionError(f"{where}: {key} must be a text or a number, not {value!r:.80}")
        yield key, value


def _table(content: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, Mapping):
        raise OptionError(f"{name}: {key} must be a table, [{key}], not {table!r:.80}")
    return table


def _model(table: Mapping[str, Any], where: str) -> PlannedModel:
    check_keys(table, _MODEL_KEYS, where)
    for key, value in table.items():
        if key != "layers" and not isinstance(value, str):
            raise OptionError(f"{where}: {key} must be a text, not {value!r:.80}")
        if key == "layers" and not _is_count(value):
            raise OptionError(f"{where}: layers must be a whole number, not {value!r:.80}")
    return PlannedModel(**table)


def _layers(table: Mapping[str, Any], where: str, name: str) -> Iterator[LayerPlan]:
    for key, fields in table.items():
        words = f"{name}, layer {key!r}" + (f" in {where}" if where else "")
        if not isinstance(fields, Mapping):
            raise OptionError(f'{words}: write {{ mode = "spatial", rank = [8] }} or {{ left = "why" }}')
        check_keys(fields, _LAYER_KEYS, words)
        layer = LayerPlan(key, where)
        yield _left(layer, fields, words) if "left" in fields else _replaced(layer, fields, words)


def _left(layer: LayerPlan, fields: Mapping[str, Any], words: str) -> LayerPlan:
    reason = fields["left"]
    if len(fields) > 1:
        others = ", ".join(key for key in fields if key != "left")
        raise OptionError(f"{words} is left alone, so it has no {others}; take out the one or the other")
    if reason is True:
        return replace(layer, left="by the plan")
    if not isinstance(reason, str) or not reason:
        raise OptionError(f"{words}: left says why, as a text; or true; not {reason!r:.80}")
    return replace(layer, left=reason)


def _replaced(layer: LayerPlan, fields: Mapping[str, Any], words: str) -> LayerPlan:
    if "mode" not in fields:
        raise OptionError(f'{words} has no mode; give mode = "NAME", or left = "why"')
    for key in ("mode", "init"):
        if key in fields and not isinstance(fields[key], str):
            raise OptionError(f"{words}: {key} must be a text, not {fields[key]!r:.80}")
    if not _is_count(rounded := fields.get("round_ranks", 0)) or rounded not in (0, 8, 16):
        raise OptionError(f"{words}: round_ranks must be 8 or 16 (0: no rounding), not {rounded!r:.80}")
    rank = _rank(fields.get("rank", "paper"), words)
    if rounded and not isinstance(rank, RankPolicy):
        raise OptionError(f"{words}: round_ranks is for a rank that a rule chooses, and {list(rank)} is given")
    if not isinstance(settings := fields.get("settings", {}), Mapping):
        raise OptionError(f"{words}: settings must be a table, {{ NAME = VALUE }}, not {settings!r:.80}")
    init = fields.get("init")
    return replace(layer, mode=fields["mode"], rank=rank, round_ranks=rounded, init=init, settings=settings)


def _rank(value: object, words: str) -> Rank | RankPolicy:
    if isinstance(value, list):
        if not all(_is_count(one) and one > 0 for one in value):
            raise OptionError(f"{words}: a rank is a list of whole numbers above 0, not {value!r:.80}")
        return tuple(value)
    try:
        if not isinstance(value, str | int | float):
            raise OptionError(f"it cannot be {value!r:.80}")
        return RankPolicy.parse(value)
    except OptionError as error:
        raise OptionError(f"{words}: {error}") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
