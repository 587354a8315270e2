"""Warnings of ``quantize`` and ``compress``: what got slower, larger or less exact, and the option that is better."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from calibration_models import MODEL, ONE_THREAD, images
from command_line import run

import onnxsep
from onnxsep.compression import FineTune, Pipeline, Prune, Quantize, Rewrite, read_recipe, shipped_recipes
from onnxsep.compression.unseen import keep_unseen
from onnxsep.compression.worse import worse
from onnxsep.data import open_data, tenth
from onnxsep.errors import OptionError
from onnxsep.evaluation.report import (
    Accuracy,
    AgainstReference,
    EvaluatedModel,
    Latency,
    LatencyRatio,
    OutputError,
    Share,
)
from onnxsep.model.io import Model
from onnxsep.quantization.comparing import warnings
from onnxsep.quantization.options import QuantizeOptions
from onnxsep.quantization.report import OutputError as QuantizedOutput
from onnxsep.quantization.report import Speed
from onnxsep.reporting.commands import document_of
from onnxsep.reporting.records import Paired
from onnxsep.reporting.text import plain_text

X = images(40)


def timed(ratio: float | None, error: float = 0.01) -> Latency:
    against = None if ratio is None else LatencyRatio(value=ratio, standard_error=error)
    return Latency(median_ms=1, lower_quartile_ms=1, upper_quartile_ms=1, runs=9, against_first=against)


def row(**changes: Any) -> EvaluatedModel:
    plain = {"name": "m", "path": None, "file_bytes": 1000, "parameters": 1, "nonzero_parameters": 1}
    return EvaluatedModel(**{**plain, "macs": 1, "macs_unknown": 0, "latency": timed(1.0, 0.0), **changes})


def right(value: float, error: float | None = 0.003) -> Accuracy:
    share = Share(count=int(1000 * value), total=1000, value=value, standard_error=0.01)
    if error is None:
        return Accuracy(share=share)
    return Accuracy(share=share, against_first=Paired(difference=value - 0.9, standard_error=error, won=0, lost=0))


def agreeing(value: float | None, relative: float) -> AgainstReference:
    share = None if value is None else Share(count=int(1000 * value), total=1000, value=value, standard_error=0.005)
    return AgainstReference(agreement=share, outputs=(OutputError(name="y", relative=relative),))


STEPS = (Rewrite(mode="depthwise"), Quantize(activations="uint8"))


# ---------------------------------------------------------------- compress


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([row(latency=timed(1.3)), row(latency=timed(0.5))], "step 1 (rewrite) makes the model slower: 1.30"),
        ([row(latency=timed(0.5)), row(latency=timed(0.7))], "step 2 (quantize) makes the model slower: 1.40"),
        ([row(file_bytes=1001), row(file_bytes=500)], "step 1 (rewrite) makes the file larger: 1,000 -> 1,001"),
        ([row(top1=right(0.85)), row(top1=right(0.85))], "step 1 (rewrite) loses 5.0 +- 0.3 points of top-1"),
        ([row(against_reference=agreeing(0.9, 0.1))] * 2, "step 1 (rewrite) loses 10.0 +- 0.5 points of agreement"),
        ([row(against_reference=agreeing(None, 0.4))] * 2, "step 1 (rewrite) loses exactness: the relative error"),
    ],
)
def test_what_gets_worse_is_said(after: list[EvaluatedModel], words: str) -> None:
    found = list(worse(STEPS, [row(top1=right(0.9, None), latency=timed(None)), *after]))
    assert len(found) == 1
    assert found[0].startswith(words)


@pytest.mark.parametrize(
    "after",
    [
        [row(latency=timed(1.04)), row(latency=timed(1.0))],  # nobody notices
        [row(latency=timed(1.3, 0.2)), row(latency=timed(1.0, 0.2))],  # nobody knows
        [row(top1=right(0.895)), row(top1=right(0.895))],  # half a point
        [row(top1=right(0.88, 0.02)), row(top1=right(0.88, 0.02))],  # two points that may be none
        [row(latency=None), row(latency=None)],
        [row(against_reference=agreeing(None, 0.2))] * 2,
    ],
)
def test_what_is_no_worse_is_not_said(after: list[EvaluatedModel]) -> None:
    assert not list(worse(STEPS, [row(top1=right(0.9, None), latency=timed(None)), *after]))


def test_a_slow_result_is_compared_with_the_original_too() -> None:
    found = list(worse(STEPS, [row(latency=timed(None)), row(latency=timed(1.04)), row(latency=timed(1.08))]))
    assert len(found) == 1
    assert found[0].startswith("the result is slower than the original: 1.080")


def test_what_training_wins_back_is_not_lost() -> None:
    steps = (Rewrite(mode="depthwise"), FineTune())
    rows = [row(top1=right(0.9, None)), row(top1=right(0.5)), row(top1=right(0.9))]
    assert not list(worse(steps, rows))
    (text,) = worse(steps, [*rows[:2], row(top1=right(0.8))])
    assert text.startswith("the result has lost 10.0 +- 0.3 points of top-1 accuracy against the original")


def test_the_step_int8_of_x86_names_its_option() -> None:
    (text,) = worse((Quantize(),), [row(latency=timed(None)), row(latency=timed(1.2))])
    assert text.endswith('on x86 processors activations = "uint8" is the fast form')


# ---------------------------------------------------------------- quantize


def options(**given: Any) -> QuantizeOptions:
    return QuantizeOptions(data=X, **given)


def test_warnings_of_quantize() -> None:
    slow = Speed(batch=1, source=timed(None), result=timed(1.2, 0.02))
    (text,) = warnings(options(), (1000, 300), slow, ())
    assert text.startswith("the result is slower than the source: 1.20 +- 0.02 times")
    assert "activations='uint8'" in text
    (text,) = warnings(options(activations="uint8"), (1000, 300), slow, ())
    assert "uint8" not in text
    (text,) = warnings(options(), (1000, 1000), None, ())
    assert text.startswith("the file did not get smaller (1,000 -> 1,000 bytes)")
    far = QuantizedOutput(name="y", relative=0.4, max_abs=1)
    assert len(list(warnings(options(), (1000, 300), None, [far]))) == 1
    sound = far.model_copy(update={"agreement": 0.99})
    assert not list(warnings(options(), (1000, 300), None, [sound]))
    other = far.model_copy(update={"agreement": 0.9})
    (text,) = warnings(options(), (1000, 300), None, [other])
    assert "of another class for 10.0% of the samples" in text
    fast = Speed(batch=1, source=timed(None), result=timed(0.4))
    assert not list(warnings(options(), (1000, 300), fast, ()))


def test_quantize_measures_its_result_beside_the_source() -> None:
    report = onnxsep.quantize(MODEL, data=X, runtime=ONE_THREAD).report
    assert report.speed is not None
    assert report.speed.result.against_first is not None
    assert report.speed.batch == 1
    assert "latency " in plain_text(document_of(report))
    # A network of a few thousand weights: what the quantiser writes beside them is more than they shrink by.
    assert any("the file did not get smaller" in text for text in report.warnings) == (
        report.bytes_after >= report.bytes_before
    )


def test_no_verify_measures_nothing(tmp_path: Path) -> None:
    verified = onnxsep.quantize(MODEL, data=X, runtime=ONE_THREAD)
    done = onnxsep.quantize(MODEL, data=X, verify="none", runtime=ONE_THREAD)
    assert done.proto == verified.proto
    assert (done.report.speed, done.report.outputs, done.report.measured_samples) == (None, (), 0)
    with pytest.raises(OptionError, match="max_error needs a verification, and verify='none' switches it off"):
        onnxsep.quantize(MODEL, data=X, verify="none", max_error=0.1)
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X)
    assert run("quantize", "m.onnx", "q.onnx", "--data", "d.npz", "--no-verify", cwd=tmp_path).returncode == 0


# ---------------------------------------------------------------- what compress is measured on


def test_what_no_step_sees_is_measured_on() -> None:
    data = open_data(X, Model(MODEL))
    found = keep_unseen(Pipeline([Quantize(samples=20)]).recipe, data, 0)
    assert not found.reserved
    assert found.measured is not None
    assert len(found.measured.sample(None)) == 4  # 20 calibrate, 16 choose between two forms of the result
    # A rewrite leaves out a tenth by itself, and pruning sees nothing.
    found = keep_unseen(Pipeline([Rewrite(mode="spatial"), Prune(sparsity=0.5)]).recipe, data, 0)
    assert not found.reserved
    assert found.measured is not None
    assert found.measured.sample(None) == tenth(data, 0)
    # What is left out of a calibration may choose between two forms of the result: that is seen too.
    assert keep_unseen(Pipeline([Quantize()]).recipe, data, 0).reserved
    # Of different seeds they leave out different ones: the run keeps its own tenth from both.
    steps = Pipeline([Rewrite(mode="spatial", seed=1), Quantize(seed=2)]).recipe
    found = keep_unseen(steps, data, 0)
    assert found.reserved
    assert list(found.steps.reserved) == tenth(data, 0)
    assert keep_unseen(steps, open_data(X[:15], Model(MODEL)), 0).measured is None
    assert keep_unseen(Pipeline([Prune(sparsity=0.5)]).recipe, open_data(X[:15], Model(MODEL)), 0).measured is not None


def test_steps_do_not_see_what_is_kept() -> None:
    """Other values in the samples that are kept change no step's result, and change what is measured."""
    held = tenth(open_data(X, Model(MODEL)), 0)
    assert held is not None
    changed = X.copy()
    changed[held] *= 2
    steps = Pipeline([Rewrite(mode="spatial", rank=2, positions=8, seed=1), Quantize(seed=2)])
    first, second = (steps(MODEL, data=data, runs=0, runtime=ONE_THREAD) for data in (X, changed))
    assert first.proto == second.proto
    assert first.report.measured_on == second.report.measured_on == "unseen"
    assert first.report.evaluation.samples == len(held) == 4
    errors = [
        [out.relative for out in one.report.evaluation.models[1].against_reference.outputs]  # type: ignore[union-attr]
        for one in (first, second)
    ]
    assert errors[0] != errors[1]
    text = plain_text(document_of(first.report))
    assert "measured on 4 samples of the data that no step has seen" in text
    assert "4 samples of the data are kept from all steps" in text


def test_reports_of_steps_name_the_data(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=X)
    (tmp_path / "r.toml").write_text(
        '[[steps]]\ncommand = "rewrite"\nmode = "spatial"\nrank = 2\npositions = 8\nseed = 1\n'
        '[[steps]]\ncommand = "quantize"\nseed = 2\n'
    )
    words = ("compress", "m.onnx", "o.onnx", "--recipe", "r.toml", "--data", "d.npz", "--runs", "2", "--keep-steps")
    assert run(*words, "--quiet", cwd=tmp_path).returncode == 0
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "o.onnx.steps").glob("*-*.json"))]
    assert [(one["command"], one["options"]["data"]) for one in reports] == [
        ("rewrite", "d.npz"),
        ("quantize", "d.npz"),
    ]


def test_the_recipe_int8() -> None:
    recipe = read_recipe("int8")
    assert [(step.name, dict(step.options)) for step in recipe.steps] == [
        ("quantize", {"samples": 500, "activations": "uint8"})
    ]
    assert all(one.description for one in shipped_recipes().values())
