"""``compress``: the steps of a recipe, or those that a search finds for goals."""

import os

from onnxsep.compression.api import CompressResult, Pipeline, run_recipe
from onnxsep.compression.recipe import Recipe, read_recipe
from onnxsep.compression.search_options import SearchOptions
from onnxsep.compression.searching import Search
from onnxsep.errors import OptionError, spelled
from onnxsep.model.io import AnyModel
from onnxsep.options.taking import takes


@takes(SearchOptions)
def compress(
    model: AnyModel, recipe: str | os.PathLike[str] | Recipe | Pipeline | None, options: SearchOptions
) -> CompressResult:
    """Do the steps of a recipe, or find steps that reach goals, and measure the original and each result, side by side.

    Without a recipe (None) ways are tried from the quickest to prepare upwards: int8 alone; a plan for ``target`` and
    int8; the same with training in between, the original as teacher. The first whose result reaches every goal is
    taken; the recipe that it is, ``NAME.recipe.toml``, is written beside the model.

    Args:
        model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        recipe: The name of one that comes with onnxsep, the path of a TOML file or of a run's manifest, a pipeline, or
            None.
        options: each by its name.

    Raises:
        OptionError: There is no such recipe, or it cannot be read; neither a recipe nor a target is given, or both.
        VerificationError: No way reaches the goals; with the report of the nearest.
        OnnxsepError: As a pipeline raises it.
    """
    if recipe is None:
        if options.goals is None:
            raise OptionError(f"give {spelled('recipe')}, or {spelled('target')} such as size=0.1 to search for one")
        return Search(model, options)()
    if options.goals is not None:
        raise OptionError(
            f"{spelled('recipe')} and {spelled('target')} contradict each other: a search finds the steps"
        )
    if isinstance(recipe, Pipeline):
        recipe = recipe.recipe
    chosen = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    return run_recipe(chosen, model, options)
