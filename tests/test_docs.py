"""The documents: links lead somewhere, commands and options that they name exist, and every mode has its row."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from documents import ROOT

from onnxsep.cli import load_commands
from onnxsep.cli.app import app
from onnxsep.modes.base import available_modes

DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))]
GENERATED = {"commands": lambda: set(options()), "modes": lambda: set(available_modes())}


def options() -> dict[str, set[str]]:
    """The options of each command."""
    load_commands()
    group = typer.main.get_command(app)
    commands = getattr(group, "commands")  # noqa: B009 - only groups have them
    return {
        name: {flag for one in each.params for flag in (*one.opts, *one.secondary_opts)}
        for name, each in commands.items()
    }


def command_lines(text: str) -> Iterator[list[str]]:
    """What is typed behind ``onnxsep`` in blocks and in the text."""
    for line in text.splitlines():
        for found in re.findall(r"(?:^ {4}|^\$ |^|`|\b-m )onnxsep ([a-z][^`#|&]*)", line):
            yield found.split()


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if (
            found.suffix == ".md"
            and found.parent.parent == DOCS
            and found.stem in GENERATED.get(found.parent.name, set)()
        ):
            continue
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    known = options()
    everywhere = set().union(*known.values()) | {"--help", "--version", "--install-completion", "--nproc-per-node"}
    foreign = {
        "--rm",
        "--all-files",
        "--out",
        "--image-size",
        "--resources",
    }  # of docker, pre-commit, scripts of ours, dask
    for flag in set(re.findall(r"(?<![\w-])--[a-z][-a-z0-9]*", text)):
        assert flag in everywhere | foreign, flag
    for command, *words in command_lines(text):
        if command in known:
            given = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert given <= known[command] | {"--help"}, (command, given - known[command])


def test_every_mode_has_its_row() -> None:
    rows = set(
        re.findall(
            r"`([a-z-]+)`", "".join(re.findall(r"^\|([^|]*)\|", (DOCS / "modes/index.md").read_text(), re.MULTILINE))
        )
    )
    assert set(available_modes()) <= rows


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert written - listed == {f"commands/{name}.md" for name in options() if (DOCS / f"commands/{name}.md").is_file()}
