"""onnxsep finetune."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, cast

import typer

from onnxsep import finetuning
from onnxsep.cli import interrupts
from onnxsep.cli.app import app, say
from onnxsep.cli.options import (
    TIME_LIMIT,
    Color,
    CustomOps,
    Debug,
    Device,
    FollowLinks,
    Json,
    Labels,
    Layout,
    Mean,
    Preprocess,
    Provider,
    Quiet,
    ReportFile,
    Scale,
    Scores,
    Size,
    Std,
    Threads,
    TimeLimit,
    preprocessing_of,
    progress_bar,
    runtime_of,
    saved,
    shower,
)
from onnxsep.errors import OnnxsepError, OptionError
from onnxsep.finetuning.options import CHOICES, TEMPERATURE
from onnxsep.model.paths import REPORT, RESULT, Reads, check_paths
from onnxsep.training import parallel
from onnxsep.training.augment import Augmentation
from onnxsep.training.checkpoint import CHECKPOINT
from onnxsep.training.losses import TeacherTerm
from onnxsep.training.run_records import BatchNorm, Optimizer, Precision
from onnxsep.training.schedule import Schedule


@app.command()
def finetune(
    model: Annotated[Path, typer.Argument(help="The model to train.", metavar="IN.onnx", readable=False)],
    target: Annotated[Path, typer.Argument(help="Where the result goes.", metavar="OUT.onnx")],
    data: Annotated[Path, typer.Option("--data", help="Folder of images (one folder per class), .npy or .npz.")],
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", metavar="ORIGINAL.onnx", help="A model whose outputs are learnt; needs no labels."),
    ] = None,
    labels: Labels = None,
    loss: Annotated[
        str,
        typer.Option(
            "--loss", help="With a teacher: outputs (as they are, any network) or soft (softened class probabilities)."
        ),
    ] = "outputs",
    label_weight: Annotated[
        float | None,
        typer.Option(
            "--label-weight", help="Share of the labels' cross-entropy beside a teacher; 0.1 where there are labels."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Of --loss soft.")] = TEMPERATURE,
    output: Scores = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 10,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples in a step.")] = 64,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd (with momentum) or adam.")] = "sgd",
    rate: Annotated[
        float | None, typer.Option("--rate", help="Largest learning rate; 0.05 for sgd, 0.001 for adam.")
    ] = None,
    schedule: Annotated[str, typer.Option("--schedule", help="one-cycle or constant.")] = "one-cycle",
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="Of the weights of layers.")] = 1e-4,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            "--batch-norm",
            help="train or frozen: statistics of BatchNormalization; insert: also put it behind Convs that have none,"
            " in training only. By default insert for classifiers of 8 such Convs or more, else train; frozen where"
            " fewer than 8 samples go through the model at once.",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the layers in training: float32, or bfloat16 (faster on many CPUs).")
    ] = "float32",
    augment: Annotated[
        str,
        typer.Option(
            "--augment", help="none, crop, flip or crop,flip of images; auto: both with a teacher, else crop."
        ),
    ] = "auto",
    validation: Annotated[
        float, typer.Option("--validation", help="Share of the samples held out; the weights best on it are kept.")
    ] = 0.1,
    patience: Annotated[
        int, typer.Option("--patience", min=0, help="Stop after so many epochs that brought nothing; 0: never.")
    ] = 0,
    keep_zeros: Annotated[
        bool | None,
        typer.Option("--keep-zeros/--move-zeros", help="Zero weights stay zero; the default for pruned models."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Use at most so many samples of the data; all by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="State after each epoch, until OUT.onnx is written; OUT.onnx.checkpoint."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of an unfinished run.")] = False,
    report: ReportFile = None,
    preprocess: Preprocess = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    layout: Layout = None,
    size: Size = None,
    color: Color = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order, the held-out share, crops, flips.")] = 0,
    device: Device = "auto",
    follow_links: FollowLinks = False,
    threads: Threads = 0,
    provider: Provider = "CPUExecutionProvider",
    custom_op_library: CustomOps = None,
    time_limit: TimeLimit = TIME_LIMIT,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train the weights with labels, a teacher or both; graph and names stay (needs onnxsep[finetune]).

    Ctrl-C keeps the best weights so far, if an epoch has made them better; --resume goes on from there.
    `torchrun --nproc-per-node 2 -m onnxsep finetune ...` shares every batch between processes, or GPUs.
    """
    for option, value in (
        ("loss", loss),
        ("optimizer", optimizer),
        ("schedule", schedule),
        ("batch_norm", batch_norm),
        ("augment", augment),
        ("precision", precision),
    ):
        if value is not None and value not in CHOICES[option]:
            hint = "--" + option.replace("_", "-")
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(CHOICES[option])}", param_hint=hint)
    leads = parallel.rank() == 0
    place = checkpoint or target.with_name(target.name + ".checkpoint")
    if leads:
        reads = Reads.of(
            model=model,
            data=data,
            labels=labels,
            preprocessing=preprocess,
            teachers=(teacher,),
            libraries=custom_op_library or (),
        )
        check_paths(reads, {RESULT: target, REPORT: report, CHECKPOINT: place})
    left = _left(place, 0.0 if resume else time.time())
    if not leads:
        interrupts.say_nothing()
    with _one_speaks(), progress_bar(quiet or as_json or not leads) as progress, interrupts.saying(left):
        result = finetuning.finetune(
            model,
            data=data,
            teacher=teacher,
            labels=labels,
            loss=cast(TeacherTerm, loss),
            label_weight=label_weight,
            temperature=temperature,
            output=output,
            epochs=epochs,
            batch=batch,
            optimizer=cast(Optimizer, optimizer),
            rate=rate,
            schedule=cast(Schedule, schedule),
            weight_decay=weight_decay,
            batch_norm=cast(BatchNorm | None, batch_norm),
            precision=cast(Precision, precision),
            augment=cast(Augmentation, augment),
            validation=validation,
            patience=patience,
            keep_zeros=keep_zeros,
            samples=samples,
            preprocessing=preprocessing_of(preprocess, scale, mean, std, layout, size, color),
            checkpoint=place,
            resume=resume,
            seed=seed,
            device=device,
            follow_links=follow_links,
            runtime=runtime_of(threads, provider, custom_op_library, time_limit),
            progress=progress,
        )
    done = result.report
    if done.stopped == "interrupted":
        interrupts.ignore_more()
    if leads:
        with interrupts.saying(left):
            shower(report, as_json, quiet)(saved(result, target))
    elif done.stopped == "interrupted":
        raise typer.Exit(interrupts.status())
    else:
        return
    if done.stopped == "interrupted":
        say(f"onnxsep: interrupted; {target} holds the best so far, --resume goes on")
        raise typer.Exit(interrupts.status())
    if done.stopped == "diverged":
        say(f"onnxsep: warning: {done.notes[-1]}")


@contextmanager
def _one_speaks() -> Iterator[None]:
    """Of several processes that fail with the same error, the first one shows it."""
    try:
        yield
    except OnnxsepError as error:
        if parallel.rank() and (parallel.was_told(error) or isinstance(error, OptionError)):
            parallel.wait_for_first()
            raise typer.Exit(error.exit_status) from error
        raise


def _left(checkpoint: Path, since: float) -> Callable[[], str]:
    """What to say where no result is written: how to go on, if there is a checkpoint of this run."""

    def words() -> str:
        with suppress(OSError):
            if checkpoint.stat().st_mtime >= since:
                return f"nothing was written but {checkpoint}, from which --resume goes on"
        return "nothing was written"

    return words
