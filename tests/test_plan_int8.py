"""Plans for the int8 model: bytes and times of what quantize makes of forms, the file as it writes it, what follows."""

import json
import shlex
from pathlib import Path
from typing import Any

import latency_models
import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, images
from command_line import run
from latency_models import residual

import onnxsep
from onnxsep.data import open_data
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import find_sites
from onnxsep.errors import OptionError, TargetError
from onnxsep.model.io import Model
from onnxsep.modes.base import Mode, find_mode
from onnxsep.planner import latency, timings
from onnxsep.planner.grid import replacement
from onnxsep.planner.latency_file import read_latencies
from onnxsep.planner.options import PlanOptions
from onnxsep.planner.quantized import Quantized
from onnxsep.planner.rows import layers_to_plan
from onnxsep.planner.shipping import budget_notes
from onnxsep.reporting.model_info import size_bytes

MODEL, X = residual(16, 8), images(24, (3, 8, 8))
FLOAT = MODEL.ByteSize()
QUICK: dict[str, Any] = {"modes": ["spatial"], "positions": 8, "rounds": 0, "data": X, "runtime": ONE_THREAD}
INT8: dict[str, Any] = {"then": "int8", "equalize": False, "bias_correction": False}  # what takes the time
WORDS = ("--data", "x.npy", "-m", "spatial", "--positions", "8", "--threads", "1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((latency, "PIECES"), (latency, "SHARES"), (timings, "THOROUGH")):
        monkeypatch.setattr(place, name, latency_models.QUICK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and samples in files."""
    onnx.save(MODEL, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", X)
    return tmp_path


# ---------------------------------------------------------------- bytes


def test_the_quantised_file_keeps_within_its_size_and_the_float_model_is_written(folder: Path) -> None:
    done = run(
        "rewrite",
        "net.onnx",
        "o.onnx",
        "--only",
        "three",
        "--target",
        "size=0.27",
        "--then",
        "int8",
        *WORDS,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line.removeprefix("then: ") for line in done.stdout.splitlines() if line.startswith("then: ")]
    program, *words = shlex.split(line)
    assert program == "onnxsep"
    assert words[:3] == ["quantize", "o.onnx", "o.int8.onnx"]
    assert run(*words, cwd=folder).returncode == 0
    size = (folder / "o.int8.onnx").stat().st_size
    assert 0.94 * 0.27 * FLOAT <= size <= 0.27 * FLOAT  # so small a model has few sizes
    written = onnx.load(folder / "o.onnx")
    assert not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in written.graph.node)
    zeros = [one.data_type for one in onnx.load(folder / "o.int8.onnx").graph.initializer if not one.dims]
    assert onnx.TensorProto.INT8 not in zeros  # activations are uint8 unless said
    assert f"{FLOAT:,} -> " in done.stdout
    assert "quantised to int8: " in done.stdout


def test_bytes_of_forms_are_those_of_quantised_files() -> None:
    model = Model(residual(16, 8, names="a/rather/long/name/"))
    sites, mode = find_sites(model), find_mode("spatial")
    assert isinstance(mode, Mode)
    layers = [site for site in sites.found if isinstance(site, ConvSite) and not site.first]
    rows = {rank: [replacement(site, mode, (rank,)) for site in layers] for rank in (2, 5, 8, 12)}
    found = Quantized(model, sites, {"activations": "uint8"}, open_data(X, model), ONE_THREAD)
    found.size.prepare(row for several in rows.values() for row in several)
    alone = found.quick_size(model)
    assert found.size.source == alone
    for rank in (5, 8):  # the others are quantised, and what lies between them is not
        whole = found.size.of(rows[rank])
        assert alone + sum(map(found.size.change, rows[rank])) == pytest.approx(whole, rel=0.005)
        assert whole < alone
    assert alone <= found.source.size <= 1.02 * alone  # a correction adds biases


def test_int8_alone_is_said_to_do_where_it_does() -> None:
    report = onnxsep.plan(MODEL, target="size=0.35", only="one", **INT8, **QUICK).report
    assert not any(layer.mode for layer in report.layers)
    assert any("int8 alone keeps within the budgets" in note for note in report.notes)
    made = report.quantized
    assert made is not None
    quick: dict[str, Any] = {"equalize": False, "bias_correction": False, "verify": "none"}
    alone = onnxsep.quantize(MODEL, data=X, activations="uint8", runtime=ONE_THREAD, **quick)
    assert made.bytes_alone == made.bytes_after == report.targets[0].after == size_bytes(alone.model)
    assert report.targets[0].before == FLOAT
    assert report.targets[0].allowed == int(0.35 * FLOAT)


def test_an_impossible_size_says_what_can_be_had_of_quantised_files() -> None:
    with pytest.raises(TargetError, match="the least that can be had is ") as failed:
        onnxsep.plan(MODEL, target="size=0.05", **INT8, only="one", **QUICK)
    (target,) = failed.value.report.targets
    assert 0.05 * FLOAT < target.least < 0.35 * FLOAT  # of the int8 model, far below the floats'


# ---------------------------------------------------------------- time


def test_times_are_shares_of_the_float_model(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "net.onnx")
    options: dict[str, Any] = {"only": "three", "cache": tmp_path / "c", **INT8, **QUICK}
    found = onnxsep.plan(tmp_path / "net.onnx", target=["latency=1000s", "size=0.28"], **options)
    report = found.report
    assert report.latency is not None
    assert report.quantized is not None
    assert report.quantized.latency_alone is not None
    (time,) = [one for one in report.targets if one.kind == "latency"]
    assert time.before == pytest.approx(report.latency.whole_ms * 1e6, abs=1)
    assert time.after is not None
    assert time.after / time.before == pytest.approx(report.latency.promised, rel=1e-3)
    kept = [json.loads(path.read_text()) for path in (tmp_path / "c").glob("*.json")]
    assert {one["what"]["then"] for one in kept if "piece" in one.get("what", {})} == {"int8 activations='uint8'"}
    ratios = [one["found"]["ratio"] for one in kept if "made" in one.get("what", {})]
    assert report.quantized.latency_alone in ratios
    assert report.latency.measured in ratios
    said = dict(found.plan.measured)
    assert said["then"] == "int8, activations=uint8, bias_correction=False, equalize=False"
    assert said["quantized_bytes"] == report.quantized.bytes_after


def test_a_kit_holds_quantised_pieces_and_its_times_are_for_such_plans(folder: Path) -> None:
    words = ("profile", "net.onnx", "kit", "-m", "spatial", "--only", "three", "--then", "int8")
    assert run(*words, cwd=folder).returncode == 0
    manifest = json.loads((folder / "kit" / "manifest.json").read_text())
    assert manifest["then"] == "int8 activations='uint8'"
    assert (folder / "kit" / "original.onnx").read_bytes() == (folder / "net.onnx").read_bytes()
    (piece,) = manifest["pieces"].values()
    for name in (manifest["whole"], piece["file"], *(one["file"] for one in piece["forms"].values())):
        kinds = [node.op_type for node in onnx.load(folder / "kit" / name).graph.node]
        assert "DequantizeLinear" in kinds
    content = {
        "kind": "onnxsep latencies",
        "schema": 1,
        "onnxsep": "0.1.0",
        "model": manifest["model"],
        "then": manifest["then"],
        "times": {
            "machine": {"runtime": "1.2", "provider": "P", "threads": 1, "processor": "a phone"},
            "whole_ms": 5.0,
            "original_ms": 10.0,
            "pieces": {key: {"ms": 1.0, "share": 0.4, "error": 0.001} for key in manifest["pieces"]},
            "forms": {
                key: {form: {"ms": 0.5, "ratio": 0.5, "error": 0.001} for form in one["forms"]}
                for key, one in manifest["pieces"].items()
            },
        },
    }
    (folder / "latency.json").write_text(json.dumps(content))
    assert read_latencies(folder / "latency.json").then == manifest["then"]
    options: dict[str, Any] = {**QUICK, "latency_from": folder / "latency.json", "only": "three"}
    report = onnxsep.plan(folder / "net.onnx", target="latency=0.45", **INT8, **options).report
    assert report.latency is not None
    # Half of the time is gone with int8, a fifth of the rest with the layer: .5 * (1 - .4 * .5)
    assert report.latency.promised == pytest.approx(0.4)
    assert report.targets[0].before == 10_000_000
    for other in ({}, {**INT8, "per_channel": False}):
        with pytest.raises(OptionError, match="has the latencies of models in int8"):
            onnxsep.plan(folder / "net.onnx", target="latency=0.45", **{**options, **other})


def test_a_whole_that_takes_longer_than_its_budget_is_said() -> None:
    found = onnxsep.plan(MODEL, target=["latency=1000s", "params=0.99"], only="one", **QUICK).report
    assert not any("more than latency" in note for note in found.notes)
    assert found.latency is not None
    assert found.latency.measured is not None
    allowed = round(0.8 * found.latency.measured * found.targets[0].before)
    tight = found.targets[0].model_copy(update={"allowed": allowed, "target": "latency=0.6"})
    (note,) = budget_notes(found.model_copy(update={"targets": (tight, *found.targets[1:])}))
    assert "(25.0%) more than latency=0.6 allows" in note


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"per_channel": False}, "per_channel=False is for then='int8'"),
        ({"activations": "int8"}, "activations is for then='int8'"),
        ({"then": "int8", "percentile": 99.0}, "percentile needs method"),
        ({"then": "int4"}, "then"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        onnxsep.plan(MODEL, target="size=0.3", **{**QUICK, **options})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "spatial", "--then", "int8"), "--then is for --target"),
        (("-m", "spatial", "--cache", "c"), "--cache is for --target"),
        (("--target", "params=0.5", "--latency-from", "l.json", "--data", "x.npy"), "--latency-from is for --target"),
        (("--target", "latency=.5", "--latency-from", "none.json", "--data", "x.npy"), "none.json is not there"),
    ],
)
def test_rewrite_refuses_what_is_for_other_targets(words: tuple[str, ...], said: str, folder: Path) -> None:
    done = run("rewrite", "net.onnx", "o.onnx", *words, cwd=folder)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (folder / "o.onnx").exists()


def test_rewrite_keeps_and_finds_latencies(folder: Path) -> None:
    words = ("rewrite", "net.onnx", "o.onnx", "--target", "latency=1000s", "--only", "three", *WORDS, "--cache", "c")
    assert run(*words, cwd=folder).returncode == 0
    kept = {path.name: path.read_bytes() for path in (folder / "c").iterdir() if path.is_file()}
    assert len(kept) > 3
    assert run(*words, cwd=folder).returncode == 0
    assert {path.name: path.read_bytes() for path in (folder / "c").iterdir() if path.is_file()} == kept


def test_layers_that_stay_in_float_are_left_alone() -> None:
    sites = find_sites(Model(MODEL))
    names = {site.place: site.name for site in sites.found}
    asked = PlanOptions(target="size=0.7", data=X, then="int8", exclude="t*")
    layers, reasons = layers_to_plan(sites, asked)
    assert [site.name for site in layers] == ["one"]
    why = {names[place]: reason for place, reason in reasons.items()}
    assert why["two"] == why["three"] == "it stays in float (exclude)"
    assert asked.quantized == {"activations": "uint8", "exclude": "t*"}
