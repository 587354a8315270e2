"""What MkDocs adds to the pages that are written by hand: the options of each command and a page for each mode.

Options come from the records that the command line itself is made of, pages of modes from the docstrings of their
modules and the rows on them in ``modes/index.md``.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from onnxsep.cli import load_commands
from onnxsep.cli.app import app
from onnxsep.modes import BlockMode, WidthMode
from onnxsep.modes.base import AnyMode, available_modes

DOCS = Path(__file__).parent
OPTIONS = "<!-- options -->"
HEADING = re.compile(r"^\S.*(?=\n    \S)", re.MULTILINE)
FORMULA = re.compile(r"(?:.* (?:~|=|<=) .*\n?(?:    .*\n?)*)+")
MARKED = str.maketrans({character: f"\\{character}" for character in "*_[]<>|#`"})
"""What Markdown would read as marks in the plain text of a docstring."""


def commands() -> dict[str, Any]:
    """The commands of the command line by name, in the order in which it lists them."""
    load_commands()
    group: Any = typer.main.get_command(app)
    return {name: group.commands[name] for name in group.list_commands(None)}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of commands and modes to the navigation."""
    for section in config.nav or []:
        if "Commands" in section:
            section["Commands"] += [f"commands/{name}.md" for name in commands()]
        if "Modes" in section:
            section["Modes"] += [f"modes/{name}.md" for name in available_modes()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that nobody has written: all modes, and commands that need no more than their options."""
    for name, mode in available_modes().items():
        files.append(File.generated(config, f"modes/{name}.md", content=mode_page(name, mode)))
    for name, command in commands().items():
        if not (DOCS / f"commands/{name}.md").is_file():
            content = f"# {name}\n\n{command.help}\n\n    {command.epilog}\n\n## Options\n\n{OPTIONS}\n"
            files.append(File.generated(config, f"commands/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the options of a command where its page asks for them."""
    if OPTIONS not in markdown:
        return markdown
    return markdown.replace(OPTIONS, options_of(commands()[Path(page.file.src_uri).stem]))


def options_of(command: Any) -> str:
    """The arguments and options of a command as tables, one for each heading of its help."""
    context = command.make_context(command.name, [], resilient_parsing=True)
    groups: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        heading = getattr(parameter, "rich_help_panel", None) or kind
        typed, meaning = record
        groups.setdefault(heading, []).append(f"| `{typed.replace('|', ', ')}` | {meaning.translate(MARKED)} |")
    tables = (f"**{heading}**\n\n| | |\n|---|---|\n" + "\n".join(rows) for heading, rows in groups.items())
    return "\n\n".join(tables)


def mode_page(name: str, mode: AnyMode) -> str:
    """The docstring of a mode's module as a page, and what the list of modes says of it."""
    module = sys.modules[type(mode).__module__]
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    kinds = {
        BlockMode: "A block mode: it replaces several nodes at a time. ",
        WidthMode: "A width mode: it changes how many channels layers have. ",
    }
    kind = next((words for one, words in kinds.items() if isinstance(mode, one)), "")
    rows = [f"## Measured\n\n{row}" for row in measured(name)]
    summary = first.partition(":")[2].strip().translate(MARKED)
    example = f"    onnxsep rewrite in.onnx out.onnx --mode {name}"
    return "\n\n".join([f"# {name}", kind + summary[:1].upper() + summary[1:], example, *sections(rest), *rows]) + "\n"


def sections(text: str) -> Iterator[str]:
    """Headings and paragraphs of a docstring in Markdown; formulas keep their form."""
    text = HEADING.sub(lambda found: f"\n{found[0]}\n", text)
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        body = inspect.cleandoc(paragraph)
        if not paragraph.startswith(" ") and "\n" not in body and not body.endswith("."):
            yield f"## {body}"
        elif FORMULA.fullmatch(body):
            yield f"```text\n{body}\n```"
        else:
            yield body.replace("``", "`") if "``" in body else body.translate(MARKED)


def measured(name: str) -> Iterator[str]:
    """The rows on a mode in the tables of ``modes/index.md`` that hold measurements."""
    index = (DOCS / "modes/index.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", index.partition("## Measured")[2], re.MULTILINE):
        head, line, *rows = table.splitlines()
        mine = [row for row in rows if row.startswith(f"| `{name}`")]
        if mine:
            yield "\n".join([head, line, *mine])
