"""Least squares for the last Convs of a block, on what the block reads and what it should give.

What it does
    Statistics of the BatchNormalization within the block are taken from what it reads. Then, in the order of the
    layers, each Conv whose outputs are the block's own but for their place and size (``calibration.readouts``) is
    solved for: min |T - (W h + b)|^2 + l |W - W0|^2, h what it reads there, T the original's output at the same
    positions without what the skip adds, W0 what it is now. The strength l is the best of a few on a tenth of the
    images. A BatchNormalization behind such a Conv gets its mean and variance, and computes W h + b with them.

Why
    All else in the block stays as the mode has begun it, at random or from the old weights, and what it computes is a
    basis in which the output is sought: an echo of extreme learning machines (G.-B. Huang et al. 2006), and for blocks
    that are linear in their last Convs, as ghost and grouped-pointwise, least squares itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxsep.algebra.linalg import Array
from onnxsep.calibration.block_nodes import BlockNodes, TensorName
from onnxsep.calibration.frontier import Frontier
from onnxsep.calibration.readouts import Readout, readouts
from onnxsep.calibration.sampling import choose_positions, gather_outputs, gather_patches
from onnxsep.calibration.walk import finite
from onnxsep.engine.replacements import BlockReplacement
from onnxsep.layers.block_layers import NormLayer

_STRENGTHS = 10.0 ** np.arange(-4, 1)  # of the ridge, relative to the mean square of what is read
_INNER = 10  # every tenth of the images chooses among them
_LEAST_GATE = 1e-3


@dataclass(frozen=True)
class Task:
    """A block, where it stands, and the images.

    Attributes:
        block: what is fitted.
        nodes: its new nodes.
        frontier: the rewritten network, in front of the block.
        target: the original one, behind it.
        output: name of what the block gives, in the original.
        batches: for each batch of images which of them are for fitting.
        positions: per image.
        seed: of the positions.
    """

    block: BlockReplacement
    nodes: BlockNodes
    frontier: Frontier
    target: Frontier
    output: str
    batches: tuple[NDArray[np.bool_], ...]
    positions: int
    seed: int

    def run(self, tensors: Mapping[TensorName, Array], *wanted: str) -> Iterator[list[NDArray[np.generic]]]:
        """What layers compute with these tensors, batch by batch.

        Raises:
            CalibrationError: it is not finite, or the runtime cannot run them.
        """
        self.nodes.store(self.frontier, tensors)
        names = [self.nodes.outputs[name] for name in wanted]
        made = [name for name in names if any(name in node.output for node in self.nodes.nodes)]
        nodes = max((self.nodes.up_to(name) for name in made), key=len, default=[])
        piece = self.frontier.piece(nodes, made) if made else None
        for number in range(len(self.batches)):
            given = piece(number, {}) if piece is not None else {}
            values = [given[name] if name in given else self.frontier.value(number, name) for name in names]
            for value in values:
                finite(value, self.block.site.anchor)
            yield values

    def targets(self) -> Iterator[NDArray[np.generic]]:
        """What the original gives, batch by batch."""
        return (
            finite(self.target.value(number, self.output), self.block.site.anchor)
            for number in range(len(self.batches))
        )


def solve(task: Task, start: Mapping[TensorName, Array]) -> dict[TensorName, Array]:
    """Tensors of a block that are fitted; others are those of the start."""
    found = dict(start)
    last = readouts(task.block.layers, task.block.in_channels)
    behind = {one.norm[0].name for one in last if one.norm is not None}
    for layer in task.block.layers:
        if isinstance(layer, NormLayer) and layer.name not in behind and (layer.name, "mean") in found:
            found |= _measured(task, found, layer)
    for one in last:
        if (one.layer.name, "weight") in found:
            found |= _solved(task, found, one)
    return found


def _measured(task: Task, tensors: Mapping[TensorName, Array], layer: NormLayer) -> dict[TensorName, Array]:
    """Mean and variance of what a BatchNormalization reads."""
    count, total, squares = 0, np.zeros(layer.channels), np.zeros(layer.channels)
    for (values,), fits in zip(task.run(tensors, layer.input), task.batches, strict=True):
        rows = _by_channel(values[fits])
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + np.square(rows).sum(axis=0)
    mean = total / max(count, 1)
    variance = np.maximum(squares / max(count, 1) - mean**2, 0.0)
    return {(layer.name, "mean"): mean, (layer.name, "variance"): variance}


class _Sums:
    """Moments of rows and targets, for each group of channels."""

    def __init__(self, groups: int, columns: int, outputs: int) -> None:
        self.count, self.groups = 0, groups
        self.rows, self.targets = np.zeros((groups, columns)), np.zeros((groups, outputs))
        self.gram = np.zeros((groups, columns, columns))
        self.cross = np.zeros((groups, outputs, columns))

    def add(self, rows: Array, targets: Array) -> None:
        """Rows [n, groups * columns], targets [n, groups * outputs]."""
        if not len(rows):  # of this batch all are held out
            return
        x = rows.reshape(len(rows), self.groups, -1).transpose(1, 0, 2)
        t = targets.reshape(len(targets), self.groups, -1).transpose(1, 0, 2)
        self.count += len(rows)
        self.rows += x.sum(axis=1)
        self.targets += t.sum(axis=1)
        self.gram += x.transpose(0, 2, 1) @ x
        self.cross += t.transpose(0, 2, 1) @ x

    def plus(self, other: "_Sums") -> "_Sums":
        """Of both."""
        found = _Sums(self.groups, self.gram.shape[1], self.cross.shape[1])
        found.count = self.count + other.count
        for name in ("rows", "targets", "gram", "cross"):
            setattr(found, name, getattr(self, name) + getattr(other, name))
        return found

    def centred(self, *, shifted: bool) -> tuple[Array, Array]:
        """Gram matrices and products with the targets per row, about the means if ``shifted``."""
        count = max(self.count, 1)
        x, t = (self.rows / count) * shifted, (self.targets / count) * shifted
        gram = self.gram / count - x[:, :, None] * x[:, None, :]
        return gram, self.cross / count - t[:, :, None] * x[:, None, :]


def _solved(task: Task, tensors: Mapping[TensorName, Array], one: Readout) -> dict[TensorName, Array]:
    """The tensors of one Conv, and of the BatchNormalization behind it."""
    conv, name = one.layer.conv, one.layer.name
    shifted = conv.bias or one.norm is not None
    parts = _gathered(task, tensors, one)
    gain: Array = np.ones(conv.out_channels)
    if one.norm is not None:
        layer, places = one.norm
        variance = tensors[layer.name, "variance"][places]
        gain = tensors[layer.name, "scale"][places] / np.sqrt(variance + layer.epsilon)
    before = (tensors[name, "weight"].reshape(conv.out_channels, -1) * gain[:, None]).reshape(
        conv.group, -1, conv.weight_size // conv.out_channels
    )
    weight = _best(parts, before, shifted=shifted)
    whole = parts[0].plus(parts[1])
    means, level = whole.rows / max(whole.count, 1), whole.targets / max(whole.count, 1)
    flat = weight.reshape(conv.out_channels, -1)
    through = np.einsum("gof,gf->go", weight, means).reshape(-1)  # the mean of W h
    shift = level.reshape(-1) - through
    found: dict[TensorName, Array] = {(name, "weight"): flat.reshape(conv.weight_shape)}
    if one.norm is None:
        return found | ({(name, "bias"): shift} if conv.bias else {})
    layer, places = one.norm
    gram = whole.centred(shifted=True)[0]
    spread = np.maximum(np.sum((weight @ gram) * weight, axis=2).reshape(-1), 0.0)
    given = {"mean": through, "variance": spread, "scale": np.sqrt(spread + layer.epsilon), "bias": shift + through}
    if conv.bias:
        found[name, "bias"] = np.zeros(conv.out_channels)
    for kind, values in given.items():
        whole_norm = tensors[layer.name, kind].copy()
        whole_norm[places] = values
        found[layer.name, kind] = whole_norm
    return found


def _gathered(task: Task, tensors: Mapping[TensorName, Array], one: Readout) -> tuple[_Sums, _Sums]:
    """Moments of what a Conv reads and should give, of most images and of those that choose the strength."""
    conv = one.layer.conv
    columns = conv.weight_size // conv.out_channels
    sums = tuple(_Sums(conv.group, columns, conv.out_channels // conv.group) for _ in range(2))
    wanted = [one.layer.input, *([one.skip] if one.skip else []), *([one.gate[0]] if one.gate else [])]
    rng, seen = np.random.default_rng([task.seed, *task.block.site.place]), 0
    for values, target, fits in zip(task.run(tensors, *wanted), task.targets(), task.batches, strict=True):
        read, rest = values[0], list(values[1:])
        positions = choose_positions(conv, read.shape[2:], len(read), task.positions, rng)
        aim = gather_outputs(conv, target, positions)[:, one.outputs].astype(np.float64)
        if one.skip:
            aim -= gather_outputs(conv, rest.pop(0), positions)[:, one.outputs]
        if one.gate:
            factors = rest.pop(0).reshape(len(read), -1)[:, one.gate[1]].astype(np.float64)
            factors = np.where(np.abs(factors) < _LEAST_GATE, _LEAST_GATE, factors)
            aim /= np.repeat(factors, positions.shape[1], axis=0)
        rows = gather_patches(conv, read, positions).astype(np.float64)
        chooses = (np.arange(seen, seen + len(fits)) % _INNER == 0) & fits
        for part, mask in zip(sums, (fits & ~chooses, chooses), strict=True):
            chosen = np.repeat(mask, positions.shape[1])
            part.add(rows[chosen], aim[chosen])
        seen += len(fits)
    return sums[0], sums[1]


def _best(parts: tuple[_Sums, _Sums], before: Array, *, shifted: bool) -> Array:
    """Weights [groups, outputs, columns] at the strength that does best on the second part, from both."""
    if not parts[0].count:
        return before
    chosen = _STRENGTHS[0]
    if parts[1].count:
        gram, cross = parts[1].centred(shifted=shifted)
        errors = []
        for strength in _STRENGTHS:
            weight = _ridge(parts[0], before, strength, shifted=shifted)
            errors.append(float(np.sum((weight @ gram) * weight) - 2 * np.sum(cross * weight)))
        chosen = _STRENGTHS[int(np.argmin(errors))]
    return _ridge(parts[0].plus(parts[1]), before, chosen, shifted=shifted)


def _ridge(sums: _Sums, before: Array, strength: float, *, shifted: bool) -> Array:
    """Weights near those before: (C + l W0) (G + l)^-1."""
    gram, cross = sums.centred(shifted=shifted)
    columns = gram.shape[1]
    level = np.trace(gram, axis1=1, axis2=2) / columns
    amount = strength * np.maximum(level, 1e-12 * max(float(level.max(initial=0.0)), 1e-30))[:, None, None]
    right = cross + amount * before
    solved: Array = np.linalg.solve(gram + amount * np.eye(columns), right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return solved


def _by_channel(values: NDArray[np.generic]) -> Array:
    """[rows, channels] in double precision."""
    return np.moveaxis(values.astype(np.float64), 1, -1).reshape(-1, values.shape[1])


def output_error(task: Task, tensors: Mapping[TensorName, Array], *, fitting: bool) -> float:
    """|u - u'| / |u - mean u| of the block's output on the images for fitting, or on the others; means by channel."""
    wrong = squares = count = 0.0
    total: Array | float = 0.0
    last = task.block.layers[-1].name
    for (made,), wanted, fits in zip(task.run(tensors, last), task.targets(), task.batches, strict=True):
        chosen = fits if fitting else ~fits
        aim, found = _by_channel(wanted[chosen]), _by_channel(made[chosen])
        wrong += float(np.square(aim - found).sum())
        squares += float(np.square(aim).sum())
        total, count = total + aim.sum(axis=0), count + len(aim)
    spread = squares - float(np.sum(np.square(total))) / max(count, 1)
    return float(np.sqrt(wrong / (spread if spread > 1e-12 * squares and spread > 0 else squares or 1.0)))
