"""The course of accuracy under pruning, iterative beside one-shot, at small scale: ``iterative_pruning.py --course``.

Iterative: a fifth of the remaining Conv weights goes (L1, all layers compared together), one epoch, and so on.
One-shot: as many weights go at once, then as many epochs. Both learn the outputs of the unpruned original, without
labels; zeros stay zeros. The networks are ResNet-20 and what ``warm_starts.py`` made of it in mode depthwise.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar
from warm_starts import Bench

import onnxsep
from onnxsep.model.io import Model

TRAINING: dict[str, Any] = {"optimizer": "adam", "rate": 0.001, "batch": 128, "precision": "bfloat16", "validation": 0}


@dataclass(frozen=True)
class Point:
    """How a network does at a sparsity.

    Attributes:
        way: "iterative" or "one-shot".
        steps: of pruning; as many epochs were trained.
        sparsity: zeros among all Conv weights.
        pruned: share of the test images that are right after the (last) pruning.
        trained: and after the (last) training.
    """

    way: str
    steps: int
    sparsity: float
    pruned: float
    trained: float


class Course:
    """Both ways for one network, each point kept in the cache."""

    def __init__(
        self, bench: Bench, start: Callable[[], Model], network: str, step: float, goals: Sequence[int]
    ) -> None:
        self._bench, self._start, self._name, self._step, self._goals = bench, start, network, step, goals
        self._cache: Path = bench.options.cache

    def points(self) -> Iterator[Point]:
        """Unpruned, then each step of the iterative way, then the one-shot ones."""
        model = self._start()
        share = self._right(model)
        yield Point("unpruned", 0, 0.0, share, share)
        for steps in range(1, max(self._goals) + 1):
            model, point = self._point("iterative", model, steps, 1)
            yield point
        for steps in self._goals:
            yield self._point("one-shot", self._start(), steps, steps)[1]

    def _point(self, way: str, model: Model, steps: int, epochs: int) -> tuple[Model, Point]:
        file = f"{self._name}-{way}-{steps}-{self._bench.rows}"
        path, row, checkpoint = (self._cache / f"prune-{file}{end}" for end in (".onnx", ".json", ".checkpoint"))
        if not row.exists():
            times = 1 if way == "iterative" else steps
            pruned = onnxsep.prune(model, step=self._step, steps=times, scope="global", verify="none")
            trained = onnxsep.finetune(
                pruned.model,
                data=self._bench.training_images(),
                teacher=onnxsep.load(self._bench.network.path),
                epochs=epochs,
                seed=self._bench.options.seed,
                checkpoint=checkpoint,
                resume=True,
                **TRAINING,
            )
            onnxsep.save(trained.model, path)
            checkpoint.unlink(missing_ok=True)
            totals = pruned.report.totals
            assert totals.zeros_after is not None
            sparsity = totals.zeros_after / totals.weights_after
            point = Point(way, steps, sparsity, self._right(pruned.model), self._right(trained.model))
            row.write_text(json.dumps(vars(point)))
        return onnxsep.load(path), Point(**json.loads(row.read_text()))

    def _right(self, model: Model) -> float:
        bench = self._bench
        return float(cifar.correct(model, bench.network.images(bench.data.test), bench.data.labels).mean())


def draw(courses: Mapping[str, Sequence[Point]], images: int, file: Path) -> None:
    """A picture of the courses, a panel for each network; the form is that of the file's name.

    Ends the program where matplotlib is not there.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        sys.exit("the plot needs matplotlib: pip install matplotlib; the table needs nothing")
    figure = figures.Figure(figsize=(4.5 * len(courses), 3.8), layout="constrained")
    panels = figure.subplots(1, len(courses), squeeze=False, sharey=True)[0]
    for panel, (network, points) in zip(panels, courses.items(), strict=True):
        for way, mark in (("iterative", "o-"), ("one-shot", "s")):
            chosen = [point for point in points if point.way in (way, "unpruned")][way == "one-shot" :]
            shares = [100 * point.trained for point in chosen]
            errors = [100 * (point.trained * (1 - point.trained) / images) ** 0.5 for point in chosen]
            where = [100 * point.sparsity for point in chosen]
            panel.errorbar(where, shares, errors, fmt=mark, capsize=2, label=f"{way}, trained")
        chosen = [point for point in points if point.way == "iterative"]
        where, shares = [100 * point.sparsity for point in chosen], [100 * point.pruned for point in chosen]
        panel.plot(where, shares, ":", color="gray", label="iterative, before the epoch")
        panel.set(title=network, xlabel="Conv weights that are zero, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test images that are right, %")
    panels[-1].legend(loc="lower left", fontsize="small")
    figure.savefig(file, dpi=150)


def table(courses: Mapping[str, Sequence[Point]], images: int) -> None:
    """A row for each point."""
    print("| network | way | steps | epochs | zeros | pruned | trained |")
    print("|---|---|---|---|---|---|---|")
    for network, points in courses.items():
        for point in points:
            error = (point.trained * (1 - point.trained) / images) ** 0.5
            print(
                f"| {network} | {point.way} | {point.steps} | {point.steps} | {100 * point.sparsity:.1f} % "
                f"| {100 * point.pruned:.1f} % | {100 * point.trained:.1f} +- {100 * error:.1f} % |"
            )
