"""Every example of the documents is run, on data of the repository: ``make docs-check``.

Each page has a folder of its own with the project's models; a page's examples follow one another. It takes minutes.
"""

import shutil
from pathlib import Path

import pytest
from digits import digits_in
from documents import ROOT, check_commands, python_blocks, run_python

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
RECIPE = "# mine.toml\n"  # what a block in TOML is that the commands of its page read


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path) -> None:
    """A page prints what it shows."""
    text = (DOCS / page).read_text(encoding="utf-8")
    shutil.copytree(ROOT / "models", tmp_path / "models")
    for block in text.split("```toml\n")[1:]:
        if block.startswith(RECIPE):
            (tmp_path / "mine.toml").write_text(block.partition("```")[0], encoding="utf-8")
    ran = check_commands(tmp_path, text)
    blocks = python_blocks(text)
    if blocks:
        digits_in(tmp_path)
    for block in blocks:
        run_python(tmp_path, block)
    if not ran and not blocks:
        pytest.skip("no examples")
