"""``Pipeline`` and ``compress``: check everything -> do the steps -> measure them side by side."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxsep.compression.given import CompressOptions, Given
from onnxsep.compression.manifest import MANIFEST, Content, Manifest
from onnxsep.compression.measuring import choose_samples
from onnxsep.compression.preparing import (
    Named,
    check_repeats,
    check_steps,
    compare_results,
    lasting,
    make_manifest,
    settle_images,
)
from onnxsep.compression.recipe import Recipe
from onnxsep.compression.report import CompressReport
from onnxsep.compression.running import Run
from onnxsep.compression.shared import Shared
from onnxsep.compression.step import Step
from onnxsep.compression.unseen import keep_unseen
from onnxsep.compression.work_folder import WorkFolder
from onnxsep.compression.worse import worse
from onnxsep.data import Decided, Preprocessing, open_data
from onnxsep.errors import OptionError
from onnxsep.model.content import model_hash
from onnxsep.model.external import is_external
from onnxsep.model.files import printable, write_text
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import LIBRARY, NOTHING, OTHER_RESULT, PLAN_READ, RECIPE, TEACHER, Reads, check_paths, read_of
from onnxsep.model.saving import Savable, SavedFiles, write_model
from onnxsep.model.tensors import tensor_protos
from onnxsep.options.progress import under
from onnxsep.options.taking import takes
from onnxsep.reporting.model_info import model_info
from onnxsep.running.feeds import check_input_shapes
from onnxsep.running.metric import load_metric
from onnxsep.running.runtime import RuntimeOptions


@dataclass(frozen=True, repr=False)
class CompressResult(Savable):
    """The last step's result, the report of all steps, and the manifest from which the run can be repeated."""

    model: Model
    report: CompressReport
    manifest: Manifest
    new_initializers: tuple[str, ...] = ()
    work: WorkFolder | None = None
    keep_steps: bool = False
    reads: Reads = NOTHING

    def save(self, path: str | os.PathLike[str]) -> SavedFiles:
        """Write ``PATH.manifest.json`` and then the model, each atomically; the work folder then goes.

        A model with external data can then only be read from its file: load it again.

        Raises:
            ModelSaveError: One of them cannot be written.
            OptionError: One of them would overwrite a file that the run has read, or one of another kind.
        """
        target = Path(path)
        check_paths(self.reads, {OTHER_RESULT: target, MANIFEST: manifest_path(target)})
        content = Content(path=printable(target), sha256=model_hash(self.model))
        write_text(
            manifest_path(target), self.manifest.model_copy(update={"result": content}).model_dump_json(indent=1) + "\n"
        )
        external = any(map(is_external, tensor_protos(self.model.proto)))
        # "Not as it was loaded": the data file is then named after the target, and not after the step.
        model = replace(self.model, pristine=False) if external and self.work is not None else self.model
        files = write_model(model, target, externalize=self.new_initializers, reads=self.reads, kind=OTHER_RESULT)
        if self.work is not None and not self.keep_steps:
            self.work.remove()
        return files


def manifest_path(target: Path) -> Path:
    """Where the manifest of a result lies."""
    return target.with_name(target.name + ".manifest.json")


class Pipeline:
    """Steps that are done one after another, each on the result of the one before it.

    Args:
        steps: Steps, and pipelines whose steps are taken as they are; or a recipe.

    Raises:
        OptionError: There are no steps.
    """

    def __init__(self, steps: "Sequence[Step | Pipeline] | Recipe") -> None:
        if isinstance(steps, Recipe):
            self.recipe = steps
            return
        flat: list[Step] = []
        for step in steps:
            flat += step.steps if isinstance(step, Pipeline) else [step]
        if not flat:
            raise OptionError("a pipeline needs at least one step")
        self.recipe = Recipe("a pipeline", tuple(flat))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""
        return self.recipe.steps

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(map(repr, self.steps))}])"

    @takes(CompressOptions)
    def __call__(self, model: AnyModel, options: CompressOptions) -> CompressResult:
        """Do all steps and measure the original and each result, side by side. Only the work folder is written.

        Everything that can be wrong with the options, the data or what is installed is found before the first step.

        Args:
            model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
            options: each by its name.

        Raises:
            OptionError: An option of a step cannot be used; the work folder holds something else, or what is read.
            DataError: Data is needed and not there, or does not fit the model.
            MissingDependencyError: A step needs a package that is not installed.
            VerificationError: The result of a step does not compute what it should.
            OnnxsepError: As the functions of the steps raise it, with the step in the message.
        """
        return run_recipe(self.recipe, model, options)


def run_recipe(
    recipe: Recipe, model: AnyModel, options: CompressOptions, shared: Shared | None = None
) -> CompressResult:
    """Check everything, do the steps, measure.

    Args:
        recipe: The steps.
        model: What the first of them gets.
        options: What the run is asked for.
        shared: Data that are open, and steps that were done by other runs.
    """
    started = time.perf_counter()
    recipe = recipe if options.until is None else recipe.until(options.until)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise OptionError("a pipeline is run by one process; torchrun is for finetune alone")
    if isinstance(options.metric, str):
        load_metric(options.metric)
    given, images = _given(recipe, options, shared)
    test = lasting(options.test) if shared is None else shared.test
    test_labels = options.test_labels if shared is None else None
    seed = options.seed
    reads = Reads.of(
        model,
        options.reads(),
        read_of(RECIPE, recipe.path),
        read_of(TEACHER, recipe.teachers()),
        read_of(PLAN_READ, recipe.plans()),
        read_of(LIBRARY, given.runtime.custom_op_libraries),
    )
    check_paths(reads, options.writes())
    check_steps(recipe, given, seed)
    original = load(model, follow_links=options.follow_links)
    check_input_shapes(original, given.input_shapes)
    if shared is None:
        images, found = settle_images(original, given, images, (test, test_labels))
    else:
        images, found = shared.images, shared.found
    given = replace(given, preprocessing=images if given.data is not None else None)
    unseen = None
    if given.data is not None and options.test is None:
        opened = open_data(
            given.data, original, preprocessing=given.preprocessing, labels=given.labels, skip_bad=given.skip_bad
        )
        unseen = keep_unseen(recipe, opened, seed)
    measuring = choose_samples(
        original,
        given,
        preprocessing=images,
        test=test,
        test_labels=test_labels,
        metric=options.metric,
        samples=options.test_samples,
        runs=options.runs,
        unseen=unseen,
    )
    manifest = make_manifest(recipe, original, given, measuring, seed, Named(options.data, options.test, shared))
    notes = check_repeats(recipe, manifest)
    measuring.check(original)
    folder = None if options.work is None else WorkFolder(Path(options.work), follow_links=options.follow_links)
    kept = given if unseen is None or not unseen.reserved else replace(given, data=unseen.steps)
    run = Run(
        recipe.steps,
        kept,
        original,
        named=given.data if shared is None else options.data,
        seed=seed,
        folder=folder,
        progress=options.teller,
        told=options.told,
        shared=shared,
    )
    try:
        done = run(manifest, fresh=options.fresh)
        names = [f"{report.number} {report.command}" for report in done.reports]
        evaluation = measuring(original, list(zip(names, done.models, strict=True)), under("measuring", options.teller))
    finally:
        if folder is not None:
            folder.release()
    if unseen is not None and unseen.reserved:
        notes.append(f"{len(unseen.steps.reserved)} samples of the data are kept from all steps, to measure on")
    report = CompressReport(
        source=model_info(original),
        options=options.as_json(model=model, recipe=recipe.path or (recipe if recipe.text is None else recipe.name)),
        recipe=recipe.name,
        description=recipe.description,
        steps=tuple(done.reports),
        resumed_after=sum(report.resumed for report in done.reports),
        preprocessing=found,
        measured_on=measuring.kind,
        evaluation=evaluation,
        warnings=tuple(worse(recipe.steps, evaluation.models)),
        notes=(*(found.notes if found else ()), *notes, *compare_results(recipe, done.manifest)),
        seconds=time.perf_counter() - started,
    )
    return CompressResult(
        model=done.models[-1],
        report=report,
        manifest=done.manifest,
        new_initializers=tuple(done.new_initializers),
        work=folder,
        keep_steps=options.keep_steps,
        reads=reads,
    )


def _given(recipe: Recipe, options: CompressOptions, shared: Shared | None) -> tuple[Given, Preprocessing | None]:
    """What the steps get, and how images are read; a manifest that is repeated says what is not given anew."""
    images, runtime, output, shapes = (
        Preprocessing.of(options.preprocessing),
        options.runtime,
        options.output,
        options.input_shapes,
    )
    if (repeats := recipe.repeats) is not None:
        runtime = repeats.runtime(runtime)
        done = repeats.image_preprocessing()
        images = images or (None if done is None else Decided.on(done))
        output, shapes = output or repeats.output, shapes or repeats.input_shapes
    data = lasting(options.data) if shared is None else shared.data
    given = Given(
        data=data,
        labels=options.labels if shared is None else None,
        preprocessing=images if data is not None else None,
        skip_bad=options.skip_bad or (repeats is not None and repeats.skip_bad),
        output=output,
        inputs=options.inputs,
        input_shapes=dict(shapes or {}),
        follow_links=options.follow_links,
        device=options.device,
        runtime=runtime or RuntimeOptions(),
    )
    return given, images
