"""expand-before-gap: the last residual block gives few channels, and a 1 x 1 Conv makes many of them before the mean.

What it does
    act(x + F(x)) with O channels becomes y = S x + F'(x) with c channels, then act(E y), a 1 x 1 Conv back to O
    (M. Sandler et al. 2018; paper 004, R6: c = 512, O = 2048). With ``block=conv`` the block itself goes, and y is a
    1 x 1 Conv of x with an activation (R8). BatchNormalization stands behind each Conv where the old block has any,
    else there are biases. The head stays; conv-head takes E in (R7 to R9), narrow-stages makes x narrower.

Pattern
    A bottleneck or a basic block whose skip is its input, with the activation of the sum where there is one; what it
    computes is read by the mean over all positions alone.

Initialisation
    S takes c of the channels, those whose filters in the last Conv of F have the largest norms, each times what
    BatchNormalization multiplies it by; F' is F for these channels; E puts them back in their places, and gives 0 for
    the others. So the channels that stay are exact where the activations are Relu.

When it pays
    By itself it may add parameters; it is there for what is done behind it. Fine-tune the result.

When it refuses
    Blocks whose skip is a Conv; c that is not below O; BatchNormalization that trains; an activation that is written as
    several nodes, but for SiLU.

Settings
    channels: c; block: keep or conv; activation: behind the new Convs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    ACTIVATION_FORMS,
    INPUT,
    NORM_TENSORS,
    STATISTICS,
    AddLayer,
    Array,
    Block,
    BlockMode,
    Layer,
    NormLayer,
    Refusal,
    Residual,
    Setting,
    activation_refused,
    affine,
    carried,
    carried_activation,
    carried_bounds,
    carried_tensors,
    closed_block_pattern,
    normed,
    plain_norm,
    pointwise,
)

_EPSILON = 1e-5


class ExpandBeforeGap(BlockMode):
    """Few channels, then many before the mean."""

    name = "expand-before-gap"
    summary = "the last residual block gives few channels, a 1 x 1 Conv many of them before the mean; far from exact"
    pattern = closed_block_pattern(last=True)
    anchor = "conv_1"
    exact = False
    finished = False
    untrained = "most of the last channels are gone until they are learnt again: the network needs training"
    settings = (
        Setting("channels", 512, "channels between", (lambda count: count >= 1, "1 or more")),
        Setting("block", "keep", "the last block, with fewer outputs, or a 1 x 1 Conv", choices=("keep", "conv")),
        Setting("activation", "relu6", "behind the new Convs", choices=ACTIVATION_FORMS),
    )

    def accepts(self, block: Block) -> str | None:
        """Refuse blocks that change sizes or channels, and channels that do not become fewer."""
        residual = Residual(block)
        told = residual.refused()
        for number in range(1, len(residual.convs)):
            told = told or activation_refused(block, f"activation_{number}")
        if told or residual.skip is not None:
            return told or "its skip is a Conv, so it is not the last block of a stage of several"
        if self.setting("channels") >= residual.outputs:
            return f"it has {residual.outputs} channels, and {self.setting('channels')} are not fewer"
        return "the last Conv of the block has groups" if residual.convs[-1].group > 1 else None

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what it looks for, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "no residual block before the mean over all positions here"
        return f"no residual block before the mean: {refusal.reason}"

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The block, or a Conv, to few channels; the Conv to many."""
        residual, few, form = Residual(block), self.setting("channels"), self.setting("activation")
        dims, norm, found, source = block.conv.dims, residual.norm, list[Layer](), INPUT
        reduce = pointwise(dims, residual.inputs, few, bias=not norm)
        if self._keeps:
            for number, conv in enumerate(residual.convs, 1):
                last = number == len(residual.convs)
                found += carried(
                    block, str(number), f"conv{number}", source, replace(conv, out_channels=few) if last else conv
                )
                found += carried_activation(block, f"activation_{number}", f"act{number}", found[-1].name)
                source = found[-1].name
            found += normed("skip", INPUT, reduce, "", norm=norm)
            found.append(AddLayer("sum", (source, found[-1].name)))
        else:
            found += normed("reduce", INPUT, reduce, form, norm=norm)
        expand = pointwise(dims, few, residual.outputs, bias=not norm)
        return (*found, *normed("expand", found[-1].name, expand, form, norm=norm))

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """The first Convs of the block."""
        found: dict[tuple[str, str], str] = {}
        for number in range(1, len(Residual(block).convs)) if self._keeps else ():
            found |= carried_tensors(block, str(number), f"conv{number}")
            found |= carried_bounds(block, f"activation_{number}", f"act{number}")
        return found

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """Those channels that matter most."""
        residual, few = Residual(block), self.setting("channels")
        last, ones = len(residual.convs), (1,) * block.conv.dims
        weight, (scale, _) = values[f"weight_{last}"], affine(block, values, str(last))
        sizes = np.abs(scale) * np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
        stay = np.sort(np.argsort(-sizes, kind="stable")[:few])
        select = np.eye(residual.outputs)[stay]
        found: dict[str, Array] = {
            f"conv{last}.weight": weight[stay],
            f"conv{last}.bias": values.get(f"bias_{last}", np.zeros(len(weight))).reshape(-1)[stay],
        }
        if f"norm_{last}" in block.nodes:
            pairs = zip(NORM_TENSORS, STATISTICS, strict=True)
            found |= {f"conv{last}_norm.{name}": values[f"{part}_{last}"][stay] for name, part in pairs}
        for name, matrix in (("skip", select), ("reduce", select), ("expand", select.T)):
            found |= {f"{name}.weight": matrix.reshape(*matrix.shape, *ones), f"{name}.bias": np.zeros(len(matrix))}
        layers, kept = self.layers(block), self.kept(block)
        for layer in layers:
            if isinstance(layer, NormLayer) and f"{layer.name}.scale" not in found:
                parts = plain_norm(np.ones(layer.channels), np.zeros(layer.channels), layer.epsilon)
                found |= {f"{layer.name}.{name}": part for name, part in zip(NORM_TENSORS, parts, strict=True)}
        tensors = [(layer.name, name) for layer in layers for name, _ in layer.tensors]
        return [found[f"{layer}.{name}"] for layer, name in tensors if (layer, name) not in kept]

    @property
    def _keeps(self) -> bool:
        return bool(self.setting("block") == "keep")
