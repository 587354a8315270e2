"""onnxsep finetune."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import typer

import onnxsep
from onnxsep.cli import interrupts
from onnxsep.cli.app import say
from onnxsep.cli.derived import OUT, Given, command, model_to
from onnxsep.cli.options import progress_bar, saved, shower
from onnxsep.errors import OnnxsepError, OptionError
from onnxsep.finetuning.options import FinetuneOptions
from onnxsep.model.paths import RESULT
from onnxsep.training import parallel


@command(
    FinetuneOptions,
    model_to("train"),
    OUT,
    example="onnxsep finetune small.onnx tuned.onnx --data images --teacher in.onnx",
)
def finetune(given: Given[FinetuneOptions]) -> None:
    """Train the weights with labels, a teacher or both; graph and names stay (needs onnxsep[finetune]).

    Ctrl-C keeps the best weights so far, if an epoch has made them better; --resume goes on from there.
    `torchrun --nproc-per-node 2 -m onnxsep finetune ...` shares every batch between processes, or GPUs.
    """
    target, shown, leads = given.arguments["out"], given.shown, parallel.rank() == 0
    place = Path(given.options.checkpoint or target.with_name(target.name + ".checkpoint"))
    if leads:
        given.check_paths({RESULT: target}, options=replace(given.options, checkpoint=place))
    left = _left(place, 0.0 if given.options.resume else time.time())
    if not leads:
        interrupts.say_nothing()
    with _one_speaks(), progress_bar(shown.silent or not leads) as progress, interrupts.saying(left):
        result = onnxsep.finetune(given.arguments["model"], **given.keywords(checkpoint=place, progress=progress))
    done = result.report
    if done.stopped == "interrupted":
        interrupts.ignore_more()
    if leads:
        with interrupts.saying(left):
            shower(shown)(saved(result, target))
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
