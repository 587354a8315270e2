"""Only folders that runs of onnxsep have made are emptied, and only of the files that their manifests name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep import CompressResult, Pipeline, Prune, Rewrite, RuntimeOptions
from onnxsep.errors import OptionError

STEPS = Pipeline([Rewrite(mode="depthwise", verify="none"), Prune(sparsity=0.5, verify="none")])
USERS = {"notes.txt": "of the user", "01-notes.json": "too", "03-quantize.json": "{}", "01-rewrite.txt": "and this"}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model of one Conv."""
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], "one", pads=[1] * 4),
        helper.make_node("Conv", ["b", "w"], ["y"], "two", pads=[1] * 4),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 8, 8])
    graph = helper.make_graph(nodes, "g", [value], [output], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
    return tmp_path


def compress(**options: Any) -> CompressResult:
    given: dict[str, Any] = {"work": "work", "runs": 0, "runtime": RuntimeOptions(threads=1)} | options
    return STEPS("m.onnx", **given)


FOREIGN = {
    "of another program": {"manifest.json": '{"name": "my web app"}', "01-notes.json": "important"},
    "of another program, named like ours": {"manifest.json": '{"kind": "compress"}', "01-rewrite.onnx": "important"},
    "of a result": {
        "manifest.json": '{"kind": "onnxsep compress 1", "planned": ["rewrite"], "result": {"sha256": "0"}}'
    },
    "a list": {"manifest.json": "[1]", "02-prune.json": "important"},
    "no JSON": {"manifest.json": "important"},
    "empty": {"manifest.json": ""},
    "not one": {"01-rewrite.onnx": "important", "01-rewrite.json": "{}"},
    "a lock of another program": {"lock": "pid 17"},
    "in a folder of it": {"deeper/manifest.json": '{"kind": "onnxsep compress 1", "planned": []}'},
}


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize("fresh", [False, True])
def test_folders_of_others_stay_as_they_are(case: str, fresh: bool, place: Path) -> None:
    for name, text in FOREIGN[case].items():
        (place / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "work" / name).write_text(text)
    before = content(place)
    with pytest.raises(OptionError, match="work work would overwrite a folder that is no work folder of onnxsep"):
        compress(fresh=fresh)
    assert content(place) == before


def test_a_manifest_that_is_a_link_is_not_followed(place: Path) -> None:
    compress(work="ours")
    (place / "work").mkdir()
    (place / "work" / "manifest.json").symlink_to(place / "ours" / "manifest.json")
    (place / "work" / "01-rewrite.json").write_text("important")
    before = content(place)
    with pytest.raises(OptionError, match="no work folder of onnxsep"):
        compress(fresh=True)
    assert content(place) == before


@pytest.mark.parametrize("fresh", [False, True])
def test_files_that_the_manifest_does_not_name_stay(fresh: bool, place: Path) -> None:
    compress()
    for name, text in USERS.items():
        (place / "work" / name).write_text(text)
    (place / "outside.onnx").write_bytes(b"important")
    (place / "work" / "linked.onnx").symlink_to(place / "outside.onnx")
    result = compress(fresh=fresh)
    assert result.report.resumed_after == (0 if fresh else 2)
    result.save("o.onnx")
    assert sorted(path.name for path in (place / "work").iterdir()) == sorted([*USERS, "linked.onnx"])
    assert {name: (place / "work" / name).read_text() for name in USERS} == USERS
    assert (place / "outside.onnx").read_bytes() == b"important"


def test_what_a_manifest_says_about_other_places_is_not_followed(place: Path) -> None:
    """A manifest of ours that names files outside of its folder, by .. or as absolute paths."""
    compress()
    manifest = json.loads((place / "work" / "manifest.json").read_text())
    victim = place / "victim" / "01-rewrite.onnx"
    victim.parent.mkdir()
    victim.write_bytes(b"important")
    manifest["planned"] = ["../../victim/01-rewrite", str(victim), "x/../../victim/01-rewrite", "rewrite"]
    for step in manifest["steps"]:
        step["file"] = "../victim/01-rewrite.onnx"
    (place / "work" / "manifest.json").write_text(json.dumps(manifest))
    (place / "work" / "02-prune.json").unlink()
    (place / "work" / "02-prune.onnx").unlink()
    (place / "work" / "01-rewrite.onnx").unlink()
    (place / "work" / "01-rewrite.json").unlink()
    compress(fresh=True).save("o.onnx")
    assert victim.read_bytes() == b"important"
    assert not (place / "work").exists()


def test_a_file_of_the_user_in_the_place_of_a_new_step(place: Path) -> None:
    """The old run had one step; the file that its next step would write is not that run's."""
    one = Pipeline([STEPS.steps[0]])
    one("m.onnx", work="work", runs=0, runtime=RuntimeOptions(threads=1))
    for name in ("02-prune.json", "02-prune.onnx", "02-prune.checkpoint"):
        (place / "work" / name).write_text("important")
        before = content(place)
        for fresh in (False, True):
            with pytest.raises(OptionError, match=f"work/{name} would be overwritten, and no run has written it"):
                compress(fresh=fresh)
        assert content(place) == before
        (place / "work" / name).unlink()
    assert compress().report.resumed_after == 1


def test_a_link_in_the_place_of_a_step(place: Path) -> None:
    compress()
    (place / "precious.onnx").write_bytes((place / "work" / "02-prune.onnx").read_bytes())
    (place / "work" / "02-prune.onnx").unlink()
    (place / "work" / "02-prune.onnx").symlink_to(place / "precious.onnx")
    before = content(place)
    with pytest.raises(OptionError, match=r"02-prune\.onnx would be overwritten, and no run has written it"):
        compress(fresh=True)
    assert content(place) == before


@pytest.mark.parametrize(
    "old", [{"kind": "onnxsep compress 0"}, {"platform": None}, {"planned": ["rewrite", "prune"], "new": 1}]
)
def test_the_manifest_of_another_version_can_be_started_afresh(old: dict[str, Any], place: Path) -> None:
    compress()
    path = place / "work" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    with pytest.raises(OptionError, match="fresh=True starts again"):
        compress()
    compress(fresh=True).save("o.onnx")
    assert not (place / "work").exists()


def test_folders_that_may_be_used(place: Path) -> None:
    """An empty one, one where a run was killed before it had written its manifest, and a link to a folder."""
    (place / "work").mkdir()
    compress().save("o.onnx")
    (place / "work").mkdir()
    (place / "work" / "lock").write_bytes(b"")
    (place / "work" / ".onnxsep-0123456789abcdef.tmp").write_bytes(b"{")
    compress().save("o.onnx")
    assert not (place / "work").exists()
    (place / "disk").mkdir()
    (place / "work").symlink_to("disk")
    assert compress().report.resumed_after == 0
    assert compress().report.resumed_after == 2


def test_nothing_that_is_read_lies_in_the_work_folder(place: Path) -> None:
    compress(keep_steps=True).save("o.onnx")
    np.savez("work/i.npz", x=np.zeros((1, 16, 8, 8), np.float32))
    before = content(place)
    for fresh in (False, True):
        with pytest.raises(OptionError, match=r"work/02-prune\.onnx, which is read as the model"):
            STEPS("work/02-prune.onnx", work="work", fresh=fresh, runs=0)
        with pytest.raises(OptionError, match=r"work/i\.npz, which is read as the inputs"):
            compress(inputs="work/i.npz", fresh=fresh)
    with pytest.raises(OptionError, match=r"work/manifest\.json, which is read as the recipe"):
        onnxsep.compress("m.onnx", "work/manifest.json", work="work", runs=0)
    assert content(place) == before


def test_a_result_that_is_repeated_replaces_its_manifest(place: Path) -> None:
    compress().save("o.onnx")
    first = (place / "o.onnx").read_bytes()
    again = onnxsep.compress("m.onnx", "o.onnx.manifest.json", work="work", runs=0)
    again.save("o.onnx")
    assert (place / "o.onnx").read_bytes() == first
    with pytest.raises(OptionError, match=r"would overwrite m\.onnx, which is read as the model"):
        again.save("m.onnx")
    (place / "r.onnx.manifest.json").write_text('[[steps]]\ncommand = "rewrite"\n')
    with pytest.raises(OptionError, match="holds no manifest of onnxsep"):
        again.save("r.onnx")
