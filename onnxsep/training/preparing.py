"""What every run of training begins with: the model in torch, and what it is to learn, both proved to work."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from onnxsep.errors import OptionError
from onnxsep.model.io import Model
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.training.batches import Batches
from onnxsep.training.bridge import TorchGraph, to_torch
from onnxsep.training.choices import Precision
from onnxsep.training.conversion_checks import arrays_of, check_conversion, check_gradients, check_outputs
from onnxsep.training.converters import import_torch
from onnxsep.training.losses import Loss, LossSettings
from onnxsep.training.objective import Reference
from onnxsep.training.teacher import Teacher, TeacherCall
from onnxsep.training.torch_teacher import fastest_teacher

_MOST_REFERENCE = 256  # samples on which the teacher's outputs say what is what


@dataclass(frozen=True)
class Copy:
    """A model in torch.

    Attributes:
        graph: It; the parameters that are trained want gradients.
        device: Where it is.
        outputs: What it gives for the first samples that are trained on.
        samples: How many these are.
    """

    graph: TorchGraph
    device: Any
    outputs: Mapping[str, NDArray[Any]]
    samples: int


@dataclass(frozen=True)
class Lesson:
    """What a model is to learn.

    Attributes:
        loss: What is lowered.
        teacher: Gives the outputs that the loss compares with, in steps; None where it compares with labels alone.
        reference: The same for what is measured, with full precision.
        notes: What the user should know.
    """

    loss: Loss
    teacher: TeacherCall | None
    reference: TeacherCall | None
    notes: tuple[str, ...]


def torch_copy(
    model: Model, batches: Batches, device: Any, runtime: RuntimeOptions, names: Collection[str] | None = None
) -> Copy:
    """Turn a model into torch.

    Args:
        model: The model; it is not changed.
        batches: The data.
        device: Where it is to be trained.
        runtime: How ONNX Runtime is run, with which it is compared.
        names: Names of the weights to train (initialisers or outputs of Constant nodes); None: all of them.

    Raises:
        UnsupportedModelError: It has an operator that torch cannot train, or torch computes something else.
        OptionError: A name is that of no weight, or there is none to train.
    """
    graph = to_torch(model)
    unknown = [name for name in names or () if name not in graph.parameters]
    if unknown:
        raise OptionError(f"{unknown[0]!r} is no weight of a layer in the model's main graph, so it cannot be tuned")
    if not (graph.parameters if names is None else names):
        raise OptionError("there are no weights to train in the model's main graph")
    for name, parameter in graph.parameters.items():
        parameter.requires_grad_(names is None or name in names)
    graph.module.to(device)
    first = batches.first()
    outputs = arrays_of(graph, first.feeds)
    check_conversion(Teacher(model, runtime), first.feeds, outputs)
    return Copy(graph, device, outputs, first.size)


def lesson(
    copy: Copy,
    batches: Batches,
    settings: LossSettings,
    teacher: Model | None,
    runtime: RuntimeOptions,
    precision: Precision = "float32",
) -> Lesson:
    """Make the loss and what gives the outputs that it compares with.

    Args:
        copy: The model.
        batches: The data.
        settings: What the loss is made of.
        teacher: The model whose outputs are learnt; it is not used where the settings have no term for it.
        runtime: How it is run.
        precision: In which the model is trained.

    Raises:
        FeedError: The data do not fit the teacher, or its outputs cannot be learnt from.
        OptionError: Its outputs are not those of the model.
        UnsupportedModelError: No gradient goes back to a weight.
    """
    torch = import_torch()
    if teacher is None or settings.teacher_term is None:
        loss = Loss(torch, settings, copy.outputs, None)
        check_gradients(copy.graph, batches.first().feeds, loss.reads)
        return Lesson(loss, None, None, ())
    runner = Teacher(teacher, runtime)
    loss = Loss(torch, settings, copy.outputs, Reference(torch, map(runner, batches.examples(_MOST_REFERENCE))))
    first = batches.first().feeds
    check_outputs(loss.outputs, copy.outputs, runner(first))
    fastest, notes = fastest_teacher(teacher, runner, first, copy.device, precision)
    check_gradients(copy.graph, first, loss.reads)
    return Lesson(loss, fastest, runner, notes)
