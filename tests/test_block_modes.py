"""Block modes of other packages: several Convs in a match, exact and not, planned, counted, built and verified."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fold_models import BATCH, Floats, arrays, model, tensor, value
from marked import marked
from onnx import helper

import onnxsep
from onnxsep.calibration.layerwise import calibrate
from onnxsep.calibration.walk import CalibrationOptions
from onnxsep.engine.blocks import find_blocks
from onnxsep.engine.factors import factorize_all
from onnxsep.engine.planning import Options, Plan, make_plan
from onnxsep.engine.sites import find_sites, read_weight
from onnxsep.engine.surgery import replace_matches
from onnxsep.errors import FactorizationError, PassError, VerificationError
from onnxsep.layers.rank import RankPolicy
from onnxsep.model.io import load
from onnxsep.modes import INPUT, Block, BlockMode, Const, ConvLayer, Layer, Op, Pattern, Value, get_mode
from onnxsep.running.comparison import compare_outputs
from onnxsep.running.feeds import Feeds
from onnxsep.running.runtime import RuntimeOptions

# Two 1 x 1 Convs in a row are one: a complete block mode in one file, as a stranger would write it.
MODULE = '''
import numpy as np

from onnxsep.modes import INPUT, BlockMode, Const, ConvLayer, Op, Pattern, Value

FIRST = Op("first", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))
SECOND = Op("second", "Conv", FIRST, Const("weight2"), Const("bias2", optional=True))


class Merge(BlockMode):
    """Two 1 x 1 Convs become one; it pays where the first one has more outputs than its product with the second."""

    name = "merge"
    summary = "two 1 x 1 Convs in a row as one"
    pattern = Pattern("pair of Convs", SECOND)
    anchor = "first"
    exact = True

    def accepts(self, block):
        sizes = {block.shapes[role][2:] for role in ("weight", "weight2")}
        return None if sizes == {(1, 1)} else "not both are 1 x 1"

    def layers(self, block):
        outputs = block.shapes["weight2"][0]
        return (ConvLayer("merged", INPUT, block.conv.pointwise(block.conv.in_channels, outputs, bias=True)),)

    def weights(self, block, values):
        first, second = values["weight"][:, :, 0, 0], values["weight2"][:, :, 0, 0]
        bias = second @ values.get("bias", np.zeros(len(first))) + values.get("bias2", 0)
        return [(second @ first)[:, :, None, None], bias]
'''
ENTRY_POINTS = "[onnxsep.modes]\nmerge = tiny_blocks:Merge\n"
SHAPE = [BATCH, 3, 5, 5]


def pairs(kernel: int = 1) -> onnx.ModelProto:
    """x -> a (1 x 1) -> b (1 x 1) -> Relu -> c (kernel) -> y, biases on b and c."""
    rng = np.random.default_rng(0)
    pads = [kernel // 2] * 4
    nodes = [
        helper.make_node("Conv", ["x", "wa"], ["ta"], name="a"),
        helper.make_node("Conv", ["ta", "wb", "bb"], ["tb"], name="b"),
        helper.make_node("Relu", ["tb"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "wc", "bc"], ["y"], name="c", pads=pads),
    ]
    tensors = [
        tensor("wa", rng.normal(size=(8, 3, 1, 1))),
        tensor("wb", rng.normal(size=(4, 8, 1, 1))),
        tensor("bb", rng.normal(size=4)),
        tensor("wc", rng.normal(size=(2, 4, kernel, kernel))),
        tensor("bc", rng.normal(size=2)),
    ]
    return model(nodes, tensors, inputs=[value("x", SHAPE)], outputs=[value("y", [BATCH, 2, 5, 5])])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip would leave it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny_blocks.py").write_text(MODULE)
    info = folder / "tiny_blocks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-blocks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(installed), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "onnxsep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_a_block_mode_of_another_package(installed: Path, tmp_path: Path) -> None:
    onnx.save(pairs(), tmp_path / "in.onnx")
    done = run(installed, tmp_path, "rewrite", "in.onnx", "out.onnx", "--mode", "merge", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["convs"]}
    assert set(rows) == {"a", "c"}  # b is told of in the row of a
    assert rows["a"]["notes"] == ["with Conv 'b'"]
    assert (rows["a"]["parameters_before"], rows["a"]["parameters_after"]) == (24 + 32 + 4, 12 + 4)
    assert rows["c"]["status"] == "left"
    assert report["totals"]["parameters_after"] == 16 + 10
    assert report["totals"]["macs_before"] == BATCH * 25 * (24 + 32 + 8)
    assert report["totals"]["macs_after"] == BATCH * 25 * (12 + 8)
    assert report["verification"]["relative"] < 1e-5
    made = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu", "Conv"]
    carried = {entry.key: entry.value for entry in marked(made).graph.node[0].metadata_props}
    assert carried == {"onnxsep.mode": "merge", "onnxsep.source": "a"}
    source = arrays(pairs())
    product = source["wb"][:, :, 0, 0].astype(float) @ source["wa"][:, :, 0, 0].astype(float)
    np.testing.assert_allclose(arrays(made)["tb_merged_weight"][:, :, 0, 0], product, rtol=1e-5, atol=1e-6)
    assert made.graph.node[0].output[0] == "tb"
    assert "merge: two 1 x 1 Convs in a row as one (block mode)" in run(installed, tmp_path, "modes").stdout


# ---------------------------------------------------------------- in this process


class Straight(BlockMode):
    """Drops the Relu between two Convs: never exact."""

    name = "straight"
    summary = "two Convs without the Relu between them"
    pattern = Pattern(
        "two Convs and a Relu",
        Op(
            "second",
            "Conv",
            Op("relu", "Relu", Op("first", "Conv", Value("x"), Const("weight"), Const("bias", optional=True))),
            Const("weight2"),
            Const("bias2", optional=True),
        ),
    )
    anchor = "first"
    exact = False

    def layers(self, block: Block) -> tuple[Layer, ...]:
        second = replace(
            block.conv,
            in_channels=block.conv.out_channels,
            out_channels=block.shapes["weight2"][0],
            kernel_shape=block.shapes["weight2"][2:],
            pads=block.nodes["second"].attribute("pads", (0, 0, 0, 0)),
            bias=True,
        )
        return ConvLayer("first", INPUT, block.conv), ConvLayer("second", "first", second)

    def weights(self, block: Block, values: Mapping[str, Floats]) -> Sequence[Floats]:
        bias = [values["bias"]] if block.conv.bias else []
        return [values["weight"], *bias, values["weight2"], values["bias2"]]


def test_a_block_that_is_not_exact_is_measured_on_outputs() -> None:
    proto = pairs(3)
    for verify in ("full", "local"):
        report = onnxsep.rewrite(proto, mode=Straight(), verify=verify).report
        assert [row.name for row in report.convs if row.status == "replaced"] == ["b"]
        assert report.verification.relative is not None
        assert 0.01 < report.verification.relative < 2
        with pytest.raises(VerificationError, match="above max_error"):
            onnxsep.rewrite(proto, mode=Straight(), verify=verify, max_error=0.01)


def test_the_layers_of_a_block_are_named_and_counted() -> None:
    result = onnxsep.rewrite(pairs(3), mode=Straight())
    nodes = {node.name: node for node in result.model.proto.graph.node}
    assert list(nodes) == ["a", "b_first", "b_second"]
    assert list(nodes["b_second"].input) == ["y_first", "y_second_weight", "y_second_bias"]
    row = next(row for row in result.report.convs if row.name == "b")
    assert row.parameters_before == row.parameters_after == 32 + 4 + 72 + 2
    assert row.macs_after == BATCH * 25 * (32 + 72)
    again = onnxsep.rewrite(result.model, mode=Straight())
    assert again.report.totals.replaced == 0


def test_conv_modes_leave_alone_what_a_block_mode_made() -> None:
    result = onnxsep.rewrite(pairs(3), mode=Straight())
    options: dict[str, Any] = {"mode": "channel", "rank": 1, "only": "b_second", "verify": "none"}
    assert onnxsep.rewrite(result.model, **options).report.totals.replaced == 0
    assert onnxsep.rewrite(result.model, **options, recurse=True).report.totals.replaced == 1


def test_what_comes_close_is_told() -> None:
    proto = pairs(3)
    proto.graph.output.append(value("r", [BATCH, 4, 5, 5]))
    reasons = {row.name: row.reason for row in onnxsep.rewrite(proto, mode=Straight()).report.convs}
    assert reasons["b"] == "what Relu 'relu' computes, 'r', is an output of the graph"
    assert reasons["a"] == "no two Convs and a Relu here"


def test_inspect_says_which_convs_are_part_of_a_match() -> None:
    found = onnxsep.inspect(pairs(3), modes=[Straight()])
    costs = {row.name: row.modes["straight"] for row in found.convs}
    assert (costs["b"].replaced, costs["b"].parameters) == (True, 110)
    assert costs["c"].reason == "part of the match of another one"


class Broken(Straight):
    """Breaks one promise or another."""

    name = "broken"

    def __init__(self, how: str) -> None:
        self.how = how

    def accepts(self, block: Block) -> str | None:
        return str(1 / 0) if self.how == "accepts" else None

    def weights(self, block: Block, values: Mapping[str, Floats]) -> Sequence[Floats]:
        if self.how == "raises":
            raise FactorizationError("these weights will not do")
        found = list(super().weights(block, values))
        return found[:-1] if self.how == "one too few" else [array.T for array in found]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("accepts", "mode broken, Conv 'b': ZeroDivisionError"),
        ("one too few", "mode broken, Conv 'b': factors of shapes"),
        ("transposed", "mode broken, Conv 'b': factors of shapes"),
    ],
)
def test_a_mode_that_breaks_a_promise_is_named(how: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        onnxsep.rewrite(pairs(3), mode=Broken(how))


def test_weights_that_will_not_do_leave_the_block_alone() -> None:
    proto = pairs(3)
    result = onnxsep.rewrite(proto, mode=Broken("raises"))
    assert [row.reason for row in result.report.convs if row.name == "b"] == ["these weights will not do"]
    assert result.model.proto.SerializeToString() == proto.SerializeToString()


def three() -> onnx.ModelProto:
    """x -> a (1 x 1) -> Relu -> b (1 x 1) -> c (3 x 3) -> y."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "wa", "ba"], ["ta"], name="a"),
        helper.make_node("Relu", ["ta"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "wb", "bb"], ["tb"], name="b"),
        helper.make_node("Sigmoid", ["tb"], ["s"], name="sigmoid"),
        helper.make_node("Conv", ["s", "wc", "bc"], ["y"], name="c", pads=[1] * 4),
    ]
    shapes = {"wa": (8, 3, 1, 1), "ba": (8,), "wb": (4, 8, 1, 1), "bb": (4,), "wc": (6, 4, 3, 3), "bc": (6,)}
    tensors = [tensor(name, rng.normal(size=shape)) for name, shape in shapes.items()]
    return model(nodes, tensors, inputs=[value("x", ["n", 3, 5, 5])], outputs=[value("y", ["n", 6, 5, 5])])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convs_behind_a_block_are_fitted_to_what_it_will_give(dtype: Any) -> None:
    """Behind a block that is not exact a calibrated Conv reads what the new nodes compute, and makes up for it."""
    proto = three()
    if dtype == np.float64:
        for end in (*proto.graph.input, *proto.graph.output):
            end.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        for one in proto.graph.initializer:
            one.CopyFrom(tensor(one.name, onnx.numpy_helper.to_array(one), dtype))
    source = load(proto)
    rng = np.random.default_rng(2)
    batches = [{"x": rng.normal(size=(40, 3, 5, 5)).astype(dtype)} for _ in range(2)]
    unseen = {"x": rng.normal(size=(40, 3, 5, 5)).astype(dtype)}
    sites = find_sites(source)
    convs = make_plan(
        sites.found,
        get_mode("channel"),
        Options(RankPolicy.parse("full"), force=True, only=("c",), init="joint"),
        lambda site: read_weight(source, sites, site),
    )
    blocks = make_plan(find_blocks(source, sites, Straight()), Straight(), Options(only=("a",)), lambda _: np.zeros(0))
    mixed = Plan([*blocks.replacements, *convs.replacements])
    assert len(mixed.rows) == 2
    errors = []
    for fitted_to in (mixed, convs):
        done = calibrate(source, sites, fitted_to, batches, CalibrationOptions(positions=16), RuntimeOptions())
        factors = factorize_all(source, sites, mixed, given=done.outcomes) | done.by_place
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        replace_matches(changed, mixed.replacements, factors)
        compared = compare_outputs(source, load(changed), Feeds(unseen, ()), RuntimeOptions())
        errors.append(compared.relative)
    assert errors[0] < 0.8 * errors[1]
