"""``Pipeline`` and ``compress``: check everything -> do the steps -> measure them side by side."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxsep.compression.folder_files import WORK
from onnxsep.compression.given import Given, Labels
from onnxsep.compression.manifest import MANIFEST, Content, Manifest, model_hash
from onnxsep.compression.measuring import choose_samples
from onnxsep.compression.preparing import check_repeats, check_steps, compare_results, lasting, make_manifest
from onnxsep.compression.recipe import Recipe, read_recipe
from onnxsep.compression.report import CompressReport
from onnxsep.compression.running import Run, Told
from onnxsep.compression.steps import Step
from onnxsep.compression.work_folder import WorkFolder
from onnxsep.data import AnyPreprocessing, Preprocessing, Source, check_sampling
from onnxsep.errors import OptionError
from onnxsep.evaluation.api import check_runs
from onnxsep.evaluation.metrics import Metric, load_metric
from onnxsep.model.external import is_external
from onnxsep.model.files import printable, write_text
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, OTHER_RESULT, Reads, check_paths
from onnxsep.model.saving import Savable, SavedFiles, write_model
from onnxsep.model.tensors import tensor_protos
from onnxsep.options.hints import checks_types
from onnxsep.options.progress import Progress
from onnxsep.reporting.model_info import model_info
from onnxsep.running.feeds import check_input_shapes
from onnxsep.running.runtime import RuntimeOptions

AnyModel = str | os.PathLike[str] | onnx.ModelProto | Model


@dataclass(frozen=True)
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

    @checks_types
    def __call__(
        self,
        model: AnyModel,
        *,
        data: Source | None = None,
        labels: Labels = None,
        test: Source | None = None,
        test_labels: Labels = None,
        metric: str | Metric | None = None,
        output: str | None = None,
        test_samples: int | None = None,
        runs: int = 30,
        seed: int = 0,
        preprocessing: AnyPreprocessing | None = None,
        inputs: str | os.PathLike[str] | None = None,
        input_shapes: Mapping[str, tuple[int, ...]] | None = None,
        work: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        keep_steps: bool = False,
        follow_links: bool = False,
        device: str = "auto",
        runtime: RuntimeOptions | None = None,
        progress: Progress | None = None,
        told: Told | None = None,
    ) -> CompressResult:
        """Do all steps and measure the original and each result, side by side. Only the work folder is written.

        Everything that can be wrong with the options, the data or what is installed is found before the first step.

        Args:
            model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
            data: Samples that the steps fit, train and calibrate with, as for :func:`onnxsep.data.open_data`.
            labels: A CSV file of names and classes, or the classes, instead of those of the data.
            test: Samples to measure on; None: at most 1000 of ``data``, which the steps have seen, or random inputs.
            test_labels: As ``labels``, of these.
            metric: A function of the outputs, or ``module:function``, instead of accuracy.
            output: The output with the class scores, where there are several.
            test_samples: Measure on at most so many samples.
            runs: Timed runs of each model; 0: latency is not measured.
            seed: Of every step that names none.
            preprocessing: How images become values, in ``data`` and ``test``: a Preprocessing, the path of a TOML
                file, or a dict with its keys.
            inputs: .npz with inputs for the verification of steps; else random ones.
            input_shapes: Shapes for inputs whose dimensions are free, by input name.
            work: Folder in which finished steps are kept, so that the same call goes on after an interruption; it
                goes when the result is saved. None: all stays in memory.
            fresh: Remove what an earlier run has left in the work folder.
            keep_steps: Do not remove the work folder.
            follow_links: Follow links in the location of external data.
            device: Where steps train: "auto" (a GPU where torch has one), "cpu", "cuda", "cuda:N" or "mps".
            runtime: Threads, provider, custom operators.
            progress: Told of the progress: (words, done, all).
            told: Given the report of each finished step.

        Raises:
            OptionError: An option of a step cannot be used; the work folder holds something else, or what is read.
            DataError: Data is needed and not there, or does not fit the model.
            MissingDependencyError: A step needs a package that is not installed.
            VerificationError: The result of a step does not compute what it should.
            OnnxsepError: As the functions of the steps raise it, with the step in the message.
        """
        started = time.perf_counter()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise OptionError("a pipeline is run by one process; torchrun is for `onnxsep finetune` alone")
        check_sampling(test_samples, seed)
        check_runs(runs)
        if isinstance(metric, str):
            load_metric(metric)
        recipe, repeats, images = self.recipe, self.recipe.repeats, Preprocessing.of(preprocessing)
        if repeats is not None:
            runtime = repeats.runtime(runtime)
            images = images or repeats.image_preprocessing()
            output, input_shapes = output or repeats.output, input_shapes or repeats.input_shapes
        data = lasting(data)
        given = Given(
            data,
            labels,
            images if data is not None else None,
            output,
            inputs,
            dict(input_shapes or {}),
            follow_links,
            device,
            runtime or RuntimeOptions(),
        )
        reads = Reads.of(
            model=model,
            data=data,
            labels=labels,
            test=test,
            test_labels=test_labels,
            preprocessing=preprocessing,
            inputs=inputs,
            recipe=recipe.path,
            teachers=recipe.teachers(),
            plans=recipe.plans(),
            libraries=given.runtime.custom_op_libraries,
        )
        check_paths(reads, {WORK: work})
        check_steps(recipe, given, seed)
        original = load(model, follow_links=follow_links)
        check_input_shapes(original, given.input_shapes)
        measuring = choose_samples(
            original,
            given,
            preprocessing=images,
            test=lasting(test),
            test_labels=test_labels,
            metric=metric,
            samples=test_samples,
            runs=runs,
        )
        manifest = make_manifest(recipe, original, given, measuring, seed)
        notes = check_repeats(recipe, manifest)
        measuring.check(original)
        folder = None if work is None else WorkFolder(Path(work), follow_links=follow_links)
        run = Run(recipe.steps, given, original, seed=seed, folder=folder, progress=progress, told=told)
        try:
            done = run(manifest, fresh=fresh)
            names = [f"{report.number} {report.command}" for report in done.reports]
            evaluation = measuring(original, list(zip(names, done.models, strict=True)), progress)
        finally:
            if folder is not None:
                folder.release()
        report = CompressReport(
            source=model_info(original),
            recipe=recipe.name,
            description=recipe.description,
            steps=tuple(done.reports),
            resumed_after=sum(report.resumed for report in done.reports),
            measured_on=measuring.kind,
            evaluation=evaluation,
            notes=(*notes, *compare_results(recipe, done.manifest)),
            seconds=time.perf_counter() - started,
        )
        new = tuple(done.new_initializers)
        return CompressResult(done.models[-1], report, done.manifest, new, folder, keep_steps, reads)


@checks_types
def compress(model: AnyModel, recipe: str | os.PathLike[str] | Recipe | Pipeline, **options: Any) -> CompressResult:
    """Do the steps of a recipe, and measure the original and each result, side by side.

    Args:
        model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        recipe: The name of one that comes with onnxsep, the path of a TOML file or of a run's manifest, or a pipeline.
        options: As in :meth:`Pipeline.__call__`: data, test, seed, work and so on.

    Raises:
        OptionError: There is no such recipe, it cannot be read, or it is none.
        OnnxsepError: As a pipeline raises it.
    """
    if not isinstance(recipe, Pipeline):
        recipe = Pipeline(recipe if isinstance(recipe, Recipe) else read_recipe(recipe))
    return recipe(model, **options)
