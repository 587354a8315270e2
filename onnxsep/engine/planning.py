"""Deciding what becomes of every Conv: which are replaced, at which rank, and why the others are left alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction

from onnxsep.algebra.linalg import Array
from onnxsep.engine.matches import BlockMatch, ConvSite, Match, Rejected
from onnxsep.engine.replacements import BlockReplacement, ConvReplacement, Replacement
from onnxsep.errors import FactorizationError, OnnxsepError, OptionError, PassError, spelled
from onnxsep.graph.places import Constant, Place
from onnxsep.layers.layer import INPUT, ConvLayer, relative_macs
from onnxsep.layers.rank import Rank, RankPolicy
from onnxsep.modes.base import AnyMode, Mode
from onnxsep.modes.block import BlockMode
from onnxsep.modes.ranks import choose_rank, no_rule
from onnxsep.options.patterns import check_patterns, left_out

SIZES_UNKNOWN = "sizes unknown"


@dataclass(frozen=True)
class Options:
    """What the user chose about which Convs to replace, and how far."""

    rank: RankPolicy | Rank = field(default_factory=lambda: RankPolicy("paper"))  # a policy, or the very ranks
    force: bool = False
    include_first: bool = False
    recurse: bool = False
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    round_ranks: int = 0
    init: str = "svd"  # how factors are found

    @property
    def calibrated(self) -> bool:
        """Whether factors are fitted to data, so that Convs of the main graph get a bias of their own."""
        return self.init != "svd"


@dataclass(frozen=True)
class Assignment:
    """What is wanted of one Conv."""

    mode: AnyMode
    options: Options


def check_ranks(mode: AnyMode, rank: RankPolicy | Rank, round_ranks: int) -> None:
    """Refuse a rank for a mode that has none, and one that it does not have.

    Raises:
        OptionError: there is one.
    """
    if isinstance(mode, Mode) and not mode.ranks_as_inputs and str(rank) == "in":
        raise OptionError(no_rule(mode))
    if not isinstance(mode, Mode) and (str(rank) != "paper" or round_ranks):
        raise OptionError(
            f"mode {mode.name} has no rank to choose; leave {spelled('round_ranks' if round_ranks else 'rank')} out"
        )


@dataclass
class Plan:
    """One row for every convolution, in graph order."""

    rows: list[Replacement | Rejected] = field(default_factory=list)

    @property
    def replacements(self) -> list[Replacement]:
        """What is replaced."""
        return [row for row in self.rows if isinstance(row, Replacement)]

    @property
    def convs(self) -> list[ConvReplacement]:
        """The Convs among these: what can be fitted to data."""
        return [row for row in self.rows if isinstance(row, ConvReplacement)]

    def annotate(self, notes: Mapping[Place, str]) -> None:
        """Add a note to the replacements at these places."""
        for number, row in enumerate(self.rows):
            if isinstance(row, Replacement) and row.site.place in notes:
                self.rows[number] = replace(row, notes=(*row.notes, notes[row.site.place]))


def site_macs(site: Match) -> int | None:
    """MACs of a Conv or block for the batch of the model (1 where it is free); None: not known."""
    return site.macs


def reject(match: Match, reason: str) -> Rejected:
    """Leave a Conv alone, or the nodes that have grown from one."""
    site = match.anchor
    return Rejected(site.name, site.op_type, site.where, reason, site.place, site)


def refusal(site: ConvSite, mode: Mode) -> str | None:
    """Why a mode cannot take a site; None if it can."""
    if site.conv.transposed:
        return mode.accepts(site.conv) if mode.transposed else f"mode {mode.name} takes no ConvTranspose"
    if site.op_type != "Conv" and not mode.linear_layers:
        return f"mode {mode.name} takes Convs only"
    return mode.accepts(site.conv)


def make_plan(
    found: Iterable[Match | Rejected],
    mode: AnyMode,
    options: Options,
    read: Callable[[ConvSite], Array],
    assigned: Callable[[Match], Assignment] | None = None,
) -> Plan:
    """Choose a rank for every Conv that the mode accepts and for which it pays; or take every match of a block mode.

    Args:
        found: as ``onnxsep.engine.sites.find_sites`` gives them, or ``onnxsep.engine.blocks.find_blocks``.
        mode: the mode.
        options: the user's choices.
        read: gives the weight of a site; called only where the rank depends on it (``energy=``).
        assigned: gives what is wanted of each Conv, where some get another mode, or another rank.

    Raises:
        OptionError: a pattern of ``only`` or ``skip`` matches no convolution.
    """
    found, wanted = list(found), Assignment(mode, options)
    check_patterns([item.name for item in found], options.only, options.skip, "convolution")
    plan = plan_assigned(found, assigned or (lambda _: wanted), read)
    if not options.force:
        settle_shared(plan)
    return plan


def plan_assigned(
    found: Iterable[Match | Rejected],
    assigned: Callable[[Match], Assignment | str],
    read: Callable[[ConvSite], Array],
) -> Plan:
    """Choose a rank for every Conv by what is wanted of that one.

    Args:
        found: as for ``make_plan``.
        assigned: gives what is wanted of a Conv, or why it is to be left alone.
        read: as for ``make_plan``.
    """
    plan = Plan()
    for item in found:
        if isinstance(item, Rejected):
            plan.rows.append(item)
        elif isinstance(wanted := assigned(item), str):
            plan.rows.append(reject(item, wanted))
        else:
            with naming(wanted.mode, item.name):
                plan.rows.append(_decide(item, wanted.mode, wanted.options, read))
    return plan


@contextmanager
def naming(mode: AnyMode, name: str) -> Iterator[None]:
    """A mode may come from anywhere and raise anything: say which one, and at which Conv.

    Raises:
        PassError: instead of anything that is not an error of ours.
    """
    try:
        yield
    except OnnxsepError:
        raise
    except Exception as error:
        raise PassError(f"mode {mode.name}, Conv {name!r}: {type(error).__name__}: {error}") from error


def _decide(item: Match, mode: AnyMode, options: Options, read: Callable[[ConvSite], Array]) -> Replacement | Rejected:
    if isinstance(item, BlockMatch):
        assert isinstance(mode, BlockMode), "matches of several nodes are those of block modes"
        return _decide_block(item, mode, options)
    assert isinstance(mode, Mode)
    if reason := refusal(item, mode) or left_alone(item, options):
        return reject(item, reason)
    candidate = choose(item, mode, options, read)
    if isinstance(candidate, Rejected) or options.force:
        return candidate
    reason = does_not_pay(candidate)
    return reject(item, f"does not pay: {reason} ({spelled('force', True)})") if reason else candidate


def left_alone(site: ConvSite, options: Options) -> str | None:
    """Why a Conv is left alone, whatever the mode; None where it is not."""
    return (
        left_out(site.name, options.only, options.skip)
        or (_again(site.made_by) if site.made_by and not options.recurse else None)
        or (_first(site) if site.first and not options.include_first else None)
    )


def _decide_block(match: BlockMatch, mode: BlockMode, options: Options) -> Replacement | Rejected:
    """A block mode itself says when it pays, and first Convs are like others to it."""
    reason = (
        left_out(match.name, options.only, options.skip)
        or mode.accepts(match.block)
        or (_again(mode.name) if match.again and not options.recurse else None)
        or ("its constants are floats of several types" if match.mixed and mode.kept(match.block) else None)
    )
    if reason:
        return reject(match, reason)
    company = (f"with {match.company}",) if match.company else ()
    notes = (*company, *(() if match.input_size is not None else (SIZES_UNKNOWN,)))
    candidate = BlockReplacement(match, mode, (), mode.layers(match.block), mode.exact, notes)
    reason = does_not_pay(candidate) if mode.saves and not options.force else None
    return reject(match, f"does not pay: {reason} ({spelled('force', True)})") if reason else candidate


def _again(made_by: str) -> str:
    return f"made by onnxsep (mode {made_by}); {spelled('recurse', True)} splits it again"


def _first(site: ConvSite) -> str:
    return f"first {site.op_type}, reached straight from an input; {spelled('include_first', True)} replaces it"


def choose(
    site: ConvSite, mode: Mode, options: Options, read: Callable[[ConvSite], Array]
) -> ConvReplacement | Rejected:
    """The replacement of one Conv at the rank that the policy gives, whether it pays or not.

    Rejected where no rank satisfies the policy, or the weight that it depends on cannot be used.
    """
    try:
        if isinstance(options.rank, RankPolicy):
            rank, notes = choose_rank(site.conv, mode, options.rank, options.round_ranks, lambda: read(site))
        else:
            rank, notes = options.rank, ()
    except FactorizationError as error:
        return reject(site, str(error))
    new_bias = options.calibrated and takes_new_bias(site)
    layers = mode.layers(replace(site.conv, bias=True) if new_bias else site.conv, rank)
    if site.input_size is None:
        notes += (SIZES_UNKNOWN,)
    if not site.stored:
        notes += ("its weight was computed by an expression of constants; the factors are stored",)
    return ConvReplacement(site, mode, rank, layers, mode.is_exact(site.conv, rank), notes, new_bias, options.init)


def takes_new_bias(site: ConvSite) -> bool:
    """Whether a fitted bias can take the place of the one that the Conv has, or has not."""
    if site.op_type == "MatMul":  # it has no place for one
        return False
    return in_main_graph(site) and (site.bias is not None or not site.conv.bias)


def in_main_graph(site: Match) -> bool:
    """Whether the Conv runs once for each input; those in nested graphs and functions may not run, or run often."""
    return site.place[0] == 0


def mac_ratio(candidate: Replacement) -> Fraction:
    """MACs after / before: exact where sizes are known, else that of a large input of even size."""
    site = candidate.site
    after = candidate.macs
    before = site.macs
    if after is not None and before:
        return Fraction(after, before)
    return relative_macs(candidate.layers) / relative_macs([ConvLayer("conv", INPUT, site.conv)])


def does_not_pay(candidate: Replacement) -> str | None:
    """Why a replacement costs more than it saves: its parameters do not fall, or its MACs rise. None if it pays."""
    site, before, after = candidate.site, candidate.site.parameters, candidate.parameters
    if after >= before:
        return f"{before:,} -> {after:,} parameters"
    ratio = mac_ratio(candidate)
    if ratio <= 1:
        return None
    macs_before, macs_after = site.macs, candidate.macs
    if macs_before and macs_after:
        return f"{macs_before:,} -> {macs_after:,} MACs"
    return f"{float(ratio):.2f} times the MACs at any large size"


def settle_shared(plan: Plan) -> None:
    """Leave alone Convs whose shared weight has to stay, or needs several sets of factors: parameters would rise."""
    users: dict[Constant, list[int]] = defaultdict(list)
    for number, row in enumerate(plan.rows):
        if row.site is not None and not (isinstance(row, BlockReplacement) and row.keeps(row.site.anchor.weight)):
            users[row.site.anchor.weight].append(number)
    for numbers in users.values():
        rows = [plan.rows[number] for number in numbers]
        replaced = [row for row in rows if isinstance(row, Replacement)]
        reason = _shared_reason(rows, replaced) if replaced else None
        for number in numbers if reason else ():
            row = plan.rows[number]
            if isinstance(row, Replacement):
                plan.rows[number] = reject(row.site, f"does not pay: {reason} ({spelled('force', True)})")


def _shared_reason(rows: Sequence[Replacement | Rejected], replaced: Sequence[Replacement]) -> str | None:
    kept = [f"{row.op_type} {row.name!r}, which is left alone" for row in rows if isinstance(row, Rejected)]
    site = replaced[0].site.anchor
    stay = (*site.pinned, *kept)
    if stay:
        return f"its weight stays, for it is also used by {stay[0]}"
    forms = {row.key: row for row in replaced}
    bias = site.conv.parameters - site.conv.weight_size
    factors = sum(form.parameters - bias for form in forms.values())
    if len(forms) > 1 and factors >= site.conv.weight_size:
        return f"its weight is shared and would need {len(forms)} different sets of factors"
    return None


def drop(plan: Plan, replacement: Replacement, reason: str) -> None:
    """Leave a Conv alone after all."""
    number = next(index for index, row in enumerate(plan.rows) if row is replacement)
    plan.rows[number] = reject(replacement.site, reason)
