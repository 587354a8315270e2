"""Data that cannot be used, files that are something else, Ctrl-C: one clear line, and no file of the user's lost."""

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from calibration_models import ONE_THREAD, fitted, images, network
from numpy.typing import NDArray
from onnx import helper

import onnxsep
from onnxsep import cli
from onnxsep.calibration import api
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.errors import CalibrationError, DataError, MissingDependencyError, OptionError
from onnxsep.layers.rank import Rank
from onnxsep.modes.base import Factors, Mode, Task, get_mode
from onnxsep.passes.depthwise import Depthwise
from onnxsep.passes.spatial import Spatial

Array = NDArray[Any]
MODEL = network(
    """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1]>(b, w2)
        d = Relu(c)
        y = Conv(d, w3)
    }""",
    w1=(6, 3, 3, 3),
    w2=(6, 6, 3, 3),
    w3=(6, 6, 1, 1),
)
X = images(12)


class Folder:
    """The user's files: a model, data, statistics of the model, and something that must not change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model, self.data, self.statistics = path / "in.onnx", path / "data.npz", path / "statistics.npz"
        self.result = path / "out.onnx"
        onnx.save(MODEL, self.model)
        np.savez(self.data, x=X)
        fitted(MODEL, X, positions=4, statistics=self.statistics, verify="none")
        onnx.save(helper.make_model(MODEL.graph, opset_imports=MODEL.opset_import), self.result)  # of an earlier run
        self.before = self.content()

    def content(self) -> dict[str, bytes]:
        return {found.name: found.read_bytes() for found in sorted(self.path.iterdir())}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "files").mkdir()
    return Folder(tmp_path / "files")


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """``onnxsep`` in this process: its exit status, and what it prints."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["onnxsep", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


def rewrite(folder: Folder, *options: str | Path, data: Path | None = None) -> list[str | Path]:
    given: list[str | Path] = ["--data", folder.data if data is None else data]
    chosen = [] if "--no-data" in options else given
    rest = [option for option in options if option != "--no-data"]
    return ["rewrite", folder.model, folder.result, "--mode", "depthwise", "--force", *chosen, *rest]


def assert_refused(ended: tuple[int, str, str], *words: str, status: int = 1) -> None:
    """One line on standard error that holds these words, nothing else."""
    code, out, err = ended
    assert code == status, err
    assert out == ""
    if status == 1:
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("onnxsep: error: ")
        assert "internal error" not in err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err


BAD_DATA: dict[str, tuple[dict[str, Array], list[str]]] = {
    "nan": ({"x": np.where(np.arange(192).reshape(3, 8, 8) == 5, np.nan, X).astype(np.float32)}, ["NaN"]),
    "infinity": ({"x": np.where(X > 3, np.inf, X).astype(np.float32)}, ["inf"]),
    "channels": ({"x": images(12, (4, 8, 8))}, ["'x'", "4"]),
    "axes": ({"x": images(12, (3, 8))}, ["'x'"]),
    "type": ({"x": (X * 50).astype(np.uint8)}, ["uint8", "float32"]),
    "name": ({"z": X, "other": X}, ["'x'", "'z'"]),
    "one": ({"x": X[:1]}, ["at least 2 samples", "got 1"]),
    "none": ({"x": X[:0]}, ["'x'"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str, folder: Folder, run: Command) -> None:
    arrays, words = BAD_DATA[case]
    np.savez(folder.data, **arrays)  # type: ignore[arg-type]  # the stub takes the keywords for options
    before = folder.content()
    assert_refused(run(*rewrite(folder)), *words)
    assert folder.content() == before


def test_data_that_are_no_data(folder: Folder, run: Command) -> None:
    assert_refused(run(*rewrite(folder, data=folder.path / "missing.npz")), "does not exist")
    assert_refused(run(*rewrite(folder, data=folder.model)), "neither a folder of images nor")
    assert_refused(run(*rewrite(folder, data=folder.statistics)), "'x'")
    (folder.path / "empty").mkdir()
    assert_refused(run(*rewrite(folder, data=folder.path / "empty")), "empty")
    (folder.path / "empty").rmdir()
    assert folder.content() == folder.before


def test_values_that_overflow_within_the_model(folder: Folder, run: Command) -> None:
    np.savez(folder.data, x=X / np.abs(X).max() * np.float32(3e38))
    before = folder.content()
    assert_refused(run(*rewrite(folder)), "Conv 'conv_c' reads NaN or infinity", "--skip")
    assert folder.content() == before


def test_options_that_contradict_each_other(folder: Folder, run: Command) -> None:
    assert_refused(run(*rewrite(folder, "--init", "joint", "--no-data")), "--init joint", "add --data")
    assert_refused(run(*rewrite(folder, "--init", "best")), "'best'", "svd, response, compensated, joint")
    assert_refused(run(*rewrite(folder, "--tune", "10", "--no-data")), "--tune needs", "--data")
    assert_refused(run(*rewrite(folder, "--mean", "0.5", "--no-data")), "--data")
    assert_refused(run(*rewrite(folder, "--mean", "0.5")), "for images")
    assert_refused(run(*rewrite(folder, "--statistics", folder.statistics, "--tune", "3", "--no-data")), "--data")
    for option in ("--positions", "--samples"):
        assert_refused(run(*rewrite(folder, option, "0")), option, status=2)
    assert_refused(run(*rewrite(folder, "--tune", "-1")), "--tune", status=2)
    assert folder.content() == folder.before
    for options, least in (({"positions": 0}, 1), ({"samples": 0}, 1), ({"tune": -1}, 0)):
        with pytest.raises(OptionError, match=f"must be {least} or more"):
            onnxsep.rewrite(folder.model, mode="depthwise", data=X, **options)  # type: ignore[arg-type]


def test_modes_offer_what_they_list(folder: Folder, run: Command) -> None:
    for mode, init in (("spatial", "response"), ("tucker", "compensated"), ("channel", "compensated")):
        arguments = [mode if argument == "depthwise" else argument for argument in rewrite(folder, "--init", init)]
        offered = ", ".join(get_mode(mode).inits)
        assert_refused(run(*arguments), f"mode {mode} does not offer --init {init}; it has: {offered}")
    assert folder.content() == folder.before


class Plain(Spatial):
    """A mode of another package that knows no data."""

    name = "plain"
    summary = "weights alone"
    inits: ClassVar[tuple[str, ...]] = ("svd",)


def test_mode_without_data(folder: Folder) -> None:
    with pytest.raises(OptionError, match=r"mode plain does not offer init='joint'; it has: svd$"):
        fitted(MODEL, X, mode=Plain(), init="joint")
    result = fitted(MODEL, X, mode=Plain())
    assert result.report.calibration is not None
    assert result.report.calibration.init == "svd"


def test_mode_that_breaks_off_is_named() -> None:
    class Broken(Depthwise):
        name = "broken"

        def fit(self, task: Task, rank: Rank, init: str) -> Factors:
            raise ZeroDivisionError("no luck")

    class Promises(Depthwise):
        name = "promises"

        def fit(self, task: Task, rank: Rank, init: str) -> Factors:
            return Mode.fit(self, task, rank, init)

    with pytest.raises(onnxsep.errors.PassError, match=r"mode broken, Conv 'conv_a': ZeroDivisionError: no luck"):
        fitted(MODEL, X, mode=Broken())
    with pytest.raises(onnxsep.errors.PassError, match=r"mode promises, Conv 'conv_a': NotImplementedError"):
        fitted(MODEL, X, mode=Promises())


def test_tuning_needs_torch(folder: Folder, run: Command) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("torch is installed")
    assert_refused(run(*rewrite(folder, "--tune", "10")), "torch", "onnxsep[finetune]")
    assert folder.content() == folder.before
    with pytest.raises(MissingDependencyError, match="torch"):
        fitted(MODEL, X, tune=5)


# Statistics


def test_recorded_statistics_are_used_without_the_data(folder: Folder, run: Command) -> None:
    arguments = rewrite(folder, "--statistics", folder.statistics, "--no-data", "--include-first", "--no-verify")
    code, out, _ = run(*arguments)
    assert code == 0
    assert "conv_c" in out
    onnx.checker.check_model(folder.result, full_check=True)
    assert folder.statistics.read_bytes() == folder.before["statistics.npz"]


def test_statistics_of_another_model(folder: Folder, run: Command) -> None:
    other = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            y = Conv<pads = [1, 1, 1, 1]>(a, w2)
        }""",
        w1=(6, 3, 3, 3),
        w2=(6, 6, 3, 3),
    )
    changed = onnx.ModelProto()
    changed.CopyFrom(MODEL)
    changed.graph.initializer[1].raw_data = changed.graph.initializer[1].raw_data[:-4] + b"\x00\x00\x80\x3f"
    activation = onnx.ModelProto()
    activation.CopyFrom(MODEL)
    activation.graph.node[1].op_type = "Sigmoid"
    for model in (other, changed, activation):
        onnx.save(model, folder.model)
        before = folder.content()
        arguments = rewrite(folder, "--statistics", folder.statistics, "--no-data")
        assert_refused(run(*arguments), "belong to another model", "--data")
        assert folder.content() == before


def test_statistics_outlive_new_names_and_another_file_format(folder: Folder, run: Command) -> None:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(MODEL)
    for node in renamed.graph.node:
        node.name, node.doc_string = f"{node.name}_renamed", "documented"
    renamed.producer_name = "somebody"
    onnx.save(renamed, folder.model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert run(*rewrite(folder, "--statistics", folder.statistics, "--no-data", "--no-verify"))[0] == 0
    code, out, _ = run(*rewrite(folder, "--statistics", folder.statistics, "--no-data", "--no-verify", "--json"))
    assert code == 0
    rows = [row for row in json.loads(out)["convs"] if row["status"] == "replaced"]
    assert [row["name"] for row in rows] == ["conv_c_renamed"]
    assert all(row["held_out_error"] is not None for row in rows)


def damaged(folder: Folder) -> dict[str, bytes]:
    """What a file that is given as statistics may hold."""
    statistics = folder.statistics.read_bytes()
    other = folder.path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("letter.txt", "Dear Sir")
    content = other.read_bytes()
    other.unlink()
    np.savez(folder.path / "header.npz", header=np.array('["onnxsep statistics 1"]'))
    np.savez(folder.path / "format.npz", header=np.array('{"format": "onnxsep statistics 99"}'))
    np.savez(folder.path / "objects.npz", header=np.array({"format": 1}, dtype=object))
    np.save(folder.path / "array.npy", X)
    made = {
        name: (folder.path / name).read_bytes() for name in ("header.npz", "format.npz", "objects.npz", "array.npy")
    }
    for name in made:
        (folder.path / name).unlink()
    middle = len(statistics) // 2
    return {
        **made,
        "empty": b"",
        "zip": content,
        "cut": statistics[:middle],
        "changed": statistics[:middle]
        + bytes(byte ^ 255 for byte in statistics[middle : middle + 64])
        + statistics[middle + 64 :],
        "model": MODEL.SerializeToString(),
        "data": folder.data.read_bytes(),
        "text": b"statistics",
    }


def test_files_that_are_no_statistics(folder: Folder, run: Command) -> None:
    for name, content in damaged(folder).items():
        path = folder.path / "given"
        path.write_bytes(content)
        before = folder.content()
        arguments = rewrite(folder, "--statistics", path, "--no-data", "--include-first")
        assert_refused(run(*arguments), "cannot be read as a statistics file")
        # Nor are they replaced by recorded ones, but for an empty file.
        if name not in ("changed", "empty"):
            assert_refused(
                run(*rewrite(folder, "--statistics", path)), "would overwrite a file that holds no statistics"
            )
        assert folder.content() == before, name
        path.unlink()
    assert_refused(run(*rewrite(folder, "--statistics", folder.path / "no.npz", "--no-data")), "no such file")
    assert_refused(run(*rewrite(folder, "--statistics", folder.path, "--no-data")), "cannot be read")
    assert folder.content() == folder.before


def test_statistics_do_not_overwrite_the_users_files(folder: Folder, run: Command) -> None:
    for path in (folder.model, folder.result):
        assert_refused(run(*rewrite(folder, "--statistics", path)), "would overwrite")
    assert_refused(run(*rewrite(folder, "--statistics", folder.data)), "would overwrite")
    missing = folder.path / "nowhere" / "statistics.npz"
    assert_refused(run(*rewrite(folder, "--statistics", missing)), "nowhere")
    assert folder.content() == folder.before


def test_statistics_of_a_mode_without_linear_layers(tmp_path: Path) -> None:
    """Recorded for Convs alone, they tell nothing about a Gemm."""
    model = network(
        """g (float[N, 3, 8, 8] x) => (float[N, 20] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1)
            b = Flatten(a)
            y = Gemm<transB = 1>(b, w2, b2)
        }""",
        w1=(2, 3, 3, 3),
        w2=(20, 128),
        b2=(20,),
    )
    path = tmp_path / "statistics.npz"
    fitted(model, X, statistics=path, positions=8)
    with pytest.raises(CalibrationError, match=r"tell nothing about Gemm 'gemm_y'.*record them again"):
        onnxsep.rewrite(model, mode="pointwise", rank=4, statistics=path, runtime=ONE_THREAD)
    fitted(model, X, statistics=path, positions=8, mode="pointwise", rank=4)
    for mode in ("pointwise", "depthwise"):
        result = onnxsep.rewrite(
            model, mode=mode, rank=4, force=True, include_first=True, statistics=path, runtime=ONE_THREAD
        )
        assert result.report.totals.replaced >= 1


def test_statistics_are_recorded_once_for_every_mode(folder: Folder) -> None:
    """They depend on neither mode nor rank, and they say with what they were made."""
    first = folder.statistics.read_bytes()
    fitted(MODEL, X, mode="spatial", rank=2, positions=4, statistics=folder.statistics, verify="none")
    again = folder.statistics.read_bytes()
    with np.load(folder.statistics) as arrays, np.load(folder.path / "data.npz"):
        names = set(arrays)
    # Where there are fewer positions than inputs, their rows are smaller than a covariance.
    assert {name.replace(".rows", ".covariance") for name in names} == {
        "header",
        *(f"{n}.{part}.{kind}" for n in range(3) for part in ("fit", "held_out") for kind in ("mean", "covariance")),
    }
    assert len(names) == 13
    assert len(first) == len(again)
    report = onnxsep.rewrite(
        MODEL, mode="spatial", rank=2, force=True, statistics=folder.statistics, runtime=ONE_THREAD
    ).report.calibration
    assert report is not None
    assert (report.init, report.samples, report.positions, report.seed) == ("joint", 12, 4, 0)


# Ctrl-C


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_interrupt_leaves_nothing_behind(
    after: int, folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wherever it comes: while factors are fitted, or while statistics are recorded, which are written last."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(api, "CalibrationOptions", functools.partial(CalibrationOptions, memory=0))
    calls: list[str] = []
    spilled: list[Path] = []

    def progress(name: str, done: int, total: int) -> None:
        calls.append(name)
        if len(calls) == after:
            spilled.extend((tmp_path / "temporary").glob("*/*.npy"))
            raise KeyboardInterrupt

    target = folder.path / "new.npz"
    with pytest.raises(KeyboardInterrupt) as raised:
        fitted(MODEL, X, statistics=target, progress=progress)
    assert spilled
    del raised  # with all that its frames hold
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert folder.content() == folder.before


def test_dry_run_records_no_statistics(folder: Folder) -> None:
    assert fitted(MODEL, X, statistics=folder.path / "new.npz", dry_run=True).report.dry_run
    assert folder.content() == folder.before


def test_control_c_in_a_process_of_its_own(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    weights: dict[str, Any] = {f"w{n}": (48, 48 if n else 3, 3, 3) for n in range(30)}
    model = network(
        "g (float[N, 3, 48, 48] x) => (float[N, 48, 48, 48] y) {"
        + " ".join(f"v{n} = Conv<pads = [1, 1, 1, 1]>({'x' if n == 0 else f'v{n - 1}'}, w{n})" for n in range(30))
        + " y = Relu(v29) }",
        **weights,
    )
    onnx.save(model, folder.model)
    np.savez(folder.data, x=images(60, (3, 48, 48)))
    before = folder.content()
    program = (
        "import sys, onnxsep.cli as cli, onnxsep.calibration.api as api, dataclasses, functools;"
        "api.CalibrationOptions = functools.partial(api.CalibrationOptions, memory=0);"
        "sys.argv[0] = 'onnxsep'; cli.main()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, rewrite(folder))]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        # The inputs are two batches; more files are activations of a network that is being run.
        while process.poll() is None and len(list((tmp_path / "temporary").glob("*/*.npy"))) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert out == ""
    assert err.strip() == "onnxsep: interrupted; nothing was written"
    assert folder.content() == before
    assert list((tmp_path / "temporary").glob("onnxsep-*")) == []  # ONNX Runtime leaves a file of its own


def test_errors_have_the_documented_status() -> None:
    assert {error.exit_status for error in (CalibrationError, DataError, OptionError, MissingDependencyError)} == {1}
