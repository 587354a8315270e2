"""``compress --until``: a recipe stops behind a step."""

from pathlib import Path

import onnx
import pytest
from command_line import run
from residual_models import Residual

import onnxsep
from onnxsep.errors import OptionError

RECIPE = """
[[steps]]
command = "rewrite"
mode = "drop-block"

[[steps]]
command = "rewrite"
mode = "narrow-stem"
settings = { channels = 3 }

[[steps]]
command = "finetune"
epochs = 1
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    onnx.save(Residual(((3, 8, 2),)).proto, tmp_path / "in.onnx")
    (tmp_path / "mine.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(("name", "count"), [("rewrite", 2), ("drop-block", 1), ("narrow-stem", 2), ("1", 1)])
def test_it_stops_behind_the_last_step_of_that_name(place: Path, name: str, count: int) -> None:
    recipe = onnxsep.read_recipe(place / "mine.toml")
    assert recipe.until(name).steps == recipe.steps[:count]


def test_the_steps_behind_it_need_nothing(place: Path) -> None:
    """No data, no torch."""
    asked = ("compress", "in.onnx", "out.onnx", "--recipe", "mine.toml", "--runs", "0")
    done = run(*asked, "--until", "rewrite", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "needs data" in run(*asked, cwd=place).stderr
    whole = onnxsep.rewrite(
        onnxsep.rewrite(place / "in.onnx", mode="drop-block").model, mode="narrow-stem", settings={"channels": 3}
    )
    assert onnx.load(place / "out.onnx") == whole.model.proto
    (place / "out.onnx").unlink()
    again = run("compress", "in.onnx", "out.onnx", "-r", "out.onnx.manifest.json", "--runs", "0", cwd=place)
    assert again.returncode == 0, again.stderr
    assert onnx.load(place / "out.onnx") == whole.model.proto


def test_a_name_that_no_step_has(place: Path) -> None:
    recipe = onnxsep.read_recipe(place / "mine.toml")
    with pytest.raises(OptionError, match="no such step, did you mean 'rewrite'"):
        recipe.until("rewrit")
    with pytest.raises(OptionError, match="it has rewrite, finetune, drop-block, narrow-stem, 1 to 3"):
        onnxsep.compress(place / "in.onnx", recipe, until="4")
