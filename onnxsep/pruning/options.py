"""The options of ``prune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxsep.data.options import DATA_GROUP, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.model.paths import DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.pruning.schedule import Goal
from onnxsep.running.options import VERIFICATION, Verifying

if TYPE_CHECKING:
    from onnxsep.data import Dataset, Source
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.data": ("Dataset", "Source")})

Norm = Literal["l1", "l2"]
Scope = Literal["global", "layer"]
Verify = Literal["auto", "full", "none"]
_LAYERS = "Which layers"


@record
class PruneOptions(Verifying, Preprocessed):
    """What ``prune`` is asked for."""

    sparsity: float | None = option(
        default=None,
        short="-s",
        help="Share of the Conv weights that go, 0.59.",
        doc="the share of the weights that is zero (with ``channels``: gone) in the end, above 0 and below 1.",
    )
    step: float | None = option(
        default=None,
        help="Share of the remaining weights that goes each time, 0.2.",
        doc="the share of the remaining weights that goes each time.",
    )
    steps: int | None = option(
        default=None, help="How many times {step} is taken; else once.", doc="how many times; 1 by default."
    )
    pattern: str | None = option(
        default=None,
        metavar="N:M",
        help="Keep the N largest of every M input channels, 2:4.",
        doc='"2:4" keeps the two largest of every four consecutive input channels.',
    )
    channels: bool = option(
        default=False,
        help="Take whole channels out of the graph: a smaller file and fewer MACs, in any runtime.",
        doc="remove whole output channels of Convs, with all that goes with them.",
    )
    multiple: int = option(
        default=0,
        minimum=0,
        flag="--round",
        help="With {channels}: keep multiples of so many channels, 8 or 16.",
        doc="with ``channels``, each Conv keeps a multiple of so many channels (8 or 16 suit ONNX Runtime).",
    )
    scope: Scope | None = option(
        default=None,
        help="global: compare the weights of all layers (the default); layer: the same share of each (the default of "
        "{channels}).",
        doc='"global" compares the weights (channels) of all layers, "layer" takes the same share of each. By default'
        ' "global", and "layer" for ``channels``: norms of filters say little across layers of different widths.',
    )
    norm: Norm = option(
        default="l1",
        help="Of the filters that {channels} compares, l1 or l2; single weights order alike.",
        doc='"l1" or "l2", of the filters that ``channels`` compares. Single weights have the same order in both.',
    )
    linear: bool = option(
        default=False,
        group=_LAYERS,
        help="Prune Gemm and MatMul weights too.",
        doc="prune the weights of Gemm and MatMul too.",
    )
    only: str | Sequence[str] = option(
        default=(),
        group=_LAYERS,
        help="Only layers whose name matches (glob).",
        doc="glob patterns; a layer whose name matches none is left alone.",
    )
    skip: str | Sequence[str] = option(
        default=(),
        group=_LAYERS,
        help="Not the layers whose name matches (glob).",
        doc="glob patterns; a layer whose name matches one is left alone.",
    )
    data: Source | Dataset | None = option(
        default=None,
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        per_run=True,
        help="Folder of images, .npy or .npz: what the result is verified on; nothing is fitted to it.",
        doc="samples to verify the result on, as for :func:`onnxsep.data.open_data`; nothing is fitted to them.",
    )
    dry_run: bool = option(
        default=False,
        group="Output",
        per_run=True,
        help="Print what would go and write nothing.",
        doc="stop before anything is changed; the report says what would be done.",
    )
    verify: Verify = option(
        default="auto",
        group=VERIFICATION,
        switches={"--no-verify": "none"},
        help="full: run both models; auto: full below 1 GB; none.",
        doc='"full" runs both models, "auto" does so below 1 GB, or "none".',
    )

    @property
    def goal(self) -> Goal:
        """How much goes."""
        return Goal.parse(sparsity=self.sparsity, step=self.step, steps=self.steps, pattern=self.pattern)

    @property
    def compared(self) -> Scope:
        """What is compared with what."""
        return self.scope or ("layer" if self.channels else "global")

    def check(self) -> None:
        """Refuse what makes no sense, alone or together.

        Raises:
            OptionError: a value is out of range, or two contradict each other.
        """
        super().check()
        if self.preprocessing is not None and self.data is None:
            raise OptionError(f"preprocessing is for the images of {spelled('data')}, and there is none")
        goal = self.goal
        pattern, channels, multiple = spelled("pattern"), spelled("channels"), spelled("multiple")
        if goal.pattern is not None and self.scope is not None:
            raise OptionError(f"{pattern} takes the same share of every layer; leave out {spelled('scope')}")
        if self.channels and goal.pattern is not None:
            raise OptionError(
                f"{channels} and {pattern} contradict each other: use {spelled('sparsity')} or {spelled('step')} with"
                f" {channels}"
            )
        if self.channels and self.linear:
            raise OptionError(
                f"{channels} removes channels of Convs; {spelled('linear')} is for single weights, leave out one of"
                " them"
            )
        if self.multiple and not self.channels:
            raise OptionError(f"{multiple} is for {channels}; add it, or leave out {multiple}")
