"""conv-head: a linear layer behind the mean over all positions becomes a 1 x 1 Conv before it.

What it does
    W mean(x) + b = mean(W x + b): a 1 x 1 Conv to the classes, then the mean; between them BatchNormalization and an
    activation by choice (paper 004, R7 to R9 and R11 to R14 with both, V7, V8, V12 and V13, V9 to V11 without
    BatchNormalization; M. Lin et al. 2013). K (C + 1) weights as before, and 2 K of BatchNormalization. With ``absorb``
    a 1 x 1 Conv that stands before the mean goes (R7: 512 -> 2048 -> 100 becomes 512 -> 100).

Pattern
    GlobalAveragePool, AveragePool of the whole map or ReduceMean, then Flatten, Reshape, Squeeze or nothing, then one
    fully connected layer (Gemm, or MatMul with or without Add), Dropout or Identity before it. Softmax behind it stays.
    With ``absorb`` also the Conv before the mean, its BatchNormalization and its activation, where there are any.

Initialisation
    The weights of the linear layer; with ``absorb`` their product with those of the Conv, as if its activation passed
    all. Exact without an activation where nothing is absorbed. An activation that cuts at 0 would lose the lower half
    of the logits, so all of them get 3 s added, s the largest norm of a row of the weights; for relu6 they are also
    divided by s. That leaves the order of the logits, where nothing is cut off, but not their size.

When it pays
    By itself it costs as many parameters and more MACs; it is for what cannot run a linear layer, and for absorbing.

When it refuses
    Several fully connected layers (gap-head makes one of them); pooling that is no mean over all positions; shapes that
    are not known; with ``absorb`` a Conv with a kernel, strides or groups before the mean, or none.

Settings
    norm: BatchNormalization; activation: none, or behind it; bias: of the Conv; absorb.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onnxsep.modes import (
    ACTIVATION_FORMS,
    INPUT,
    STATISTICS,
    Array,
    Block,
    BlockMode,
    Const,
    Either,
    FlattenLayer,
    GlobalPoolLayer,
    Layer,
    Op,
    Operand,
    Pattern,
    Refusal,
    Setting,
    Value,
    activation,
    affine,
    connected,
    flattened,
    goes_on,
    matrix_of,
    maybe_idle,
    norm_refused,
    normed,
    not_linear,
    outputs_of,
    plain_norm,
    pointwise,
)

_EPSILON = 1e-5
_SIGMAS = 3


def _before() -> Operand:
    """A Conv with BatchNormalization and activation."""
    conv = Op("conv_before", "Conv", Value("x"), Const("weight_before"), Const("bias_before", optional=True))
    norm = Op("norm_before", "BatchNormalization", conv, *(Const(f"{part}_before") for part in STATISTICS))
    return Either(activation("activation_before", Either(norm, conv)), norm, conv)


def _head(x: Operand) -> Pattern:
    reduced = Op("pool", "ReduceMean", x, Const("axes_mean", optional=True))
    squeezed = Op(
        "flatten", "Squeeze", Op("pool", ("GlobalAveragePool", "AveragePool"), x), Const("axes", optional=True)
    )
    # What is written as a pool and Flatten may also be a mean that keeps the axes: first, for all may be flattened.
    mean = Either(flattened(reduced), flattened(x), squeezed, reduced)
    return Pattern("mean over all positions and a linear layer", connected(maybe_idle("drop", mean), 1), goes_on)


class ConvHead(BlockMode):
    """A 1 x 1 Conv before the mean in place of a linear layer behind it."""

    name = "conv-head"
    summary = "the linear layer behind the mean as a 1 x 1 Conv before it; exact without an activation"
    pattern = _head(Value("x"))
    anchor = "fc_1"
    exact = False
    linear_layers = True
    finished = False
    untrained = "logits are shifted, scaled or cut off where an activation stands before the mean: train the network"
    settings = (
        Setting("norm", False, "BatchNormalization behind the Conv"),
        Setting("activation", "none", "behind it", choices=("none", *ACTIVATION_FORMS)),
        Setting("bias", True, "whether the Conv has one"),
        Setting("absorb", False, "whether a 1 x 1 Conv before the mean goes"),
    )

    def with_settings(self, given: Mapping[str, object] | None) -> "ConvHead":
        """A Conv before the mean is part of what is replaced where it goes."""
        changed = super().with_settings(given)
        changed.pattern = _head(_before() if changed.setting("absorb") else Value("x"))
        return changed

    def accepts(self, block: Block) -> str | None:
        """Refuse what is no mean over all positions of known channels."""
        dims, pool = block.dims, block.nodes.get("pool")
        if dims is None or len(dims) < 3 or not isinstance(dims[1], int):
            shape = "not known" if dims is None else f"[{', '.join(map(str, dims))}]"
            return f"the shape of what the head reads is {shape}; it must be [N, channels, sizes ...]"
        if pool is None or "transpose" in block.nodes:
            return "there is no mean over all positions right before it"
        if told := self._no_mean(block):
            return told
        if (told := not_linear(block, [1])) or not self.setting("absorb"):
            return told
        conv = block.convs["conv_before"]
        if max(*conv.kernel_shape, *conv.strides, conv.group) > 1 or any(conv.pads):
            return "the Conv before the mean is not 1 x 1, or has strides, pads or groups"
        return norm_refused(block.nodes["norm_before"]) if "norm_before" in block.nodes else None

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what a head is, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "no linear layer right behind the mean over all positions"
        return f"no mean and linear layer: {refusal.reason}"

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The Conv; the mean."""
        inputs, dims = (block.dims or ())[1], len(block.dims or ()) - 2
        assert isinstance(inputs, int)
        form = self.setting("activation")
        conv = pointwise(dims, inputs, outputs_of(block, 1), bias=self.setting("bias"))
        made = normed("classes", INPUT, conv, "" if form == "none" else form, norm=self.setting("norm"))
        return (*made, GlobalPoolLayer("pool", made[-1].name), FlattenLayer("flatten", "pool"))

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """Those of the linear layer, where they do not get cut off."""
        weight, bias = matrix_of(block, values, 1), values.get("bias_1", np.zeros(1)).reshape(-1)
        bias = np.broadcast_to(bias, (len(weight),))
        if self.setting("absorb"):
            scale, shift = affine(block, values, "before")
            inner = values["weight_before"].reshape(len(scale), -1)
            weight, bias = (weight * scale) @ inner, bias + weight @ shift
        form = self.setting("activation")
        spread = float(np.linalg.norm(weight, axis=1).max()) or 1.0
        size = 1 / spread if form == "relu6" else 1.0
        moved = _SIGMAS * spread * size if form in ("relu", "relu6") else 0.0
        ones = (1,) * (len(block.dims or ()) - 2)
        if not self.setting("norm"):
            found = [(size * weight).reshape(*weight.shape, *ones)]
            return [*found, size * bias + moved] if self.setting("bias") else found
        own = bias if self.setting("bias") else np.zeros(len(weight))
        norm = plain_norm(np.full(len(weight), size), size * (bias - own) + moved, _EPSILON)
        return [weight.reshape(*weight.shape, *ones), *([own] if self.setting("bias") else []), *norm]

    def _no_mean(self, block: Block) -> str | None:
        """Why the pool is no mean over all positions; None if it is."""
        pool, dims = block.nodes["pool"], block.dims or ()
        if pool.op_type == "GlobalAveragePool":
            return None
        if pool.op_type == "AveragePool":
            whole = pool.dims is not None and set(pool.dims[2:]) == {1} and not any(pool.attribute("pads", ()))
            same = whole and pool.attribute("kernel_shape", ()) == dims[2:]
            return None if same else "its pool is not of the whole map"
        if pool.op_type == "ReduceMean":
            read = block.convs["conv_before"].out_channels if self.setting("absorb") else dims[1]
            small = pool.dims is not None and pool.dims[:2] == (dims[0], read) and set(pool.dims[2:]) <= {1}
            return None if small else "its ReduceMean is not over all positions"
        return f"its pool is {pool.op_type}, not the mean over all positions"
