"""Parameters and FLOPs of paper 004's tables, for what block modes that keep the ends of a block make."""

import onnx
import pytest
from sobolewski_light import Thin, baseline, counts, script, step, steps, thin_blocks, thin_resnet

DWS_STEM = step("depthwise", "stem.conv")
# V7's head in place of V2's: BN of ten channels more, and a 1 x 1 Conv on four positions before the mean of ten
# channels, not behind that of 512. V9's head has no BN.
CLASSES, POSITIONS, WIDTH = 10, 4, 512
HEAD = 2 * CLASSES, WIDTH * CLASSES * (POSITIONS - 1) + 3 * CLASSES * POSITIONS - WIDTH * POSITIONS
HEAD_WITHOUT_NORM = 0, HEAD[1] - 2 * CLASSES * POSITIONS


def inverted_blocks() -> list[Thin]:
    """R6: the last block of a stage has the stride and the next one's outputs."""
    outputs, found = (10, 22, 42, 86), list[Thin]()
    for stage, (inner, blocks) in enumerate(script().STAGES):
        for block in range(blocks):
            last = block == blocks - 1 and stage < len(outputs) - 1
            found.append(Thin(inner, outputs[stage + last], 2 if last else 1, last or not found))
    return [*found[:-1], Thin(512, 512, 1, projected=True)]


def test_r2_r4_and_r5() -> None:
    base = baseline("resnet101")
    fire = steps(base, step("fire-bottleneck", skip_bias=True, end="none"))
    assert counts(fire) == (59_245_412, 3_480_199_168)
    depthwise = steps(base, step("depthwise", "conv1"), step("inverted-bottleneck", activation="relu", second=False))
    assert counts(depthwise) == (21_424_767, 1_279_716_352)
    grouped = steps(depthwise, step("grouped-pointwise", "*_expand", "*_project"))
    assert counts(grouped) == (7_720_575, 420_932_608)


def test_r6_from_bottlenecks_of_its_widths() -> None:
    made = steps(thin_resnet(64, inverted_blocks(), head=(2048,), linear=True), DWS_STEM, step("inverted-bottleneck"))
    bias = 100  # of its classifier
    assert (counts(made)[0] + bias, counts(made)[1]) == (2_439_355, 79_392_704)


def test_r10_to_r14_from_bottlenecks_of_their_widths() -> None:
    widths = (10, 22, 42, 86)
    r10 = steps(thin_resnet(64, thin_blocks(widths), linear=True), DWS_STEM, step("ghost-bottleneck", end="none"))
    assert counts(r10) == (458_010, 32_835_080)
    stem = steps(thin_resnet(16, thin_blocks(widths, dropped=1), head=(100,)), DWS_STEM)
    assert counts(steps(stem, step("ghost-bottleneck"))) == (408_035, 29_890_656)
    assert counts(steps(stem, step("ghost-bottleneck", gate=4))) == (1_432_035, 31_610_976)
    stem = steps(thin_resnet(16, thin_blocks((16, 24, 40, 88), dropped=1), head=(100,)), DWS_STEM)
    for gate, wanted in ((0, (158_815, 12_926_528)), (4, (1_182_815, 14_646_848))):
        ghosts = step("ghost-bottleneck", middle="strided", gate=gate)
        assert counts(steps(stem, ghosts, step("grouped-pointwise", "*_primary", above=0))) == wanted


def test_r15_from_bottlenecks_of_its_widths() -> None:
    source = thin_resnet(64, thin_blocks((10, 22, 42, 86)), linear=True)
    made = steps(source, DWS_STEM, step("dice-bottleneck", pads="paper004", end="none"))
    assert counts(made) == (2_998_587, 160_403_112)  # what is live


@pytest.fixture(scope="module")
def v2() -> onnx.ModelProto:
    return steps(baseline("vgg19"), step("gap-head"), step("bias-to-norm"))


def plus(made: onnx.ModelProto, head: tuple[int, int]) -> tuple[int, int]:
    found = counts(made)
    return found[0] + head[0], found[1] + head[1]


def test_v6(v2: onnx.ModelProto) -> None:
    made = steps(v2, step("fire", between="relu", expand="grouped", biases="pointwise"))
    assert counts(made) == (473_778, 10_990_592)
    assert plus(made, HEAD) == (473_798, 11_004_024)  # V7


@pytest.mark.parametrize(("gates", "wanted"), [(False, (145_750, 4_802_680)), (True, (1_345_878, 6_305_912))])
def test_v8_and_v12(v2: onnx.ModelProto, gates: bool, wanted: tuple[int, int]) -> None:
    source = steps(v2, step("squeeze-excitation")) if gates else v2
    fire = step("fire", between="relu", expand="grouped", biases="none", norms="pointwise", shuffle=8)
    grouped = step("grouped-pointwise", "*_squeeze"), step("grouped-pointwise", "*_expand1", shuffle=False)
    assert plus(steps(source, fire, *grouped), HEAD) == wanted


def test_v9_to_v11(v2: onnx.ModelProto) -> None:
    fire, ghosts = (
        step("fire", between="relu6", biases="none"),
        step("ghost", "*_squeeze", "*_expand3", primary="pointwise"),
    )
    grouped = step("grouped-pointwise", "*_expand3_primary")
    v9 = steps(v2, fire, ghosts)
    assert plus(v9, HEAD_WITHOUT_NORM) == (397_038, 9_431_592)
    assert plus(steps(v9, grouped), HEAD_WITHOUT_NORM) == (341_742, 8_546_856)
    gated = steps(v2, step("squeeze-excitation"), fire, ghosts, grouped)
    assert plus(gated, HEAD_WITHOUT_NORM) == (1_541_870, 10_050_088)


def test_v13(v2: onnx.ModelProto) -> None:
    fire = step("fire", between="relu", biases="none", norms="each")
    grouped = step("grouped-pointwise", "*_squeeze", groups=0, above=0)
    made = steps(v2, fire, step("dice", "*_expand3", pads="paper004"), grouped)
    assert plus(made, HEAD) == (260_710, 7_334_936)
