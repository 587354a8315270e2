"""Files of the user that a command reads, or that are of another kind than what it writes, are never overwritten."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import onnx
import pytest
from finetuning_models import needs_torch
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.errors import OnnxsepError, OptionError

RECIPE = '[[steps]]\ncommand = "finetune"\nteacher = "t.onnx"\n'


def small_model(seed: int = 0, classes: int = 4) -> onnx.ModelProto:
    """Two Convs and a Gemm, on images of 8 by 8."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, classes)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "one", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], "two", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "g", [value], [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Place:
    """A folder with every kind of file that a command reads, and the files in it as they were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rng = np.random.default_rng(1)
        onnx.save(small_model(), path / "m.onnx")
        onnx.save(small_model(2), path / "t.onnx")
        images = rng.standard_normal((24, 3, 8, 8)).astype(np.float32)
        np.savez(path / "d.npz", x=images, y=np.arange(24) % 4)
        np.savez(path / "test.npz", x=images[:8], y=np.arange(8) % 4)
        np.savez(path / "i.npz", x=images[:2])
        (path / "l.csv").write_text("".join(f"{index},{index % 4}\n" for index in range(24)))
        (path / "p.toml").write_text("scale = 1\n")
        (path / "r.toml").write_text(RECIPE)
        (path / "ops.so").write_bytes(b"\x7fELF")

    def files(self) -> dict[str, tuple[str, bytes]]:
        """What is there: where a link leads to, or the content of a file."""
        return {
            str(path.relative_to(self.path)): ("link", os.fsencode(path.readlink()))
            if path.is_symlink()
            else ("file", path.read_bytes())
            for path in sorted(self.path.rglob("*"))
            if path.is_symlink() or path.is_file()
        }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The working folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Place(Path.cwd())


def run(*arguments: object) -> tuple[int, str]:
    """``onnxsep``: its exit status, and what it prints to standard error."""
    done = command_line.run(*arguments)
    return done.returncode, done.stderr


# What each command reads and writes: the option of each, and the file that it names.
READS = {
    "rewrite": {"model": "m.onnx", "--data": "d.npz", "--inputs": "i.npz", "--preprocess": "p.toml"},
    "prune": {"model": "m.onnx", "--inputs": "i.npz"},
    "quantize": {"model": "m.onnx", "--data": "d.npz", "--labels": "l.csv", "--preprocess": "p.toml"},
    "finetune": {
        "model": "m.onnx",
        "--data": "d.npz",
        "--teacher": "t.onnx",
        "--labels": "l.csv",
        "--preprocess": "p.toml",
    },
    "compress": {
        "model": "m.onnx",
        "--recipe": "r.toml",
        "teacher": "t.onnx",
        "--data": "d.npz",
        "--labels": "l.csv",
        "--test": "test.npz",
        "--test-labels": "l.csv",
        "--inputs": "i.npz",
        "--preprocess": "p.toml",
    },
    "check": {"model": "m.onnx"},
}
for _command in ("rewrite", "prune", "quantize", "finetune", "compress"):
    READS[_command]["--custom-op-library"] = "ops.so"
WRITES = {
    "rewrite": ("result", "--report", "--statistics"),
    "prune": ("result", "--report"),
    "quantize": ("result", "--report"),
    "finetune": ("result", "--report", "--checkpoint"),
    "compress": ("result", "--report", "--work"),
    "check": ("result",),
}
OPTIONS = {"rewrite": ("--mode", "depthwise"), "prune": ("--sparsity", "0.5"), "check": ("--update",)}


def arguments(command: str, **targets: str | Path) -> list[str | Path]:
    """A command that reads all that it can, and writes to these targets (``result``, ``report``, ...)."""
    reads = {option: path for option, path in READS[command].items() if option.startswith("--")}
    written = {f"--{name}": path for name, path in targets.items() if name != "result"}
    named = [word for option, path in {**reads, **written}.items() for word in (option, path)]
    return [command, "m.onnx", targets.get("result", "out.onnx"), *OPTIONS.get(command, ()), *named]


def ways(path: str) -> list[str]:
    """Other names of a file: other spellings, links, a link to a link, and a hard link."""
    Path("sub").mkdir(exist_ok=True)
    Path("link").symlink_to(path)
    Path("far").symlink_to(Path("link").absolute())
    Path("around").symlink_to(Path.cwd(), target_is_directory=True)
    os.link(path, "hard")
    return ["link", "hard", f"./sub/../{path}", "far", str(Path(path).absolute()), f"around/{path}"]


def assert_refused(ended: tuple[int, str], *words: str) -> None:
    """One line on standard error that holds these words."""
    status, errors = ended
    assert status == 1, errors
    assert errors.startswith("onnxsep: error: "), errors
    assert len(errors.splitlines()) == 1, errors
    assert "internal error" not in errors
    for word in words:
        assert word in errors


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(("command", "write"), [(command, write) for command in WRITES for write in WRITES[command]])
def test_no_target_is_a_file_that_is_read(command: str, write: str, place: Place) -> None:
    """By its path and, in turn, by one of its other names; two of them by all."""
    for number, (read, path) in enumerate(READS[command].items()):
        if (write, read) == ("result", "model") and command not in ("compress", "check"):
            continue  # what the command is for; see below
        names = ways(path)
        every = (command, read) in (("rewrite", "--data"), ("compress", "model"))
        for way in (path, *(names if every else [names[number % len(names)]])):
            before = place.files()
            ended = run(*arguments(command, **{write.removeprefix("--"): way}))
            if write == "--work":
                assert_refused(ended, "is not a folder")
            elif command == "check" and Path(way).suffix != ".onnx":
                assert_refused(ended, "neither .txt nor .onnx")
            else:
                assert_refused(ended, "would overwrite ", f"{path}, which is read as ")
            assert place.files() == before, (read, way)
        for name in ("link", "far", "around", "hard"):
            Path(name).unlink()


@pytest.mark.parametrize("command", ["rewrite", "prune", "quantize"])
def test_the_model_itself_may_be_replaced(command: str, place: Place) -> None:
    """By its path, through a link, which becomes a file, and as a hard link, whose other name stays."""
    reads = {"--data": "d.npz"} if command == "quantize" else {}
    source = Path("m.onnx").read_bytes()
    os.link("m.onnx", "hard.onnx")
    Path("link.onnx").symlink_to("m.onnx")
    for target in ("hard.onnx", "link.onnx", "m.onnx"):
        options = [word for pair in reads.items() for word in pair]
        status, errors = run(command, "m.onnx", target, *OPTIONS.get(command, ()), *options, "--quiet")
        assert status == 0, errors
        assert not Path(target).is_symlink()
        assert Path(target).read_bytes() != source
        assert (Path("m.onnx").read_bytes() == source) == (target != "m.onnx")


def test_targets_in_a_folder_of_data(place: Place) -> None:
    images = place.path / "images"
    (images / "cat").mkdir(parents=True)
    (images / "cat" / "1.png").write_bytes(b"an image")
    (images / "cat" / "old.onnx").write_bytes(Path("t.onnx").read_bytes())
    Path("to_images").symlink_to("images", target_is_directory=True)
    Path("leads.onnx").symlink_to("images/cat/old.onnx")
    before = place.files()
    for target in ("images/out.onnx", "images/cat/out.onnx", "to_images/out.onnx", "leads.onnx"):
        for command, option in (("quantize", "--data"), ("finetune", "--data"), ("compress", "--test")):
            READS_OF_FOLDER = [option, "images"] + (
                ["--recipe", "r.toml", "--data", "d.npz"] if command == "compress" else []
            )
            ended = run(command, "m.onnx", target, *READS_OF_FOLDER)
            assert_refused(ended, "lies in the folder images, which is read as the ")
        ended = run("rewrite", "m.onnx", "o.onnx", *OPTIONS["rewrite"], "--data", "images", "--report", target)
        assert_refused(ended, "lies in the folder images, which is read as the data")
    ended = run("compress", "m.onnx", "o.onnx", "--recipe", "r.toml", "--data", "images", "--work", "images/new")
    assert_refused(ended, "--work images/new lies in the folder images")
    assert place.files() == before


def test_external_data_counts_as_read(place: Place) -> None:
    for name, location in (("e.onnx", "e.data"), ("f.onnx", "f.data")):
        onnx.save(small_model(3), name, save_as_external_data=True, location=location, size_threshold=0)
    Path("link.onnx").symlink_to("f.data")
    before = place.files()
    for target in ("f.data", "./f.data", "link.onnx"):
        words = "would overwrite f.data, which is read as external data of a teacher"
        common = ("finetune", "e.onnx", "o.onnx", "--data", "d.npz", "--teacher", "f.onnx")
        assert_refused(run(*common[:2], target, *common[3:]), words)
        assert_refused(run(*common, "--report", target), words)
        assert_refused(run(*common, "--checkpoint", target), words)
    for target in ("e.data", str(Path("e.data").absolute())):
        words = "would overwrite e.data, which is read as external data of the model"
        for command in ("rewrite", "prune"):
            assert_refused(run(command, "e.onnx", target, *OPTIONS[command]), words)
            assert_refused(run(command, "e.onnx", "o.onnx", *OPTIONS[command], "--report", target), words)
        assert_refused(run("check", "e.onnx", target, "--update"), "neither .txt nor .onnx")
    assert place.files() == before


# ---------------------------------------------------------------- two targets


def test_two_targets_that_are_the_same(place: Place) -> None:
    Path("sub").mkdir()
    data, before = ("--data", "d.npz"), place.files()
    compress = ("compress", "m.onnx", "o.onnx", "--recipe", "r.toml", *data)
    finetune = ("finetune", "m.onnx", "o.onnx", *data)
    for same in ("o.onnx", "sub/../o.onnx", Path("o.onnx").absolute()):
        rewrite = ("rewrite", "m.onnx", "o.onnx", *OPTIONS["rewrite"], *data)
        assert_refused(run(*rewrite, "--report", same), "would overwrite the result o.onnx")
        assert_refused(run(*rewrite, "--statistics", same), "would overwrite the result o.onnx")
        assert_refused(run(*rewrite, "--report", "s", "--statistics", "s"), "would overwrite --report s")
        assert_refused(run(*finetune, "--checkpoint", same), "would overwrite the result o.onnx")
        assert_refused(run(*compress, "--report", same), "would overwrite the result o.onnx")
    assert_refused(run(*finetune, "--report", "o.onnx.checkpoint"), "--checkpoint o.onnx.checkpoint would overwrite")
    assert_refused(run(*compress, "--report", "o.onnx.manifest.json"), "would overwrite the manifest of the result")
    assert_refused(run(*compress, "--report", "o.onnx.steps"), "would overwrite --report")
    assert_refused(run(*compress, "--work", "sub", "--report", "sub/01-finetune.json"), "lies in --work sub")
    assert_refused(run("compress", "m.onnx", "sub/01-finetune.onnx", *compress[3:], "--work", "sub"), "lies in --work")
    assert place.files() == before


# ---------------------------------------------------------------- files of another kind


def others() -> dict[str, bytes]:
    """Files that are no target of any kind, though some look a little like one."""
    number = helper.make_tensor("t", TensorProto.INT64, [2], [8, 1])  # its bytes parse as a model with a graph
    return {
        "notes.txt": b"important",
        "photo.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "versions.json": b'{"onnxsep": "0.5", "onnx": "1.17"}',
        "config.json": b'{"onnxsep": {"mode": "depthwise"}}',
        "list.json": b"[1, 2]",
        "page.xml": b"<testsuites/>",
        "tensor.pb": number.SerializeToString(),
        "weights.bin": np.linspace(0, 1, 50).tobytes(),
        "data.npz": Path("d.npz").read_bytes(),
        "cut.onnx": Path("t.onnx").read_bytes()[:500],
        "pointer.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    }


@pytest.mark.parametrize(
    ("command", "write"), [(c, w) for c in WRITES for w in WRITES[c] if w != "--work" and c != "check"]
)
def test_no_target_holds_something_else(command: str, write: str, place: Place) -> None:
    contents = others()
    for name, kind in (("other.onnx", "result"), ("other.json", "--report")):  # targets of another kind are others too
        if kind != write:
            contents[name] = Path("t.onnx").read_bytes() if kind == "result" else REPORT
    Path("target").mkdir()
    for name, content in contents.items():
        Path("target", name).write_bytes(content)
    os.link("target/notes.txt", "target/hard")
    Path("target/link").symlink_to("photo.png")
    before = place.files()
    for target in (*contents, "hard", "link"):
        ended = run(*arguments(command, **{write.removeprefix("--"): Path("target", target)}))
        assert_refused(ended, f"target/{target} would overwrite a file that holds no ")
    assert place.files() == before


REPORT = json.dumps(
    {"onnxsep": "0.1", "source": {"path": "m.onnx", "producer": "", "opsets": {}}, "seconds": 1.0}
).encode()


def test_references_of_another_kind(place: Place) -> None:
    for name, content in others().items():
        for suffix in (".txt", ".onnx"):
            path = Path(f"{name}{suffix}")
            path.write_bytes(content)
            assert_refused(run("check", "m.onnx", path, "--update"), f"{path} would overwrite a file that holds no")
            assert path.read_bytes() == content
    Path("t.onnx.txt").write_bytes(Path("t.onnx").read_bytes())
    assert_refused(run("check", "m.onnx", "t.onnx.txt", "--update"), "that holds no reference of onnxsep")
    for reference in ("t.onnx", "new.onnx", "new.txt"):
        for _ in range(2):
            status, errors = run("check", "m.onnx", reference, "--update")
            assert status == 0, errors
    Path("new.txt").write_text("onnxsep structure, version 1\nof an older version")
    assert run("check", "m.onnx", "new.txt", "--update")[0] == 0


def test_manifests_of_other_programs(place: Place) -> None:
    Path("o.onnx.manifest.json").write_text('{"name": "my web app", "kind": "app"}')
    before = place.files()
    ended = run("compress", "m.onnx", "o.onnx", "--recipe", "r.toml", "--data", "d.npz")
    assert_refused(ended, "o.onnx.manifest.json would overwrite a file that holds no manifest of onnxsep")
    Path("o.onnx.manifest.json").write_text(REPORT.decode())
    ended = run("compress", "m.onnx", "o.onnx", "--recipe", "r.toml", "--data", "d.npz")
    assert_refused(ended, "o.onnx.manifest.json would overwrite a file that holds no manifest of onnxsep")
    Path("o.onnx.manifest.json").write_text('{"onnxsep": "0.1", "kind": "onnxsep compress 1"}')
    ended = run("rewrite", "m.onnx", "o.onnx", *OPTIONS["rewrite"], "--report", "o.onnx.manifest.json")
    assert_refused(ended, "that holds no report of onnxsep")
    Path("o.onnx.manifest.json").unlink()
    before.pop("o.onnx.manifest.json")
    assert place.files() == before


def test_places_that_cannot_be_written(place: Place) -> None:
    Path("folder.onnx").mkdir()
    os.mkfifo("pipe")
    Path("device").symlink_to("/dev/null")
    for command, write in [(name, written) for name in WRITES for written in WRITES[name]]:
        targets = ["folder.onnx", "missing/out"]
        for target in targets if command != "rewrite" else [*targets, "pipe", "device", "m.onnx/out"]:
            if write != "--work" or target != "folder.onnx":
                status, errors = run(*arguments(command, **{write.removeprefix("--"): target}))
                assert (status, len(errors.splitlines())) == (1, 1), errors
                assert "internal error" not in errors


def test_targets_are_refused_before_any_work(place: Place) -> None:
    """Nothing has been opened by then: neither a model that is missing nor data that are broken are spoken of."""
    Path("notes.txt").write_text("important")
    Path("d.npz").write_bytes(b"broken")
    for path in ("m.onnx", "t.onnx"):
        Path(path).unlink()
    for command in ("rewrite", "prune", "quantize", "finetune", "compress"):
        assert_refused(run(*arguments(command, report="notes.txt")), "--report notes.txt would overwrite")


# ---------------------------------------------------------------- what may be replaced


def test_earlier_results_are_replaced(place: Place) -> None:
    """The second time over the results of the first, the third time over empty files, as those of mktemp."""
    data, options = ("--data", "d.npz"), OPTIONS["rewrite"]
    commands: dict[str, tuple[str, ...]] = {
        "rewrite": (*options, *data, "--samples", "8", "--statistics", "s.npz", "--report", "report"),
        "prune": (*OPTIONS["prune"], "--report", "report"),
        "quantize": (*data, "--report", "report"),
    }
    for command, rest in commands.items():
        for again in range(3):
            if again == 2:
                for path in ("o.onnx", "s.npz", "report"):
                    Path(path).write_bytes(b"")
            status, errors = run(command, "m.onnx", "o.onnx", *rest, "--quiet")
            assert status == 0, errors
            assert json.loads(Path("report").read_text())["output"] == "o.onnx"
            onnx.load("o.onnx")


def test_a_link_to_a_file_of_the_same_kind_becomes_a_file(place: Place) -> None:
    Path("kept.onnx").write_bytes(Path("t.onnx").read_bytes())
    Path("link.onnx").symlink_to("kept.onnx")
    Path("nowhere.json").symlink_to("missing.json")
    options = (*OPTIONS["prune"], "--report", "nowhere.json", "--quiet")
    status, errors = run("prune", "m.onnx", "link.onnx", *options)
    assert status == 0, errors
    assert not Path("link.onnx").is_symlink()
    assert not Path("missing.json").exists()
    assert Path("kept.onnx").read_bytes() == Path("t.onnx").read_bytes()


@pytest.mark.parametrize("report", ["inspect", "evaluate"])
def test_a_printed_report_is_a_report(report: str, place: Place) -> None:
    found = (
        onnxsep.inspect("m.onnx")
        if report == "inspect"
        else onnxsep.evaluate(["m.onnx"], data="d.npz", runs=0, memory=False)
    )
    Path("r.json").write_text(json.dumps(json.loads(found.model_dump_json()), indent=2, sort_keys=True))
    status, errors = run("prune", "m.onnx", "o.onnx", *OPTIONS["prune"], "--report", "r.json", "--quiet")
    assert status == 0, errors


def test_statistics_are_read_and_not_written_without_data(place: Place) -> None:
    common = ("rewrite", "m.onnx", "o.onnx", *OPTIONS["rewrite"], "--quiet", "--statistics", "s.npz")
    assert run(*common, "--data", "d.npz")[0] == 0
    before = Path("s.npz").read_bytes()
    assert run(*common)[0] == 0
    for target in ("--report", "result"):
        words = (*common[:2], "s.npz", *common[3:]) if target == "result" else (*common, "--report", "s.npz")
        assert_refused(run(*words), "would overwrite s.npz, which is read as the statistics")
    assert Path("s.npz").read_bytes() == before


# ---------------------------------------------------------------- the Python API


def test_results_are_not_saved_over_what_they_were_made_from(place: Place) -> None:
    made = {
        "rewrite": onnxsep.rewrite("m.onnx", mode="depthwise", data="d.npz", samples=8),
        "prune": onnxsep.prune("m.onnx", sparsity=0.5, inputs="i.npz"),
        "quantize": onnxsep.quantize("m.onnx", data="d.npz", labels="l.csv"),
    }
    before = place.files()
    for command, read, words in (
        ("rewrite", "d.npz", "the data"),
        ("prune", "i.npz", "the inputs"),
        ("quantize", "d.npz", "the data"),
        ("quantize", "l.csv", "the labels"),
    ):
        with pytest.raises(OptionError) as caught:
            made[command].save(read)
        assert str(caught.value) == (
            f"the result {read} would overwrite {read}, which is read as {words}; name another one"
        )
    for save in (made["prune"].save, lambda path: onnxsep.save(small_model(), path)):
        with pytest.raises(OptionError, match="that holds no ONNX model"):
            save("r.toml")
    assert place.files() == before
    os.chdir("..")  # a relative path still names the same file, and another file of that name is another file
    with pytest.raises(OptionError, match=r"would overwrite d\.npz"):
        made["rewrite"].save("here/d.npz")
    made["rewrite"].save("d.npz")


def test_the_api_refuses_as_the_command_does(place: Place) -> None:
    for statistics in ("d.npz", "m.onnx", "l.csv"):
        with pytest.raises(OnnxsepError) as caught:
            onnxsep.rewrite("m.onnx", mode="depthwise", data="d.npz", statistics=statistics)
        ended = run("rewrite", "m.onnx", "o.onnx", *OPTIONS["rewrite"], "--data", "d.npz", "--statistics", statistics)
        assert_refused(ended, str(caught.value))
    with pytest.raises(OnnxsepError) as caught:
        onnxsep.compress("m.onnx", "r.toml", data="d.npz", work="m.onnx")
    ended = run("compress", "m.onnx", "o.onnx", "-r", "r.toml", "--data", "d.npz", "--work", "m.onnx")
    assert_refused(ended, str(caught.value))


@needs_torch
def test_a_teacher_stays(place: Place) -> None:
    """Neither the result nor the checkpoint takes the place of what is read."""
    before = place.files()
    given: dict[str, Any] = {"data": "d.npz", "teacher": "t.onnx", "epochs": 1}
    for checkpoint in ("t.onnx", "d.npz", "r.toml"):
        with pytest.raises(OptionError, match=f"checkpoint {checkpoint} would overwrite"):
            onnxsep.finetune("m.onnx", checkpoint=checkpoint, **given)
    result = onnxsep.finetune("m.onnx", checkpoint="c", **given)
    assert Path("c").exists()
    with pytest.raises(OptionError, match=r"would overwrite t\.onnx, which is read as a teacher"):
        result.save("t.onnx")
    content = Path("c").read_bytes()
    with pytest.raises(OptionError, match="add resume=True"):
        onnxsep.finetune("m.onnx", checkpoint="c", **given)
    with zipfile.ZipFile("z", "w") as archive:  # a file of torch that is no checkpoint of ours
        archive.writestr("archive/data.pkl", b"another model")
    for resume in (False, True):
        with pytest.raises(OptionError, match="that holds no checkpoint of onnxsep"):
            onnxsep.finetune("m.onnx", checkpoint="z", resume=resume, **given)
    Path("z").unlink()
    Path("c").write_text("somebody else's by now")
    result.save("m.onnx")
    assert Path("c").read_text() == "somebody else's by now"
    Path("c").write_bytes(content)
    Path("e").write_bytes(b"")
    onnxsep.finetune("m.onnx", checkpoint="e", **given).save("m2.onnx")
    assert not Path("e").exists()
    before.pop("m.onnx")
    assert before.items() <= place.files().items()
