"""What becomes of every Conv: ranks, whether it pays, shared weights, first Convs, and the reason for leaving one."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxsep
from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.planning import SIZES_UNKNOWN, Options, choose, does_not_pay, make_plan
from onnxsep.engine.replacements import ConvReplacement
from onnxsep.errors import OptionError
from onnxsep.graph.first_convs import first_convs
from onnxsep.graph.places import Constant
from onnxsep.graph.scopes import display_name, scopes
from onnxsep.layers.conv import Conv
from onnxsep.layers.rank import RankPolicy
from onnxsep.modes.base import NOTHING_TO_SEPARATE, Task, get_mode
from onnxsep.modes.ranks import rank_axes
from onnxsep.rewriting.report import ConvReport

Array = npt.NDArray[Any]
FIXED = settings(deadline=None, derandomize=True, max_examples=150)


def conv_of(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], *, stride: int = 1, group: int = 1, bias: bool = False
) -> Conv:
    """A Conv with the usual padding of an odd kernel."""
    dims = len(kernel)
    half = tuple(k // 2 for k in kernel)
    return Conv(in_channels, out_channels, kernel, (stride,) * dims, half + half, (1,) * dims, group=group, bias=bias)


def site_of(conv: Conv, size: tuple[int, ...] | None = None) -> ConvSite:
    return ConvSite("conv", conv, "float32", size, 1, Constant(0, "w"), (0, 0), "")


def never_read(site: ConvSite) -> Array:
    raise AssertionError(f"the weight of {site.name} was read, but the rank does not depend on it")


def chosen(
    conv: Conv, mode: str, rank: str | float, weight: Array | None = None, *, multiple: int = 0
) -> ConvReplacement:
    """The replacement at a rank, with sizes known, whether it pays or not."""
    options = Options(rank=RankPolicy.parse(rank), round_ranks=multiple)
    read = never_read if weight is None else lambda site: weight
    candidate = choose(site_of(conv, (16,) * conv.dims), get_mode(mode), options, read)
    assert isinstance(candidate, ConvReplacement)
    return candidate


# --- ranks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "conv", "rank", "full"),
    [
        ("depthwise", conv_of(16, 24, (3, 3)), (1,), (9,)),
        ("depthwise", conv_of(16, 4, (3, 3)), (1,), (4,)),
        ("spatial", conv_of(16, 24, (3, 3)), (24,), (48,)),
        ("spatial", conv_of(4, 24, (3, 3)), (12,), (12,)),  # 4 * 3 rows: out_channels would be more than exact
        ("spatial", conv_of(16, 24, (3, 3), group=4), (24,), (48,)),
        ("spatial", conv_of(8, 24, (3, 5), group=4), (24,), (24,)),
        ("spatial", conv_of(4, 6, (3, 3, 3)), (6, 6), (12, 18)),
        ("spatial", conv_of(1, 6, (3, 1, 5)), (3,), (3,)),
    ],
)
def test_paper_and_full_ranks(mode: str, conv: Conv, rank: tuple[int, ...], full: tuple[int, ...]) -> None:
    paper = chosen(conv, mode, "paper")
    assert paper.rank == rank
    assert paper.exact == (rank == full)
    exact = chosen(conv, mode, "full")
    assert exact.rank == full
    assert exact.exact
    assert paper.notes == exact.notes == ()


@pytest.mark.parametrize(
    ("mode", "conv", "rank", "expected", "notes"),
    [
        ("spatial", conv_of(4, 6, (3, 3)), 5, (5,), ()),
        ("spatial", conv_of(4, 6, (3, 3)), 12, (12,), ()),
        ("spatial", conv_of(4, 6, (3, 3)), 13, (12,), ("rank 13 clamped to 12",)),
        ("spatial", conv_of(8, 12, (3, 3), group=4), 10, (8,), ("rank 10 clamped to 8",)),
        ("spatial", conv_of(8, 12, (3, 3), group=4), 2, (4,), ("rank 2 clamped to 4",)),
        ("spatial", conv_of(2, 3, (3, 3, 3)), 7, (6, 7), ("rank 7 clamped to 6",)),
        ("spatial", conv_of(2, 3, (3, 3, 3)), 99, (6, 9), ("rank 99 clamped to 6", "rank 99 clamped to 9")),
        ("depthwise", conv_of(4, 6, (3, 3)), 6, (6,), ()),
        ("depthwise", conv_of(4, 6, (3, 3)), 10**6, (6,), ("rank 1000000 clamped to 6",)),
    ],
)
def test_integer_ranks_are_clamped_and_the_report_says_so(
    mode: str, conv: Conv, rank: int, expected: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    candidate = chosen(conv, mode, rank)
    assert candidate.rank == expected
    assert candidate.notes == notes


def spatial_parameters(conv: Conv, rank: int) -> int:
    """Of a 2-D spatial pair, by hand."""
    kh, kw = conv.kernel_shape
    vertical = rank * conv.in_channels // conv.group * kh
    horizontal = conv.out_channels * rank // conv.group * kw
    return vertical + horizontal + (conv.out_channels if conv.bias else 0)


def depthwise_parameters(conv: Conv, terms: int) -> int:
    taps = math.prod(conv.kernel_shape)
    return terms * conv.in_channels * (taps + conv.out_channels) + (conv.out_channels if conv.bias else 0)


@FIXED
@given(
    mode=st.sampled_from(["spatial", "depthwise"]),
    group=st.sampled_from([1, 1, 2, 5]),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(2, 5), st.integers(2, 7)),
    bias=st.booleans(),
    percent=st.integers(1, 100),
)
def test_fraction_is_the_largest_rank_within_the_share(
    mode: str, group: int, channels: tuple[int, int], kernel: tuple[int, int], bias: bool, percent: int
) -> None:
    group = 1 if mode == "depthwise" else group
    conv = conv_of(group * channels[0], group * channels[1], kernel, group=group, bias=bias)
    count = spatial_parameters if mode == "spatial" else depthwise_parameters
    full = get_mode(mode).rank_axis(conv, ())
    assert full is not None
    stays = conv.parameters - conv.weight_size  # the bias counts on neither side
    limit = Fraction(percent, 100) * conv.weight_size
    fitting = [rank for rank in range(group, full.full + 1, group) if count(conv, rank) - stays <= limit]
    policy = RankPolicy.parse(percent / 100)
    candidate = choose(site_of(conv), get_mode(mode), Options(rank=policy), never_read)
    if fitting:
        assert isinstance(candidate, ConvReplacement)
        assert candidate.rank == (fitting[-1],)
        assert candidate.parameters == count(conv, fitting[-1])
    else:
        assert isinstance(candidate, Rejected)
        assert candidate.reason == (
            f"no rank keeps {percent / 100:g} of its {conv.weight_size:,} weights: "
            f"the smallest needs {count(conv, group) - stays:,}"
        )


def test_fraction_is_the_decimal_that_was_written() -> None:
    """In binary 0.29 * 100 is less than 29; a rank that needs 29 parameters of 100 fits all the same."""
    conv = conv_of(1, 20, (3, 3))  # 180 parameters; a channel in between costs 3 + 60 = 63
    assert 0.35 * 180 < 63
    assert chosen(conv, "spatial", 0.35).rank == (1,)
    conv = conv_of(4, 25, (2, 2))  # 400 parameters, 8 + 50 = 58 for each channel
    assert 0.29 * 400 < 2 * 58
    assert chosen(conv, "spatial", "0.29").rank == (2,)
    assert chosen(conv, "spatial", "0.2899999").rank == (1,)


@FIXED
@given(
    group=st.sampled_from([1, 1, 2]),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.sampled_from([(3, 3, 3), (2, 3, 4), (5, 2, 2), (2, 2, 5)]),
    share=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.75, 0.9, 1.0]),
    multiple=st.sampled_from([0, 0, 8, 16]),
)
def test_fraction_in_three_dimensions(
    group: int, channels: tuple[int, int], kernel: tuple[int, ...], share: float, multiple: int
) -> None:
    """Equal ranks while both fit, then each in turn: at the end neither can grow."""
    mode = get_mode("spatial")
    conv = conv_of(group * channels[0], group * channels[1], kernel, group=group)
    policy = Options(rank=RankPolicy.parse(share), round_ranks=multiple)
    candidate = choose(site_of(conv), mode, policy, never_read)
    limit = share * conv.parameters * (1 + 1e-12)

    def count(first: int, second: int) -> int:
        inner, out = conv.in_channels // group, conv.out_channels // group
        k1, k2, k3 = kernel
        f, s = first // group, second // group
        return group * (inner * k1 * f + f * k2 * s + s * k3 * out)

    if isinstance(candidate, Rejected):
        assert count(group, group) > limit
        return
    first, second = candidate.rank
    assert candidate.parameters == count(first, second) <= limit
    axes = rank_axes(mode, conv, candidate.rank)
    for rank, axis in zip(candidate.rank, axes, strict=True):
        assert axis.step <= rank <= axis.full
        assert rank % axis.step == 0
        if multiple and rank >= multiple:
            assert rank % multiple == 0
    # Such ranks can really be factorised.
    weight = np.random.default_rng(0).standard_normal(conv.weight_shape)
    factors = mode.factorize(Task(conv, weight), candidate.rank).weights
    assert sum(factor.size for factor in factors) == candidate.parameters
    if not multiple:
        assert first + group > axes[0].full or count(first + group, second) > limit
        assert second + group > axes[1].full or count(first, second + group) > limit
        # Equal ranks have precedence: no equal pair above the smaller of the two fits.
        both = min(first, second) + group
        if both <= min(axis.full for axis in axes):
            assert count(both, both) > limit


def energy_rank(slices: list[Array], share: float) -> int:
    """The smallest number of singular triplets per slice that keep ``share`` of all squared singular values."""
    squares = np.array([np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in slices])
    for rank in range(1, squares.shape[1] + 1):
        if squares[:, :rank].sum() >= share * squares.sum() * (1 - 1e-9):
            return rank
    raise AssertionError


@FIXED
@given(
    mode=st.sampled_from(["spatial", "depthwise"]),
    group=st.sampled_from([1, 2, 3]),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 5)),
    share=st.sampled_from([0.01, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0]),
    seed=st.integers(0, 999),
)
def test_energy_is_the_smallest_rank_over_all_slices_together(
    mode: str, group: int, channels: tuple[int, int], kernel: tuple[int, int], share: float, seed: int
) -> None:
    """Slices differ in size by up to 100, so a rule that looked at each slice alone would choose another rank."""
    group = 1 if mode == "depthwise" else group
    conv = conv_of(group * channels[0], group * channels[1], kernel, group=group)
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(conv.weight_shape)
    if mode == "depthwise":
        weight *= 10 ** rng.uniform(-1, 1, (1, conv.in_channels, 1, 1))
        slices = [weight[:, channel].reshape(conv.out_channels, -1) for channel in range(conv.in_channels)]
    else:
        weight *= np.repeat(10 ** rng.uniform(-1, 1, group), conv.out_channels // group)[:, None, None, None]
        parts = np.split(weight, group)
        slices = [part.transpose(1, 2, 0, 3).reshape(part.shape[1] * kernel[0], -1) for part in parts]
    candidate = chosen(conv, mode, f"energy={share}", weight)
    assert candidate.rank == (energy_rank(slices, share) * group,)


def test_energy_in_three_dimensions_is_chosen_axis_by_axis() -> None:
    conv = conv_of(4, 5, (3, 2, 4))
    weight = np.random.default_rng(4).standard_normal(conv.weight_shape)
    outer = weight.transpose(1, 2, 0, 3, 4).reshape(12, -1)
    for share in (0.3, 0.6, 0.9):
        first = energy_rank([outer], share)
        _, s, vt = np.linalg.svd(outer, full_matrices=False)
        rest = (s[:first, None] * vt[:first]).reshape(first, 5, 2, 4).transpose(0, 2, 1, 3).reshape(first * 2, -1)
        assert chosen(conv, "spatial", f"energy={share}", weight).rank == (first, energy_rank([rest], share))


def test_energy_of_a_zero_weight_is_the_smallest_rank() -> None:
    conv = conv_of(4, 6, (3, 3), group=2)
    assert chosen(conv, "spatial", "energy=0.99", np.zeros(conv.weight_shape)).rank == (2,)


@pytest.mark.parametrize(
    ("conv", "rank", "multiple", "expected"),
    [
        (conv_of(16, 20, (3, 3)), "paper", 8, (24,)),
        (conv_of(16, 20, (3, 3)), "paper", 16, (32,)),
        (conv_of(16, 16, (3, 3)), "paper", 8, (16,)),
        (conv_of(6, 18, (3, 3)), "paper", 8, (16,)),  # 24 would be more than exact (18)
        (conv_of(2, 5, (3, 3)), "paper", 8, (5,)),  # no multiple of 8 is in range (6)
        (conv_of(16, 20, (3, 3)), 9, 8, (16,)),
        (conv_of(16, 20, (3, 3)), "full", 32, (48,)),  # full means exact
        (conv_of(12, 12, (3, 3), group=3), 12, 8, (24,)),  # a multiple of 8 and of the groups
        (conv_of(16, 20, (3, 3, 3)), 20, 16, (32, 32)),
        (conv_of(16, 32, (3, 3)), 0.5, 8, (16,)),  # 4608 parameters, 16 ranks of 144 each
        (conv_of(16, 32, (3, 3)), 0.4, 8, (8,)),  # 12 ranks fit; down, for it is a limit
    ],
)
def test_round_ranks(conv: Conv, rank: str | float, multiple: int, expected: tuple[int, ...]) -> None:
    assert chosen(conv, "spatial", rank, multiple=multiple).rank == expected


def test_rounding_one_rank_down_limits_the_next() -> None:
    """15 and 35 channels fit (225 + 237 * 35 of 8,640); 15 becomes 8, and no more than 8 * 3 can follow."""
    conv = conv_of(5, 64, (3, 3, 3))
    assert chosen(conv, "spatial", 1.0).rank == (15, 35)
    assert chosen(conv, "spatial", 1.0, multiple=8).rank == (8, 24)


def test_terms_are_not_rounded() -> None:
    assert chosen(conv_of(16, 20, (3, 3)), "depthwise", 3, multiple=8).rank == (3,)


# --- does it pay? --------------------------------------------------------------------------------------------------


def judged(conv: Conv, mode: str, rank: str | float, size: tuple[int, ...] | None) -> str | None:
    candidate = choose(site_of(conv, size), get_mode(mode), Options(rank=RankPolicy.parse(rank)), never_read)
    assert isinstance(candidate, ConvReplacement)
    return does_not_pay(candidate)


@pytest.mark.parametrize(
    ("mode", "conv", "size", "reason"),
    [
        ("depthwise", conv_of(8, 8, (3, 3)), (16, 16), None),
        # Parameters must fall, not only stay: 3 * (2 + 2) = 3 * 2 * 2 and 4 * C * C = 2 * C * (2 * C)
        ("depthwise", conv_of(3, 2, (1, 2)), (16, 16), "12 -> 12 parameters"),
        ("spatial", conv_of(6, 6, (2, 2)), (16, 16), "144 -> 144 parameters"),
        ("depthwise", conv_of(5, 1, (3, 3), bias=True), (16, 16), "46 -> 51 parameters"),
        # Parameters fall, but the first Conv of the pair works on twice as many positions as the original one.
        # 8 x 16 x 288 + 8 x 8 x 432 MACs against 8 x 8 x 864
        ("spatial", conv_of(8, 12, (3, 3), stride=2), (16, 16), "55,296 -> 64,512 MACs"),
        ("spatial", conv_of(8, 12, (3, 3), stride=2), None, "1.17 times the MACs at any large size"),
        # Equal MACs: 8 x 16 x 192 + 8 x 8 x 192 = 8 x 8 x 576; they do not rise, so it pays.
        ("spatial", conv_of(8, 8, (3, 3), stride=2), (16, 16), None),
        ("spatial", conv_of(8, 8, (3, 3), stride=2), None, None),
        # On odd sizes the pair has less to do: 8 x 15 x 192 + 8 x 8 x 192 < 8 x 8 x 576
        ("spatial", conv_of(8, 8, (3, 3), stride=2), (15, 15), None),
        # Without padding it has more: 7 x 16 x 192 + 7 x 7 x 192 > 7 x 7 x 576
        ("spatial", Conv(8, 8, (3, 3), (2, 2), (0,) * 4, (1, 1)), (16, 16), "28,224 -> 30,912 MACs"),
        ("spatial", Conv(8, 8, (3, 3), (2, 2), (0,) * 4, (1, 1)), None, None),
        ("spatial", conv_of(8, 8, (3, 3)), None, None),
    ],
)
def test_it_pays_where_parameters_fall_and_macs_do_not_rise(
    mode: str, conv: Conv, size: tuple[int, ...] | None, reason: str | None
) -> None:
    assert judged(conv, mode, "paper", size) == reason


@FIXED
@given(
    mode=st.sampled_from(["spatial", "depthwise"]),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.sampled_from([3, 5]), st.sampled_from([3, 5])),
    stride=st.sampled_from([1, 2]),
    rank=st.integers(1, 20),
)
def test_symbolic_sizes_are_judged_like_large_even_ones(
    mode: str, channels: tuple[int, int], kernel: tuple[int, int], stride: int, rank: int
) -> None:
    conv = conv_of(*channels, kernel, stride=stride)
    assert (judged(conv, mode, rank, None) is None) == (judged(conv, mode, rank, (64, 32)) is None)


def test_the_batch_multiplies_macs() -> None:
    conv = conv_of(2, 3, (3, 3))
    site = ConvSite("conv", conv, "float32", (4, 5), 7, Constant(0, "w"), (0, 0), "")
    candidate = choose(site, get_mode("depthwise"), Options(), never_read)
    assert isinstance(candidate, ConvReplacement)
    assert candidate.macs == 7 * 20 * (2 * 9 + 2 * 3)


# --- whole models --------------------------------------------------------------------------------------------------


def model_of(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model in ONNX's text form; ``shapes`` are float32 initialisers of seeded random values."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model


HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
CHAIN = (
    HEAD
    + """g (float[1,8,16,16] x) => (float[1,8,16,16] y) {
    stem = Conv <pads = [1,1,1,1]> (x, w1)
    a = Relu (stem)
    mid_conv = Conv <pads = [1,1,1,1]> (a, w2)
    y = Conv <pads = [1,1,1,1]> (mid_conv, w3)
}"""
)
SQUARE = (8, 8, 3, 3)


def chain(text: str = CHAIN) -> onnx.ModelProto:
    return model_of(text, w1=SQUARE, w2=SQUARE, w3=SQUARE)


def rows(model: onnx.ModelProto, mode: str = "depthwise", **options: Any) -> dict[str, ConvReport]:
    """The report's rows by the name of the Conv."""
    report = onnxsep.rewrite(model, mode=mode, verify="none", **options).report
    assert report.totals.replaced == sum(row.status == "replaced" for row in report.convs)
    return {row.name: row for row in report.convs}


def reasons(model: onnx.ModelProto, mode: str = "depthwise", **options: Any) -> dict[str, str]:
    """Why each Conv is left alone; "" for those that are replaced."""
    found = rows(model, mode, **options)
    assert all((row.reason == "") == (row.status == "replaced") for row in found.values())
    return {name: row.reason for name, row in found.items()}


FIRST = "first Conv, reached straight from an input; include_first=True replaces it"


def test_the_first_conv_is_left_alone_unless_asked_for() -> None:
    assert reasons(chain()) == {"stem": FIRST, "mid_conv": "", "y": ""}
    assert reasons(chain(), include_first=True) == {"stem": "", "mid_conv": "", "y": ""}


def test_force_replaces_what_does_not_pay_but_not_first_convs() -> None:
    left = "does not pay: 576 -> 1,088 parameters (force=True)"  # 8 terms of 8 * 9 + 8 * 8
    assert reasons(chain(), rank="full") == {"stem": FIRST, "mid_conv": left, "y": left}
    assert reasons(chain(), rank="full", force=True) == {"stem": FIRST, "mid_conv": "", "y": ""}


def test_only_and_skip_are_globs_on_names() -> None:
    assert reasons(chain(), only=["mid*"]) == {"stem": "not among only", "mid_conv": "", "y": "not among only"}
    assert reasons(chain(), skip=["mid_????"]) == {"stem": FIRST, "mid_conv": "left out by skip 'mid_????'", "y": ""}
    both = reasons(chain(), only=["mid*", "[xy]"], skip=["y"])
    assert both == {"stem": "not among only", "mid_conv": "", "y": "left out by skip 'y'"}
    # A first Conv that --only names is still a first Conv.
    assert reasons(chain(), only=["stem"])["stem"] == FIRST
    assert reasons(chain(), only=["stem"], include_first=True)["stem"] == ""


@pytest.mark.parametrize("option", ["only", "skip"])
@pytest.mark.parametrize("pattern", ["nothing*", "Stem", "a", ""])
def test_a_pattern_that_matches_nothing_is_an_error(option: str, pattern: str) -> None:
    """``Stem`` differs in case from ``stem``, and ``a`` is a Relu."""
    with pytest.raises(OptionError, match=rf"{option} '{pattern.replace('*', '.')}.*matches the name of no conv"):
        rows(chain(), "spatial", **{option: ["mid*", pattern]})


def test_a_pattern_may_name_what_is_left_alone_anyway() -> None:
    model = model_of(
        HEAD + "g (float[1,8,4,4] x) => (float[1,8,6,6] y) { up = ConvTranspose (x, w) y = Relu (up) }", w=SQUARE
    )
    assert reasons(model, "depthwise", skip=["up"])["up"] == "mode depthwise takes no ConvTranspose"


def test_bad_options_are_errors() -> None:
    with pytest.raises(OptionError, match="rank out of range: 0"):
        onnxsep.rewrite(chain(), mode="spatial", rank=0)
    with pytest.raises(OptionError, match="round_ranks=-8 is not 8 or 16"):
        onnxsep.rewrite(chain(), mode="spatial", round_ranks=-8)


def test_a_second_run_changes_nothing_and_recurse_splits_again() -> None:
    first = onnxsep.rewrite(chain(), mode="depthwise", verify="none")
    again = onnxsep.rewrite(first.proto, mode="depthwise", verify="none")
    assert again.proto.SerializeToString() == first.proto.SerializeToString()
    made = {row.name: row.reason for row in again.report.convs}
    assert made["mid_conv_depthwise"] == "grouped Conv (8 groups): this mode takes ungrouped ones only"
    assert made["mid_conv_pointwise"] == NOTHING_TO_SEPARATE
    split = "made by onnxsep (mode depthwise); recurse=True splits it again"
    assert reasons(first.proto, "spatial")["mid_conv_depthwise"] == split
    composed = rows(first.proto, "spatial", recurse=True)
    assert composed["mid_conv_depthwise"].status == "replaced"
    # 3 x 1 and 1 x 3 over 8 groups, one channel each: 48 instead of 72
    assert (composed["mid_conv_depthwise"].rank, composed["mid_conv_depthwise"].parameters_after) == ((8,), 48)


def test_unreachable_fraction_leaves_the_conv_alone() -> None:
    text = "no rank keeps 0.2 of its 576 weights: the smallest needs 136"
    assert reasons(chain(), rank=0.2) == {"stem": FIRST, "mid_conv": text, "y": text}
    assert reasons(chain(), rank=0.25) == {"stem": FIRST, "mid_conv": "", "y": ""}
    assert reasons(chain(), rank=0.2, force=True)["y"] == text  # --force finds no rank either


def test_symbolic_sizes_are_named_in_the_notes() -> None:
    text = CHAIN.replace("float[1,8,16,16]", "float[N,8,H,W]")
    found = rows(chain(text))
    assert found["y"].status == "replaced"
    assert found["y"].notes == (SIZES_UNKNOWN,)
    assert found["y"].macs_before is None
    assert found["y"].macs_after is None
    known = rows(chain(text), input_shapes={"x": (2, 8, 16, 16)})
    assert known["y"].notes == ()
    assert known["y"].macs_before == 2 * 256 * 576


# --- first Convs ---------------------------------------------------------------------------------------------------


def first_names(text: str) -> set[str]:
    """Names of the first Convs of a model in ONNX's text form."""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    every = scopes(model)
    return {display_name(every[scope].body.node[index]) for scope, index in first_convs(model)}


# Weights are inputs here: what reaches a weight does not make a Conv first.
SMALL = HEAD + "g (float[1,4,8,8] x, float[4,4,1,1] w, float[4,8,1,1] v) => (float[1,4,8,8] y) {"


@pytest.mark.parametrize(
    ("body", "first"),
    [
        ("a = Conv (x, w) b = Relu (a) y = Conv (b, w)", {"a"}),
        # A skip that goes round the first Conv makes the next one a first Conv, too.
        ("a = Conv (x, w) b = Add (a, x) y = Conv (b, w)", {"a", "y"}),
        ("a = Conv (x, w) b = Conv (a, w) c = Concat <axis = 1> (b, x) s = Relu (c) y = Conv (s, v)", {"a", "y"}),
        # Only the size of the image comes this way.
        ("a = Conv (x, w) s = Shape (x) b = Reshape (a, s) y = Conv (b, w)", {"a"}),
        ("s = Shape (x) b = ConstantOfShape (s) y = Conv (b, w)", set()),
        ("a = Conv (x, w) n = Size (x) f = CastLike (n, a) b = Mul (a, f) y = Conv (b, w)", {"a"}),
        # Another convolution comes before it.
        ("a = ConvTranspose (x, w) y = Conv (a, w)", {"a"}),
        # What reaches the weight does not make a Conv first.
        ("a = Conv (x, w) s = ReduceSum <keepdims = 0> (x) u = Mul (w, s) y = Conv (a, u)", {"a"}),
    ],
)
def test_first_convs_of_a_graph(body: str, first: set[str]) -> None:
    assert first_names(SMALL + body + "}") == first


def test_first_convs_in_branches() -> None:
    """A branch sees the tensors around it, and what it gives goes on behind the If."""
    text = (
        HEAD
        + """g (float[1,4,8,8] x, float[4,4,1,1] w, bool c) => (float[1,4,8,8] y) {
        a = Conv (x, w)
        b = If (c) <
            then_branch = t () => (float[1,4,8,8] p) { THEN },
            else_branch = e () => (float[1,4,8,8] q) { q = Conv (a, w) }
        >
        y = Conv (b, w)
    }"""
    )
    assert first_names(text.replace("THEN", "p = Conv (x, w)")) == {"a", "p"}
    assert first_names(text.replace("THEN", "p = Conv (a, w)")) == {"a"}
    assert first_names(text.replace("THEN", "p = Identity (x)")) == {"a", "y"}


LOOP = (
    HEAD
    + """g (float[1,4,8,8] x, float[4,4,1,1] w, int64 n, bool c) => (float[1,4,8,8] y) {
    z = Conv (x, w)
    l1, l2, l3, l4, last = Loop (n, c, START) <
        body = l (int64 i, bool k, float[1,4,8,8] r, float[1,4,8,8] s, float[1,4,8,8] t, float[1,4,8,8] u)
        => (bool k2, float[1,4,8,8] r1, float[1,4,8,8] s1, float[1,4,8,8] t1, float[1,4,8,8] u1, float[1,4,8,8] p) {
            k2 = Identity (k)
            r1 = Identity (r)
            s1 = Identity (r)
            t1 = Identity (s)
            u1 = Identity (t)
            p = Conv (u, w)
        }
    >
    y = Conv (l4, w)
}"""
)


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("z, z, z, z", {"z"}),
        ("z, z, z, x", {"z", "p"}),
        # The image moves one variable further in every iteration: only the fourth one brings it to the Conv.
        ("x, z, z, z", {"z", "p", "y"}),
    ],
)
def test_first_convs_in_loops(start: str, first: set[str]) -> None:
    assert first_names(LOOP.replace("START", start)) == first


def test_first_convs_in_scans() -> None:
    """What a Scan gives for one slice does not come back as the next slice."""
    text = (
        HEAD
        + """g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[2,1,4,8,8] y) {
        z = Conv (x, w)
        zz = Concat <axis = 0> (z, z)
        shape = Constant <value_ints = [2, 1, 4, 8, 8]> ()
        items = Reshape (zz, shape)
        a, b, y = Scan (STATE, items) <
            num_scan_inputs = 1,
            body = s (float[1,4,8,8] state, float[1,4,8,8] item)
            => (float[1,4,8,8] state2, float[1,4,8,8] out, float[1,4,8,8] p) {
                state2 = Identity (state)
                out = Add (state, state)
                p = Conv (item, w)
                q = Conv (state, w)
            }
        >
    }"""
    )
    assert first_names(text.replace("STATE", "x")) == {"z", "q"}
    assert first_names(text.replace("STATE", "z")) == {"z"}


def test_first_convs_in_functions() -> None:
    """A function counts as inlined at each call: first if any call is."""
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) { START }
    <domain: "f", opset_import: ["" : 17]>
    block (u, v) => (q) { p = Conv (u, v) q = Relu (p) }
    <domain: "f", opset_import: ["" : 17]>
    pass_on (u) => (q) { q = Relu (u) }"""
    assert first_names(text.replace("START", "a = f.block (x, w) y = Conv (a, w)")) == {"p"}
    assert first_names(text.replace("START", "a = Conv (x, w) y = f.block (a, w)")) == {"a"}
    assert first_names(text.replace("START", "a = f.block (x, w) y = f.block (a, w)")) == {"p"}
    assert first_names(text.replace("START", "a = f.pass_on (x) y = Conv (a, w)")) == {"y"}


def test_weights_among_the_inputs_are_no_image() -> None:
    """Up to IR version 3 every initialiser is a graph input, too; here one is even the data of a Conv."""
    text = (
        '<ir_version: 3, opset_import: ["" : 8]>'
        "g (float[1,8,16,16] x, float[8,8,3,3] w, float[1,8,5,5] start) => (float[1,8,14,14] y) {"
        "a = Conv (start, w) s = ReduceSum (a) b = Conv (x, w) y = Add (b, s) }"
    )
    model = model_of(text, w=SQUARE, start=(1, 8, 5, 5))
    assert reasons(model, "depthwise")["b"] == FIRST
    assert reasons(model, "depthwise")["a"] != FIRST


# --- shared weights ------------------------------------------------------------------------------------------------

SHARED = HEAD + "g (float[1,8,16,16] x) => (float[1,8,16,16] y) { s = Conv <pads = [1,1,1,1]> (x, stem) {} }"


def shared(body: str, outputs: str = "", **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A stem ``s``, then ``body`` with the weight ``w``."""
    text = SHARED.replace("{}", body).replace(" y) {", f" y{outputs}) {{")
    return model_of(text, **{"stem": SQUARE, "w": SQUARE, **shapes})


TWICE = "a = Conv <pads = [1,1,1,1]> (s, w) y = Conv <pads = [1,1,1,1]> (a, w)"


@pytest.mark.parametrize("mode", ["depthwise", "spatial"])
def test_two_convs_with_one_weight_share_its_factors(mode: str) -> None:
    model = shared(TWICE)
    result = onnxsep.rewrite(model, mode=mode, verify="none")
    assert {row.name: row.status for row in result.report.convs} == {"s": "left", "a": "replaced", "y": "replaced"}
    assert result.report.removed_weights == ("w",)
    stored = {tensor.name: math.prod(tensor.dims) for tensor in result.proto.graph.initializer}
    factors = {"depthwise": 8 * 9 + 8 * 8, "spatial": 2 * 3 * 64}[mode]
    assert sum(stored.values()) == 576 + factors == result.report.totals.parameters_after
    users = [node.input[1] for node in result.proto.graph.node if node.op_type == "Conv"]
    assert users[1:3] == users[3:5]


def test_a_weight_that_something_else_uses_stays() -> None:
    body = "i = Identity (w) r = ReduceSum <keepdims = 0> (i) t = Mul (s, r)"
    used = shared(f"{body} {TWICE.replace('(s, w)', '(t, w)')}")
    reason = "does not pay: its weight stays, for it is also used by Identity 'i' (force=True)"
    assert reasons(used) == {"s": FIRST, "a": reason, "y": reason}
    forced = onnxsep.rewrite(used, mode="depthwise", verify="none", force=True)
    assert {row.name: row.status for row in forced.report.convs} == {"s": "left", "a": "replaced", "y": "replaced"}
    before, after = ({w.name: w for w in proto.graph.initializer} for proto in (used, forced.proto))
    assert after["w"] == before["w"]


def test_a_weight_that_is_an_output_stays() -> None:
    model = shared(TWICE, ", float[8,8,3,3] w")
    reason = "does not pay: its weight stays, for it is also used by an output of the graph (force=True)"
    assert reasons(model) == {"s": FIRST, "a": reason, "y": reason}


def test_a_weight_of_a_conv_that_is_left_alone_stays() -> None:
    reason = "does not pay: its weight stays, for it is also used by Conv 'a', which is left alone (force=True)"
    assert reasons(shared(TWICE), skip=["a"]) == {"s": FIRST, "a": "left out by skip 'a'", "y": reason}
    forced = onnxsep.rewrite(shared(TWICE), mode="depthwise", verify="none", skip=["a"], force=True)
    assert [row.status for row in forced.report.convs] == ["left", "left", "replaced"]
    before, after = ({w.name: w for w in proto.graph.initializer} for proto in (shared(TWICE), forced.proto))
    assert after["w"] == before["w"]


def test_a_weight_whose_user_is_a_first_conv_stays() -> None:
    model = shared("a = Conv <pads = [1,1,1,1]> (s, stem) y = Relu (a)", w=(1,))
    reason = "does not pay: its weight stays, for it is also used by Conv 's', which is left alone (force=True)"
    assert reasons(model) == {"s": FIRST, "a": reason}
    assert reasons(model, include_first=True) == {"s": "", "a": ""}


@pytest.mark.parametrize(("kernel", "pays"), [(5, False), (7, True)])
def test_different_factors_of_one_weight_must_pay_together(kernel: int, pays: bool) -> None:
    """One weight [8, 4, k, k], used by a Conv of one group and by one of two groups."""
    half = kernel // 2
    pads = f"pads = [{half},{half},{half},{half}]"
    body = f"h, rest = Split <axis = 1> (s, sizes) a = Conv <{pads}> (h, w) y = Conv <{pads}, group = 2> (a, w)"
    model = shared("sizes = Constant <value_ints = [4, 4]> () " + body, w=(8, 4, kernel, kernel))
    # rank 8: 4*k*8 + 8*k*8 = 96 k for one group, 8*k*4 + 8*k*4 = 64 k for two, 32 k*k before
    found = rows(model, "spatial")
    assert [found[name].parameters_before for name in "ay"] == [32 * kernel**2] * 2
    if pays:
        assert [found[name].parameters_after for name in "ay"] == [96 * kernel, 64 * kernel]
    else:
        reason = "does not pay: its weight is shared and would need 2 different sets of factors (force=True)"
        assert [found[name].reason for name in "ay"] == [reason, reason]


def test_no_rewrite_makes_the_file_hold_more_parameters() -> None:
    """Whatever shares a weight, the parameters that the file holds fall, or nothing is done."""
    bodies = {
        "identity": "i = Identity (w) a = Conv <pads = [1,1,1,1]> (s, i) y = Conv <pads = [1,1,1,1]> (a, w)",
        "transposed": "i = Transpose <perm = [1,0,2,3]> (w) a = Conv <pads = [1,1,1,1]> (s, i)"
        " y = Conv <pads = [1,1,1,1]> (a, w)",
        "both transposed": "i = Transpose <perm = [1,0,2,3]> (w) j = Transpose <perm = [1,0,2,3]> (w)"
        " a = Conv <pads = [1,1,1,1]> (s, i) y = Conv <pads = [1,1,1,1]> (a, j)",
    }
    for name, body in bodies.items():
        for mode in ("depthwise", "spatial"):
            totals = onnxsep.rewrite(shared(body), mode=mode, verify="none").report.totals
            changed = totals.parameters_after - totals.parameters_before
            assert changed < 0 or (changed == 0 and totals.replaced == 0), (name, mode, totals)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "attributes", "mode", "reason"),
    [
        ((8, 8, 1, 1), "", "depthwise", NOTHING_TO_SEPARATE),
        ((8, 8, 1, 1), "", "spatial", NOTHING_TO_SEPARATE),
        ((8, 1, 1, 1), "<group = 8>", "depthwise", NOTHING_TO_SEPARATE),
        (
            (8, 8, 1, 3),
            "<pads = [0,1,0,1]>",
            "spatial",
            "a 1x3 kernel lies along one axis: it is spatially separated already",
        ),
        (
            (8, 8, 3, 1),
            "<pads = [1,0,1,0]>",
            "spatial",
            "a 3x1 kernel lies along one axis: it is spatially separated already",
        ),
        ((8, 8, 1, 3), "<pads = [0,1,0,1]>", "depthwise", ""),
        (
            (8, 4, 3, 3),
            "<group = 2, pads = [1,1,1,1]>",
            "depthwise",
            "grouped Conv (2 groups): this mode takes ungrouped ones only",
        ),
        ((8, 4, 3, 3), "<group = 2, pads = [1,1,1,1]>", "spatial", ""),
        (
            (8, 1, 3, 3),
            "<group = 8, pads = [1,1,1,1]>",
            "depthwise",
            "grouped Conv (8 groups): this mode takes ungrouped ones only",
        ),
    ],
)
def test_what_a_mode_refuses(shape: tuple[int, ...], attributes: str, mode: str, reason: str) -> None:
    model = shared(f"y = Conv {attributes} (s, w)", w=shape)
    assert reasons(model, mode)["y"] == reason
    assert reasons(model, mode, force=True, include_first=True)["y"] == reason


def test_one_dimension_is_refused_by_spatial_only() -> None:
    text = (
        HEAD
        + "g (float[1,8,32] x) => (float[1,8,32] y) { s = Conv <pads = [2,2]> (x, w) y = Conv <pads = [2,2]> (s, v) }"
    )
    model = model_of(text, w=(8, 8, 5), v=(8, 8, 5))
    assert reasons(model, "spatial")["y"] == "a 5 kernel lies along one axis: it is spatially separated already"
    assert reasons(model, "depthwise")["y"] == ""


def reason_of(body: str, name: str = "y", before: str = "", inputs: str = "", **shapes: tuple[int, ...]) -> str:
    """Why the Conv ``name`` behind a stem ``s`` is left alone."""
    text = f"g (float[1,8,16,16] x{inputs}) => (float[1,8,14,14] y) {{ s = Conv <pads = [1,1,1,1]> (x, stem) {body} }}"
    model = model_of((before or HEAD) + text, **{"stem": SQUARE, **shapes})
    both = {reasons(model, mode, force=True)[name] for mode in ("depthwise", "spatial")}
    (reason,) = both
    return reason


def test_weights_that_are_not_constant() -> None:
    assert reason_of("y = Conv (s, w)", inputs=", float[8,8,3,3] w") == (
        "its weight 'w' is a graph input: it is given at run time"
    )
    scaled = "r = ReduceMean <keepdims = 0> (x) v = Mul (w, r) y = Conv (s, v)"
    assert reason_of(scaled, w=SQUARE) == "its weight is computed at run time by ReduceMean 'r'"
    drawn = "v = RandomNormal <shape = [8, 8, 3, 3]> () y = Conv (s, v)"
    assert reason_of(drawn) == "its weight is computed at run time by RandomNormal 'v'"


def test_quantised_weights() -> None:
    text = (
        HEAD
        + """g (float[1,8,16,16] x) => (float[1,8,14,14] y) {
        s = Conv <pads = [1,1,1,1]> (x, stem)
        v = DequantizeLinear (q, scale, zero)
        y = Conv (s, v)
    }"""
    )
    model = onnx.parser.parse_model(text)
    tensors: dict[str, Array] = {
        "stem": np.zeros(SQUARE, np.float32),
        "q": np.ones(SQUARE, np.int8),
        "scale": np.array(0.5, np.float32),
        "zero": np.array(0, np.int8),
    }
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    onnx.checker.check_model(model, full_check=True)
    for mode in ("depthwise", "spatial"):
        found = reasons(model, mode, force=True)
        assert found["y"] == "its weight is behind DequantizeLinear 'v': it is quantised already"


def test_other_convolutions() -> None:
    up = model_of(HEAD + "g (float[1,8,4,4] x) => (float[1,8,6,6] y) { y = ConvTranspose (x, w) }", w=SQUARE)
    assert reasons(up, "depthwise")["y"] == "mode depthwise takes no ConvTranspose"
    text = (
        '<ir_version: 8, opset_import: ["" : 19]>'
        "g (float[1,8,16,16] x, float[1,18,14,14] offset) => (float[1,8,14,14] y) { y = DeformConv (x, w, offset) }"
    )
    assert reasons(model_of(text, w=SQUARE))["y"] == "DeformConv is not supported: only Conv is rewritten"
    integer = onnx.parser.parse_model(
        HEAD + "g (uint8[1,8,16,16] x) => (int32[1,8,14,14] y) { y = ConvInteger (x, w) }"
    )
    integer.graph.initializer.append(numpy_helper.from_array(np.ones(SQUARE, np.uint8), "w"))
    assert reasons(integer)["y"] == "ConvInteger: its weight is quantised already"


FUNCTION = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
g (float[1,8,16,16] x) => (float[1,8,12,12] y) {
    s = Conv <pads = [1,1,1,1]> (x, w)
    a = f.given (s, w)
    y = f.own <k = [1, 1]> (a)
}
<domain: "f", opset_import: ["" : 17]>
given (u, v) => (q) { q = Conv (u, v) }
<domain: "f", opset_import: ["" : 17]>
own <k> (u) => (r) {
    value = Constant <value_float = 0.5> ()
    shape = Constant <value_ints = [8, 8, 3, 3]> ()
    v = Expand (value, shape)
    r = Conv <strides: ints = @k> (u, v)
}"""


def test_convs_in_functions() -> None:
    model = model_of(FUNCTION, w=SQUARE)
    for mode in ("depthwise", "spatial"):
        found = reasons(model, mode, force=True)
        assert found["q"] == "its weight 'v' is an argument of the function"
        assert found["r"] == "its attributes are arguments of the function"
    own = model_of(FUNCTION.replace("<strides: ints = @k> ", ""), w=SQUARE)
    replaced = rows(own, "depthwise")["r"]
    assert replaced.status == "replaced"
    assert replaced.where == "function f::own"


def test_malformed_convs_have_their_reason() -> None:
    """A broken node among good ones: the checker would refuse the model, so it is built unchecked."""
    good = chain()

    def broken(**attributes: Any) -> str:
        model = onnx.ModelProto()
        model.CopyFrom(good)
        node = model.graph.node[-1]
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        report = onnxsep.inspect(model)
        return report.convs[-1].reason

    assert broken(kernel_shape=[5, 5]) == "kernel_shape [5, 5] does not agree with its weight of shape [8, 8, 3, 3]"
    assert broken(strides=[1]) == "strides, dilations or pads do not have 2 axes as its weight has"
    assert broken(pads=[1, 1]) == "strides, dilations or pads do not have 2 axes as its weight has"
    assert broken(group=3) == "it is malformed: group 3, strides [1, 1], dilations [1, 1]"
    assert broken(strides=[0, 1]) == "it is malformed: group 1, strides [0, 1], dilations [1, 1]"
    assert broken(auto_pad="SAME") == "unknown auto_pad 'SAME'"


def test_a_sparse_weight_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        HEAD + "g (float[1,1,8,8] x) => (float[1,2,6,6] y) { s = Relu (x) y = Conv (s, w) }"
    )
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [2], [0, 10])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 1, 3, 3]))
    assert reasons(model, include_first=True)["y"] == "its weight is stored as a sparse tensor"


@pytest.mark.parametrize(
    "make",
    [
        "v = Constant <value = float[2,8,3,3] {0}> ()",
        "v = Identity (w)",
        "t = Transpose <perm = [0,1,3,2]> (w) v = Transpose <perm = [0,1,3,2]> (t)",
        "shape = Constant <value_ints = [2, 8, 3, 3]> () v = Reshape (w, shape)",
        "h = Cast <to = 11> (w) v = Cast <to = 1> (h)",
        "shape = Constant <value_ints = [2, 8, 3, 3]> () v = ConstantOfShape <value = float[1] {0.5}> (shape)",
        "two = Constant <value_float = 2.0> () v = Mul (w, two)",
    ],
)
def test_expressions_of_constants_are_constant(make: str) -> None:
    zeros = ", ".join(["0.25"] * 144)
    text = make.replace("{0}", "{" + zeros + "}")
    model = model_of(
        HEAD + f"g (float[1,8,16,16] x) => (float[1,2,14,14] y) {{ {text} s = Relu (x) y = Conv (s, v) }}",
        w=(2, 8, 3, 3),
    )
    found = rows(model, "depthwise", include_first=True)
    assert found["y"].status == "replaced"
    assert found["y"].weight_shape == (2, 8, 3, 3)


def test_every_site_has_a_row_in_graph_order() -> None:
    plan = make_plan(
        [Rejected("r", "ConvTranspose", "", "why", (0, 0)), site_of(conv_of(8, 8, (3, 3)), (16, 16))],
        get_mode("depthwise"),
        Options(),
        never_read,
    )
    assert [type(row) for row in plan.rows] == [Rejected, ConvReplacement]
    assert plan.rows[0] == Rejected("r", "ConvTranspose", "", "why", (0, 0))
    assert plan.replacements == [plan.rows[1]]


def test_ranks_grow_with_the_fraction() -> None:
    conv = conv_of(12, 20, (3, 5), bias=True)
    for mode in ("spatial", "depthwise"):
        options = [Options(rank=RankPolicy.parse(step / 20)) for step in range(4, 21)]
        found = [choose(site_of(conv), get_mode(mode), option, never_read) for option in options]
        ranks = [item.rank for item in found if isinstance(item, ConvReplacement)]
        assert len(ranks) > 10
        assert all(before <= after for before, after in itertools.pairwise(ranks))


def test_namesakes_in_two_branches_are_two_tensors() -> None:
    """Each branch of an If owns a weight ``wc`` behind an Identity; neither pins the other's."""
    rng = np.random.default_rng(0)

    def branch(output: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(rng.standard_normal((8, 8, 3, 3)).astype(np.float32), "wc")
        nodes = [
            helper.make_node("Identity", ["wc"], ["wi"], name="alias"),
            helper.make_node("Conv", ["a", "wi"], [output], name=output, pads=[1] * 4),
        ]
        value = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 8, 6, 7])
        return helper.make_graph(nodes, output, [], [value], [weight])

    stem = numpy_helper.from_array(rng.standard_normal((8, 3, 1, 1)).astype(np.float32), "stem")
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], name="first"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 6, 7]),
        helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 6, 7])
    graph = helper.make_graph(nodes, "g", inputs, [output], [stem])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    report = onnxsep.rewrite(model, mode="depthwise").report
    assert {conv.name for conv in report.convs if conv.status == "replaced"} == {"t", "e"}
    assert report.verification.ran
