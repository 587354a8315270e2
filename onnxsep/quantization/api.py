"""``quantize``: load -> prepare -> calibrate -> quantise -> finish -> ensure -> measure."""

import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy.typing as npt
import onnx

from onnxsep.checking.feeding import Feeding, layers_report
from onnxsep.data import AnyPreprocessing, Dataset, Preprocessing, Source, check_sampling, open_data
from onnxsep.errors import OptionError, VerificationError
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.scopes import scopes
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import Model, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable
from onnxsep.options.hints import checks_types
from onnxsep.options.patterns import as_patterns
from onnxsep.quantization.agreement import Agreement
from onnxsep.quantization.building import Builder, Built, Correct
from onnxsep.quantization.calibrating import Progress, calibrate
from onnxsep.quantization.choosing import Judge, choose
from onnxsep.quantization.correcting import Corrections, find_corrections
from onnxsep.quantization.interface import exchange_integers
from onnxsep.quantization.measuring import Split, measure, split
from onnxsep.quantization.nodes import excluded_by, not_for_quantizing, to_calibrate
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.report import AccuracyDrop, BiasCorrection, IntegerTensor, QuantizeReport
from onnxsep.quantization.settings import Activations, Format, Method, Settings
from onnxsep.quantization.sparing import Accuracy, spare
from onnxsep.quantization.toolkit import quantizable_types
from onnxsep.quantization.unlike import keep_unlike_in_float
from onnxsep.reporting.model_info import model_info, size_bytes
from onnxsep.running.runtime import RuntimeOptions

_SAMPLES = 200
_INT8_ON_X86 = (  # measured in benchmarks/quantized_latency.py
    "int8 activations suit ARM and microcontrollers; on x86 processors with VNNI, --activations uint8 runs two to three"
    " times as fast in ONNX Runtime"
)


@dataclass(frozen=True)
class QuantizeResult(Savable):
    """A quantised model and the report of what was done; ``model`` is the source where nothing could be quantised."""

    model: Model
    report: QuantizeReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING


@checks_types
def quantize(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    data: Source,
    format: Format = "qdq",  # noqa: A002 - the word that everybody uses for it
    activations: Activations | None = None,
    per_channel: bool = True,
    reduce_range: bool = False,
    method: Method = "minmax",
    percentile: float | None = None,
    exclude: str | Sequence[str] = (),
    keep_names: bool = False,
    equalize: bool = True,
    bias_correction: bool = True,
    int8_io: bool = False,
    preprocessing: AnyPreprocessing | None = None,
    labels: str | os.PathLike[str] | npt.ArrayLike | None = None,
    samples: int | None = _SAMPLES,
    seed: int = 0,
    max_error: float | None = None,
    max_drop: float | None = None,
    output: str | None = None,
    layers: bool = False,
    follow_links: bool = False,
    runtime: RuntimeOptions | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantise a model to int8 with ONNX Runtime's static quantiser. Writes nothing: ``QuantizeResult.save`` does.

    BatchNormalization and constants are folded first, and the opset is raised where the result needs it. Inputs and
    outputs (but for ``int8_io``), names of the user's tensors and nodes, and metadata stay. Weights that are zero stay
    zero.

    Args:
        model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        data: Samples to choose the ranges of activations with, as for :func:`onnxsep.data.open_data`.
        format: "qdq" or "qoperator".
        activations: "int8" or "uint8"; by default int8, and uint8 with ``int8_io``.
        per_channel: A scale for each output channel of a weight.
        reduce_range: 7-bit weights, for old CPUs with uint8 activations.
        method: "minmax", "entropy" or "percentile".
        percentile: For the last of these: the share of the values, in percent, that a range holds; 99.999 by default.
        exclude: Glob patterns; nodes whose name matches one stay in float.
        keep_names: Keep the long names that the quantiser makes; by default they are shortened.
        equalize: Scale channels between two layers in a row, which leaves what they compute, so that they are alike;
            kept where the error on samples that do not calibrate is lower with it.
        bias_correction: Change biases so that the mean of each quantised layer's output, over the calibration samples,
            is that of the float model; kept where the error on samples that do not calibrate is lower with it.
        int8_io: Float inputs and outputs become the integers that they are quantised to, of the type of the
            activations. The metadata tell their scales and zero points (:mod:`onnxsep.running.integer_io`), by which
            :func:`evaluate` feeds such a model with real numbers.
        preprocessing: How images become values: a Preprocessing, the path of a TOML file, or a dict with its keys.
        labels: A CSV file of names and classes, or the classes, instead of those of the data; for ``max_drop``.
        samples: Calibrate with at most so many samples, drawn with ``seed``; None: all. A few others, where there are
            any, are held out for measuring the error.
        seed: Of the choice of samples.
        max_error: Fail where the relative error of an output, on the held-out samples, is larger.
        max_drop: The largest loss of top-1 accuracy, in points (percent of the samples). The layers that hurt most stay
            in float, as few as possible. It is measured on the samples that the calibration does not use, which need
            labels; the accuracy of the result has to be measured on others.
        output: For ``max_drop``: the output with the class scores, where there are several.
        layers: Compare every tensor that source and result have in common, for the report: where does the error arise?
        follow_links: Follow links in the location of external data.
        runtime: Threads, provider, custom operators.
        progress: Told of every batch: (what, done, all).

    Raises:
        ModelLoadError: the model cannot be read.
        DataError: the data cannot be used, or does not fit the model.
        OptionError: an option cannot be used.
        QuantizationError: the model cannot be quantised.
        EvaluationError: the accuracy cannot be measured.
        VerificationError: the result does not run, or is further from the source than allowed.
    """
    started = time.perf_counter()
    patterns = as_patterns(exclude)
    settings = Settings(
        format,
        activations or ("uint8" if int8_io else "int8"),
        per_channel,
        reduce_range,
        method,
        percentile,
        patterns,
        keep_names,
        equalize,
        bias_correction,
        int8_io,
    )
    settings.check()
    if max_error is not None and not 0 <= max_error < math.inf:
        raise OptionError(f"--max-error {max_error} is no error that could be allowed; use one such as 0.1")
    if max_drop is not None and not 0 <= max_drop < 100:
        raise OptionError(f"--max-drop {max_drop} is no loss of accuracy in points; use one such as 0.5")
    check_sampling(samples, seed)
    images = Preprocessing.of(preprocessing)
    options = runtime or RuntimeOptions()
    options.check()
    libraries = options.custom_op_libraries
    reads = Reads.of(model=model, data=data, labels=labels, preprocessing=preprocessing, libraries=libraries)
    source = load(model, follow_links=follow_links)
    dataset = open_data(data, source, preprocessing=images, labels=labels, need_labels=max_drop is not None)
    parts = split(dataset, samples, seed)
    if max_drop is not None and not parts.held_out:
        raise OptionError(
            f"--max-drop measures on samples that the calibration does not use, and {dataset.source} has"
            f" {len(dataset)} in all; give more, or a smaller --samples"
        )

    agreement = Agreement(source, dataset, parts.calibration, options)
    op_types = quantizable_types(settings)
    folded: tuple[str, ...] = ()

    def start(settings: Settings) -> Builder:
        nonlocal folded
        prepared = prepare(source, settings, agreement)
        excluded, folded = excluded_by(patterns, source.proto, prepared.proto)
        left = {**not_for_quantizing(prepared.proto, op_types), **excluded}
        left |= keep_unlike_in_float(
            prepared.proto, op_types, left, dataset, parts.calibration, options, integer_inputs=int8_io
        )
        tensors = to_calibrate(prepared.proto, op_types, left)
        ranges = None
        if tensors:
            ranges = calibrate(prepared.proto, tensors, dataset, parts.calibration, settings, options, progress)
        correct = _corrector(dataset, parts, options, progress) if bias_correction else None
        return Builder(source, prepared, ranges, settings, op_types, left, correct).checked(agreement)

    chosen = choose(start, settings, Judge(source, dataset, parts, options))
    builder, built = chosen.builder, chosen.built
    notes = [*dataset.notes, *builder.prepared.notes, *chosen.notes, *folded, *_nested(source)]
    accuracy, failure = None, ""
    if max_drop is not None and built.model is not source:
        built, accuracy = _within(max_drop, builder, built, dataset, parts, output, options, progress)
        if accuracy.drop > max_drop:
            failure = (
                f"the accuracy drops by {accuracy.drop:.2f} points even with every layer that has weights in float"
            )
    if accuracy is not None and 100 / accuracy.samples > accuracy.limit > 0:
        notes.append(f"one of {accuracy.samples} samples is {100 / accuracy.samples:.2g} points, more than --max-drop")
    if built.corrections is not None and built.corrections.failed:
        notes.append(f"biases are not corrected: {built.corrections.failed}")
    result = built.model
    integers: tuple[IntegerTensor, ...] = ()
    if int8_io:
        integers, stay = exchange_integers(result.proto)
        notes += [f"--int8-io: {len(integers)} inputs and outputs hold integers now, and not floats", *stay]
    if result is source:
        notes.append("nothing was quantised: the result is the source")
    else:
        if note := ensure_valid(source, skeleton(result)):
            notes.append(note)
        if settings.activations == "int8":
            notes.append(_INT8_ON_X86)
    if not parts.held_out:
        notes.append("too few samples to hold any out: the error is measured on those of the calibration")
    outputs = measure(source, result, dataset, parts.measured, options)
    compared = None
    if layers:
        feeding = Feeding(dataset, indices=tuple(parts.measured))
        compared, why_not = layers_report(source, result, feeding, options)
        notes += [why_not] if why_not else []
    report = QuantizeReport(
        source=model_info(source),
        bytes_before=size_bytes(source),
        bytes_after=size_bytes(result),
        options={**asdict(settings), "samples": samples, "seed": seed, "max_error": max_error, "max_drop": max_drop},
        data=dataset.source,
        calibration_samples=len(parts.calibration),
        measured_samples=len(parts.measured),
        held_out=parts.held_out,
        nodes=built.rows,
        outputs=outputs,
        bias_correction=_correction(builder, built),
        integers=integers,
        accuracy=accuracy,
        notes=tuple(notes),
        layers=compared,
        seconds=time.perf_counter() - started,
    )
    if max_error is not None and report.relative > max_error:
        failure = failure or f"the relative error {report.relative:.3g} is above --max-error {max_error:g}"
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return QuantizeResult(result, report, reads=reads)


def _corrector(data: Dataset, parts: Split, options: RuntimeOptions, progress: Progress | None) -> Correct:
    def correct(prepared: onnx.ModelProto, simulated: onnx.ModelProto, quantized: Collection[str]) -> Corrections:
        return find_corrections(prepared, simulated, quantized, data, parts.calibration, options, progress)

    return correct


def _correction(builder: Builder, built: Built) -> BiasCorrection | None:
    found = built.corrections
    if found is None or found.failed:
        return None
    return BiasCorrection(
        corrected=len(found.biases),
        added=tuple(map(builder.shown, found.added)),
        left=tuple(map(builder.shown, found.left)),
    )


def _within(
    limit: float,
    builder: Builder,
    built: Built,
    data: Dataset,
    parts: Split,
    output: str | None,
    options: RuntimeOptions,
    progress: Progress | None,
) -> tuple[Built, AccuracyDrop]:
    """Leave as few layers in float as keep the accuracy within the limit."""
    accuracy = Accuracy(data, parts.others, output, options)
    before = accuracy(builder.source, "the source")

    def drop(spared: Collection[str]) -> float:
        return before - accuracy(builder.build(spared).model if spared else built.model, "the quantised model")

    def error(spared: Collection[str]) -> float:
        # Compared with each other only, so that nothing is lost by leaving the biases.
        outputs = measure(builder.source, builder.build(spared, quick=True).model, data, parts.measured, options)
        return max((found.relative for found in outputs), default=0.0)

    found = spare(builder.layers(built.rows), drop, error, limit, progress)
    if found.names:
        built = builder.build(found.names, "--max-drop: it costs too much accuracy")
    return built, AccuracyDrop(
        limit=limit,
        samples=len(parts.others),
        source=before,
        all_quantized=before - found.first,
        result=before - found.drop,
        spared=tuple(builder.shown(name) for name in found.names),
        sensitivities={builder.shown(name): value for name, value in found.sensitivities.items()},
    )


def _nested(source: Model) -> tuple[str, ...]:
    count = sum(len(scope.body.node) for scope in scopes(source.proto) if scope.kind == "subgraph")
    if not count:
        return ()
    return (f"{count} nodes of nested graphs (If, Loop) stay in float: the runtime's quantiser does not enter them",)
