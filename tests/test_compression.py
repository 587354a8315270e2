"""Recipes, pipelines and the command: options, runs of the digits model with real accuracy, resuming, repeating."""

import hashlib
import inspect
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from digits import digits_in
from onnx import numpy_helper

import onnxsep
from onnxsep import FineTune, Pipeline, Prune, Quantize, Rewrite
from onnxsep.compression.given import Given
from onnxsep.compression.manifest import Manifest, read_manifest
from onnxsep.compression.options import defaults, elsewhere
from onnxsep.compression.recipe import read_recipe, shipped_recipes
from onnxsep.compression.step import Step
from onnxsep.compression.steps import STEPS
from onnxsep.errors import DataError, ModeNotFoundError, OptionError, VerificationError
from onnxsep.model.io import Model, load
from onnxsep.options.proposals import RECIPES
from onnxsep.running.runtime import Runner, RuntimeOptions

needs_torch = pytest.mark.skipif(
    find_spec("torch") is None,
    reason="torch is not installed (pip install onnxsep[finetune])",
)
ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits" / "digits_cnn.onnx"
ONE = RuntimeOptions(threads=1)
STAGES = ["original", "1 rewrite", "2 prune", "3 quantize"]
WITHOUT_TORCH = """
description = "What needs no torch."

[[steps]]
command = "rewrite"
mode = "spatial"
init = "svd"

[[steps]]
command = "prune"
sparsity = 0.5

[[steps]]
command = "quantize"
samples = 100
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits as train.npz and test.npz."""
    return digits_in(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the digits model and a recipe."""
    shutil.copy(DIGITS, tmp_path / "in.onnx")
    (tmp_path / "recipe.toml").write_text(WITHOUT_TORCH)
    return tmp_path


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "onnxsep", *map(str, arguments)]


def refused(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """One error that holds these words, after lines about finished steps, and no traceback."""
    assert done.returncode == status, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("onnxsep: error: ")
    assert all(line.startswith("step ") for line in lines[:-1]), done.stderr
    for word in words:
        assert word in lines[-1]


def correct(model: Model, digits: Path) -> int:
    """How many of the 450 test images ONNX Runtime names correctly."""
    arrays = np.load(digits / "test.npz")
    (scores,) = Runner(model, ONE)({model.proto.graph.input[0].name: arrays["x"]}).values()
    return int((scores.argmax(1) == arrays["y"]).sum())


def conv_zeros(model: Model) -> int:
    """Zeros in the weights that have more than one axis, as floats or as int8."""
    arrays = [numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer]
    return sum(array.size - int(np.count_nonzero(array)) for array in arrays if array.ndim == 4)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def toml(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# ---------------------------------------------------------------- options are those of the functions


@pytest.mark.parametrize("kind", STEPS.values(), ids=list(STEPS))
def test_every_parameter_is_an_option_or_comes_from_the_run(kind: type[Step]) -> None:
    parameters = set(inspect.signature(kind.function()).parameters)
    options, given = set(kind.defaults()), {field.name for field in fields(Given)}
    by_the_run = {"model", "progress", "checkpoint", "resume"}
    left_out = {"dry_run", "statistics", "frontier"} | ({"workers", "scheduler", "latency_resource"} & parameters)
    assert parameters == options | (parameters & (given | by_the_run | left_out))
    assert not options & (given | by_the_run | left_out)
    assert (given | by_the_run | left_out) <= set(elsewhere(kind.kind()))
    assert set(inspect.signature(kind).parameters) == options


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Rewrite, {"mode": "spatial", "rank": 0.5, "skip": ["a*", "b"], "force": True}),
        (Rewrite, {"mode": "depthwise", "rank": 2, "max-error": 1}),
        (Prune, {"step": 0.2, "steps": 4, "scope": "layer"}),
        (Prune, {"channels": True, "sparsity": 0.25, "round": 8}),
        (Quantize, {"per-channel": False, "exclude": "x*"}),
        (FineTune, {"weight-decay": 0.0, "teacher": "none", "samples": 10}),
    ],
)
def test_options_as_a_recipe_gives_them(kind: type[Step], options: dict[str, Any]) -> None:
    step = kind.parse(options, "here")
    plain = {key.replace("-", "_").replace("round", "multiple"): value for key, value in options.items()}
    assert step == kind(**plain)
    resolved = step.resolved()
    assert {name: list(resolved[name]) if isinstance(plain[name], list) else resolved[name] for name in plain} == plain
    function_defaults = defaults(kind.kind())
    rest = {name: value for name, value in resolved.items() if name not in {**plain, "teacher": 0}}
    assert rest == {name: function_defaults[name] for name in rest}


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Rewrite, {"mod": "spatial"}, "there is no option 'mod', did you mean 'mode'"),
        (Rewrite, {"mode": "spatial", "includefirst": True}, "did you mean 'include-first'"),
        (Rewrite, {}, "the option 'mode' is missing"),
        (Rewrite, {"mode": "spatial", "rank": True}, "'rank' must be a rank or a text or a number, not True"),
        (Rewrite, {"mode": "spatial", "verify": "ful"}, "not 'ful', did you mean 'full'"),
        (Rewrite, {"mode": "spatial", "dry-run": True}, "'dry-run' is no option of a step"),
        (Prune, {"sparsity": "half"}, "'sparsity' must be a number, not 'half'"),
        (Prune, {"max_error": 1, "max-error": 2}, "given twice"),
        (Prune, {"sparsity": 0.5, "data": "x.npz"}, "give data with the command"),
        (FineTune, {"epoch": 3}, "did you mean 'epochs'"),
        (FineTune, {"epochs": "3"}, "'epochs' must be a whole number, not '3'"),
        (FineTune, {"epochs": 3.5}, "'epochs' must be a whole number, not 3.5"),
        (FineTune, {"optimizer": "adan"}, "one of sgd, adam, not 'adan', did you mean 'adam'"),
        (FineTune, {"checkpoint": "x"}, "a run keeps its state by itself"),
        (FineTune, {"threads": 2}, "give runtime with the command"),
        (Quantize, {"per-channel": 1}, "'per-channel' must be true or false, not 1"),
        (Quantize, {"exclude": [1]}, "a text or a list of texts"),
        (Quantize, {"mean": "0.5"}, "give preprocessing with the command"),
    ],
)
def test_options_that_are_refused(kind: type[Step], options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        kind.parse(options, "my.toml, step 2")
    assert str(caught.value).startswith("my.toml, step 2: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Rewrite(mode="spatial", rank=-1), "rank out of range"),
        (Rewrite(mode="depthwise", positions=0), "positions must be 1 or more"),
        (Prune(sparsity=1.5), "sparsity 1.5 is out of range"),
        (Prune(), "none is given"),
        (Prune(sparsity=0.5, multiple=8), "multiple is for channels"),
        (Quantize(percentile=99.0), "percentile needs method='percentile'"),
        (Quantize(max_drop=-1.0), "max_drop"),
        pytest.param(FineTune(epochs=0), "epochs must", marks=needs_torch),
        pytest.param(FineTune(validation=0.0, patience=3), "patience needs", marks=needs_torch),
    ],
)
def test_values_are_checked_by_the_functions_before_anything_is_read(step: Step, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        step.check(Given(data="there is no such file.npz"))


def test_an_unknown_mode_is_found_before_anything_is_read() -> None:
    with pytest.raises(ModeNotFoundError, match=r"a pipeline, step 1 .rewrite.: .*depthwise"):
        Pipeline([Rewrite(mode="depthwse")])("there is no such model.onnx")


def test_steps_do_not_change() -> None:
    step = Prune(sparsity=0.5)
    with pytest.raises(AttributeError, match="make another Prune"):
        step.options = {}
    with pytest.raises(TypeError):
        step.options["sparsity"] = 0.6  # type: ignore[index]
    assert repr(step) == "Prune(sparsity=0.5)"
    assert step == Prune(sparsity=0.5)
    assert step != Prune(sparsity=0.6)
    assert len({step, Prune(sparsity=0.5), Prune(sparsity=0.6)}) == 2
    with pytest.raises(OptionError, match="Prune: there is no option 'sparsty', did you mean 'sparsity'"):
        Prune(sparsty=0.5)


# ---------------------------------------------------------------- recipes


PAPERS: list[tuple[str, int, str, dict[str, Any]]] = [
    ("kastanos-spatial-int8", 0, "rewrite", {"mode": "spatial", "rank": "paper"}),
    ("kastanos-depthwise-int8", 0, "rewrite", {"mode": "depthwise", "rank": "paper"}),
    *(
        (f"kastanos-{mode}-int8", number, command, options)
        for mode in ("spatial", "depthwise")
        for number, command, options in (
            (1, "finetune", {"optimizer": "adam", "rate": 1e-3, "batch": 32, "patience": 10, "validation": 0.1}),
            (2, "quantize", {"samples": 1000, "activations": "int8"}),
        )
    ),
    ("he-depthwise", 0, "rewrite", {"mode": "depthwise", "init": "compensated", "samples": 300, "positions": 10}),
    ("he-depthwise", 1, "finetune", {"epochs": 10, "rate": 1e-4, "schedule": "constant"}),
    *(("sobolewski-prune", number, "prune", {"step": 0.2, "scope": "global", "norm": "l1"}) for number in (0, 2, 4, 6)),
    *(
        (
            "sobolewski-prune",
            number,
            "finetune",
            {
                "optimizer": "sgd",
                "rate": 1e-4,
                "schedule": "constant",
                "weight_decay": 5e-4,
                "batch": 128,
                "epochs": 50,
            },
        )
        for number in (1, 3, 5, 7)
    ),
]


@pytest.mark.parametrize(("name", "number", "command", "options"), PAPERS)
def test_recipes_carry_the_settings_of_the_papers(
    name: str, number: int, command: str, options: dict[str, Any]
) -> None:
    step = read_recipe(name).steps[number]
    assert step.name == command
    resolved = step.resolved()
    assert {key: resolved[key] for key in options} == options


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.toml")])
def test_every_recipe_can_be_run(name: str) -> None:
    recipe = shipped_recipes()[name]
    assert recipe.description
    assert recipe.text == (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    for step in recipe.steps:
        if step.name != "finetune" or find_spec("torch") is not None:
            step.check(Given(data="data.npz"))


def test_all_recipes_of_the_papers_are_there() -> None:
    assert {name for name, *_ in PAPERS} <= set(shipped_recipes())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[steps]]\ncommand "rewrite"\n', ["is not a TOML file", "line 2", "column 9"]),
        ('[[steps]]\ncommand = "rewrit"\n', ["step 1: there is no command 'rewrit'", "did you mean 'rewrite'"]),
        ('[[steps]]\nmode = "spatial"\n', ["step 1 has no key 'command'", "rewrite, prune, finetune, quantize"]),
        (WITHOUT_TORCH + "per-chanel = true\n", ["step 3 (quantize)", "'per-chanel'", "did you mean 'per-channel'"]),
        (WITHOUT_TORCH + 'method = "entropi"\n', ["step 3 (quantize)", "'method'", "did you mean 'entropy'"]),
        ('step = "rewrite"\n', ["there is no key 'step'", "did you mean 'steps'"]),
        ("steps = []\n", ["the list of steps is empty"]),
        ('steps = "rewrite"\n', ["there are no steps; write each as [[steps]]"]),
        ("", ["there are no steps"]),
        ("description = 3\n" + WITHOUT_TORCH.replace("description", "#"), ["'description' must be a text"]),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(OptionError) as caught:
        read_recipe(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_names_of_recipes() -> None:
    with pytest.raises(OptionError, match=r"there is no recipe 'he-deptwise', did you mean 'he-depthwise'"):
        read_recipe("he-deptwise")
    with pytest.raises(OptionError, match=r"cannot read 'none.toml'"):
        read_recipe("none.toml")


def test_a_teacher_lies_beside_the_recipe(tmp_path: Path) -> None:
    text = '[[steps]]\ncommand = "finetune"\nteacher = "%s"\n'
    (step,) = read_recipe(toml(tmp_path, text % "big.onnx")).steps
    assert step.options["teacher"] == str(tmp_path / "big.onnx")
    for word in ("original", "none"):
        (step,) = read_recipe(toml(tmp_path, text % word)).steps
        assert step.options["teacher"] == word
        assert not step.other_models()


def test_recipes_are_listed_and_printed(tmp_path: Path) -> None:
    listed = run("recipes", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name, recipe in shipped_recipes().items():
        assert f"{name}: {recipe.description}" in listed.stdout.splitlines()
    printed = run("recipes", "he-depthwise", cwd=tmp_path)
    assert printed.stdout == (RECIPES / "he-depthwise.toml").read_text(encoding="utf-8")
    as_json = json.loads(run("recipes", "--json", cwd=tmp_path).stdout)
    assert [one["name"] for one in as_json] == list(shipped_recipes())
    assert {one["name"]: one["steps"] for one in as_json}["he-depthwise"] == ["rewrite", "finetune"]
    refused(run("recipes", "sobolevski-prune", cwd=tmp_path), "did you mean 'sobolewski-prune'")


@pytest.mark.parametrize("last", ["rewrite", "prune", "quantize"])
def test_nothing_stands_behind_quantize(digits: Path, last: str) -> None:
    behind = {"rewrite": Rewrite(mode="spatial"), "prune": Prune(sparsity=0.5), "quantize": Quantize()}[last]
    with pytest.raises(OptionError, match=rf"step 2 \({last}\) works on float weights, and step 1 \(quantize\)"):
        Pipeline([Quantize(), behind])(DIGITS, data=digits / "train.npz")


def test_the_model_itself_is_no_target(place: Path, digits: Path) -> None:
    before = (place / "in.onnx").read_bytes()
    done = run("compress", "in.onnx", "in.onnx", "--recipe", "fitted-int8", "--data", digits / "train.npz", cwd=place)
    refused(done, "would overwrite in.onnx, which is read as the model")
    assert (place / "in.onnx").read_bytes() == before


# ---------------------------------------------------------------- pipelines in Python


def test_a_pipeline_does_what_the_functions_do(digits: Path) -> None:
    data = digits / "train.npz"
    result = Pipeline(
        [Pipeline([Rewrite(mode="depthwise", positions=16, samples=200)]), Prune(sparsity=0.3), Quantize(samples=100)]
    )(DIGITS, data=data, test=digits / "test.npz", runs=0, runtime=ONE)
    rewritten = onnxsep.rewrite(DIGITS, mode="depthwise", positions=16, samples=200, data=data, runtime=ONE)
    pruned = onnxsep.prune(rewritten.model, sparsity=0.3, data=data, runtime=ONE)
    quantized = onnxsep.quantize(pruned.model, data=data, samples=100, runtime=ONE)
    assert result.proto == quantized.proto
    assert [step.command for step in result.report.steps] == ["rewrite", "prune", "quantize"]
    # Models and the runtime are given in other ways, and times are never the same.
    apart = {"seconds": 0, "options": {}, "speed": None, "warnings": ()}
    assert [step.report.model_copy(update=apart) for step in result.report.steps] == [
        done.report.model_copy(update=apart) for done in (rewritten, pruned, quantized)
    ]
    rows = result.report.evaluation.models
    assert [row.name for row in rows] == STAGES
    models = [load(DIGITS), rewritten.model, pruned.model, quantized.model]
    assert [row.top1.share.count for row in rows if row.top1] == [correct(model, digits) for model in models]
    assert rows[0].file_bytes == DIGITS.stat().st_size
    assert rows[3].file_bytes == len(quantized.proto.SerializeToString())


def test_the_rewrite_step_uses_the_data_unless_svd_is_asked_for(digits: Path) -> None:
    data = digits / "train.npz"
    fitted = Pipeline([Rewrite(mode="depthwise", positions=16, samples=200)])(DIGITS, data=data, runs=0, runtime=ONE)
    alone = Pipeline([Rewrite(mode="depthwise", init="svd")])(DIGITS, data=data, runs=0, runtime=ONE)
    assert alone.proto == onnxsep.rewrite(DIGITS, mode="depthwise").proto
    assert fitted.proto != alone.proto
    with pytest.raises(OptionError, match=r"step 1 .rewrite.: init='joint' fits the factors to data"):
        Pipeline([Rewrite(mode="depthwise", init="joint")])(DIGITS)


def test_seeds_of_steps(digits: Path) -> None:
    steps = Pipeline([Rewrite(mode="spatial", init="svd", seed=5), Quantize(samples=10)])
    done = steps(DIGITS, data=digits / "train.npz", seed=3, runs=0, runtime=ONE)
    assert [step.options["seed"] for step in done.manifest.steps] == [5, 3]
    assert (
        done.proto
        == onnxsep.quantize(
            onnxsep.rewrite(DIGITS, mode="spatial").model, data=digits / "train.npz", samples=10, seed=3, runtime=ONE
        ).proto
    )


def test_what_models_are_measured_on(digits: Path, tmp_path: Path) -> None:
    steps = Pipeline([Rewrite(mode="spatial", init="svd")])
    random = steps(DIGITS, runs=0).report
    assert random.measured_on == "random"
    assert random.evaluation.reference == "original"
    assert random.evaluation.models[1].against_reference is not None
    seen = steps(DIGITS, data=digits / "train.npz", runs=0).report
    assert (seen.measured_on, seen.evaluation.samples) == ("unseen", 1000)  # a rewrite by the weights alone sees none
    few = steps(DIGITS, data=digits / "train.npz", test=digits / "test.npz", test_samples=50, runs=0).report
    assert (few.measured_on, few.evaluation.samples) == ("test", 50)
    arrays = np.load(digits / "test.npz")
    feeds = (image[np.newaxis] for image in arrays["x"][:30])  # an iterator, which can be read once
    quantized = Pipeline([Quantize(samples=20)])(DIGITS, data=feeds, runs=0)
    assert (quantized.report.measured_on, quantized.report.evaluation.samples) == ("unseen", 4)
    assert quantized.manifest.data is not None


def test_pipelines_that_are_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least one step"):
        Pipeline([])
    with pytest.raises(DataError, match=r"a pipeline, step 1 .quantize. needs data"):
        Pipeline([Quantize()])(DIGITS)
    unlabelled = {"x": np.load(digits / "test.npz")["x"]}
    with pytest.raises(DataError, match=r"step 1 .quantize. needs labels"):
        Pipeline([Quantize(max_drop=0.5)])(DIGITS, data=unlabelled)
    with pytest.raises(OptionError, match="there is no module 'no_such_module'"):
        Pipeline([Rewrite(mode="spatial")])(DIGITS, data=unlabelled, metric="no_such_module:metric")
    wrong = {"x": unlabelled["x"], "y": np.full(len(unlabelled["x"]), 10)}
    with pytest.raises(DataError, match="10 classes"):
        Pipeline([Rewrite(mode="spatial")])(DIGITS, test=wrong)


def test_an_image_is_read_as_the_whole_run_says(tmp_path: Path) -> None:
    """Preprocessing holds for the data and for the test images, and is in the manifest."""
    from PIL import Image

    for part in ("data", "test"):
        (tmp_path / part).mkdir()
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    inverted = onnxsep.data.Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.25,))
    steps = Pipeline([Quantize()])
    result = steps(DIGITS, data=tmp_path / "data", test=tmp_path / "test", preprocessing=inverted, runs=0, runtime=ONE)
    assert result.manifest.image_preprocessing() == inverted
    plain = steps(DIGITS, data=tmp_path / "data", test=tmp_path / "test", runs=0, runtime=ONE)
    assert plain.manifest.data != result.manifest.data
    assert plain.proto != result.proto


# ---------------------------------------------------------------- the command


def test_digits_end_to_end_without_torch(place: Path, digits: Path) -> None:
    toml(place, WITHOUT_TORCH.replace('init = "svd"', "positions = 8"))  # fitted to the data
    data = ("--data", digits / "train.npz", "--test", digits / "test.npz", "--threads", 1)
    done = run("compress", "in.onnx", "out.onnx", "--recipe", "recipe.toml", *data, "--runs", 3, cwd=place)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("after step"))
    for title in ("top-1 accuracy", "file, bytes", "parameters", "not 0", "MACs", "latency, ms"):
        assert title in lines[start]
    assert [line[: len(stage)] for line, stage in zip(lines[start + 1 :], STAGES, strict=False)] == STAGES
    result = load(place / "out.onnx")
    right = correct(result, digits)
    assert right >= 440
    assert correct(load(DIGITS), digits) == 449
    assert f"{right / 450:.2%}" in lines[start + 4]
    assert f"{(place / 'out.onnx').stat().st_size:,}" in lines[start + 4]
    assert conv_zeros(result) > 70_000  # half of the weights of the Convs, which hold nearly all of 155,594 parameters
    assert sorted(path.name for path in place.iterdir()) == [
        *("in.onnx", "out.onnx", "out.onnx.manifest.json", "recipe.toml")
    ]


def test_report_and_json(place: Path, digits: Path) -> None:
    data = ("--data", digits / "train.npz", "--test", digits / "test.npz", "--threads", 1, "--runs", 0)
    common = ("compress", "in.onnx", "out.onnx", "--recipe", "recipe.toml", *data)
    done = run(*common, "--json", "--report", "report.json", "--keep-steps", cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((place / "report.json").read_text())
    assert report["output_bytes"] == (place / "out.onnx").stat().st_size
    assert [step["report"]["options"].get("sparsity") for step in report["steps"]] == [None, 0.5, None]
    work = place / "out.onnx.steps"
    assert sorted(path.name for path in work.iterdir()) == [
        *("01-rewrite.json", "01-rewrite.onnx", "02-prune.json", "02-prune.onnx", "03-quantize.json"),
        *("03-quantize.onnx", "lock", "manifest.json"),
    ]
    for number, name in enumerate(("rewrite", "prune", "quantize"), start=1):
        step = report["steps"][number - 1]
        assert step["sha256"] == sha256(work / f"{number:02}-{name}.onnx")
        assert step["report"] == json.loads((work / f"{number:02}-{name}.json").read_text())
        assert (
            report["evaluation"]["models"][number]["file_bytes"] == (work / f"{number:02}-{name}.onnx").stat().st_size
        )
    assert (work / "03-quantize.onnx").read_bytes() == (place / "out.onnx").read_bytes()
    again = run(*common, "--quiet", cwd=place)  # all is there: nothing is left but to measure
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert not work.exists()


def test_manifest(place: Path, digits: Path) -> None:
    data = ("--data", digits / "train.npz", "--test", digits / "test.npz", "--threads", 1, "--runs", 0)
    done = run("compress", "in.onnx", "out.onnx", "--recipe", "recipe.toml", *data, "--seed", 7, cwd=place)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(place / "out.onnx.manifest.json")
    assert manifest.source.sha256 == sha256(DIGITS)
    assert manifest.result is not None
    assert manifest.result.sha256 == sha256(place / "out.onnx")
    assert manifest.recipe_text == WITHOUT_TORCH
    assert manifest.packages["onnx"] == onnx.__version__
    assert manifest.packages["numpy"] == np.__version__
    assert [step.options["seed"] for step in manifest.steps] == [7, 7, 7]
    opened = onnxsep.data.open_data(digits / "train.npz", load(DIGITS))
    assert manifest.data is not None
    assert manifest.data.sha256 == opened.fingerprint()
    again = ("compress", "in.onnx", "again.onnx", "--recipe", "out.onnx.manifest.json", "--runs", 0)
    done = run(*again, "--data", digits / "train.npz", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "the results of all steps are those of out.onnx.manifest.json, bit for bit" in done.stdout
    assert sha256(place / "again.onnx") == manifest.result.sha256
    repeated = read_manifest(place / "again.onnx.manifest.json")
    assert (repeated.threads, repeated.steps[0].options) == (1, manifest.steps[0].options)
    refused(
        run(*again, "--data", digits / "test.npz", cwd=place),
        "cannot be repeated: the data",
        f"SHA-256 {manifest.data.sha256}",
        "give its recipe (recipe.toml)",
    )
    onnxsep.rewrite(DIGITS, mode="channel", rank=0.5).save(place / "other.onnx")
    other = run("compress", "other.onnx", *again[2:], "--data", digits / "train.npz", cwd=place)
    refused(other, "cannot be repeated: the model of that run was in.onnx", manifest.source.sha256)
    text = (place / "out.onnx.manifest.json").read_text()
    (place / "out.onnx.manifest.json").write_text(text.replace('"onnx": "', '"onnx": "0.'))
    noted = run(*again, "--data", digits / "train.npz", cwd=place)
    assert f"made with other versions: onnx 0.{onnx.__version__} -> {onnx.__version__}" in noted.stdout
    (place / "broken.json").write_text("{}")
    refused(run("compress", "in.onnx", "x.onnx", "-r", "broken.json", cwd=place), "'broken.json' is no manifest")


def test_no_torch_is_found_before_any_work(place: Path, digits: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; import onnxsep.cli; onnxsep.cli.main()"
    options = ["compress", "in.onnx", "out.onnx", "--recipe", "he-depthwise", "--data", str(digits / "train.npz")]
    done = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, cwd=place, check=False
    )
    refused(done, "he-depthwise, step 2 (finetune)", "onnxsep[finetune]")
    assert not (place / "out.onnx.steps").exists()


def test_commands_that_are_refused(place: Path, digits: Path) -> None:
    common = ("compress", "in.onnx", "out.onnx", "--recipe")
    refused(run(*common, "recipe.toml", cwd=place), "recipe.toml, step 3 (quantize) needs data", "--data")
    refused(run(*common, "he-deptwise", cwd=place), "did you mean 'he-depthwise'")
    refused(run(*common, toml(place, "steps = 1", "bad.toml"), cwd=place), "there are no steps")
    data = ("--data", digits / "train.npz")
    refused(run(*common, "recipe.toml", *data, "--report", "in.onnx", cwd=place), "would overwrite in.onnx")
    refused(run(*common[:2], "recipe.toml", "-r", "recipe.toml", *data, cwd=place), "would overwrite recipe.toml")
    (place / "out.onnx.manifest.json").write_text("[1]")
    refused(
        run(*common, "recipe.toml", *data, cwd=place),
        "out.onnx.manifest.json would overwrite a file that holds no manifest of onnxsep",
    )
    (place / "out.onnx.manifest.json").unlink()
    assert run("compress", "in.onnx", "out.onnx", cwd=place).returncode == 2
    assert sorted(path.name for path in place.iterdir()) == ["bad.toml", "in.onnx", "recipe.toml"]


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="torchrun is for finetune alone"):
        Pipeline([Rewrite(mode="spatial")])(DIGITS)


# ---------------------------------------------------------------- interrupted runs


FAILS = WITHOUT_TORCH + "max-error = 1e-9\n"


def test_a_failed_verification_names_the_step_and_keeps_those_before_it(place: Path, digits: Path) -> None:
    common = ("compress", "in.onnx", "out.onnx", "--recipe", "recipe.toml", "--runs", 0, "--threads", 1)
    data = ("--data", digits / "train.npz")
    older = (place / "in.onnx").read_bytes()
    (place / "out.onnx").write_bytes(older)
    toml(place, FAILS)
    failed = run(*common, *data, cwd=place)
    work = place / "out.onnx.steps"
    refused(failed, "step 3 (quantize): the relative error", "is in out.onnx.steps, and is not done again", status=3)
    assert (place / "out.onnx").read_bytes() == older
    assert json.loads((work / "03-quantize.failed.json").read_text())["options"]["max_error"] == 1e-9
    assert [step.command for step in read_manifest(work / "manifest.json").steps] == ["rewrite", "prune"]
    written = {name: (work / name).stat().st_mtime_ns for name in ("01-rewrite.onnx", "02-prune.onnx")}
    toml(place, WITHOUT_TORCH)  # the steps that are done have the same options as before
    done = run(*common, *data, "--keep-steps", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 2 (prune)" in done.stdout
    assert "step 2 prune: was done before" in done.stderr
    assert {name: (work / name).stat().st_mtime_ns for name in written} == written
    assert not (work / "03-quantize.failed.json").exists()
    fresh = run("compress", "in.onnx", "fresh.onnx", *common[3:], *data, cwd=place)
    assert fresh.returncode == 0, fresh.stderr
    assert (place / "fresh.onnx").read_bytes() == (place / "out.onnx").read_bytes()


Again = Callable[..., onnxsep.CompressResult]


@pytest.fixture(scope="module")
def two_steps(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with two finished steps of three."""
    folder = tmp_path_factory.mktemp("two_steps")
    shutil.copy(DIGITS, folder / "in.onnx")
    with pytest.raises(VerificationError):
        onnxsep.compress(
            folder / "in.onnx",
            toml(folder, FAILS),
            data=digits / "train.npz",
            work=folder / "work",
            runs=0,
            runtime=ONE,
        )
    return folder / "work"


@pytest.fixture
def again(place: Path, digits: Path, two_steps: Path) -> Again:
    """The call that made that work folder, again, with other arguments and in a copy of it."""
    shutil.copytree(two_steps, place / "work")

    def call(data: str = "train.npz", model: str = "in.onnx", **more: Any) -> onnxsep.CompressResult:
        options: dict[str, Any] = {"work": place / "work", "runs": 0, "runtime": ONE, **more}
        return onnxsep.compress(place / model, place / "recipe.toml", data=digits / data, **options)

    return call


def test_a_run_of_something_else_is_not_gone_on_with(place: Path, again: Again) -> None:
    def refuses(*words: str, **options: Any) -> None:
        with pytest.raises(OptionError) as caught:
            again(**options)
        for word in ("work holds the steps of another run: ", "fresh=True", "folder with work", *words):
            assert word in str(caught.value)

    refuses("the data", data="test.npz")
    refuses("step 1 (rewrite) was done with seed 0, now 1", seed=1)
    refuses(": threads. Give", runtime=RuntimeOptions(threads=2))
    toml(place, WITHOUT_TORCH.replace("0.5", "0.6"))
    refuses("step 2 (prune) was done with sparsity 0.5, now 0.6")
    toml(place, WITHOUT_TORCH.replace('"prune"\nsparsity = 0.5', '"rewrite"\nmode = "channel"'))
    refuses("step 2 was prune and is rewrite")
    toml(place, WITHOUT_TORCH)
    onnxsep.rewrite(DIGITS, mode="channel", rank=0.5).save(place / "other.onnx")
    refuses("the model (", model="other.onnx")
    done = again(fresh=True, seed=1)
    assert (done.report.resumed_after, done.manifest.seed) == (0, 1)
    assert again(seed=1).report.resumed_after == 3


def test_a_damaged_work_folder_is_refused(place: Path, again: Again) -> None:
    work = place / "work"
    kept = {path.name: path.read_bytes() for path in work.iterdir()}
    for name, content, words in (
        ("01-rewrite.onnx", kept["02-prune.onnx"], "01-rewrite.onnx is not what step 1 has written"),
        ("02-prune.onnx", kept["02-prune.onnx"][:1000], "a finished step cannot be read"),
        ("02-prune.onnx", None, "02-prune.onnx does not exist"),
        ("02-prune.json", b"{}", "02-prune.json is damaged or missing"),
        ("manifest.json", b"{", "is no work folder of onnxsep"),
        ("manifest.json", None, "is no work folder of onnxsep"),
    ):
        if content is None:
            (work / name).unlink()
        else:
            (work / name).write_bytes(content)
        with pytest.raises(OptionError) as caught:
            again()
        assert words in str(caught.value)
        (work / name).write_bytes(kept[name])
    (work / "notes.txt").write_text("of the user")
    (work / "01-rewrite.onnx").write_bytes(b"")
    again(fresh=True).save(place / "out.onnx")
    assert [path.name for path in work.iterdir()] == ["notes.txt"]
    with pytest.raises(OptionError, match="is no work folder of onnxsep"):
        again(fresh=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks of this kind")
def test_two_runs_do_not_share_a_work_folder(place: Path, again: Again) -> None:
    import fcntl

    with (place / "work" / "lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for fresh in (False, True):
            with pytest.raises(OptionError, match="another run is using"):
                again(fresh=fresh)
    assert again().report.resumed_after == 2


def test_the_weights_of_a_model_with_external_data(tmp_path: Path) -> None:
    proto = onnx.load(DIGITS)
    onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=1024)
    steps = Pipeline([Rewrite(mode="spatial"), Prune(sparsity=0.5)])
    inputs: dict[str, Any] = {"input_shapes": {"image": (2, 1, 8, 8)}, "runs": 0, "runtime": ONE}
    kept = steps(tmp_path / "in.onnx", work=tmp_path / "work", **inputs)
    saved = kept.save(tmp_path / "out.onnx")
    assert saved.data_path is not None
    assert saved.data_path.name.startswith("out.onnx.")
    assert not (tmp_path / "work").exists()
    in_memory = steps(tmp_path / "in.onnx", **inputs)
    assert in_memory.manifest.steps[-1].sha256 == read_manifest(tmp_path / "out.onnx.manifest.json").steps[-1].sha256
    in_memory.save(tmp_path / "other.onnx")
    feeds = {"image": np.random.default_rng(0).random((2, 1, 8, 8), np.float32)}
    (one,), (other,) = (Runner(load(tmp_path / f"{name}.onnx"), ONE)(feeds).values() for name in ("out", "other"))
    assert np.array_equal(one, other)
    inline = steps(DIGITS, **inputs)
    assert np.array_equal(one, *Runner(inline.model, ONE)(feeds).values())


# ---------------------------------------------------------------- with fine-tuning


@needs_torch
def test_digits_end_to_end(place: Path, digits: Path) -> None:
    """A recipe that ships, as it is: depthwise Convs, trained with the original as teacher, int8."""
    data = ("--data", digits / "train.npz", "--test", digits / "test.npz", "--threads", 1, "--runs", 3)
    done = run("compress", "in.onnx", "out.onnx", "--recipe", "depthwise-int8", *data, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"][1]["report"]["teacher"] == "in.onnx"
    rows = report["evaluation"]["models"]
    result = load(place / "out.onnx")
    assert rows[-1]["top1"]["share"]["count"] == correct(result, digits) >= 445
    assert rows[0]["top1"]["share"]["count"] == 449
    assert (place / "out.onnx").stat().st_size < 0.06 * DIGITS.stat().st_size
    assert not (place / "out.onnx.steps").exists()
    manifest = Manifest.model_validate_json((place / "out.onnx.manifest.json").read_text())
    assert manifest.packages["torch"]


@needs_torch
def test_zeros_stay_through_training_and_quantising(digits: Path) -> None:
    steps = [Prune(step=0.2, steps=4), FineTune(epochs=1), Prune(step=0.2), FineTune(epochs=1, teacher="none")]
    done = Pipeline([*steps, Quantize(samples=50)])(
        DIGITS, data=digits / "train.npz", test=digits / "test.npz", runs=0, runtime=ONE
    )
    convs = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(DIGITS).graph.initializer if len(tensor.dims) == 4)
    left = convs
    for _ in range(5):
        left -= round(0.2 * left)
    assert conv_zeros(done.model) >= convs - left
    reports = [step.report.model_dump() for step in done.report.steps]
    assert [report["zeros_kept"] for report in (reports[1], reports[3])] == [
        convs - reports[0]["surviving"][-1],
        convs - left,
    ]
    assert (reports[1]["teacher"], reports[3]["teacher"]) == (str(DIGITS), None)


@needs_torch
def test_training_needs_labels_without_a_teacher(digits: Path) -> None:
    unlabelled = {"x": np.load(digits / "test.npz")["x"]}
    with pytest.raises(DataError, match=r"step 1 .finetune. needs labels"):
        Pipeline([FineTune(teacher=None)])(DIGITS, data=unlabelled)


@needs_torch
def test_another_teacher_is_in_the_manifest(tmp_path: Path, digits: Path) -> None:
    onnxsep.rewrite(DIGITS, mode="channel", rank=0.9).save(tmp_path / "teacher.onnx")
    done = Pipeline([FineTune(teacher=tmp_path / "teacher.onnx", epochs=1, samples=200)])(
        DIGITS, data=digits / "train.npz", runs=0, runtime=ONE
    )
    assert done.manifest.other_models["step 1, teacher"].sha256 == sha256(tmp_path / "teacher.onnx")
    assert done.report.steps[0].report.model_dump()["teacher"] == str(tmp_path / "teacher.onnx")


TRAINS = """
[[steps]]
command = "rewrite"
mode = "depthwise"
init = "svd"

[[steps]]
command = "finetune"
epochs = 12
samples = 600

[[steps]]
command = "prune"
sparsity = 0.5
"""


def trains_on(digits: Path) -> tuple[object, ...]:
    return ("--data", digits / "train.npz", "--test", digits / "test.npz", "--threads", 1, "--runs", 0)


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the recipe gives where nothing stops it."""
    folder = tmp_path_factory.mktemp("straight")
    done = run("compress", DIGITS, "out.onnx", "--recipe", toml(folder, TRAINS), *trains_on(digits), cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "out.onnx").read_bytes()


@needs_torch
@pytest.mark.parametrize(
    "stop",
    [
        pytest.param("SIGKILL", marks=pytest.mark.skipif(sys.platform == "win32", reason="POSIX has SIGKILL")),
        pytest.param("SIGINT", marks=pytest.mark.skipif(sys.platform == "win32", reason="not to one process")),
    ],
)
def test_a_run_that_was_stopped_goes_on(place: Path, digits: Path, straight: bytes, stop: str) -> None:
    toml(place, TRAINS)
    common = ("compress", "in.onnx", "out.onnx", "--recipe", "recipe.toml", *trains_on(digits))
    work = place / "out.onnx.steps"
    with subprocess.Popen(command_line(*common), cwd=place, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (work / "02-finetune.checkpoint").exists():
            time.sleep(0.02)
        process.send_signal(getattr(signal, stop))
        errors = process.communicate()[1]
    if stop == "SIGINT":
        assert process.returncode == 130, errors
        assert "the same command goes on with what is in out.onnx.steps" in errors
    assert not (place / "out.onnx").exists()
    assert [step.command for step in read_manifest(work / "manifest.json").steps] == ["rewrite"]
    written = (work / "01-rewrite.onnx").stat().st_mtime_ns
    done = run(*common, "--keep-steps", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumed_after"] == 1
    assert [step["resumed"] for step in report["steps"]] == [True, False, False]
    assert (work / "01-rewrite.onnx").stat().st_mtime_ns == written
    assert 1 <= report["steps"][1]["report"]["resumed_after"] < 12
    assert (place / "out.onnx").read_bytes() == straight


def test_an_output_that_is_not_there_is_found_before_any_work(digits: Path) -> None:
    with pytest.raises(onnxsep.OnnxsepError, match="no output 'z'; they have: 'logits'"):
        Pipeline([Quantize()])(DIGITS, data=digits / "train.npz", output="z")


def test_a_failed_verification_in_python(digits: Path) -> None:
    steps = Pipeline([Rewrite(mode="spatial", init="svd"), Quantize(samples=50, max_error=1e-9)])
    with pytest.raises(VerificationError, match=r"step 2 .quantize.: the relative error") as caught:
        steps(DIGITS, data=digits / "train.npz", runs=0)
    assert caught.value.report.options["max_error"] == 1e-9
