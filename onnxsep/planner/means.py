"""What a plan is made with, beside the model and the data: who measures, who times, who judges, what is shipped."""

from dataclasses import dataclass

from onnxsep.planner.judging import Judge
from onnxsep.planner.peak_memory import PeakMemory
from onnxsep.planner.quantized import Quantized
from onnxsep.planner.survey import Survey
from onnxsep.planner.timings import Timer, Timings


@dataclass(frozen=True)
class Means:
    """What a run has.

    Attributes:
        survey: Measures candidates, and carries out plans.
        timer: Measures times.
        timings: What forms take, where that is a budget.
        memory: What forms need for activations, where that is a budget.
        judge: Says whether a model loses too much, where that is asked for.
        quantized: Quantises the result, where that is what is shipped.
    """

    survey: Survey
    timer: Timer
    timings: Timings | None = None
    memory: PeakMemory | None = None
    judge: Judge | None = None
    quantized: Quantized | None = None
