"""Tuning and fine-tuning are one loop: the same steps, data that are read when they are needed, the best weights."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finetuning_models import ONE, initializers, needs_torch, small_data, small_model
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.data import Dataset, open_data
from onnxsep.data.samples import ArraySamples
from onnxsep.errors import DataError, FeedError
from onnxsep.model.io import Model
from onnxsep.running.runtime import Runner
from onnxsep.training import TuneResult, measuring, optimizers, to_torch, tune
from onnxsep.training.batches import Batches
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss, LossSettings
from onnxsep.training.measuring import HeldOut
from onnxsep.training.objective import Objective, Reference
from onnxsep.training.run_records import Settings
from onnxsep.training.teacher import Teacher

Array = NDArray[Any]
SETTINGS = Settings(15, "adam", 0.02, "one-cycle", 0.0, 0, 0)


def changed(model: Model, **arrays: Array) -> Model:
    """The model with other weights."""
    for tensor in model.proto.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name].astype(np.float32), tensor.name))
    return model


def noisy(model: Model) -> Model:
    """The model with noise on its first Conv's weight."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}
    return changed(model, stem=held["stem"] + 0.3 * np.random.default_rng(4).standard_normal(held["stem"].shape))


def images(count: int = 40) -> Array:
    return small_data(count)["x"]


def tuned(student: Model, teacher: Model, data: Any, **options: Any) -> TuneResult:
    opened = data if isinstance(data, Dataset) else open_data(data, student)
    given: dict[str, Any] = {"names": ["stem"], "steps": 20, "batch_size": 8, "learning_rate": 0.05, **options}
    return tune(student, teacher, opened, runtime=ONE, **given)


# ---------------------------------------------------------------- one loop


def signs(model: Model, seed: int) -> Model:
    """The model with weights of 1 and -1, whose root mean square is 1: rates relative to it are the rates."""
    random = np.random.default_rng(seed)
    return changed(model, **{t.name: random.choice([-1, 1], tuple(t.dims)) for t in model.proto.graph.initializer})


@needs_torch
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("batch", ["n", 4])
def test_tuning_and_fine_tuning_take_the_same_steps(
    steps: int, augment: bool, batch: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "_LARGEST_GRADIENT", 1e30)  # tuning does not clip gradients
    student, teacher = (signs(small_model(norm=False, batch=batch), seed) for seed in (1, 2))
    size = 36  # all that are trained on, so an epoch is a step
    found = tuned(student, teacher, images(), names=None, steps=steps, augment=augment, batch_size=size)
    same = onnxsep.finetune(
        student,
        data=images(),
        teacher=teacher,
        epochs=steps,
        optimizer="adam",
        rate=0.05,
        weight_decay=0,
        batch=size,
        augment="crop,flip" if augment else "none",
        batch_norm="frozen",
        runtime=ONE,
    )
    report = same.report
    assert report.before is not None
    validation = [done.validation.loss for done in report.epochs if done.validation]
    assert found.best_step == report.best_epoch > 0
    assert (found.held_out_before, found.held_out_after) == (report.before.loss, min(validation))
    assert set(found.arrays) == {"stem", "bias", "head"}
    for name, values in found.arrays.items():
        assert values.tobytes() == initializers(same.model)[name]


@needs_torch
def test_only_the_named_weights_move_and_statistics_stay() -> None:
    import torch

    graph = to_torch(small_model())
    for name, parameter in graph.parameters.items():
        parameter.requires_grad_(name == "stem")
    learner = Learner(graph, batch_norm="frozen", keep_zeros=True)
    assert set(learner.parameters) == set(learner.values()) == set(learner.kept()) == {"stem"}
    assert torch.equal(learner.kept()["stem"], graph.parameters["stem"])
    found = tuned(noisy(small_model()), small_model(), images())
    assert set(found.arrays) == {"stem"}
    assert found.held_out_after < found.held_out_before


@pytest.mark.parametrize("steps", [1, 7, 15, 16, 100, 500])
def test_steps_are_shared_out_among_the_epochs(steps: int) -> None:
    epochs = min(15, steps)
    settings = replace(SETTINGS, epochs=epochs, steps=steps)
    parts = [settings.steps_in(epoch) or 0 for epoch in range(1, epochs + 1)]
    assert sum(parts) == steps
    assert max(parts) - min(parts) <= 1
    assert [settings.steps_until(epoch) for epoch in range(epochs + 1)] == [sum(parts[:epoch]) for epoch in range(16)][
        : epochs + 1
    ]
    assert SETTINGS.steps_in(1) is None
    assert (SETTINGS.end_of(3), settings.end_of(epochs)) == ("epoch 3", f"step {steps}")


def test_more_steps_than_a_pass_has_are_passes_in_other_orders() -> None:
    batches = Batches(open_data(images(), small_model()), range(40), 8, 0.1, 0)  # 36 are trained on: 4 steps in a pass
    steps = batches.steps(np.random.default_rng(0), 11)
    passes = [[sample for step in steps[at : at + 4] for part in step for sample in part] for at in (0, 4, 8)]
    assert [len(done) for done in passes] == [32, 32, 24]
    for done in passes:
        assert len(set(done)) == len(done)
        assert not set(done) & set(batches.held_out)
    assert passes[0] != passes[1]
    assert batches.steps(np.random.default_rng(0)) == steps[:4]


@needs_torch
def test_progress_counts_steps_and_ctrl_c_ends_a_tuning_that_has_gained() -> None:
    said: list[tuple[str, int, int]] = []
    result = tuned(noisy(small_model()), small_model(), images(), progress=lambda *words: said.append(words))
    assert [done for _, done, _ in said] == list(range(1, 21))
    assert {total for _, _, total in said} == {20}
    assert all(words.startswith("tuning: loss ") for words, _, _ in said)
    assert 0 < result.best_step <= result.steps == 20

    def stop(words: str, done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(noisy(small_model()), small_model(), images(), progress=stop)


@needs_torch
@pytest.mark.parametrize("steps", [4, 40])
def test_a_rewrite_reports_the_step_that_it_took(steps: int) -> None:
    options: dict[str, Any] = {"mode": "channel", "rank": 1, "include_first": True, "force": True, "runtime": ONE}
    data = {"x": images()}
    plain, result = (onnxsep.rewrite(small_model(), data=data, tune=count, **options) for count in (0, steps))
    assert result.report.calibration is not None
    report = result.report.calibration.tune
    assert report is not None
    assert (report.steps, report.best_step > 0) == (steps, report.loss_after < report.loss_before)
    moved = {name for name, value in initializers(result.model).items() if initializers(plain.model)[name] != value}
    assert moved == (set(result.new_initializers) & moved if report.best_step else set())
    assert bool(moved) == bool(report.best_step)
    goal = Runner(small_model())(data)["y"]
    before, after = (np.square(Runner(made.model)(data)["y"] - goal).mean() for made in (plain, result))
    assert after < before if report.best_step else after == before


# ---------------------------------------------------------------- nothing is held but a batch


class Reads:
    """How many samples are asked for at once, and how many of those that were read are still in memory by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        self.most_alive = 0
        self._alive: list[weakref.ref[Array]] = []
        read = ArraySamples.read

        def counted(samples: ArraySamples, indices: Sequence[int]) -> dict[str, Array]:
            found = read(samples, indices)
            self.asked.append(len(indices))
            self._alive = [ref for ref in self._alive if ref() is not None]
            self._alive += [weakref.ref(array) for array in found.values()]
            alive = [array for ref in self._alive if (array := ref()) is not None]
            self.most_alive = max(self.most_alive, sum(map(len, alive)))
            return found

        monkeypatch.setattr(ArraySamples, "read", counted)


@needs_torch
@pytest.mark.parametrize("batch", ["n", 4, 1])
@pytest.mark.parametrize("augment", [True, False])
def test_no_more_samples_than_a_step_are_in_memory(
    batch: int | str, augment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = noisy(small_model(batch=batch)), small_model(batch=batch)
    reads = Reads(monkeypatch)
    # 20 samples are held out, more than are fed at once.
    result = tuned(student, teacher, images(200), steps=3, augment=augment)
    assert result.steps == 3
    assert max(reads.asked) == (8 if batch == "n" else batch)
    assert reads.most_alive <= 8
    assert sum(reads.asked) >= 3 * 8 + 4 * 20


@needs_torch
def test_fine_tuning_holds_no_more_either(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    data = small_data(100)
    onnxsep.finetune(small_model(), data=data, teacher=small_model(), batch=8, epochs=1, validation=0.5, runtime=ONE)
    assert max(reads.asked) == 8
    assert reads.most_alive <= 8


@needs_torch
def test_outputs_that_are_too_large_to_keep_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = noisy(small_model())
    batches = Batches(open_data(images(), model), range(40), 4, 0.5, 0)
    runner, asked = Teacher(small_model(), ONE), []

    def teacher(feeds: Any) -> Any:
        asked.append(len(feeds["x"]))
        return runner(feeds)

    loss = Loss(torch, LossSettings("outputs", 0.0, 1.0, None), {}, Reference(torch, map(runner, batches.examples(20))))
    learner = Learner(to_torch(model))
    found = []
    for most in (16 * 2**20, 2 * 4 * 4 * 4, 0):  # all, those of two feeds of 4 samples with 4 floats, none
        monkeypatch.setattr(measuring, "_MOST_KEPT", most)
        held_out = HeldOut(batches, loss, teacher, learner.group)
        found += [held_out.figures(learner) for _ in range(2)]
    assert asked == [4] * (5 + 5 + 3 + 5 + 5)
    assert len({figures.loss for figures in found}) == 1
    assert found[0].loss > 0


# ---------------------------------------------------------------- what a teacher's outputs are like, batch by batch


def batches_of(random: np.random.Generator, *sizes: int) -> list[Array]:
    return [(3 + 2 * random.standard_normal((size, 5))).astype(np.float32) for size in sizes]


@needs_torch
def test_scales_do_not_depend_on_the_batches() -> None:
    import torch

    parts = batches_of(np.random.default_rng(0), 1, 7, 32, 2)
    whole = np.concatenate(parts).astype(np.float64)
    for given in (parts, [np.concatenate(parts)]):
        (scale, least) = Reference(torch, ({"y": part} for part in given)).compared()["y"]
        assert scale == pytest.approx(whole.var(), rel=1e-12)
        assert least is None
    powers = [np.exp(part) for part in parts]
    softmax = [power / power.sum(1, keepdims=True) for power in powers]
    centred = np.concatenate([np.log(part) - np.log(part).mean(1, keepdims=True) for part in softmax])
    reference = Reference(torch, ({"y": part} for part in softmax))
    (scale, least) = reference.compared()["y"]
    assert scale == pytest.approx(centred.astype(np.float64).var(), rel=1e-5)
    assert least is not None
    assert reference.are_probabilities("y")


@needs_torch
def test_outputs_that_do_not_vary_are_compared_with_their_size() -> None:
    import torch

    for value, scale in ((3.0, 9.0), (0.0, 1.0)):
        parts = [{"y": np.full((size, 2, 2), value, np.float32)} for size in (2, 3)]
        assert Reference(torch, parts).compared()["y"][0] == pytest.approx(scale)


@needs_torch
def test_one_batch_may_say_otherwise() -> None:
    """The last one holds no probabilities, a value that is not finite, or no such output."""
    import torch

    even = np.full((2, 4), 0.25, np.float32)
    scores = np.array([[1.0, 2, 3, 4]], np.float32)
    reference = Reference(torch, [{"y": even}, {"y": scores}])
    assert not reference.are_probabilities("y")
    values = np.concatenate([even, scores]).astype(np.float64)
    scale, least = reference.compared()["y"]
    assert scale == pytest.approx(values.var())
    assert least is None
    for bad in (np.nan, np.inf):
        with pytest.raises(FeedError, match="'y' is not finite"):
            Objective(torch, Reference(torch, [{"y": scores}, {"y": np.full((1, 4), bad, np.float32)}]))
    assert not Reference(torch, [{"y": even, "z": even}, {"y": even}]).has("z")
    with pytest.raises(FeedError, match="no output of floats"):
        Objective(torch, Reference(torch, [{"y": np.arange(4)}]))


# ---------------------------------------------------------------- data of every kind


def any_size(*, batched: bool = True) -> Model:
    """Images of any height and width to their Relu; without a batch axis they are images in a batch of one."""
    free: list[int | str] = ["n", 3, "h", "w"]
    dims = free if batched else free[1:]
    first = numpy_helper.from_array(np.zeros(1, np.int64), "first")
    nodes = [] if batched else [helper.make_node("Unsqueeze", ["x", "first"], ["a"])]
    nodes.append(helper.make_node("Conv", ["x" if batched else "a", "stem"], ["b"], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    weight = numpy_helper.from_array(np.random.default_rng(3).standard_normal((2, 3, 3, 3)).astype(np.float32), "stem")
    graph = helper.make_graph(
        nodes,
        "any",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [weight] if batched else [weight, first],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


@needs_torch
@pytest.mark.parametrize("batched", [True, False])
def test_images_of_several_sizes(batched: bool) -> None:
    random = np.random.default_rng(0)
    shapes = [(3, 16, 16), (3, 20, 12), (3, 9, 31)] * 4
    feeds = [{"x": random.standard_normal((2, *shape) if batched else shape).astype(np.float32)} for shape in shapes]
    teacher, student = any_size(batched=batched), noisy(any_size(batched=batched))
    result = tuned(student, teacher, feeds, steps=15, batch_size=4)
    assert result.held_out_after < 0.8 * result.held_out_before


@needs_torch
@pytest.mark.parametrize(("count", "batch"), [(1, "n"), (7, 4)])
def test_too_few_samples(count: int, batch: int | str) -> None:
    model = small_model(batch=batch)
    words = f"{count} samples are too few to train on and to hold some out.*; give more$"
    with pytest.raises(DataError, match=words):
        tuned(model, model, images(count))
    with pytest.raises(DataError, match=words.removesuffix("$") + ", or hold none out"):
        onnxsep.finetune(model, data=images(count), teacher=model, runtime=ONE)
