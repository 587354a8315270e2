"""The rank rule ``in`` of spatial: as many channels in between as come in, as paper 004 has them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import run
from fold_models import model, tensor, value
from onnx import helper
from sobolewski_light import baseline, counts, rewritten

import onnxsep
from onnxsep.errors import OptionError
from onnxsep.layers.rank import RankPolicy
from onnxsep.modes import get_mode
from onnxsep.planner.plan_file import LayerPlan, PlanFile


def one_conv(out_channels: int, in_channels: int, kernel: tuple[int, ...], group: int = 1) -> onnx.ModelProto:
    shape = (out_channels, in_channels // group, *kernel)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", group=group, pads=[1] * (2 * len(kernel)))
    weight = np.random.default_rng(0).normal(size=shape)
    sizes = [6] * len(kernel)
    ends = [value("x", [1, in_channels, *sizes])], [value("y", [1, out_channels, *([None] * len(kernel))])]
    return model([node], [tensor("w", weight)], inputs=ends[0], outputs=ends[1])


def test_counts_of_r3_are_those_of_the_paper() -> None:
    """Every 3 x 3 Conv, the first too."""
    light, plan = rewritten(baseline("resnet101"), get_mode("spatial"), rank="in")
    assert counts(light) == (35_581_503, 2_141_768_704)
    assert len(plan.replacements) == 34


@pytest.mark.parametrize(
    ("out_channels", "in_channels", "kernel", "group", "rank"),
    [
        (16, 3, (3, 3), 1, (3,)),
        (8, 16, (3, 3), 1, (16,)),
        (4, 16, (3, 3), 1, (12,)),  # a rank above out_channels * 3 adds nothing
        (12, 6, (3, 3), 3, (6,)),  # channels of all groups
        (8, 5, (3, 3, 3), 1, (5, 5)),
        (2, 9, (3, 3, 3), 1, (9, 6)),
    ],
)
def test_as_many_channels_in_between_as_come_in(
    out_channels: int, in_channels: int, kernel: tuple[int, ...], group: int, rank: tuple[int, ...]
) -> None:
    proto = one_conv(out_channels, in_channels, kernel, group)
    result = onnxsep.rewrite(proto, mode="spatial", rank="in", include_first=True, force=True)
    (row,) = result.report.convs
    assert (row.rank, result.report.rank) == (rank, "in")
    again = onnxsep.rewrite(result.model, mode="spatial", rank="in", include_first=True, force=True)
    assert again.report.totals.replaced == 0


def test_other_modes_have_no_such_rank(tmp_path: Path) -> None:
    proto = one_conv(8, 4, (3, 3))
    message = "mode channel has no rank 'in': it is one of spatial"
    with pytest.raises(OptionError, match=message):
        onnxsep.rewrite(proto, mode="channel", rank="in")
    plan = PlanFile((LayerPlan("conv", mode="channel", rank=RankPolicy("in")),))
    with pytest.raises(OptionError, match=f"layer 'conv': {message}"):
        onnxsep.rewrite(proto, plan=plan)
    with pytest.raises(OptionError, match="mode fold has no rank to choose"):
        onnxsep.rewrite(proto, mode="fold", rank="in")
    onnx.save(proto, tmp_path / "in.onnx")
    done = run("rewrite", tmp_path / "in.onnx", tmp_path / "out.onnx", "-m", "tucker", "-r", "in")
    assert done.returncode == 1
    assert "mode tucker has no rank 'in'" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_inspect_gives_the_reason_for_each_other_mode() -> None:
    (row,) = onnxsep.inspect(one_conv(16, 4, (3, 3)), rank="in").convs
    assert row.modes["spatial"].rank == (4,)
    assert "no rank 'in'" in row.modes["depthwise"].reason
    assert "no rank 'in'" in row.modes["lean"].reason


def test_a_plan_may_say_it() -> None:
    plan = PlanFile((LayerPlan("conv", mode="spatial", rank=RankPolicy("in")),))
    (row,) = onnxsep.rewrite(one_conv(16, 4, (3, 3)), plan=plan).report.convs
    assert row.rank == (4,)
