"""Before the first step: everything that can be wrong is found, and the manifest says what the run is made from."""

import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from onnxsep.compression.given import Given
from onnxsep.compression.manifest import (
    Content,
    Manifest,
    difference,
    model_content,
    packages,
    path_of,
    plan_content,
    preprocessing_fields,
)
from onnxsep.compression.measuring import Measuring
from onnxsep.compression.recipe import Recipe
from onnxsep.compression.shared import Shared
from onnxsep.data import AnyLabels, Dataset, Decided, ImageJudge, Preprocessing, PreprocessingReport, Source, open_data
from onnxsep.data.batches import is_read_once, kept
from onnxsep.data.rows import has_rows
from onnxsep.data.synthetic import synthetic_count
from onnxsep.errors import DataError, OnnxsepError, OptionError, spelled
from onnxsep.model.files import printable
from onnxsep.model.io import Model, load


def lasting(data: Source | None) -> Source | None:
    """Data that can be read once for each step, and gives the same each time: what is read once is kept."""
    return kept(data) if is_read_once(data) and not has_rows(data) else data


def settle_images(
    original: Model, given: Given, images: Preprocessing | None, *tests: tuple[Source | None, AnyLabels | None]
) -> tuple[Preprocessing | None, PreprocessingReport | None]:
    """How all steps read images, decided once: for the original, on the data of the steps or else on the test data.

    Returns:
        What is decided, which says nothing where there are no images; what the user says, where there are no data; and
        what was found out.

    Raises:
        DataError: The data cannot be read or does not fit the model.
    """
    sources = [(source, labels) for source, labels in ((given.data, given.labels), *tests) if source is not None]
    sources.sort(key=lambda one: not _may_hold_images(one[0]))
    if not sources or isinstance(images, Decided):
        return images, None
    source, labels = sources[0]
    if images is not None and not _may_hold_images(source):  # refused with the data that it is given for
        return images, None
    judge = ImageJudge(original, given.runtime, given.output)
    opened = open_data(source, original, preprocessing=images, labels=labels, judge=judge, skip_bad=given.skip_bad)
    return opened.decided or Decided(), opened.preprocessing


def _may_hold_images(source: Source) -> bool:
    is_folder = isinstance(source, str | os.PathLike) and Path(source).is_dir()
    return is_folder or has_rows(source) or synthetic_count(source) is not None


def check_steps(recipe: Recipe, given: Given, seed: int) -> None:
    """Refuse, before anything is read, steps that could not be done.

    Raises:
        DataError: A step needs data, and there is none.
        OptionError: A step that works on float weights stands behind one that makes integers of them.
        OnnxsepError: As the function of a step raises it for its options, or where a package is missing.
    """
    integers = ""
    for number, step in enumerate(recipe.steps, start=1):
        where = f"{recipe.name}, step {number} ({step.name})"
        if integers and not step.takes_integers:
            raise OptionError(
                f"{where} works on float weights, and {integers} makes integers of them; put that one last"
            )
        if step.gives_integers:
            integers = f"step {number} ({step.name})"
        _check_plan(recipe, number - 1, where)
        if step.needs_data() and given.data is None:
            raise DataError(f"{where} needs data: give {spelled('data')}, a folder of images, .npz or .npy")
        try:
            step.check(given, seed)
        except OnnxsepError as error:
            error.args = (f"{where}: {error}",)
            raise
    if given.device != "auto" and not any(step.trains() for step in recipe.steps):
        raise OptionError(
            f"{recipe.name}: {spelled('device', given.device)} is for steps that train, and there is none"
        )


def _check_plan(recipe: Recipe, index: int, where: str) -> None:
    """Refuse a step that carries out a plan where none is made before it, and a plan that no step carries out."""
    before = recipe.steps[index - 1] if index else None
    behind = recipe.steps[index + 1] if index + 1 < len(recipe.steps) else None
    step = recipe.steps[index]
    if step.takes_plan() and (before is None or not before.plans):
        raise OptionError(f"{where} carries out what the step before it plans; put a step 'plan' there")
    if step.plans and (behind is None or not behind.takes_plan()):
        raise OptionError(f"{where}: no step carries it out; put 'rewrite' with plan = \"planned\" behind it")


@dataclass(frozen=True)
class Named:
    """The data as the user named them, and those of them that several runs share.

    Attributes:
        data: For the steps.
        test: To measure on.
        shared: Where they are open already.
    """

    data: Source | None
    test: Source | None
    shared: Shared | None = None

    def content(self, name: Literal["data", "test"], opened: Dataset) -> Content:
        """What a manifest says of one of them."""
        known = opened.fingerprint() if self.shared is None else self.shared.fingerprint(name, opened)
        return Content(path=path_of(getattr(self, name)), sha256=known)


def make_manifest(
    recipe: Recipe, original: Model, given: Given, measuring: Measuring, seed: int, named: Named
) -> Manifest:
    """What the run is made from; the data is read once.

    Raises:
        DataError: The data does not fit the model, or has no labels where a step needs them.
        ModelLoadError: A teacher cannot be read.
    """
    data = None
    if given.data is not None:
        opened = open_data(
            given.data, original, preprocessing=given.preprocessing, labels=given.labels, skip_bad=given.skip_bad
        )
        _check_labels(recipe, opened)
        data = named.content("data", opened)
    test = None
    if measuring.kind == "test":
        tested = open_data(
            measuring.source,
            original,
            preprocessing=measuring.preprocessing,
            labels=measuring.labels,
            skip_bad=given.skip_bad,
        )
        test = named.content("test", tested)
    others = {
        f"step {number}, {option}": model_content(load(model, follow_links=given.follow_links))
        for number, step in enumerate(recipe.steps, start=1)
        for option, model in step.other_models().items()
    }
    plans = {
        f"step {number}": plan_content(plan)
        for number, step in enumerate(recipe.steps, start=1)
        if (plan := step.plan()) is not None
    }
    runtime = given.runtime
    return Manifest(
        packages=packages(),
        recipe=recipe.name,
        description=recipe.description,
        recipe_text=recipe.text,
        source=model_content(original),
        data=data,
        test=test,
        other_models=others,
        plans=plans,
        preprocessing=preprocessing_fields(measuring.preprocessing),
        skip_bad=given.skip_bad,
        output=given.output,
        inputs=None if given.inputs is None else printable(given.inputs),
        input_shapes=dict(given.input_shapes),
        seed=seed,
        device=given.device,
        threads=runtime.threads,
        provider=runtime.provider,
        custom_op_libraries=tuple(map(printable, runtime.custom_op_libraries)),
        planned=tuple(step.name for step in recipe.steps),
    )


def _check_labels(recipe: Recipe, data: Dataset) -> None:
    for number, step in enumerate(recipe.steps, start=1):
        if step.needs_labels() and data.labels is None:
            raise DataError(
                f"{recipe.name}, step {number} ({step.name}) needs labels, and {data.source} has none: put the images"
                " into one folder for each class, or integers into the array 'y' of an .npz file, or give a CSV file of"
                f" names and classes ({spelled('labels')})"
            )


def check_repeats(recipe: Recipe, manifest: Manifest) -> list[str]:
    """Refuse to repeat a manifest with another model or other data; its steps alone can be used through its recipe.

    Returns:
        A note, where the versions of packages or the machine's settings are others.

    Raises:
        OptionError: The model, the data or a teacher are not those of the manifest.
    """
    old = recipe.repeats
    if old is None:
        return []
    for words, was, now in (
        ("the model", old.source, manifest.source),
        ("the data (with labels and preprocessing)", old.data, manifest.data),
        *(("a teacher", old.other_models.get(k), v) for k, v in manifest.other_models.items()),
        *(("a plan", old.plans.get(k), v) for k, v in manifest.plans.items()),
    ):
        if (was and was.sha256) != (now and now.sha256):
            named = "none" if was is None else f"{was.path or 'one in memory'}, SHA-256 {was.sha256}"
            raise OptionError(
                f"{recipe.name} cannot be repeated: {words} of that run was {named}, and this one differs. To do the"
                f" same steps with others, give its recipe ({old.recipe}) instead of the manifest"
            )
    notes = []
    versions = difference(
        old.packages | {"onnxsep": old.onnxsep, "python": old.python},
        manifest.packages | {"onnxsep": manifest.onnxsep, "python": manifest.python},
    )
    if versions:
        notes.append(f"{recipe.name} was made with other versions: {versions}")
    if (old.threads, old.provider) != (manifest.threads, manifest.provider):
        notes.append(f"{recipe.name} was made with {old.threads} threads on {old.provider}")
    return notes


def compare_results(recipe: Recipe, manifest: Manifest) -> list[str]:
    """Whether the steps gave what the manifest that was repeated lists."""
    if recipe.repeats is None:
        return []
    for was, now in zip_longest(recipe.repeats.steps, manifest.steps):
        if was is None or now is None or was.sha256 != now.sha256:
            number, step = (was or now).number, (was or now).command
            return [f"from step {number} ({step}) on the results are not those of {recipe.name}, bit for bit"]
    return [f"the results of all steps are those of {recipe.name}, bit for bit"]
