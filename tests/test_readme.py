"""The README: every command is run, and must print what the README shows (numbers within 2 %, times aside)."""

import shutil
from pathlib import Path

from documents import ROOT, check_commands, matches, same_line

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_print_what_the_readme_shows(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    assert check_commands(tmp_path, README) >= 5


def test_the_readme_fits_on_two_screens() -> None:
    assert len(README.splitlines()) <= 120


def test_the_comparison_can_fail() -> None:
    assert same_line("a 1,000 (0.50) in 0.1 s", "a  1,001 (0.50) in 9.9 s")
    assert not same_line("a 1,000", "a 1,100")
    assert not same_line("a 1,000", "b 1,000")
    assert same_line("a 1,000 ...", "a 1,000 b 7")
    assert not same_line("a 1,000 b ...", "a 1,000 c 7")
    assert not matches(["a", "...", "z"], ["a", "b"])
