"""Options about running models, which most commands have."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxsep.errors import OptionError, spell, spelled
from onnxsep.model.paths import LIBRARY, Read, read_of
from onnxsep.options.lazy import lazy
from onnxsep.options.progress import Progress, callback
from onnxsep.options.specs import Options, Texts, option, record

if TYPE_CHECKING:
    from onnxsep.running.runtime import RuntimeOptions
    from onnxsep.running.verification import Settings
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.running.runtime": ("RuntimeOptions",)})

Verify = Literal["auto", "full", "local", "none"]

RUNTIME, VERIFICATION = "Runtime", "Verification"
_UNITS = {"s": 1, "m": 60, "h": 3600}
_LONGEST = 1e9  # seconds


def seconds(text: str) -> float:
    """What a time limit of the command line says: 90, 90s, 10m, 2h; 0 for none.

    Raises:
        OptionError: it says no time.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        found = float(number) * _UNITS[unit]
    except ValueError:
        found = math.nan
    if not 0 <= found <= _LONGEST:
        words = f"{spelled('time_limit')} {text!r} is no time"
        raise OptionError(f"{words}: give seconds (90), or 90s, 10m, 2h; 0 for none")
    return found


@record
class RuntimeTexts(Texts):
    """What the command line asks for a :class:`RuntimeOptions`."""

    threads: int = option(default=0, group=RUNTIME, minimum=0, help="Threads to use; 0 leaves it to the runtime.")
    provider: str = option(default="CPUExecutionProvider", group=RUNTIME, help="Execution provider of ONNX Runtime.")
    custom_op_library: tuple[Path, ...] = option(
        default=(),
        group=RUNTIME,
        typed=list[Path],
        reads=LIBRARY,
        help="Shared library with custom operators.",
    )
    time_limit: str = option(
        default="10m",
        group=RUNTIME,
        help="Time that a run of a model may take: 90 (seconds), 10m, 2h; 0: any time.",
    )

    def build(self) -> RuntimeOptions:
        """How models are to be run."""
        from onnxsep.running.runtime import RuntimeOptions

        return RuntimeOptions(
            threads=self.threads,
            provider=self.provider,
            custom_op_libraries=tuple(self.custom_op_library),
            time_limit=seconds(self.time_limit),
        )

    @classmethod
    def revived(cls, value: Any) -> RuntimeOptions | None:
        """The options from what a report says of them."""
        if value is None:
            return None
        from onnxsep.running.runtime import RuntimeOptions

        libraries = tuple(map(Path, value.get("custom_op_libraries", ())))
        return RuntimeOptions(**{**value, "custom_op_libraries": libraries})

    @classmethod
    def texts(cls, value: Any) -> Mapping[str, Any] | None:
        """What to type for what a report says of these options; what is optimised can be said in Python only."""
        given = dict(value or {})
        if not given.get("optimize", True):
            return None
        limit = given.get("time_limit")
        if limit is not None and seconds(cls.time_limit) == limit:
            limit = None
        return {
            **{name: given[name] for name in ("threads", "provider") if name in given},
            "custom_op_library": given.get("custom_op_libraries", ()),
            **({} if limit is None else {"time_limit": f"{limit:g}"}),
        }


@record
class Opening(Options):
    """How models are opened."""

    follow_links: bool = option(
        default=False,
        group=RUNTIME,
        per_run=True,
        help="Follow links to external data (model hubs' caches).",
        doc="follow links in the location of external data.",
    )


@record
class Running(Opening):
    """How models are opened and run."""

    runtime: RuntimeOptions | None = option(
        default=None, per_run=True, expands=RuntimeTexts, help="", doc="threads, provider, custom operators."
    )

    @property
    def run_with(self) -> RuntimeOptions:
        """The options of the runtime."""
        from onnxsep.running.runtime import RuntimeOptions

        return self.runtime or RuntimeOptions()

    def reads(self) -> tuple[Read, ...]:
        """The files among the options that are read, those of the runtime too."""
        return (*super().reads(), *read_of(LIBRARY, self.run_with.custom_op_libraries))

    def check(self) -> None:
        """Refuse what no model can be run with."""
        super().check()
        self.run_with.check()


@record
class Telling(Options):
    """Telling a caller how far the work is."""

    progress: Progress | bool | None = option(
        default=None,
        flag=None,
        kept=False,
        per_run=True,
        help="",
        doc="True shows, in a terminal or a notebook, one line that says how far the run is; a function is told of it:"
        " (what, done, all).",
    )

    @property
    def teller(self) -> Progress | None:
        """Whom to tell of the progress."""
        return callback(self.progress)


@record
class Seeded(Options):
    """Where something is random."""

    seed: int = option(
        default=0,
        minimum=0,
        help="Seed of random inputs.",
        doc="of the random inputs, and of what is sampled of the data.",
    )


@record
class Shaped(Options):
    """Inputs whose shapes the model leaves open."""

    input_shapes: Mapping[str, tuple[int, ...]] | None = option(
        default=None,
        group=VERIFICATION,
        flag="--input-shape",
        metavar="NAME:DIMS",
        typed=list[str],
        parse=lambda texts: _shapes(texts),
        entry=lambda name, dims: f"{name}:{','.join(map(str, dims))}",
        per_run=True,
        help="Shape of an input with free dimensions, x:1,3,224,224.",
        doc="shapes for inputs whose dimensions are free, by input name.",
    )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of inputs by name."""
        return dict(self.input_shapes or {})


@record
class Fed(Shaped):
    """What models are run on."""

    inputs: str | os.PathLike[str] | None = option(
        default=None,
        group=VERIFICATION,
        reads="the inputs",
        typed=Path,
        per_run=True,
        help=".npz with the inputs to run the models on.",
        doc=".npz (or .npy) with inputs for a full verification; else seeded random ones.",
    )


@record
class Verifying(Running, Fed, Seeded, Telling):
    """Comparing the result with the source."""

    dry_run: bool = option(
        default=False,
        group="Output",
        per_run=True,
        help="Print the plan and write nothing.",
        doc="stop before anything is changed; the report says what would be done.",
    )
    verify: Verify = option(
        default="auto",
        group=VERIFICATION,
        switches={"--no-verify": "none"},
        help="full: run both models; local: each replaced Conv alone; auto: full below 1 GB; none.",
        doc='"full" runs both models, "local" each replaced Conv alone, "auto" chooses full below 1 GB, or "none".',
    )
    max_error: float | None = option(
        default=None,
        group=VERIFICATION,
        help="Fail (status 3) above this relative error.",
        doc="fail where the verification's relative error is larger.",
    )

    def check(self) -> None:
        """Refuse a limit that no error can be held to."""
        super().check()
        check_limit(self.max_error)
        if self.max_error is not None and (self.dry_run or self.verify == "none"):
            why = spelled("dry_run", True) if self.dry_run else spelled("verify", "none")
            raise needs_verification(why)

    def verifying(self) -> Settings:
        """What is asked of the verification."""
        from onnxsep.running.verification import Settings

        return Settings(
            verify="none" if self.dry_run else self.verify,
            inputs=None if self.inputs is None else Path(self.inputs),
            input_shapes=self.shapes,
            seed=self.seed,
            max_error=self.max_error,
            runtime=self.run_with,
            progress=self.teller,
        )


def _shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    from onnxsep.running.feeds import parse_input_shape

    return dict(map(parse_input_shape, texts))


def needs_verification(why: str) -> OptionError:
    """What is raised where ``max_error`` is given and something switches off what measures it."""
    return OptionError(
        f"{spelled('max_error')} needs a verification, and {why} switches it off; leave out one of the two"
    )


def check_limit(limit: float | None) -> None:
    """Refuse a largest error that is none.

    Raises:
        OptionError: it is negative or not finite.
    """
    if limit is not None and not 0 <= limit < math.inf:
        raise OptionError(f"{spelled('max_error')} {limit} is no error that could be allowed; use a number such as 0.1")


spell("custom_op_libraries", "--custom-op-library")  # as it is called among the options of the runtime
