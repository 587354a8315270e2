"""Limits of ``evaluate``, and latency that is measured until its spread is small."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import run
from onnx import TensorProto, helper, numpy_helper

from onnxsep.errors import DataError, OnnxsepError, OptionError, VerificationError
from onnxsep.evaluation import evaluate
from onnxsep.evaluation.cells import milliseconds, uncertain
from onnxsep.evaluation.latency import measure_latency
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.timing import QUICK, Effort

ONE = RuntimeOptions(threads=1)
LABELS = np.arange(20)


def scores(wrong: int, ballast: int = 0) -> onnx.ModelProto:
    """A model of 20 classes that is wrong for the first so many of 20 one-hot samples, and larger by a weight."""
    weight = np.eye(20, dtype=np.float32)
    weight[:wrong] = np.roll(weight[:wrong], 1, axis=1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 20]) for name in "xy"]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(ballast, np.float32), "unused")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


DATA: dict[str, Any] = {"x": np.eye(20, dtype=np.float32), "y": LABELS}


def quick(models: Any, **options: Any) -> Any:
    return evaluate(models, **{"data": DATA, "runs": 0, "memory": False, "runtime": ONE, **options})


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({"min_accuracy": 90}, []),  # 18 of 20 are 90 %: a limit that is reached is none missed
        ({"min_accuracy": 90.5}, [("model 2", "min_accuracy", 90)]),
        ({"max_drop": 10}, []),
        ({"max_drop": 9.99}, [("model 2", "max_drop", 10)]),
        ({"max_drop": 0}, [("model 2", "max_drop", 10)]),
        ({"max_size_ratio": 1.6}, [("model 2", "max_size_ratio", None)]),
        ({"min_accuracy": 95, "max_drop": 5}, [("model 2", "min_accuracy", 90), ("model 2", "max_drop", 10)]),
    ],
)
def test_limits(limits: dict[str, float], missed: list[tuple[str, str, float | None]]) -> None:
    models = [scores(0), scores(2, ballast=400)]
    if not missed:
        assert quick(models, **limits).missed == ()
        return
    with pytest.raises(VerificationError) as caught:
        quick(models, **limits)
    report = caught.value.report
    assert [(one.model, one.limit) for one in report.missed] == [entry[:2] for entry in missed]
    for one, (_, name, measured) in zip(report.missed, missed, strict=True):
        assert one.allowed == limits[name]
        expected = models[1].ByteSize() / models[0].ByteSize() if measured is None else measured
        assert one.measured == pytest.approx(expected)


def test_the_first_model_is_held_to_the_accuracy_too() -> None:
    with pytest.raises(VerificationError, match=r"model 1: min_accuracy=95 is missed by 5\.00: .* is 90\.00 %"):
        quick([scores(2)], min_accuracy=95)


def test_a_better_model_has_no_drop() -> None:
    assert quick([scores(2), scores(0)], max_drop=0).missed == ()


@pytest.mark.parametrize(
    ("limits", "kind", "words"),
    [
        ({"min_accuracy": 0.9}, OptionError, "above 1 and at most 100, not 0.9; 0.9 as a share is min_accuracy=90"),
        ({"min_accuracy": 101}, OptionError, "at most 100, not 101"),
        ({"min_accuracy": float("nan")}, OptionError, "at most 100, not nan"),
        ({"max_drop": -1}, OptionError, "-1 is no loss of accuracy"),
        ({"max_latency_ratio": 0}, OptionError, "0 is no ratio above 0"),
        ({"max_size_ratio": float("inf")}, OptionError, "inf is no ratio above 0"),
        ({"max_latency_ratio": 1}, OptionError, "needs timed runs, and runs=0 switches them off"),
        ({"max_drop": 1, "metric": lambda outputs, labels: 1.0}, OptionError, "which metric replaces"),
        ({"min_accuracy": 90, "data": {"x": DATA["x"]}}, DataError, "min_accuracy needs labels, and the data has none"),
        ({"max_drop": 1, "data": {"x": DATA["x"]}}, DataError, "max_drop needs labels"),
    ],
)
def test_limits_that_cannot_be_measured_are_refused(
    limits: dict[str, Any], kind: type[OnnxsepError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        quick([scores(0), scores(1)], **limits)


@pytest.mark.parametrize("name", ["max_drop", "max_latency_ratio", "max_size_ratio"])
def test_what_is_compared_needs_a_second_model(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} compares models with the first one, and there is one only"):
        quick([scores(0)], runs=1, reference=scores(0), **{name: 0.5})


def test_the_command_line_gates(tmp_path: Path) -> None:
    onnx.save(scores(0), tmp_path / "a.onnx")
    onnx.save(scores(2), tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", x=DATA["x"], y=DATA["y"])
    shared = ("evaluate", "a.onnx", "b.onnx", "--data", "d.npz", "--runs", "3", "--no-memory", "--threads", "1")
    done = run(*shared, "--min-accuracy", "95", "--max-size-ratio", "0.5", "--report", "r.json", cwd=tmp_path)
    assert done.returncode == 3
    report = json.loads((tmp_path / "r.json").read_text())
    assert [one["limit"] for one in report["missed"]] == ["min_accuracy", "max_size_ratio"]
    lines = [line for line in done.stdout.splitlines() if " is missed by " in line]
    assert lines[0] == "note: b.onnx: --min-accuracy 95 is missed by 5.00: the top-1 accuracy is 90.00 %"
    assert len(lines) == 2
    assert "--min-accuracy 95 is missed by 5.00" in done.stderr
    quiet = run(*shared, "--max-drop", "1", "--quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout) == (3, "")
    assert "the loss of top-1 accuracy is 10.00 points" in quiet.stderr
    good = run(*shared, "--max-drop", "10", "--quiet", cwd=tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert run("report", "r.json", cwd=tmp_path).stdout.count(" is missed by ") == 2
    refused = run(*shared, "--report", "a.onnx", cwd=tmp_path)
    assert refused.returncode == 1
    assert onnx.load(tmp_path / "a.onnx") == scores(0)


# ---------------------------------------------------------------- latency


class Clock:
    """A clock that only runs of models move, and a machine that is slower for a while."""

    def __init__(self, slow_from: float = np.inf, slow_to: float = np.inf) -> None:
        self.now, self.runs, self._slow = 0.0, 0, (slow_from, slow_to)
        self._rng = np.random.default_rng(0)

    def __call__(self) -> float:
        return self.now

    def model(self, seconds: float, spread: float = 0.0) -> Callable[[Any], None]:
        def call(feed: Any) -> None:
            slower = 3.0 if self._slow[0] <= self.now < self._slow[1] else 1.0
            self.now += slower * seconds * float(np.exp(spread * self._rng.standard_normal()))
            self.runs += 1

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    def make(*arguments: float) -> Clock:
        found = Clock(*arguments)
        monkeypatch.setattr("onnxsep.running.timing.time.perf_counter", found)
        return found

    return make


def test_a_machine_that_is_slow_for_a_while_does_not_change_the_ratio(clock: Callable[..., Clock]) -> None:
    time = clock(0.5, 1.4)
    one, two = measure_latency([time.model(0.01, 0.05), time.model(0.004, 0.05)], [{}])
    assert one.against_first is None
    assert two.against_first is not None
    assert two.against_first.value == pytest.approx(0.4, rel=0.02)
    assert two.against_first.standard_error == pytest.approx(0.004, rel=0.8)  # a hundredth, and a little more


def test_at_least_a_second_of_each_model(clock: Callable[..., Clock]) -> None:
    time = clock()
    found = measure_latency([time.model(0.001), time.model(0.0002)], [{}])
    assert all(one.runs * one.median_ms >= 1000 for one in found)


def test_a_large_spread_is_measured_longer_and_ends(clock: Callable[..., Clock]) -> None:
    time = clock()
    calm = measure_latency([time.model(0.01, 0.02)], [{}])[0]
    wild = measure_latency([time.model(0.01, 0.9)], [{}])[0]
    assert calm.runs < wild.runs
    assert time.now < 60


def test_a_slow_model_is_run_a_few_times(clock: Callable[..., Clock]) -> None:
    time = clock()
    found = measure_latency([time.model(30.0), time.model(3.0)], [{}, {}, {}, {}])
    assert [one.median_ms for one in found] == pytest.approx([30000, 3000])
    assert time.now < 200  # warm, and three rounds
    assert found[1].against_first is not None
    assert found[1].against_first.value == pytest.approx(0.1)


def test_a_look_in_passing_takes_a_second_or_two(clock: Callable[..., Clock]) -> None:
    time = clock()
    measure_latency([time.model(0.02, 0.8), time.model(0.02, 0.8)], [{}], effort=QUICK)
    assert time.now < 4
    slow = clock()
    measure_latency([slow.model(5.0), slow.model(2.0)], [{}, {}], effort=QUICK)
    assert slow.now <= 14  # warm, and one round
    quick = clock()
    measure_latency([quick.model(1e-4), quick.model(1e-4)], [{}], effort=QUICK)
    assert quick.now < 0.15


def test_the_number_of_runs_can_be_given(clock: Callable[..., Clock]) -> None:
    time = clock()
    assert [one.runs for one in measure_latency([time.model(1e-3), time.model(1e-4)], [{}], 7)] == [7, 7]


def test_progress_goes_to_its_end(clock: Callable[..., Clock]) -> None:
    time, told = clock(), list[tuple[str, int, int]]()
    effort = Effort(shortest=0.1, longest=0.3)
    measure_latency([time.model(1e-3, 0.5)], [{}], None, lambda *state: told.append(state), effort=effort)
    done = [state[1] for state in told]
    assert done == sorted(done)
    assert told[-1] == ("latency", 100, 100)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.4123, 0.0062, "0.412 +- 0.006"),
        (0.4123, 0.0132, "0.412 +- 0.013"),
        (0.4123, 0.04, "0.41 +- 0.04"),
        (0.4123, 0.3, "0.4 +- 0.3"),
        (1.27, 0.00001, "1.270 +- 0.001"),
        (12.7, 3.4, "13 +- 3"),
        (0.5, None, "0.5"),
    ],
)
def test_no_more_digits_than_an_error_leaves(value: float, error: float | None, shown: str) -> None:
    assert uncertain(value, error) == shown


def test_milliseconds() -> None:
    assert milliseconds(0.8234) == "0.823"
    assert milliseconds(0.8234, 0.03) == "0.82"
    assert milliseconds(1234.5, 40) == "1,234"


def test_real_models_get_a_ratio_with_its_error() -> None:
    report = evaluate([scores(0), scores(0)], data=DATA, runs=10, memory=False, runtime=ONE)
    first, second = report.models
    assert first.latency is not None
    assert first.latency.against_first is None
    assert second.latency is not None
    assert second.ratios is not None
    assert second.latency.against_first is not None
    assert second.ratios.latency == second.latency.against_first.value > 0
