"""pointwise: a 1 x 1 Conv, Gemm or MatMul into fewer channels, then another one.

What it does
    W[o, i] ~ sum_r  P[o, r] Q[r, i]

    The truncated SVD U S V^T of the weight; Q = sqrt(S) V^T is applied first and P = U sqrt(S) second (Denton et al.
    2014 for fully connected layers). A grouped Conv is split group by group. Exact at r = min(out_channels,
    in_channels) of each group. It is the mode channel for layers without a kernel, and calibration data are used in
    the same closed forms.

Why
    Parameters and MACs shrink by r/out_channels + r/in_channels. In networks of bottlenecks and in classifiers most
    parameters are in such layers.

Form
    The first layer carries strides and pads (and so costs as little as the Conv at stride 2), the second one the bias.
    No paper fixes the rank: "paper" takes the largest one with at most half of the parameters.

When it refuses
    A kernel that is longer than 1: that is the mode channel.
"""

from onnxsep.modes import Conv
from onnxsep.passes.channel import Channel


class Pointwise(Channel):
    """Two layers without a kernel, and fewer channels in between."""

    name = "pointwise"
    summary = "a 1 x 1 Conv, Gemm or MatMul as two of them; the rank is the number of channels in between"
    linear_layers = True
    transposed = False

    def accepts(self, conv: Conv) -> str | None:
        """Refuse kernels."""
        if max(conv.kernel_shape, default=1) > 1:
            shape = " x ".join(map(str, conv.kernel_shape))
            return f"a kernel of {shape}: this mode takes 1 x 1 Convs and linear layers only"
        return None
