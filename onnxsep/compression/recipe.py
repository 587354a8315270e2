"""Recipes: lists of steps in TOML files, those of the user and those that come with onnxsep.

    description = "Depthwise Convs, fine-tuned, int8."

    [[steps]]
    command = "rewrite"
    mode = "depthwise"

    [[steps]]
    command = "quantize"

Everything else in a step is an option of that command. (``prune`` has one that is called "step", so the key is not.)
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxsep.compression.manifest import DoneStep, Manifest, read_manifest
from onnxsep.compression.step import Step
from onnxsep.compression.steps import STEPS
from onnxsep.errors import OptionError, spelled
from onnxsep.model.files import printable
from onnxsep.model.paths import Kind
from onnxsep.options.proposals import RECIPES, recipes
from onnxsep.options.specs import as_json
from onnxsep.options.tomlfile import check_keys, nearest, read_toml
from onnxsep.planner.plan_file import PlanFile, quoted


@dataclass(frozen=True)
class Recipe:
    """What is to be done with a model.

    Attributes:
        name: The name of a recipe that comes with onnxsep, or the path of the file.
        steps: In their order.
        description: What it is for.
        text: The file's text; None for steps from Python.
        repeats: The manifest that it was read from.
        path: The user's file, if it was read from one.
    """

    name: str
    steps: tuple[Step, ...]
    description: str = ""
    text: str | None = field(default=None, repr=False)
    repeats: Manifest | None = field(default=None, repr=False)
    path: Path | None = None

    def until(self, name: str) -> "Recipe":
        """The same without what stands behind the last step of that name.

        Args:
            name: Of a command, or of the mode of a rewrite; or the number of a step, the first one 1.

        Raises:
            OptionError: It has no such step.
        """
        found = [
            number
            for number, step in enumerate(self.steps, 1)
            if name in (str(number), step.name, str(step.options.get("mode", "")))
        ]
        if not found:
            names = dict.fromkeys(str(step.options.get("mode", step.name)) for step in self.steps)
            known = [*dict.fromkeys(step.name for step in self.steps), *(one for one in names)]
            near = nearest(name, known)
            raise OptionError(
                f"{spelled('until', name)}: {self.name} has no such step{near}; it has"
                f" {', '.join(dict.fromkeys(known))}, 1 to {len(self.steps)}"
            )
        return replace(self, steps=self.steps[: found[-1]])

    def teachers(self) -> tuple[object, ...]:
        """The models that its steps read beside the one that they change."""
        return tuple(model for step in self.steps for model in step.other_models().values())

    def plans(self) -> tuple[object, ...]:
        """The plans that its steps carry out."""
        return tuple(step.options.get("plan") for step in self.steps if not step.takes_plan())


def shipped_recipes() -> dict[str, Recipe]:
    """The recipes that come with onnxsep, by name."""
    return {path.stem: _read(path, path.stem) for path in sorted(RECIPES.glob("*.toml"))}


def read_recipe(name: str | os.PathLike[str]) -> Recipe:
    """A recipe by the name of one that comes with onnxsep, or from a file: TOML, or the manifest of a run.

    Raises:
        OptionError: There is no such recipe; the file cannot be read or parsed; it has a key or a step that is not
            known, or a value of the wrong type.
    """
    path = Path(name)
    known = recipes()
    if str(name) in known:
        return _read(RECIPES / f"{name}.toml", str(name))
    if path.suffix == ".json":
        return replace(_from_manifest(read_manifest(path), printable(path)), path=path)
    if not path.exists() and path.suffix != ".toml" and len(path.parts) == 1:
        raise OptionError(
            f"there is no recipe {str(name)!r}{nearest(str(name), known)}; give one of {', '.join(known)}, or the path"
            " of a TOML file"
        )
    return replace(_read(path, printable(path)), path=path)


def _read(path: Path, name: str) -> Recipe:
    content = read_toml(path)
    check_keys(content, ("description", "steps"), name)
    description = content.get("description", "")
    if not isinstance(description, str):
        raise OptionError(f"{name}: 'description' must be a text, not {description!r}")
    steps = parse_steps(content.get("steps"), name, path.absolute().parent)
    return Recipe(name, steps, description, path.read_text(encoding="utf-8"))


def parse_steps(tables: object, name: str, folder: Path | None) -> tuple[Step, ...]:
    """The steps of a recipe.

    Args:
        tables: What the file has under ``steps``.
        name: Names the file in messages.
        folder: What paths in it are relative to.

    Raises:
        OptionError: There are none, or one of them cannot be used.
    """
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not all(isinstance(t, Mapping) for t in tables):
        raise OptionError(f'{name}: there are no steps; write each as [[steps]], and below it command = "rewrite"')
    if not tables:
        raise OptionError(f"{name}: the list of steps is empty")
    return tuple(_step(table, f"{name}, step {number}", folder) for number, table in enumerate(tables, start=1))


def _step(table: Mapping[str, Any], where: str, folder: Path | None) -> Step:
    kind = table.get("command")
    if kind is None:
        raise OptionError(f"{where} has no key 'command'; it names one of: {', '.join(STEPS)}")
    if not isinstance(kind, str) or kind not in STEPS:
        raise OptionError(
            f"{where}: there is no command {kind!r} for a step{nearest(str(kind), STEPS)}; known commands:"
            f" {', '.join(STEPS)}"
        )
    options = {key: value for key, value in table.items() if key != "command"}
    return STEPS[kind].parse(options, f"{where} ({kind})", folder)


def _from_manifest(manifest: Manifest, name: str) -> Recipe:
    if len(manifest.steps) < len(manifest.planned):
        raise OptionError(
            f"{name!r} is the manifest of a run that is not finished ({len(manifest.steps)} of {len(manifest.planned)}"
            " steps); give the same command again to go on with it"
        )
    tables = [{"command": done.command, **_not_default(done)} for done in manifest.steps]
    return Recipe(name, parse_steps(tables, name, None), manifest.description, manifest.recipe_text, manifest)


def recipe_text(recipe: Recipe, plan: str) -> str:
    """The text of a recipe's file.

    Args:
        recipe: Its steps have options of plain values, but for a plan.
        plan: The file, seen from the recipe's folder, that stands for the plan which a step carries out.
    """
    lines = [f"description = {quoted(recipe.description)}"]
    for step in recipe.steps:
        lines += ["", "[[steps]]", f"command = {quoted(step.name)}"]
        for name, value in step.options.items():
            # What JSON has for texts, numbers, truth and lists of them is TOML too.
            shown = quoted(plan) if isinstance(value, PlanFile) else json.dumps(as_json(value))
            lines.append(f"{name.replace('_', '-')} = {shown}")
    return "\n".join(lines) + "\n"


def _is_recipe(path: Path) -> bool:
    try:
        return "steps" in read_toml(path)
    except OptionError:
        return False


RECIPE_OUT = Kind("the recipe", "recipe of onnxsep", _is_recipe)


def _not_default(done: DoneStep) -> dict[str, Any]:
    """The options of a step that are to be given again; the seed always is, for the run's own stands behind it."""
    known = STEPS[done.command].defaults() if done.command in STEPS else {}
    same = {name for name, value in known.items() if as_json(value) == done.options.get(name) and name != "seed"}
    return {name: value for name, value in done.options.items() if name not in same}
