"""What is wrong with options is found before the model is opened, and in pipelines before the first step."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from finetuning_models import DIGITS, needs_torch

import onnxsep
from onnxsep import FineTune, Pipeline, Prune, Quantize, Rewrite
from onnxsep.errors import OptionError
from onnxsep.running.runtime import RuntimeOptions

NOWHERE = "this-file-does-not-exist.onnx"
X = np.zeros((4, 1, 8, 8), np.float32)
NAN, INF = math.nan, math.inf


def rewrite(**options: Any) -> Any:
    return onnxsep.rewrite(NOWHERE, **{"mode": "depthwise", **options})


def prune(**options: Any) -> Any:
    return onnxsep.prune(NOWHERE, **{"sparsity": 0.5, **options})


def quantize(**options: Any) -> Any:
    return onnxsep.quantize(NOWHERE, **{"data": X, **options})


def finetune(**options: Any) -> Any:
    return onnxsep.finetune(NOWHERE, **{"data": X, **options})


def evaluate(**options: Any) -> Any:
    return onnxsep.evaluate([NOWHERE], **{"data": X, **options})


def check(**options: Any) -> Any:
    return onnxsep.check(NOWHERE, NOWHERE, **options)


def inspect(**options: Any) -> Any:
    return onnxsep.inspect(NOWHERE, **options)


def compress(**options: Any) -> Any:
    return onnxsep.compress(NOWHERE, Pipeline([Rewrite(mode="depthwise")]), **options)


BAD: list[tuple[Callable[..., Any], dict[str, list[Any]]]] = [
    (
        rewrite,
        {
            "rank": [NAN, -1, 0, "1.5", "energy=2", "energy=nan", True, []],
            "round_ranks": [-8, 1.5, "8", NAN],
            "seed": [-1, 0.5, "0"],
            "max_error": [-1.0, NAN, INF, "0.1", True],
            "samples": [0, -5, 2.5, "10"],
            "positions": [0, NAN],
            "refine": [-1, 2, "1"],
            "tune": [-1, 5],
            "init": ["fit", "joint", 3],
            "verify": ["some", 1],
            "force": ["yes", 1],
            "only": [3, [1, 2]],
        },
    ),
    (
        prune,
        {
            "sparsity": [-0.1, 1.5, NAN, "half"],
            "max_error": [-1.0, NAN, INF],
            "multiple": [-1, 8, 2.0],
            "seed": [-1],
            "scope": ["here"],
            "verify": ["local", "x"],
            "channels": ["yes"],
        },
    ),
    (
        quantize,
        {
            "samples": [0, -1, 1.5, "8"],
            "seed": [-3, "1"],
            "max_error": [-1.0, NAN, INF],
            "max_drop": [-1.0, 100, NAN],
            "percentile": [99.0],
            "method": ["best", 2],
            "format": ["int8"],
            "per_channel": ["no"],
        },
    ),
    (evaluate, {"samples": [0, 1.5], "seed": [-1], "batch": [0, -1, "2"], "runs": [-1, 2.5], "metric": ["nowhere:f"]}),
    (check, {"rtol": [-1.0, NAN, INF, "0"], "seed": [-1], "output_atol": [-1.0]}),
    (inspect, {"rank": [NAN, "many"]}),
    (compress, {"seed": [-1, "0"], "runs": [-1], "test_samples": [0, -2], "metric": ["nowhere:f"]}),
]
TRAINING: dict[str, list[Any]] = {
    "epochs": [0, -1, 1.5, "3"],
    "batch": [0],
    "rate": [0.0, -1.0, NAN, INF],
    "weight_decay": [-1.0, NAN],
    "validation": [1.0, -0.1, NAN],
    "patience": [-1],
    "samples": [0, -4],
    "seed": [-1],
    "temperature": [0.0, NAN],
    "label_weight": [1.5, NAN],
    "optimizer": ["best"],
    "device": ["gpu9"],
}


def cases(table: list[tuple[Callable[..., Any], dict[str, list[Any]]]]) -> list[Any]:
    return [
        pytest.param(function, name, value, id=f"{function.__name__}-{name}-{value!r}")
        for function, options in table
        for name, values in options.items()
        for value in values
    ]


@pytest.mark.parametrize(("function", "name", "value"), cases(BAD))
def test_before_the_model_is_opened(function: Callable[..., Any], name: str, value: Any) -> None:
    """The model does not exist, so a message about it would mean that it was opened first."""
    with pytest.raises(OptionError) as raised:
        function(**{name: value})
    assert NOWHERE not in str(raised.value)


@needs_torch
@pytest.mark.parametrize(("function", "name", "value"), cases([(finetune, TRAINING)]))
def test_before_the_model_is_opened_to_train(function: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(OptionError) as raised:
        function(**{name: value})
    assert NOWHERE not in str(raised.value)


@pytest.mark.parametrize("function", [rewrite, prune, quantize, evaluate, check, compress])
@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (RuntimeOptions(threads=-1), "threads"),
        (RuntimeOptions(provider="TurboExecutionProvider"), "unknown provider"),
        (RuntimeOptions(custom_op_libraries=(Path("no-such-library.so"),)), "no-such-library"),
    ],
)
def test_the_runtime_is_checked_first(function: Callable[..., Any], runtime: RuntimeOptions, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        function(runtime=runtime)


@pytest.mark.parametrize(
    "last",
    [
        Prune(sparsity=0.5, max_error=-1.0),
        Prune(sparsity=0.5, max_error=math.nan),
        Prune(sparsity=0.5, multiple=8),
        Prune(sparsity=1.5),
        Prune(sparsity=0.5, verify="none", max_error=0.1),
        Quantize(samples=0),
        Quantize(seed=-1),
        Quantize(max_error=math.inf),
        Quantize(percentile=99.0),
        Rewrite(mode="spatial", max_error=-1.0),
        Rewrite(mode="spatial", round_ranks=-1),
        Rewrite(mode="spatial", verify="none", max_error=0.1),
        Rewrite(mode="lean", init="response"),
    ],
    ids=str,
)
def test_a_later_step_is_checked_before_the_first(last: Any) -> None:
    seen: list[Any] = []
    with pytest.raises(OptionError, match=re.escape(f"step 2 ({last.name})")):
        Pipeline([Rewrite(mode="depthwise"), last])(NOWHERE, data=X, progress=lambda *told: seen.append(told))
    assert seen == []


@needs_torch
@pytest.mark.parametrize("options", [{"samples": 0}, {"seed": -1}, {"epochs": 0}, {"rate": math.nan}], ids=str)
def test_training_as_a_later_step(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"step 2 \(finetune\)"):
        Pipeline([Rewrite(mode="depthwise"), FineTune(**options)])(NOWHERE, data=X)


def test_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    steps = ['command = "rewrite"\nmode = "depthwise"\n', 'command = "prune"\nmax_error = -1.0\n']
    recipe.write_text("".join("[[steps]]\n" + step for step in steps))
    with pytest.raises(OptionError, match=r"r\.toml, step 2 \(prune\)"):
        onnxsep.compress(NOWHERE, recipe, data=X)


def test_numbers_of_numpy_are_numbers() -> None:
    model = onnx.load(DIGITS)
    numbers: dict[str, Any] = {"round_ranks": np.int64(8), "seed": np.uint8(3), "max_error": np.float32(100.0)}
    numbers["dry_run"] = np.bool_(False)
    report = onnxsep.rewrite(model, mode="depthwise", **numbers).report
    assert report.verification.ran
