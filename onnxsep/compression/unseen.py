"""Samples of the data that no step of a run sees: its results are measured on them where there are no test data."""

from collections.abc import Collection
from copy import copy
from dataclasses import dataclass

from onnxsep.compression.recipe import Recipe
from onnxsep.data import Dataset, tenth
from onnxsep.errors import OnnxsepError


@dataclass(frozen=True)
class Unseen:
    """How the samples of a run are used.

    Attributes:
        steps: The data for the steps; what they would all see otherwise is reserved.
        measured: The data to measure on, with all others reserved; None where steps see all samples.
        reserved: Whether samples had to be kept from the steps.
    """

    steps: Dataset
    measured: Dataset | None
    reserved: bool


def keep_unseen(recipe: Recipe, data: Dataset, seed: int) -> Unseen:
    """Find the samples that no step sees, or keep a tenth from all steps where they would leave fewer than that.

    Args:
        recipe: The steps.
        data: The data of the run.
        seed: Of the run.

    Raises:
        OnnxsepError: a step cannot use the data.
    """
    seen = set[int]().union(*(_seen(recipe, number, data, seed) for number in range(1, len(recipe.steps) + 1)))
    rest = [index for index in range(len(data)) if index not in seen]
    held = tenth(data, seed)
    if len(rest) >= max(len(held or ()), data.batch or 1):
        return Unseen(data, _only(data, rest), reserved=False)
    if held is None:
        return Unseen(data, None, reserved=False)
    steps = copy(data)
    steps.reserved = tuple(held)
    return Unseen(steps, _only(data, held), reserved=True)


def _seen(recipe: Recipe, number: int, data: Dataset, seed: int) -> Collection[int]:
    step = recipe.steps[number - 1]
    try:
        return step.sees(data, seed)
    except OnnxsepError as error:
        error.args = (f"{recipe.name}, step {number} ({step.name}): {error}",)
        raise


def _only(data: Dataset, indices: list[int]) -> Dataset:
    chosen, left = set(indices), copy(data)
    left.reserved = tuple(index for index in range(len(data)) if index not in chosen)
    return left
