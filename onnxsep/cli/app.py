"""The application that the commands of this package enter, and how its help looks."""

import sys
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from onnxsep.cli.interrupts import saying
from onnxsep.options.tomlfile import nearest
from onnxsep.reporting.printable import printable

_HEADINGS = {
    "Make a model smaller": ("inspect", "plan", "rewrite", "prune", "finetune", "quantize", "compress"),
    "Measure and compare": ("evaluate", "check", "profile"),
    "Reports": ("report", "rerun"),
    "What there is": ("modes", "recipes"),
}
_OTHERS = "Other commands"
_ARGUMENTS, _OPTIONS, OUTPUT = "Arguments", "Options", "Output"
_GROUPS = (  # of options; others follow the first two
    *(_ARGUMENTS, _OPTIONS, "Which Convs", "Data", "Images", "Fitting to data", "Training", "Verification", "Runtime"),
    OUTPUT,
)
_GOES_ON = " \\"  # what says to a shell that a command goes on in the next line
_WHOLE = 10_000  # characters of a command's first sentence that its line in the list shows


class GroupedCommand(TyperCommand):
    """A command whose options stand under headings, and whose help ends in an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The arguments, and the options under their headings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (shown := parameter.get_help_record(ctx)) is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = _ARGUMENTS if is_argument else getattr(parameter, "rich_help_panel", None) or _OPTIONS
                groups.setdefault(heading, []).append(shown)
        for heading in sorted(groups, key=_place):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, on a line that can be copied; on several in a narrow terminal, which the shell joins again."""
        if self.epilog:
            with formatter.section("Example"):
                lead = " " * formatter.current_indent
                room = formatter.width - 2 * len(lead) - len(_GOES_ON)
                lines = textwrap.wrap(self.epilog, room, break_long_words=False, break_on_hyphens=False)
                whole = len(lead) + len(self.epilog) <= formatter.width
                text = self.epilog if whole else f"{_GOES_ON}\n{lead * 2}".join(lines)
                formatter.write(f"{lead}{text}\n")


class _Group(TyperGroup):
    """All commands; an interrupt ends any of them in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line under its own name, by which the shell's completion asks, also as ``python -m``."""
        return super().main(*args, **{"prog_name": "onnxsep", **extra})

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the context names."""
        with saying(lambda: ""):
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands in the order of use."""
        order = [name for names in _HEADINGS.values() for name in names]
        return sorted(self.commands, key=lambda name: (order.index(name) if name in order else len(order), name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names; where it is none, the nearest one is named."""
        if args and not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(f"No such command {printable(args[0])!r}{nearest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """What each command does, under headings."""
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*_HEADINGS, _OTHERS)}
        for name in self.list_commands(ctx):
            heading = next((heading for heading, names in _HEADINGS.items() if name in names), _OTHERS)
            rows[heading].append((name, self.commands[name].get_short_help_str(_WHOLE)))
        for heading, listed in rows.items():
            if listed:
                with formatter.section(heading):
                    formatter.write_dl(listed)


def _place(heading: str) -> float:
    return _GROUPS.index(heading) if heading in _GROUPS else 1.5


app = typer.Typer(
    name="onnxsep",
    cls=_Group,
    help="A compiler for trained CNNs in ONNX: graph in, smaller and faster graph out.",
    epilog="`onnxsep COMMAND -h` shows the options of a command, and an example.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say(message: str) -> None:
    """Print one line to standard error, above a line of progress where there is one; it may quote a model's text."""
    if sys.stderr is not None:  # closed by the caller (2>&-)
        print(printable(message), file=sys.stderr, flush=True)
