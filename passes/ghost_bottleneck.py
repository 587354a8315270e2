"""ghost-bottleneck: a residual block of two Ghost modules.

What it does
    Ghost(I, E) with an activation, a depthwise Conv where the block begins a stage, a gate for each channel where it is
    asked for, Ghost(E, O) without an activation, and the skip (K. Han et al. 2020, GhostNet; paper 004, R10 to R14).
    Ghost(a, b) is a 1 x 1 Conv to b / 2 channels, a depthwise Conv on these, and [depthwise, 1 x 1] beside one another:
    a b / 2 + 9 b / 2 weights; BatchNormalization stands behind each and behind the depthwise Conv where the old block
    has any, else there are biases.

Pattern
    A bottleneck or a basic block with its skip, as for inverted-bottleneck; the skip stays as it is, and the activation
    of the sum too, unless ``end=none``.

Initialisation
    Drawn (``modes.residual``) from a fixed seed, normal with the variance 2 / inputs; scale and bias of the last
    BatchNormalization are the old ones, so that what is added to the skip keeps its size; gates start as 1.
    With data: block by block along the network; statistics of BatchNormalization from what the block reads, then the
    last Ghost module by least squares on the original's output (``calibration.least_squares``).

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: train the result.

When it refuses
    What is no such block; odd numbers of channels inside or behind it; strides at several of its Convs; pads that do
    not keep the sizes.

Settings
    expansion: E as a multiple of the inputs, 0 for what the first Conv of the old block gives; middle: where the
    depthwise Conv between the modules stands, in blocks whose skip is a Conv (projected) or that stride (strided);
    gate: channels of the gate are E over it, 0 for none; activation; end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnxsep.modes import (
    ACTIVATION_FORMS,
    INPUT,
    Array,
    Block,
    ConcatLayer,
    ConvLayer,
    Layer,
    NormLayer,
    Residual,
    ResidualMode,
    Setting,
    activated,
    depthwise,
    gate,
    normed,
    pointwise,
)


class GhostBottleneck(ResidualMode):
    """Two Ghost modules and a skip."""

    name = "ghost-bottleneck"
    summary = "a residual block as two Ghost modules (GhostNet); needs data or training"
    opening = "ghost1_norm"
    ending = (("ghost2_primary", 1.5),)  # the mean of its own outputs and of their ghosts, which are twice as large
    settings = (
        Setting(
            "expansion",
            0.0,
            "channels inside for each that comes in; 0: those of the old block's first Conv",
            (lambda times: times >= 0, "0 or more"),
        ),
        Setting(
            "middle",
            "projected",
            "which blocks have a depthwise Conv in the middle: where the skip is a Conv, or strides",
            choices=("projected", "strided"),
        ),
        Setting(
            "gate",
            0,
            "channels of a gate (SE) are this part of those inside; 0: no gate",
            (lambda part: part >= 0, "0 or more"),
        ),
        Setting("activation", "relu6", "behind the first module", choices=ACTIVATION_FORMS),
        ResidualMode.END,
    )
    tries = ({}, {"expansion": 2})

    def accepts(self, block: Block) -> str | None:
        """Refuse odd numbers of channels too."""
        residual, inner = Residual(block), self._inner(block)
        if refused := residual.refused():
            return refused
        if inner % 2 or residual.outputs % 2:
            return f"it has {inner} channels inside and {residual.outputs} outputs, and half of each are ghosts"
        if inner < self.setting("gate"):
            return f"its {inner} channels inside are fewer than the gate's part {self.setting('gate')}"
        return None

    def branch(self, block: Block) -> Sequence[Layer]:
        """Ghost, depthwise or nothing, a gate or none, Ghost."""
        residual, inner, dims = Residual(block), self._inner(block), block.conv.dims
        norm, part = residual.norm, self.setting("gate")
        layers = _ghost("ghost1", INPUT, residual.inputs, inner, dims, norm=norm)
        layers += activated("ghost1_act", layers[-1].name, self.setting("activation"))
        strided = max(residual.strides) > 1
        if strided or (residual.skip is not None and self.setting("middle") == "projected"):
            middle = replace(residual.spatial, in_channels=inner, out_channels=inner, group=inner, bias=not norm)
            layers += normed("middle", layers[-1].name, middle, "", norm=norm)
        if part:
            source = layers[-1].name
            layers += gate("se", source, source, (inner, inner // part, inner), dims=dims, twice=True)
        return [*layers, *_ghost("ghost2", layers[-1].name, inner, residual.outputs, dims, norm=norm)]

    def start(self, block: Block, values: Mapping[str, Array]) -> Mapping[str, Array]:
        """Scale and bias behind the branch."""
        last = len(Residual(block).convs)
        if f"norm_{last}" not in block.nodes:
            return {}
        return {"ghost2_norm.scale": values[f"gamma_{last}"], "ghost2_norm.bias": values[f"beta_{last}"]}

    def _inner(self, block: Block) -> int:
        residual, times = Residual(block), self.setting("expansion")
        return max(2, round(residual.inputs * times)) if times else residual.inner


def _ghost(name: str, source: str, inputs: int, outputs: int, dims: int, *, norm: bool) -> list[Layer]:
    """A Ghost module with its BatchNormalization or biases."""
    half = outputs // 2
    layers: list[Layer] = [
        ConvLayer(f"{name}_primary", source, pointwise(dims, inputs, half, bias=not norm)),
        ConvLayer(f"{name}_cheap", f"{name}_primary", depthwise(half, dims=dims, bias=not norm)),
        ConcatLayer(name, (f"{name}_cheap", f"{name}_primary"), channels=outputs),
    ]
    return [*layers, NormLayer(f"{name}_norm", name, outputs)] if norm else layers
