"""The options of ``plan``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.data.options import DATA_GROUP, Preprocessed
from onnxsep.errors import OptionError, spelled
from onnxsep.model.paths import DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.proposals import TARGETS
from onnxsep.options.specs import option, record
from onnxsep.planner.budget_options import Forms, Quantizing, Timed
from onnxsep.planner.losing_options import Losing
from onnxsep.planner.which_layers import WhichLayers
from onnxsep.planner.working import Working
from onnxsep.running.options import Running, Seeded, Shaped, Telling

if TYPE_CHECKING:
    from onnxsep.data import Dataset, Source
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.data": ("Dataset", "Source")})


@record
class PlanOptions(
    Quantizing, Timed, Forms, WhichLayers, Running, Shaped, Losing, Preprocessed, Seeded, Telling, Working
):
    """What ``plan`` is asked for."""

    target: str | Sequence[str] = option(
        default=(),
        typed=list[str],
        proposed=TARGETS,
        help="A budget: params=0.4, macs=0.5 (shares of the whole model's, or whole numbers), size=0.3, size=80kB (of"
        " the file), latency=0.6, latency=5ms, ram=0.7; or what may be lost, for the cheapest model: drop=1,"
        " error=0.05, kl=0.02; several will do.",
        doc='what the rewritten model may cost: "params=0.4", "macs=0.5", "size=0.3", "size=80kB" (of the file),'
        ' "latency=0.6", "latency=5ms", "ram=0.7" (peak activation memory); a fraction with a point is a share of the'
        ' whole model\'s, an integer a number. Or what it may lose: "drop=1" (points of accuracy), "error=0.05"'
        ' (relative, of the worst output), "kl=0.02" (classifiers): then it is the cheapest model, of the first budget,'
        " else of parameters, whose measured loss is no more. Several are all kept.",
    )
    data: Source | Dataset = option(
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        per_run=True,
        help="Folder of images, .npy, .npz, or synthetic (images made up): "
        "what candidates are fitted to and measured on.",
        doc="what candidates are fitted to and measured on: a folder of images, an .npy or .npz file, arrays, batches"
        " or a dataset (:func:`onnxsep.data.open_data`).",
    )
    samples: int = option(
        default=500,
        minimum=1,
        group=DATA_GROUP,
        help="Use at most so many samples of the data; a fifth of them measures.",
        doc="use at most so many samples, drawn at random; a fifth of them, at most 100, measures the effects.",
    )
    positions: int = option(
        default=64, minimum=1, group=DATA_GROUP, help="Output positions of a layer that are sampled in each of them."
    )
    seed: int = option(default=0, minimum=0, help="Seed of the choice of {samples}.", doc="of what is sampled.")
    rounds: int = option(
        default=2,
        minimum=0,
        help="Rounds in which candidates are measured again around the plan: effects do not add up.",
        doc="rounds in which candidates near to the plan are fitted and measured again, with all other layers replaced"
        " as it says: effects do not add up. Where one finds nothing better, the last.",
    )
    frontier: str | os.PathLike[str] | None = option(
        default=None,
        group="Output",
        typed=Path,
        writes="onnxsep.planner.frontier:FRONTIER",
        per_run=True,
        help="Write the trade-off curve along the first {target} into this folder: frontier.csv, and its plans.",
        doc="find the trade-off curve along the first target too, from the same measurements; ``PlanResult.save``"
        " writes it into this folder: frontier.csv, and its plans.",
    )

    def check(self) -> None:
        """Refuse targets that cannot be read or planned for, and modes that are not there.

        Raises:
            OptionError: A target, a mode or another option cannot be used.
            ModeNotFoundError: There is no such mode.
        """
        super().check()
        if not self.targets:
            raise OptionError(f"{spelled('target')} is missing: what the model may cost, such as params=0.4")
        self.check_losing(self.target)
        self.check_together()
