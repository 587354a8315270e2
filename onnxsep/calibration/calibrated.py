"""What calibration finds for the Convs of a plan."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from onnxsep.calibration.outcomes import (
    SHARED_BY_NESTED,
)
from onnxsep.engine.factors import Factorized
from onnxsep.engine.planning import Plan, in_main_graph
from onnxsep.graph.places import Place


@dataclass(frozen=True)
class Calibrated:
    """What calibration found.

    Attributes:
        outcomes: factors, or why there are none, by ``onnxsep.engine.replacements``.
        by_place: the same with bias and errors, by the place of each Conv.
        notes: by the place of the Conv.
        samples: how many were used.
    """

    outcomes: dict[Hashable, Factorized | str] = field(default_factory=dict)
    by_place: dict[Place, Factorized] = field(default_factory=dict)
    notes: dict[Place, str] = field(default_factory=dict)
    samples: int = 0

    def note_nested(self, plan: Plan) -> None:
        """Say which Convs of nested graphs and functions, where nothing is fitted, share factors that were."""
        for row in plan.convs:
            if not in_main_graph(row.site) and row.key in self.outcomes:
                self.notes[row.site.place] = SHARED_BY_NESTED
