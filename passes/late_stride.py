"""late-stride: the stride of a stage moves from its first residual block to the last block of the stage before.

What it does
    Of two blocks one after the other, a = act(x + F(x)) and P a + G(a), G and the projection P with strides, the first
    one becomes a' = act(P x + F'(x)) with the strides and the outputs of the second one, whose skip becomes its input:
    a' + G'(a') (paper 004, R6 to R9). Widths inside of the blocks stay. In ResNet-101 the Convs of three blocks then
    work at a quarter of the positions, and those that read what they give have more inputs.

Pattern
    Two residual blocks of as many Convs, one behind the other: the first with its input as its skip, the second with a
    Conv that strides. The activation of the second sum is no part of it and stays.

Initialisation
    P is the second block's own. F' is P F, so that the first block gives P a where its activation is the identity. The
    first Conv of G' is that of G times the pseudo-inverse of P: it reads the same from P a as before from a. All other
    weights stay the source's own. What is lost is what the activation and the positions that are left out make of it.

When it pays
    Fewer MACs, more parameters: for accuracy of thin networks at the same cost. Fine-tune the result.

When it refuses
    A first block whose skip is a Conv; blocks that differ in where they stride; pads that do not keep the sizes; an
    activation that is written as several nodes, but for SiLU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxsep.modes import (
    INPUT,
    AddLayer,
    Array,
    Block,
    BlockMode,
    Either,
    Layer,
    Pattern,
    Refusal,
    Value,
    activation,
    activation_refused,
    affine,
    carried,
    carried_activation,
    carried_bounds,
    carried_tensors,
    norm_refused,
    plain_norm,
    residual_sum,
)

_SKIP = "bskip"


def _pair(convs: int) -> Either:
    first = residual_sum(convs, Value("x"), "a", projected=False)
    between = Either(activation("activation_a", first), first)
    return Either(residual_sum(convs, between, "b", projected=True))


class LateStride(BlockMode):
    """The stride in the last block of a stage."""

    name = "late-stride"
    summary = "the stride of a stage moves to the last residual block of the stage before; far from exact"
    pattern = Pattern("two residual blocks, the second with a strided Conv as its skip", Either(_pair(3), _pair(2)))
    anchor = f"conv_{_SKIP}"
    exact = False
    finished = False
    untrained = "blocks read what others give and have fewer positions: the network needs training"

    def accepts(self, block: Block) -> str | None:
        """Refuse blocks of other geometries."""
        for role, node in block.nodes.items():
            told = norm_refused(node) if role.startswith("norm_") else None
            if told := told or (activation_refused(block, role) if role in _activations(block) else None):
                return told
        skip, strided = block.convs[f"conv_{_SKIP}"], _strided(block)
        if max(skip.strides) == 1:
            return "the skip of the second block has no stride to move"
        if len(strided) != 1 or block.convs[f"conv_b{strided[0]}"].strides != skip.strides:
            return "not one Conv of the second block has the strides of its skip"
        one, other = (block.convs[f"conv_{part}{strided[0]}"] for part in "ab")
        if max(skip.kernel_shape) > 1 or skip.group > 1:
            return "the skip of the second block is no 1 x 1 Conv without groups"
        if any(max(block.convs[f"conv_a{number}"].strides) > 1 for number in _numbers(block)):
            return "the first block has a stride of its own"
        if (one.kernel_shape, one.pads, one.auto_pad) != (other.kernel_shape, other.pads, "NOTSET"):
            return f"the Convs number {strided[0]} of the two blocks have different kernels or pads"
        last, first = block.convs[f"conv_a{_numbers(block)[-1]}"], block.convs["conv_b1"]
        return "the Convs between the blocks have groups" if last.group > 1 or first.group > 1 else None

    def why_not(self, refusal: Refusal | None) -> str:
        """Say what it looks for, where nothing comes close."""
        if refusal is None or len(refusal.nodes) < 2:
            return "not the strided skip of a residual block behind another one"
        return f"no two residual blocks: {refusal.reason}"

    def layers(self, block: Block) -> tuple[Layer, ...]:
        """The first block with the stride, then the second without."""
        numbers, found, source = _numbers(block), list[Layer](), INPUT
        for part in "ab":
            before = source
            for number in numbers:
                source = self._unit(block, found, f"{part}{number}", source)
                found += carried_activation(block, f"activation_{part}{number}", f"{part}{number}_act", source)
                source = found[-1].name
            if part == "a":
                found += carried(block, _SKIP, "skip", before)
                side = found[-1].name
                found.append(AddLayer("a_sum", (source, side)))
                found += carried_activation(block, "activation_a", "a_act", "a_sum")
                source = found[-1].name
            else:
                found.append(AddLayer("b_sum", (source, before)))
        return tuple(found)

    def kept(self, block: Block) -> Mapping[tuple[str, str], str]:
        """All but the Convs between the blocks."""
        last, found = _numbers(block)[-1], carried_tensors(block, _SKIP, "skip")
        for part in "ab":
            for number in _numbers(block):
                name = f"{part}{number}"
                if name not in (f"a{last}", "b1"):
                    found |= carried_tensors(block, name, name)
                found |= carried_bounds(block, f"activation_{name}", f"{name}_act")
        return found | carried_bounds(block, "activation_a", "a_act")

    def weights(self, block: Block, values: Mapping[str, Array]) -> Sequence[Array]:
        """The two Convs between the blocks."""
        last = f"a{_numbers(block)[-1]}"
        scale, shift = affine(block, values, _SKIP)
        project = scale[:, None] * values[f"weight_{_SKIP}"].reshape(len(scale), -1)  # [after, before]
        inner, offset = affine(block, values, last)
        if f"norm_{last}" in block.nodes:  # the scale of the projection stands in the normalisation
            plain = values[f"weight_{_SKIP}"].reshape(len(scale), -1)
            weight = np.einsum("ab,b...->a...", plain * inner, values[f"weight_{last}"])
            epsilon = block.nodes[f"norm_{last}"].attribute("epsilon", 1e-5)
            norm = plain_norm(scale, project @ offset, epsilon)
            found = [weight, *([np.zeros(len(scale))] if block.convs[f"conv_{last}"].bias else []), *norm]
        else:
            weight = np.einsum("ab,b...->a...", project, values[f"weight_{last}"])
            found = [weight, *([project @ offset] if block.convs[f"conv_{last}"].bias else [])]
        back = np.einsum("cb...,ba->ca...", values["weight_b1"], np.linalg.pinv(project))
        moved = back.reshape(*back.shape[:2], -1).sum(axis=2) @ shift  # far from the border
        bias = values.get("bias_b1", np.zeros(len(moved))).reshape(-1)
        if "norm_b1" not in block.nodes:
            return [*found, back, bias - moved]
        parts = [values[f"{part}_b1"] for part in ("gamma", "beta", "mean", "variance")]
        parts[2] = parts[2] + moved
        return [*found, back, *([bias] if block.convs["conv_b1"].bias else []), *parts]

    def _unit(self, block: Block, found: list[Layer], name: str, source: str) -> str:
        """One Conv as it is now, and its BatchNormalization."""
        numbers, conv = _numbers(block), block.convs[f"conv_{name}"]
        skip, strided = block.convs[f"conv_{_SKIP}"], _strided(block)[0]
        if name == f"a{numbers[-1]}":
            conv = replace(conv, out_channels=skip.out_channels)
        if name == "b1":
            conv = replace(conv, in_channels=skip.out_channels, bias=conv.bias or "norm_b1" not in block.nodes)
        if name[1:] == str(strided):
            conv = replace(conv, strides=skip.strides if name[0] == "a" else (1,) * conv.dims)
        found += carried(block, name, name, source, conv)
        return found[-1].name


def _numbers(block: Block) -> list[int]:
    """Of the Convs of each block."""
    return [number for number in (1, 2, 3) if f"conv_a{number}" in block.convs]


def _strided(block: Block) -> list[int]:
    """Of the Convs of the second block that stride."""
    return [number for number in _numbers(block) if max(block.convs[f"conv_b{number}"].strides) > 1]


def _activations(block: Block) -> list[str]:
    """Roles of activations, where there may be some."""
    return ["activation_a", *(f"activation_{part}{number}" for part in "ab" for number in _numbers(block))]
