"""Fine-tuning: losses by hand, the loop on small networks, and the digits model from rewrite to accuracy."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from digits import digits_in
from finetuning_models import (
    DIGITS,
    ONE,
    initializers,
    needs_torch,
    quick,
    small_data,
    small_model,
    write_data,
)
from onnx import helper, numpy_helper
from random_examples import some

import onnxsep
from onnxsep.data import open_data
from onnxsep.errors import DataError, ModelSaveError, OptionError, TrainingError
from onnxsep.model.io import Model, load
from onnxsep.running.runtime import Runner
from onnxsep.training import to_torch
from onnxsep.training.augment import Augment
from onnxsep.training.batches import Batches
from onnxsep.training.checkpoint import Checkpoint, CheckpointFile
from onnxsep.training.learner import Learner
from onnxsep.training.losses import Loss, LossSettings
from onnxsep.training.objective import Reference
from onnxsep.training.run_records import Settings
from onnxsep.training.schedule import one_cycle, share_of_rate
from onnxsep.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits as train.npz and test.npz."""
    return digits_in(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def damaged() -> Model:
    """The digits model with one-term depthwise Convs, which lost nearly all of its accuracy."""
    return onnxsep.rewrite(DIGITS, mode="depthwise", rank=1, verify="none").model


def correct(model: Model, digits: Path) -> int:
    """How many of the 450 test images ONNX Runtime names correctly."""
    arrays = np.load(digits / "test.npz")
    runner = Runner(model, ONE)
    name = model.proto.graph.input[0].name
    (scores,) = runner({name: arrays["x"]}).values()
    return int((scores.argmax(1) == arrays["y"]).sum())


# ---------------------------------------------------------------- the digits model


@needs_torch
@pytest.mark.parametrize(
    ("options", "labelled"),
    some(
        [
            pytest.param({"teacher": DIGITS}, False, id="outputs"),
            pytest.param({"teacher": DIGITS, "loss": "soft"}, False, id="soft"),
            pytest.param({}, True, id="labels"),
            pytest.param({"teacher": DIGITS}, True, id="outputs and labels"),
        ],
        2,
    ),
)
def test_digits_recover_their_accuracy(damaged: Model, digits: Path, options: dict[str, Any], labelled: bool) -> None:
    arrays = dict(np.load(digits / "train.npz"))
    if not labelled:
        del arrays["y"]
    before = correct(damaged, digits)
    result = onnxsep.finetune(damaged, data=arrays, epochs=8, runtime=ONE, **options)
    after, original = correct(result.model, digits), correct(load(DIGITS), digits)
    assert before < 0.3 * 450
    assert after >= original - 0.03 * 450
    report = result.report
    assert report.accuracy_of == ("labels" if labelled else "teacher")
    assert report.before is not None
    kept = report.epochs[report.best_epoch - 1].validation
    assert kept is not None
    assert kept.loss == min(done.validation.loss for done in report.epochs if done.validation) < report.before.loss
    assert (report.training_samples, report.held_out_samples) == (1212, 135)


@needs_torch
def test_graph_names_and_metadata_stay(damaged: Model) -> None:
    data = {"x": np.random.default_rng(0).random((40, 1, 8, 8), np.float32)}
    result = onnxsep.finetune(damaged, data=data, teacher=DIGITS, epochs=2, runtime=ONE)
    changed = [name for name, value in initializers(damaged).items() if initializers(result.model)[name] != value]
    assert changed
    before, after = onnx.ModelProto(), onnx.ModelProto()
    for copy, model in ((before, damaged), (after, result.model)):
        copy.CopyFrom(model.proto)
        for tensor in copy.graph.initializer:
            if tensor.name in changed:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
    assert before == after


@needs_torch
def test_pruned_weights_stay_zero(digits: Path) -> None:
    pruned = onnxsep.prune(DIGITS, sparsity=0.7, verify="none").model
    zeros = {
        tensor.name: numpy_helper.to_array(tensor) == 0
        for tensor in pruned.proto.graph.initializer
        if len(tensor.dims) > 1
    }
    count = sum(int(where.sum()) for where in zeros.values())

    def zeros_left(result: onnxsep.FinetuneResult) -> int:
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.proto.graph.initializer}
        return sum(int((tensors[name][where] == 0).sum()) for name, where in zeros.items())

    data = digits / "train.npz"
    kept = onnxsep.finetune(pruned, data=data, epochs=2, samples=300, runtime=ONE)
    moved = onnxsep.finetune(pruned, data=data, epochs=2, samples=300, keep_zeros=False, runtime=ONE)
    assert kept.report.best_epoch > 0
    assert kept.report.zeros_kept == zeros_left(kept) == count > 1000
    assert moved.report.zeros_kept == 0
    assert zeros_left(moved) < 0.1 * count


# ---------------------------------------------------------------- losses, rates, images


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@needs_torch
@pytest.mark.parametrize("probabilities", [False, True])
def test_losses_are_those_of_the_definition(probabilities: bool) -> None:
    import torch

    random = np.random.default_rng(1)
    ours, theirs = (random.standard_normal((6, 5)) for _ in range(2))
    labels, heat, weight = random.integers(0, 5, 6), 3.0, 0.25
    hard = -np.log(softmax(ours)[np.arange(6), labels]).mean()
    p, q = softmax(theirs / heat), softmax(ours / heat)
    soft = heat**2 * (p * np.log(p / q)).sum(1).mean()
    given = [softmax(values) if probabilities else values for values in (ours, theirs)]
    found, wanted = ({"y": values.astype(np.float32)} for values in given)
    reference = Reference(torch, [wanted])
    loss = Loss(torch, LossSettings("soft", weight, heat, "y"), found, reference)
    outcome = loss({"y": torch.from_numpy(found["y"])}, wanted, labels)
    assert float(outcome.loss) == pytest.approx(weight * hard + (1 - weight) * soft, rel=1e-4)
    assert outcome.correct == int((ours.argmax(1) == labels).sum())
    unlabelled = Loss(torch, LossSettings("soft", 0.0, heat, "y"), found, reference)
    outcome = unlabelled({"y": torch.from_numpy(found["y"])}, wanted, None)
    assert float(outcome.loss) == pytest.approx(soft, rel=1e-4)
    assert outcome.correct == int((ours.argmax(1) == theirs.argmax(1)).sum())


def test_rates() -> None:
    rates = [one_cycle(step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert {share_of_rate("constant", step, 100) for step in range(1, 101)} == {1.0}


def test_crops_and_flips_alone() -> None:
    image = np.arange(16 * 16, dtype=np.float32).reshape(1, 1, 16, 16).repeat(40, 0)
    flips = Augment("x", (2, 3), np.random.default_rng(0), crop=False)({"x": image})["x"]
    kinds = {
        ("same" if (one == image[0]).all() else "mirrored" if (one == image[0, :, :, ::-1]).all() else "other")
        for one in flips
    }
    assert kinds == {"same", "mirrored"}
    crops = Augment("x", (2, 3), np.random.default_rng(0), flip=False)({"x": image})["x"]
    middle = crops[:, 0, 4:12, 4:12]
    assert (np.diff(middle, axis=2) == 1).all()  # never mirrored
    assert len({float(one[0, 0]) for one in middle}) > 10


# ---------------------------------------------------------------- the loop


@needs_torch
def test_same_seed_same_weights() -> None:
    first, again = (initializers(quick(small_model(), augment="crop,flip").model) for _ in range(2))
    assert first == again
    assert initializers(quick(small_model(), augment="crop,flip", seed=1).model) != first


@needs_torch
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
def test_optimisers_lower_the_loss(optimizer: Any, schedule: Any) -> None:
    report = quick(small_model(), epochs=5, optimizer=optimizer, schedule=schedule).report
    assert report.before is not None
    validation = report.epochs[report.best_epoch - 1].validation
    assert validation is not None
    assert validation.loss < report.before.loss
    assert report.used["rate"] == (0.05 if optimizer == "sgd" else 0.001)


@needs_torch
def test_statistics_are_trained_or_frozen() -> None:
    model = small_model()
    before = initializers(model)
    trained, frozen = initializers(quick(model).model), initializers(quick(model, batch_norm="frozen").model)
    for name in ("mean", "variance"):
        assert trained[name] != before[name]
        assert frozen[name] == before[name]
    assert frozen["scale"] != before["scale"]
    fixed = quick(small_model(batch=4))
    assert fixed.report.used["batch_norm"] == "frozen"
    assert any("4 samples at a time" in note for note in fixed.report.notes)
    assert initializers(fixed.model)["mean"] == before["mean"]


@needs_torch
def test_accumulated_steps_equal_one_batch() -> None:
    """A model that takes 4 samples at a time learns what one does that takes 16 at once."""
    one, four = (quick(small_model(norm=False, batch=batch), validation=0.25) for batch in ("n", 4))
    for done, other_done in zip(one.report.epochs, four.report.epochs, strict=True):
        assert done.training.loss == pytest.approx(other_done.training.loss, rel=1e-3)
        assert done.training.accuracy == other_done.training.accuracy
    for tensor in one.proto.graph.initializer:
        other = next(t for t in four.proto.graph.initializer if t.name == tensor.name)
        np.testing.assert_allclose(numpy_helper.to_array(tensor), numpy_helper.to_array(other), rtol=1e-3, atol=1e-5)


@needs_torch
def test_nothing_better_leaves_the_model_alone() -> None:
    model = small_model()
    data = {"x": small_data()["x"]}
    result = quick(model, data, teacher=model, patience=2, epochs=9)
    assert result.model.proto == model.proto
    assert (result.report.best_epoch, result.report.stopped, len(result.report.epochs)) == (0, "early", 2)
    assert any("stay as they were" in note for note in result.report.notes)


@needs_torch
def test_without_validation_the_last_weights_are_kept() -> None:
    report = quick(small_model(), validation=0).report
    assert (report.best_epoch, report.held_out_samples, report.before) == (3, 0, None)


class Interrupt:
    """Ctrl-C when a number of steps is done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, words: str, done: int, total: int) -> None:
        assert "loss" in words
        assert "accuracy" in words
        assert 0 < done <= total
        if done == self.steps:
            raise KeyboardInterrupt


@needs_torch
@pytest.mark.parametrize(
    "more",
    [{}, {"batch_norm": "insert"}, {"optimizer": "adam", "rate": 0.01, "precision": "bfloat16"}],
    ids=["plain", "norms put in", "adam in bfloat16"],
)
def test_an_interrupted_run_keeps_the_best_and_goes_on(tmp_path: Path, more: dict[str, Any]) -> None:
    options: dict[str, Any] = {"epochs": 5, "augment": "crop,flip", **more}
    whole = quick(small_model(), **options)
    file = tmp_path / "state"
    part = quick(small_model(), checkpoint=file, progress=Interrupt(3 * 3 + 2), **options)
    assert part.report.stopped == "interrupted"
    assert [done.epoch for done in part.report.epochs] == [1, 2, 3]
    assert part.report.best_epoch > 0
    assert initializers(part.model) != initializers(small_model())
    part.save(tmp_path / "part.onnx")
    rest = quick(small_model(), checkpoint=file, resume=True, **options)
    assert rest.report.resumed_after == 3
    assert initializers(rest.model) == initializers(whole.model)
    assert [done.validation for done in rest.report.epochs] == [done.validation for done in whole.report.epochs]
    rest.save(tmp_path / "rest.onnx")
    assert not file.exists()


@needs_torch
def test_interrupted_before_anything_is_gained() -> None:
    with pytest.raises(KeyboardInterrupt):
        quick(small_model(), progress=Interrupt(2))


def trainer(told: Any, graph: Any, model: Model, checkpoint: CheckpointFile | None = None) -> Trainer:
    import torch

    data = open_data(small_data(), model)
    batches = Batches(data, range(len(data)), 16, 0.1, 0)
    loss = Loss(torch, LossSettings(None, 1.0, 1.0, "y"), {"y": np.zeros((2, 4), np.float32)}, None)
    settings = Settings(4, "sgd", 0.05, "one-cycle", 0.0, 0, 0)
    return Trainer(Learner(graph), batches, loss, None, None, settings, checkpoint, told)


@needs_torch
def test_nan_stops_and_keeps_the_last_good_weights() -> None:
    import torch

    model = small_model()
    graph = to_torch(model)

    def break_it(words: str, done: int, total: int) -> None:
        if done == 2 * 3 + 1:
            with torch.no_grad():
                graph.parameters["head"][0, 0] = math.nan

    done = trainer(break_it, graph, model).run()
    assert done.stopped == "diverged"
    assert "step 2 of epoch 3" in done.notes[-1]
    assert done.best_epoch in (1, 2)
    assert all(np.isfinite(array).all() for array in done.arrays.values())
    good = trainer(None, to_torch(model), model).run()
    assert [one.training for one in done.history] == [one.training for one in good.history[:2]]


@needs_torch
def test_nan_at_once_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"step \d of epoch 1; lower the learning rate"):
        quick(small_model(norm=False), rate=1e38, schedule="constant")
    data = small_data()
    model = small_model()
    next(t for t in model.proto.graph.initializer if t.name == "head").raw_data = b"\0\0\xc0\x7f" * 24
    with pytest.raises(TrainingError, match="not finite before training"):
        quick(model, data)


# ---------------------------------------------------------------- checkpoints


@needs_torch
def test_a_checkpoint_of_another_run_or_of_none(tmp_path: Path) -> None:
    file = tmp_path / "state"
    quick(small_model(), checkpoint=file)
    with pytest.raises(OptionError, match="is there already; add resume=True"):
        quick(small_model(), checkpoint=file)
    with pytest.raises(OptionError, match="another run: rate differ"):
        quick(small_model(), checkpoint=file, resume=True, rate=0.01)
    other = small_data()
    other["y"] = other["y"][::-1]
    with pytest.raises(OptionError, match="another run: the data or its labels differ"):
        quick(small_model(), other, checkpoint=file, resume=True)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OptionError, match="holds no checkpoint"):
        quick(small_model(), checkpoint=file, resume=True)
    with pytest.raises(OptionError, match="name the checkpoint"):
        quick(small_model(), resume=True)
    fresh = quick(small_model(), checkpoint=tmp_path / "none", resume=True)
    assert any("no checkpoint to resume from" in note for note in fresh.report.notes)


@needs_torch
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="only Unix can limit the size of files")
    import torch

    file = CheckpointFile(tmp_path / "state", {"rate": 1})
    small = Checkpoint({"w": torch.ones(3)}, {}, {}, {"epoch": 1})
    file.write(small)
    before = (tmp_path / "state").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 4096, limits[1]))
    try:
        with pytest.raises(ModelSaveError, match="It is as it was"):
            file.write(Checkpoint({"w": torch.ones(100_000)}, {}, {}, {"epoch": 2}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "state").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    state = file.read()
    assert state is not None
    assert state.progress == {"epoch": 1}


@needs_torch
def test_training_goes_on_without_its_checkpoint(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="only Unix can limit the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        result = quick(small_model(), checkpoint=tmp_path / "state")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.report.best_epoch > 0
    assert sum("the checkpoint of epoch" in note for note in result.report.notes) == 3


# ---------------------------------------------------------------- other kinds of models


def two_outputs() -> Model:
    """Images to images of twice the channels, and to their mean: nothing that looks like class scores."""
    random = np.random.default_rng(2)
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=numpy_helper.from_array(np.ones(6, np.float32), "v")),
        helper.make_node("Conv", ["x", "w", "bias"], ["image"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=1),
    ]
    weight = numpy_helper.from_array(random.standard_normal((6, 3, 3, 3)).astype(np.float32), "w")
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", float32, ["n", 3, 16, 16])],
        [
            helper.make_tensor_value_info("image", float32, ["n", 6, 16, 16]),
            helper.make_tensor_value_info("mean", float32, ["n", 1, 1, 1]),
        ],
        [weight],
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


@needs_torch
def test_a_teacher_alone_for_outputs_of_any_kind() -> None:
    teacher, student = two_outputs(), two_outputs()
    tensor = student.proto.graph.initializer[0]
    tensor.raw_data = (0.5 * numpy_helper.to_array(tensor)).tobytes()
    # The data's labels are no classes of any output, so they are not used.
    result = quick(student, teacher=teacher, epochs=30, optimizer="adam", rate=0.1)
    report = result.report
    assert (report.accuracy_of, report.used["label_weight"], report.used["output"]) == ("nothing", 0.0, None)
    assert all(done.training.accuracy is None for done in report.epochs)
    assert report.before is not None
    assert report.epochs[-1].validation is not None
    assert report.epochs[-1].validation.loss < report.before.loss / 3
    with pytest.raises(OptionError, match="needs class scores"):
        quick(student, teacher=teacher, loss="soft")
    with pytest.raises(OptionError, match="needs class scores"):
        quick(student, teacher=teacher, label_weight=0.2)


@needs_torch
def test_a_teacher_of_one_batch_size() -> None:
    student = small_model(norm=False)
    tensor = student.proto.graph.initializer[0]
    tensor.raw_data = (0.5 * numpy_helper.to_array(tensor)).tobytes()
    fixed, free = (
        quick(student, {"x": small_data()["x"]}, teacher=small_model(norm=False, batch=batch), validation=0.25)
        for batch in (4, "n")
    )
    for one, other in zip(fixed.proto.graph.initializer, free.proto.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(one), numpy_helper.to_array(other), rtol=1e-3, atol=1e-5)


@needs_torch
def test_weights_in_a_data_file_are_trained_too(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    proto = onnx.ModelProto()
    proto.CopyFrom(two_outputs().proto)
    onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    result = quick(load(tmp_path / "in.onnx"), {"x": small_data()["x"]}, teacher=small_teacher(), epochs=2)
    result.save(tmp_path / "out" / "out.onnx")
    saved = onnx.load(tmp_path / "out" / "out.onnx")
    assert result.report.best_epoch > 0
    weight = numpy_helper.to_array(saved.graph.initializer[0])
    before = numpy_helper.to_array(two_outputs().proto.graph.initializer[0])
    assert 0 < np.abs(weight - before).max() < 1


def small_teacher() -> Model:
    """The two outputs with other weights."""
    model = two_outputs()
    tensor = model.proto.graph.initializer[0]
    tensor.raw_data = (0.8 * numpy_helper.to_array(tensor)).tobytes()
    return model


# ---------------------------------------------------------------- bad input


@needs_torch
def test_labels_that_do_not_fit() -> None:
    data = small_data()
    with pytest.raises(DataError, match="has no labels"):
        quick(small_model(), {"x": data["x"]})
    data["y"][10] = 4
    with pytest.raises(DataError, match="label of sample 10 is 4, but the model has 4 classes"):
        quick(small_model(), data)


@needs_torch
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "rate must be above 0"),
        ({"rate": math.nan}, "rate must be above 0"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"validation": 1.0}, "validation must be"),
        ({"validation": 0, "patience": 1}, "patience needs samples"),
        ({"label_weight": 0.5}, "add teacher"),
        ({"label_weight": 1.5}, "label_weight must be from 0 to 1"),
        ({"optimizer": "lion"}, "'lion' is not one of sgd, adam"),
        ({"output": "z"}, "no output 'z'"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        quick(small_model(), **options)


@needs_torch
def test_augmentation_of_what_is_no_image(damaged: Model) -> None:
    data = {"x": np.zeros((8, 1, 8, 8), np.float32)}
    with pytest.raises(OptionError, match="augment='crop' needs one image"):
        onnxsep.finetune(damaged, data=data, teacher=DIGITS, augment="crop", runtime=ONE)


@needs_torch
def test_an_operator_without_gradient_is_named(tmp_path: Path) -> None:
    model = small_model(end="Hardmax")
    model.proto.graph.node[-1].name = "choice"
    onnxsep.save(model, tmp_path / "in.onnx")
    write_data(tmp_path / "data.npz", 32)
    done = run("finetune", "in.onnx", "out.onnx", "--data", "data.npz", cwd=tmp_path)
    assert done.returncode == 1
    assert "no gradient goes back from 'y' to its weights; that of Hardmax 'choice' is 0" in " ".join(
        done.stderr.split()
    )
    assert not (tmp_path / "out.onnx").exists()


def test_missing_torch_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import onnxsep\n"
        "try: onnxsep.finetune('none.onnx', data='none')\n"
        "except onnxsep.OnnxsepError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingDependencyError")
    assert "onnxsep[finetune]" in done.stdout


# ---------------------------------------------------------------- the command


@needs_torch
def test_command(tmp_path: Path) -> None:
    onnxsep.save(small_model(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=small_data()["x"])
    rows = [f"{place},{label}" for place, label in enumerate(small_data()["y"])]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options = ["--data", "data.npz", "--labels", "labels.csv", "--epochs", 2, "--threads", 1, "--batch", 16]
    done = run("finetune", "in.onnx", "out.onnx", *options, "--json", "--report", "report.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert len(report["epochs"]) == 2
    assert report["output"] == "out.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.npz",
        "in.onnx",
        "labels.csv",
        "out.onnx",
        "report.json",
    ]
    same = onnxsep.finetune(
        tmp_path / "in.onnx",
        data=tmp_path / "data.npz",
        labels=tmp_path / "labels.csv",
        epochs=2,
        batch=16,
        runtime=ONE,
    )
    assert initializers(load(tmp_path / "out.onnx")) == initializers(same.model)
    shown = run("finetune", "in.onnx", "out.onnx", *options, cwd=tmp_path)
    assert "(kept)" in shown.stdout
    assert "held-out accuracy" in shown.stdout


@needs_torch
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_writes_the_best_so_far(tmp_path: Path) -> None:
    onnxsep.save(small_model(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=small_data()["x"], y=small_data()["y"])
    options = [
        "--data",
        "data.npz",
        "--epochs",
        "100000",
        "--schedule",
        "constant",
        "--rate",
        "0.001",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "onnxsep", "finetune", "in.onnx", "out.onnx", *options, "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "out.onnx.checkpoint").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130, errors
    assert "out.onnx holds the best so far" in errors
    assert initializers(load(tmp_path / "out.onnx")) != initializers(small_model())
    assert (tmp_path / "out.onnx.checkpoint").exists()


def test_command_refuses(tmp_path: Path) -> None:
    onnxsep.save(small_model(), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=small_data()["x"], y=small_data()["y"])
    wrong = run("finetune", "in.onnx", "out.onnx", "--data", "data.npz", "--loss", "hinge", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--loss" in wrong.stderr
    over = run("finetune", "in.onnx", "out.onnx", "--data", "data.npz", "--checkpoint", "data.npz", cwd=tmp_path)
    assert over.returncode == 1
    assert "would overwrite data.npz" in over.stderr
    assert not (tmp_path / "out.onnx").exists()
