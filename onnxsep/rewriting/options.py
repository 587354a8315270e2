"""The options of ``rewrite``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnxsep.data.options import DATA_GROUP, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.paths import DATA, PLAN_READ
from onnxsep.options.lazy import lazy
from onnxsep.options.patterns import as_patterns
from onnxsep.options.proposals import MODES, TARGETS
from onnxsep.options.sizes import bytes_of
from onnxsep.options.specs import Options, option, record, specs_of
from onnxsep.planner.budget_options import Quantizing, Timed
from onnxsep.planner.losing_options import Losing
from onnxsep.planner.which_layers import CONVS, WhichLayers
from onnxsep.planner.working import Working
from onnxsep.running.options import Verifying

if TYPE_CHECKING:
    from onnxsep.calibration import Fitting
    from onnxsep.data import Dataset, Preprocessing, Source
    from onnxsep.engine import planning
    from onnxsep.modes import BlockMode, Mode, WidthMode
    from onnxsep.planner.plan_file import PlanFile
    from onnxsep.rewriting.choosing import Choice
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "onnxsep.data": ("Dataset", "Source"),
            "onnxsep.modes": ("BlockMode", "Mode", "WidthMode"),
            "onnxsep.planner.plan_file": ("PlanFile",),
        },
    )

_FIT = "Fitting to data"
_OF_DATA = {"data", "preprocessing", "skip_bad"}  # options of a plan for what a rewrite has opened already
RANKS = ("paper", "in", "full", "energy=0.95", "0.5")  # what completion proposes


@record
class Forms(Options):
    """Which form layers get."""

    mode: str | Mode | BlockMode | WidthMode | None = option(
        default=None,
        typed=str,
        short="-m",
        proposed=MODES,
        help="The form that Convs get, see `onnxsep modes`.",
        doc="the name of an installed mode, or a Mode, BlockMode or WidthMode.",
    )
    plan: str | os.PathLike[str] | PlanFile | None = option(
        default=None,
        typed=Path,
        reads=PLAN_READ,
        help="Instead of {mode} and {rank}: a file that says what becomes of each layer.",
        doc="instead of ``mode`` (and ``rank`` to ``round_ranks``): a plan, or its TOML file, that says what becomes of"
        " each layer. ``Result.plan`` is one.",
    )
    target: str | Sequence[str] = option(
        default=(),
        typed=list[str],
        proposed=TARGETS,
        help="Instead of {rank}: a budget, for which a plan is made with {data}, as by `onnxsep plan`: params=0.4, ...",
        doc="instead of ``rank``: budgets, for which a plan is made with ``data``, as by :func:`onnxsep.plan`; ``mode``"
        " then restricts the forms.",
    )
    rank: RankPolicy | str | float = option(
        default="paper",
        typed=str,
        short="-r",
        proposed=RANKS,
        help="paper; an integer (terms for the depthwise modes, else channels in between); 0.5: a share of the "
        "parameters; energy=0.95: a share of the squared singular values; full: exact where the form can be; in: "
        "spatial with as many channels in between as come in.",
        doc='"paper", "in" (spatial: as many channels in between as come in), "full", an integer, a share of the'
        ' parameters such as 0.5, or "energy=0.95".',
    )
    settings: Mapping[str, Any] | None = option(
        default=None,
        flag="--set",
        metavar="NAME=VALUE",
        typed=list[str],
        parse=lambda texts: _settings(texts),
        entry=lambda name, value: f"{name}={str(value).lower() if isinstance(value, bool) else value}",
        help="A setting of the mode, reduction=4; `onnxsep modes` lists them.",
        doc='settings of the mode by name, such as ``{"reduction": 4}``; ``mode.settings`` lists them.',
    )
    pointwise_mode: str | Mode | None = option(
        default=None,
        typed=str,
        proposed=MODES,
        help="Another form for what has no kernel: 1 x 1 Convs, Gemm and MatMul, such as pointwise.",
        doc='the name of a mode, or a Mode, for 1 x 1 Convs, Gemm and MatMul, such as "pointwise"; ``mode`` is for the'
        " others then.",
    )
    pointwise_rank: RankPolicy | str | float | None = option(
        default=None,
        typed=str,
        proposed=RANKS,
        help="The rank for {pointwise_mode}; else that of {rank}, or paper where that is an integer.",
        doc="the rank for ``pointwise_mode``; None: that of ``rank``, or paper where that is an integer.",
    )
    max_effect: float | None = option(
        default=None,
        fits=(lambda value: 0 <= value < float("inf"), "0 or more"),
        group=CONVS,
        help="Leave alone 1 x 1 Convs, Gemm and MatMul that, alone or together, change the output more than this,"
        " measured with {data}:"
        " KL divergence of a classifier's, relative error of others; .05 by default.",
        doc="leave alone 1 x 1 Convs, Gemm and MatMul of low rank that, replaced alone or all together, change the"
        " network's output more than this on held-out samples of ``data``: KL divergence of a classifier's,"
        " relative error of others; None: 0.05 of either, and any where there are no data.",
    )
    force: bool = option(default=False, group=CONVS, help="Replace Convs even where it does not pay.")


@record
class RewriteOptions(Quantizing, Timed, WhichLayers, Forms, Losing, Verifying, Preprocessed, Working):
    """What ``rewrite`` is asked for."""

    data: Source | Dataset | None = option(
        default=None,
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        per_run=True,
        help="Folder of images, .npy, .npz, or synthetic (images made up): "
        "what the factors are fitted to (else weights alone).",
        doc="calibration data, to which the factors are fitted: a folder of images, an .npy or .npz file,"
        ' "synthetic", arrays, batches or a dataset (:func:`onnxsep.data.open_data`).',
    )
    init: str | None = option(
        default=None,
        group=_FIT,
        proposed=("svd", "response", "compensated", "joint"),
        help="How factors are found: svd (weights alone), response, compensated, joint (all factors of a Conv "
        "together, the default with {data}).",
        doc='"svd" (weights only), "response", "compensated", "joint"; the last is the default with data, the first'
        " without. A mode offers those in its ``inits``.",
    )
    samples: int = option(
        default=500,
        minimum=1,
        group=_FIT,
        help="Use at most so many samples of the data.",
        doc="use at most so many samples, drawn at random.",
    )
    positions: int = option(default=64, minimum=1, group=_FIT, help="Output positions sampled in each of them.")
    statistics: str | os.PathLike[str] | None = option(
        default=None,
        group=_FIT,
        reads="the statistics",
        writes="onnxsep.calibration.statistics_file:STATISTICS",
        typed=Path,
        per_run=True,
        help="With {data}: record the data's statistics in this file; without: fit to recorded ones.",
        doc="with data, a file to record statistics of the original network in; without, one to fit to.",
    )
    refine: int = option(
        default=0,
        minimum=0,
        group=_FIT,
        help="Rounds of fitting pairs of Convs in a row again; slow.",
        doc="rounds in which pairs of Convs in a row are fitted again, together; about three times the time for two.",
    )
    tune: int = option(
        default=0,
        minimum=0,
        group=_FIT,
        help="Steps of tuning the new weights together, without labels (onnxsep[finetune]).",
        doc="steps of tuning the new weights together, by distillation from the original on the same data; it needs"
        " ``onnxsep[finetune]``.",
    )
    tune_blocks: int = option(
        default=0,
        minimum=0,
        group=_FIT,
        help="Steps of training each block of a block mode, one after the other (onnxsep[finetune]).",
        doc="steps of training each block of a block mode behind its fit, one block after the other, on what it reads"
        " and the original gives there; it needs ``onnxsep[finetune]``.",
    )
    memory_limit: int | str | None = option(
        default=None,
        flag="--memory",
        typed=str,
        metavar="SIZE",
        group=_FIT,
        help="Memory that a fit may take, such as 8GB: fewer samples are run at a time, more is kept in files; what is "
        "free by default. A Conv that would need more keeps the factors of its weights.",
        doc='memory that a fit may take, in bytes or such as "8GB"; what is free by default. Fewer samples are run at a'
        " time then, and more is kept in files; a Conv that would need more keeps the factors of its weights.",
    )
    layers: bool = option(
        default=False,
        group="Output",
        help="Compare every tensor that source and result have: where does an error arise?",
        doc="compare every tensor that source and result have in common, for the report: where does the error arise?"
        " On samples of ``data``, else on ``inputs`` or random ones.",
    )

    def check(self) -> None:
        """Refuse what cannot be done, alone or together.

        Raises:
            OptionError: a value is out of range, or two contradict each other.
            ModeNotFoundError: there is no such mode.
            MissingDependencyError: what tuning needs is not installed.
        """
        super().check()
        if self.memory_limit is not None:
            bytes_of("memory_limit", self.memory_limit)
        if not self.target and (given := [*self.working_given(), *(["then"] if self.then else [])]):
            raise OptionError(f"{spelled(given[0])} is for {spelled('target')}, such as params=0.4, and there is none")
        self.check_losing(self.target)
        self.check_together()
        self.choice.check(self.fitting(None), images=self.preprocessing is not None)

    def role(self, name: str) -> Literal["read", "written", "unused"]:
        """Statistics are written where there are data, else read."""
        if name != "statistics" or self.data is None:
            return super().role(name)
        return "unused" if self.dry_run else "written"

    def fitting(self, images: Preprocessing | None) -> Fitting:
        """What is asked of the data; ``images`` is how they are read."""
        from onnxsep.calibration import Fitting

        return Fitting(
            data=self.data,
            preprocessing=images,
            skip_bad=self.skip_bad,
            wanted=self.init,
            samples=self.samples,
            positions=self.positions,
            seed=self.seed,
            statistics=self.statistics,
            tune=self.tune,
            tune_blocks=self.tune_blocks,
            refine=self.refine,
            memory=None if self.memory_limit is None else bytes_of("memory_limit", self.memory_limit),
            dry_run=self.dry_run,
        )

    @cached_property
    def choice(self) -> Choice:
        """What is to become of the layers; a plan is read, once."""
        from onnxsep.planner.options import PlanOptions
        from onnxsep.rewriting.wanted import Wanted, choice_of

        rank = None if self.pointwise_rank is None else RankPolicy.parse(self.pointwise_rank)
        shared = {name for name in specs_of(PlanOptions) if name in specs_of(type(self))} - _OF_DATA
        target = {name: getattr(self, name) for name in shared} if self.target else {}
        return choice_of(
            Wanted(
                self.mode,
                self.plan,
                self._planning(),
                self.settings,
                pointwise_mode=self.pointwise_mode,
                pointwise_rank=rank,
                max_effect=self.max_effect,
                target=target,
            )
        )

    def _planning(self) -> planning.Options:
        """What is asked of the plan."""
        from onnxsep.engine import planning

        return planning.Options(
            rank=RankPolicy.parse(self.rank),
            force=self.force,
            include_first=self.include_first,
            recurse=self.recurse,
            only=as_patterns(self.only),
            skip=as_patterns(self.skip),
            round_ranks=self.round_ranks,
        )


def _settings(texts: Iterable[str]) -> dict[str, str] | None:
    from onnxsep.modes.settings import parse_settings

    return parse_settings(texts) or None
