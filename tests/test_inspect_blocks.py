"""``inspect`` names the blocks of a network, and which modes apply to them."""

import random
import sys
from pathlib import Path

import onnx
import pytest
from block_networks import Net

import onnxsep
from onnxsep.cli import main


def network() -> onnx.ModelProto:
    """A stem, a bottleneck, a basic block beside slices and zeros, a Conv that stands alone, a classifier."""
    net = Net(1)
    y = net.activation("Relu", net.conv("x", (3, 4), 3, norm=True))
    y = net.residual(y, 4, 6, 8, bottleneck=True, norm=True, stride=2, form="HardSwish")
    y = net.residual(y, 8, 10, 10, bottleneck=False, skip="slice", stride=2, form="Relu")
    y = net.activation("SiLU", net.conv(y, (10, 12), 1))
    return net.model(3, y, classes=12)


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """All names but those of the ends replaced by random ones."""
    rng, names = random.Random(0), dict[str, str]()

    def other(name: str) -> str:
        return names.setdefault(name, name if name in ("", "x", "y") else f"n{rng.getrandbits(64):x}")

    for node in proto.graph.node:
        node.name = other(node.name)
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
    for tensor in proto.graph.initializer:
        tensor.name = other(tensor.name)
    return proto


@pytest.mark.parametrize("proto", [network(), renamed(network())])
def test_blocks_are_found_by_what_they_compute(proto: onnx.ModelProto) -> None:
    report = onnxsep.inspect(proto)
    found = [(one.kind, one.channels, one.strides, one.skip, len(one.nodes)) for one in report.blocks]
    assert found == [
        ("first Conv + BatchNormalization + Relu", (3, 4), (1, 1), "", 3),
        ("bottleneck", (4, 6, 6, 8), (2, 2), "Conv", 12),
        ("basic block", (8, 10, 10), (2, 2), "other nodes", 3),
        ("Conv + Mul", (10, 12), (1, 1), "", 3),
        ("classifier head", (12, 5), (), "", 3),
    ]
    first = [proto.graph.node[0].name, proto.graph.node[3].name]
    assert [one.nodes[0] for one in report.blocks[:2]] == first
    bottleneck, alone = report.blocks[1], report.blocks[3]
    assert bottleneck.applies["ghost-bottleneck"] == (first[1],)
    assert alone.reasons["inverted-bottleneck"].startswith("no residual block")
    assert alone.reasons["fire"] == "a 1 x 1 kernel has nothing to separate"
    modes = onnxsep.available_modes().items()
    assert set(alone.applies) | set(alone.reasons) == {
        name for name, mode in modes if not isinstance(mode, onnxsep.WidthMode)
    }
    assert report.blocks[4].applies["conv-head"]


def test_the_command_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    monkeypatch.setattr(sys, "argv", ["onnxsep", "inspect", str(tmp_path / "net.onnx"), "--mode", "ghost-bottleneck"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "bottleneck" in shown
    assert "4-6-6-8" in shown
    assert "ghost-bottleneck: no residual block" in shown


def test_heads_are_blocks_too() -> None:
    net = Net(2)
    y = net.node("Flatten", net.activation("Relu", net.conv("x", (3, 4), 3)))
    y = net.node("Relu", net.node("MatMul", y, net.tensor(net.rng.normal(size=(256, 8)))))
    proto = net.model(3, net.node("MatMul", y, net.tensor(net.rng.normal(size=(8, 5)))))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 5]))
    head = onnxsep.inspect(proto).blocks[-1]
    assert (head.kind, head.channels) == ("classifier head", (256, 8, 5))
    assert "gap-head" in head.applies
