"""The options of ``check``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from onnxsep.data.options import DATA_GROUP, Preprocessed
from onnxsep.errors import OptionError
from onnxsep.model.paths import DATA
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record
from onnxsep.running.options import Fed, Running, Seeded, Telling

if TYPE_CHECKING:
    from onnxsep.data import Dataset, Source
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.data": ("Dataset", "Source")})

SAMPLES = 32  # of the data, by default

_PARTS, _TOLERANCES = "What is compared", "Tolerances"
_TOLERANCE = (lambda x: 0 <= x < math.inf, "a number of 0 or more")


@record
class CheckOptions(Running, Fed, Seeded, Telling, Preprocessed):
    """What ``check`` is asked for."""

    update: bool = option(
        default=False,
        help="Rewrite the reference from the model.",
        doc="write the reference from the model instead of comparing: the text form for .txt, else a copy.",
    )
    ignore_names: bool = option(
        default=False,
        group=_PARTS,
        help="Names may differ.",
        doc="whether names of tensors, nodes, graphs and symbolic dimensions may differ. What is connected with what"
        " must then still be the same.",
    )
    structure: bool | None = option(
        default=None,
        group=_PARTS,
        flag="--no-structure",
        help="Do not compare the structure.",
        doc="whether to compare nodes, operator types, attributes, edges, shapes, types and metadata. By default they"
        " are, but not with ``layers``, which is for models that differ in them.",
    )
    weights: bool | None = option(
        default=None,
        group=_PARTS,
        flag="--no-weights",
        help="Do not compare weights.",
        doc="whether to compare the values of all weights, Constants included; by default as ``structure``.",
    )
    outputs: bool = option(
        default=True,
        group=_PARTS,
        flag="--no-outputs",
        help="Do not run the models.",
        doc="whether to run both models on the same inputs and compare what they compute.",
    )
    layers: bool = option(
        default=False,
        group=_PARTS,
        help="Compare every tensor that both models have, instead of structure and weights: where does an error arise?",
        doc="whether to compare every tensor that both models have, on the same inputs: where does an error arise? It"
        " judges nothing (:class:`onnxsep.checking.layer_report.LayersReport`).",
    )
    rtol: float = option(
        default=1e-5,
        group=_TOLERANCES,
        fits=_TOLERANCE,
        help="Relative tolerance of weights.",
        doc="weights are the same where ``|model - reference| <= atol + rtol * |reference|`` for each element; for"
        " integers and booleans without ``rtol``. Strings must be equal.",
    )
    atol: float = option(
        default=1e-6,
        group=_TOLERANCES,
        fits=_TOLERANCE,
        help="Absolute tolerance of weights.",
        doc="see ``rtol``.",
    )
    output_rtol: float = option(
        default=1e-3,
        group=_TOLERANCES,
        fits=_TOLERANCE,
        help="Relative tolerance of outputs.",
        doc="outputs are the same where ``|model - reference| <= output_atol * largest + output_rtol * |reference|``"
        " for each element; ``largest`` is the output's largest magnitude in the reference (1 where it is all zeros)."
        " Where an output has parts of unlike ranges (:mod:`onnxsep.algebra.output_parts`), the largest of its part."
        " Integers, booleans and strings must be equal.",
    )
    output_atol: float = option(
        default=1e-4,
        group=_TOLERANCES,
        fits=_TOLERANCE,
        help="Tolerance of outputs relative to their largest magnitude.",
        doc="see ``output_rtol``.",
    )
    data: Source | Dataset | None = option(
        default=None,
        group=DATA_GROUP,
        reads=DATA,
        typed=Path,
        help="Folder of images, .npy or .npz to run the models on.",
        doc="samples to run the models on, as for :func:`onnxsep.data.open_data`.",
    )
    samples: int | None = option(
        default=SAMPLES,
        group=DATA_GROUP,
        minimum=1,
        help="Use at most so many samples of the data.",
        doc="use at most so many samples of the data, drawn with ``seed``; None: all.",
    )

    @property
    def asked(self) -> dict[str, bool]:
        """The parts that are compared."""
        return {
            "structure": not self.layers if self.structure is None else self.structure,
            "weights": not self.layers if self.weights is None else self.weights,
            "outputs": self.outputs,
            "layers": self.layers,
        }

    def check(self) -> None:
        """Refuse what makes no sense, alone or together.

        Raises:
            OptionError: a tolerance is out of range, or nothing is left to compare.
        """
        super().check()
        if not self.update and not any(self.asked.values()):
            raise OptionError(
                "nothing to compare: structure, weights and outputs are all switched off, and layers are not asked for"
            )
