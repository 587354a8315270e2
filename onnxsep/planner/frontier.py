"""The trade-off curve: what plans for other budgets would lose, from the same measurements, as a table and as plans.

Nothing is carried out for it. The sums of effects, each measured alone, are scaled by how far the one plan that was
carried out is from its own sum.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxsep.graph.places import Place
from onnxsep.model.files import write_text
from onnxsep.model.paths import Kind, Reads, check_paths
from onnxsep.planner.carrying_out import plan_of_choice
from onnxsep.planner.measuring import Measured
from onnxsep.planner.output_distance import Kind as Measure
from onnxsep.planner.output_distance import from_additive
from onnxsep.planner.plan_file import PlanFile, is_plan, plan_of
from onnxsep.planner.report import FrontierPoint
from onnxsep.planner.search import Search
from onnxsep.planner.targets import BUDGETS, Budget

_POINTS = 12
_TABLE = "frontier.csv"
_HEAD = tuple(FrontierPoint.model_fields)


@dataclass(frozen=True)
class Frontier:
    """Plans along a curve.

    Attributes:
        points: What each costs and would lose.
        plans: Each as a file.
    """

    points: tuple[FrontierPoint, ...]
    plans: tuple[PlanFile, ...]

    def drawn(self) -> tuple[FrontierPoint, ...]:
        """The points where no plans are written."""
        return tuple(point.model_copy(update={"plan": ""}) for point in self.points)

    def save(self, folder: str | os.PathLike[str], reads: Reads | None = None) -> None:
        """Write the table, ``frontier.csv``, and the plans.

        Args:
            folder: A new one, or one that holds such files alone.
            reads: Files that must not be overwritten.

        Raises:
            ModelSaveError: It cannot be written.
            OptionError: Something else is there.
        """
        check_paths(reads or Reads(), {FRONTIER: folder})
        place = Path(folder)
        place.mkdir(exist_ok=True)
        for old in _plans(place):  # of another run
            old.unlink()
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(_HEAD)
        rows.writerows([getattr(point, name) for name in _HEAD] for point in self.points)
        write_text(place / _TABLE, text.getvalue())
        for point, plan in zip(self.points, self.plans, strict=True):
            plan.save(place / point.plan)


def frontier(
    search: Search,
    measured: Mapping[Place, Sequence[Measured]],
    kind: Budget,
    least: int,
    measure: Measure,
    scale: float,
    budgets: Mapping[Budget, int],
) -> Frontier:
    """The curve along one kind of budget.

    Args:
        search: What the measurements are of.
        measured: Those of the first round.
        kind: The budget that changes.
        least: The smallest that can be had.
        measure: Of effects.
        scale: What the effect of a plan as a whole is, as a multiple of the sum that a choice makes small.
        budgets: Those that stay, and what is replaced of ``kind``.
    """
    costs = search.costs
    whole = costs.source[kind]
    points, plans, seen = list[FrontierPoint](), list[PlanFile](), set[tuple[str, ...]]()
    for amount in np.geomspace(max(least, 1), whole, _POINTS):
        selection = search.choose(measured, {**budgets, kind: int(np.ceil(amount))})
        words = () if selection is None else tuple(one.words for one in selection.chosen)
        if selection is None or words in seen:
            continue
        seen.add(words)
        plan = plan_of_choice(search.sites, selection.chosen, search.reasons)
        point = _point(kind, costs.of(plan), costs.original, from_additive(measure, selection.loss), scale)
        points.append(point)
        said = (("target", point.plan.removesuffix(".toml")), ("estimated", point.estimated), ("carried_out", "no"))
        plans.append(plan_of(search.model, search.sites, plan, {}, measured=said))
    return Frontier(tuple(points), tuple(plans))


def _point(
    kind: Budget, costs: Mapping[Budget, int], whole: Mapping[Budget, int], effect: float, scale: float
) -> FrontierPoint:
    share = costs[kind] / whole[kind]
    return FrontierPoint(
        plan=f"{kind}-{share:.4f}.toml",
        share=round(share, 4),
        params=costs["params"],
        macs=costs["macs"],
        size=costs["size"],
        predicted=float(f"{effect:.6g}"),
        estimated=float(f"{effect * scale:.6g}"),
    )


def _is_frontier(folder: Path) -> bool:
    """Whether a folder is empty, or holds a curve and nothing else."""
    try:
        entries = set(folder.iterdir())
        table = folder / _TABLE
        known = table in entries and table.read_text(encoding="utf-8").startswith(",".join(_HEAD))
        return not entries or (known and entries == {table, *_plans(folder)})
    except (OSError, ValueError):
        return False


def _plans(folder: Path) -> list[Path]:
    """The plans of a curve."""
    return [path for kind in BUDGETS for path in folder.glob(f"{kind}-?.????.toml") if path.is_file() and is_plan(path)]


FRONTIER = Kind("frontier", "trade-off curve of onnxsep", _is_frontier, folder=True, option=True)
