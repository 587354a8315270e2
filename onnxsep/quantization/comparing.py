"""The quantised model beside its source: does anything get worse, and which option is better?"""

from collections.abc import Iterator, Sequence

from onnxsep.data import Dataset
from onnxsep.errors import EvaluationError, spelled
from onnxsep.evaluation.cells import uncertain
from onnxsep.evaluation.latency import measure_latency
from onnxsep.evaluation.sessions import Candidate, Session
from onnxsep.model.io import Model
from onnxsep.quantization.report import OutputError, Speed
from onnxsep.quantization.settings import Settings
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.timing import QUICK

_FEEDS = 4  # different inputs for the timed runs
_SLOWER = 1.05  # times the source's time: less is none that anybody notices
_SURE = 2  # standard errors
_UNKNOWN = 0.1  # standard error of a ratio of single runs
_FAR = 0.3  # relative error of an output
_OTHER_CLASSES = 0.05  # share of the samples


def measure_speed(
    source: Model, result: Model, data: Dataset, indices: Sequence[int], options: RuntimeOptions
) -> Speed | None:
    """Time both models for at most a second or two; None where one of them cannot be run alone.

    Raises:
        DataError: an image cannot be read.
    """
    parts = list(data.batches(indices, 1))[:_FEEDS]
    feeds = [data.feed(part) for part in parts]
    candidates = (Candidate("the source", source), Candidate("the quantised model", result))
    try:
        sessions = [Session(candidate, options) for candidate in candidates]
        before, after = measure_latency([one.timed(feeds) for one in sessions], feeds, effort=QUICK)
    except EvaluationError:
        return None
    return Speed(batch=len(parts[0]), source=before, result=after)


def warnings(
    settings: Settings, sizes: tuple[int, int], speed: Speed | None, outputs: Sequence[OutputError]
) -> Iterator[str]:
    """What got worse, and the option that is better, in words.

    Args:
        settings: What the model was quantised with.
        sizes: Bytes before and after.
        speed: What was measured of both.
        outputs: How far the outputs are from the source's.
    """
    before, after = sizes
    if after >= before:
        other = f"{spelled('per_channel', False)} stores fewer scales" if settings.per_channel else "leave it in float"
        yield f"the file did not get smaller ({before:,} -> {after:,} bytes): the weights are few; {other}"
    ratio = None if speed is None else speed.result.against_first
    if ratio is not None and ratio.value > max(_SLOWER, 1 + _SURE * (ratio.standard_error or _UNKNOWN)):
        yield (
            f"the result is slower than the source: {uncertain(ratio.value, ratio.standard_error)} times its time on"
            f" this machine; {_faster(settings)}"
        )
    for output in outputs:
        share = 0.0 if output.agreement is None else 1 - output.agreement
        other_classes = share > _OTHER_CLASSES
        # Where the classes are known and stay the same, the error of the scores matters little.
        if other_classes or (output.agreement is None and output.relative > _FAR):
            what = (
                f"of another class for {1 - (output.agreement or 0):.1%} of the samples" if other_classes else "far off"
            )
            yield (
                f"output {output.name!r} is {what} (relative error {output.relative:.3g}): {spelled('max_drop', 1)}"
                f" keeps the layers that hurt in float, and {spelled('layers', True)} shows where the error arises"
            )


def _faster(settings: Settings) -> str:
    if settings.integers == "int8" and not settings.int8_io:
        return f"{spelled('activations', 'uint8')} is the fast form on x86 processors"
    return "leave it in float, or quantise it for its size alone"
