"""inverted-bottleneck: a residual block as 1 x 1 to more channels, a depthwise Conv, and 1 x 1 back.

What it does
    h = act(A x), h' = act(d * h) with the strides of the block, B h' without an activation, and the skip (M. Sandler et
    al. 2018, MobileNetV2; paper 004, R4 to R9): I E + E k^2 + E O weights, with BatchNormalization behind each Conv
    where the old block has any, else with biases.

Pattern
    A bottleneck (1 x 1, k x k, 1 x 1) or a basic block (two Convs), with BatchNormalization or not, any activations
    between, and a skip that is the input or a Conv of it. The skip stays as it is; so does the activation of the sum,
    unless ``end=none`` takes it out, as MobileNetV2 and the paper do.

Initialisation
    Without data: where E is what the bottleneck has inside, A and B and their BatchNormalization are its own, and the
    kernel of d for each channel is the leading singular vector of those that read it, with the size of those that gave
    it. Else A, d and B are drawn (``modes.residual``) from a fixed seed, normal with the variance 2 / inputs (K. He et
    al. 2015); where the last BatchNormalization is kept, so is the size of what is added to the skip.
    With data: block by block along the network. Statistics of BatchNormalization from what the block reads, then B by
    least squares on the original's output (``calibration.least_squares``).

When it pays
    Where parameters fall and MACs do not rise; else it needs ``--force``. It is far from exact: train the result.

When it refuses
    What is no such block; strides at several of its Convs; pads that do not keep the sizes.

Settings
    expansion: E as a multiple of the inputs, 0 for what a bottleneck has inside and 6 in a basic block; activation;
    second: whether there is one behind the depthwise Conv; end: keep or none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    ACTIVATION_FORMS,
    INPUT,
    NORM_TENSORS,
    STATISTICS,
    Array,
    Block,
    Layer,
    Residual,
    ResidualMode,
    Setting,
    normed,
    pointwise,
)

_OF_BASIC_BLOCKS = 6.0


class InvertedBottleneck(ResidualMode):
    """Wide inside, thin outside."""

    name = "inverted-bottleneck"
    summary = "a residual block as 1 x 1, depthwise and 1 x 1 (MobileNetV2); needs data or training"
    opening = "expand_norm"
    ending = (("project", 1.0),)
    settings = (
        Setting(
            "expansion",
            0.0,
            "channels inside for each that comes in; 0: as a bottleneck has them, 6 in a basic block",
            (lambda times: times >= 0, "0 or more"),
        ),
        Setting("activation", "relu6", "between the Convs", choices=ACTIVATION_FORMS),
        Setting("second", True, "whether there is an activation behind the depthwise Conv"),
        ResidualMode.END,
    )
    tries = ({"expansion": 1}, {"expansion": 2}, {})

    def branch(self, block: Block) -> Sequence[Layer]:
        """1 x 1, depthwise, 1 x 1."""
        residual, inner, form = Residual(block), self._inner(block), self.setting("activation")
        dims, bias = block.conv.dims, not residual.norm
        middle = replace(residual.spatial, in_channels=inner, out_channels=inner, group=inner, bias=bias)
        first = normed("expand", INPUT, pointwise(dims, residual.inputs, inner, bias=bias), form, norm=residual.norm)
        second = normed("depthwise", first[-1].name, middle, form if self.setting("second") else "", norm=residual.norm)
        last = pointwise(dims, inner, residual.outputs, bias=bias)
        return [*first, *second, *normed("project", second[-1].name, last, "", norm=residual.norm)]

    def start(self, block: Block, values: Mapping[str, Array]) -> Mapping[str, Array]:
        """What the old block gives."""
        residual = Residual(block)
        last = len(residual.convs)
        found: dict[str, Array] = {}
        ends = {f"norm_{last}": ("project_norm", last)}
        if residual.is_bottleneck and self._inner(block) == residual.inner and residual.convs[1].group == 1:
            found["expand.weight"], found["project.weight"] = values["weight_1"], values["weight_3"]
            found["depthwise.weight"] = _kernels(values["weight_2"])
            ends |= {"norm_1": ("expand_norm", 1), "norm_2": ("depthwise_norm", 2)}
            if not residual.norm:
                names = {"expand": 1, "depthwise": 2, "project": 3}
                found |= {
                    f"{name}.bias": values[f"bias_{number}"].reshape(-1)
                    for name, number in names.items()
                    if f"bias_{number}" in values
                }
        for role, (layer, number) in ends.items():
            if role in block.nodes:
                pairs = zip(NORM_TENSORS, STATISTICS, strict=True)
                whole = f"{layer.removesuffix('_norm')}.weight" in found
                found |= {
                    f"{layer}.{name}": values[f"{part}_{number}"]
                    for name, part in pairs
                    if whole or name in ("scale", "bias")
                }
        return found

    def _inner(self, block: Block) -> int:
        """E."""
        residual, times = Residual(block), self.setting("expansion")
        if not times and residual.is_bottleneck:
            return residual.inner
        return max(1, round(residual.inputs * (times or _OF_BASIC_BLOCKS)))


def _kernels(weight: Array) -> Array:
    """[C, 1, *kernel]: for each channel the kernel that most of those have in common that read it.

    Its size is that of all kernels that give the channel of the same number, so that values keep their size.
    """
    channels = weight.shape[1]
    flat = weight.reshape(len(weight), channels, -1)
    common = np.linalg.svd(np.moveaxis(flat, 1, 0), full_matrices=False)[2][:, 0]
    common = common * np.where(common.sum(axis=1, keepdims=True) < 0, -1, 1)
    sizes = np.linalg.norm(flat.reshape(len(flat), -1), axis=1)
    found: Array = (common * sizes[:, None]).reshape(channels, 1, *weight.shape[2:])
    return found
