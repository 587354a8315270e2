"""``quantize``: load -> prepare -> calibrate -> quantise -> finish -> ensure -> measure."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from onnxsep.checking.feeding import Feeding, layers_report
from onnxsep.data import Dataset, ImageJudge, Partition, Preprocessing, open_data
from onnxsep.errors import OptionError, VerificationError, spelled
from onnxsep.graph.ensure import ensure_valid
from onnxsep.graph.scopes import scopes
from onnxsep.graph.shapes import skeleton
from onnxsep.model.io import AnyModel, Model, load
from onnxsep.model.paths import NOTHING, Reads
from onnxsep.model.saving import Savable
from onnxsep.options.progress import Progress, announce
from onnxsep.options.taking import takes
from onnxsep.quantization.agreement import Agreement
from onnxsep.quantization.building import Builder, Built, Correct
from onnxsep.quantization.calibrating import calibrate
from onnxsep.quantization.choosing import Judge, choose
from onnxsep.quantization.compacting import compact
from onnxsep.quantization.comparing import measure_speed, warnings
from onnxsep.quantization.correcting import Corrections, find_corrections
from onnxsep.quantization.interface import exchange_integers
from onnxsep.quantization.measuring import measure, split
from onnxsep.quantization.nodes import excluded_by, not_for_quantizing, to_calibrate
from onnxsep.quantization.options import QuantizeOptions
from onnxsep.quantization.preparing import prepare
from onnxsep.quantization.report import AccuracyDrop, BiasCorrection, IntegerTensor, OutputError, QuantizeReport
from onnxsep.quantization.settings import Settings
from onnxsep.quantization.sparing import Accuracy, spare
from onnxsep.quantization.toolkit import quantizable_types
from onnxsep.quantization.unlike import keep_unlike_in_float
from onnxsep.reporting.blocks import rounded_up
from onnxsep.reporting.model_info import model_info, size_bytes
from onnxsep.reporting.records import MissedLimit
from onnxsep.running.runtime import RuntimeOptions
from onnxsep.running.verification import missed_error, too_far

_MANY_TEXTS = 0.1  # share of the file that is worth a note


@dataclass(frozen=True, repr=False)
class QuantizeResult(Savable):
    """A quantised model and the report of what was done; ``model`` is the source where nothing could be quantised."""

    model: Model
    report: QuantizeReport
    new_initializers: tuple[str, ...] = ()
    reads: Reads = NOTHING


@takes(QuantizeOptions)
def quantize(model: AnyModel, options: QuantizeOptions) -> QuantizeResult:
    """Quantise a model to int8 with ONNX Runtime's static quantiser. Writes nothing: ``QuantizeResult.save`` does.

    BatchNormalization and constants are folded first, and the opset is raised where the result needs it. Inputs and
    outputs (but for ``int8_io``), names of the user's tensors and nodes, and metadata stay. Weights that are zero stay
    zero.

    Args:
        model: A file, a ModelProto (which is not changed), or what ``load`` or an earlier result gave.
        options: each by its name.

    Raises:
        ModelLoadError: the model cannot be read.
        DataError: the data cannot be used, or does not fit the model.
        OptionError: an option cannot be used.
        QuantizationError: the model cannot be quantised.
        EvaluationError: the accuracy cannot be measured.
        VerificationError: the result does not run, or is further from the source than allowed.
    """
    started = time.perf_counter()
    runtime, progress = options.run_with, options.teller
    max_drop, max_error, int8_io = options.max_drop, options.max_error, options.int8_io
    images = Preprocessing.of(options.preprocessing)
    reads = Reads.of(model, options.reads())
    source = load(model, follow_links=options.follow_links)
    dataset = open_data(
        options.data,
        source,
        preprocessing=images,
        labels=options.labels,
        need_labels=max_drop is not None,
        judge=ImageJudge(source, runtime, options.output),
        skip_bad=options.skip_bad,
    )
    parts = split(dataset, options.samples, options.seed)
    if max_drop is not None and not parts.unseen:
        raise OptionError(
            f"{spelled('max_drop')} measures on samples that the calibration does not use, and {dataset.source} has"
            f" {len(dataset)} in all; give more, or a smaller {spelled('samples')}"
        )

    agreement = Agreement(source, dataset, parts.fitted, runtime)
    op_types = quantizable_types(options)
    folded: tuple[str, ...] = ()

    def start(chosen: Settings) -> Builder:
        nonlocal folded
        announce(progress, "preparing")
        prepared = prepare(source, chosen, agreement)
        excluded, folded = excluded_by(options.excluded, source.proto, prepared.proto)
        left = {**not_for_quantizing(prepared.proto, op_types), **excluded}
        left |= keep_unlike_in_float(
            prepared.proto, op_types, left, dataset, parts.fitted, runtime, integer_inputs=int8_io
        )
        tensors = to_calibrate(prepared.proto, op_types, left)
        ranges = None
        if tensors:
            ranges = calibrate(prepared.proto, tensors, dataset, parts.fitted, chosen, runtime, progress)
        announce(progress, "quantising")
        correct = _corrector(dataset, parts, runtime, progress) if options.bias_correction else None
        return Builder(source, prepared, ranges, chosen, op_types, left, correct).checked(agreement)

    chosen = choose(start, options, Judge(source, dataset, parts, runtime))
    builder, built = chosen.builder, chosen.built
    notes = [*dataset.notes, *builder.prepared.notes, *chosen.notes, *folded, *_nested(source)]
    accuracy, failure = None, ""
    if max_drop is not None and built.model is not source:
        built, accuracy = _within(max_drop, builder, built, dataset, parts, options.output, runtime, progress)
        if accuracy.drop > max_drop:
            failure = (
                f"the accuracy drops by {accuracy.drop:.2f} points even with every layer that has weights in float (the"
                f" nearest: {spelled('max_drop', rounded_up(accuracy.drop))})"
            )
    if accuracy is not None and 100 / accuracy.samples > accuracy.limit > 0:
        notes.append(
            f"one of {accuracy.samples} samples is {100 / accuracy.samples:.2g} points, more than {spelled('max_drop')}"
        )
    if built.corrections is not None and built.corrections.failed:
        notes.append(f"biases are not corrected: {built.corrections.failed}")
    result = built.model
    integers: tuple[IntegerTensor, ...] = ()
    if int8_io:
        integers, stay = exchange_integers(result.proto)
        notes += [f"{spelled('int8_io')}: {len(integers)} inputs and outputs hold integers now, and not floats", *stay]
    if result is source:
        notes.append("nothing was quantised: the result is the source")
    else:
        compact(result.proto, source.proto, options)
        notes += _texts(result)
        if note := ensure_valid(source, skeleton(result)):
            notes.append(note)
        if options.integers == "int8":
            notes.append(_int8_on_x86())
    verified, whole = options.verify != "none", result is not source
    if not parts.unseen and verified:
        notes.append("too few samples to hold any out: the error is measured on those of the calibration")
    announce(progress, "measuring the error")
    outputs = measure(source, result, dataset, parts.verified, runtime) if verified else ()
    speed = measure_speed(source, result, dataset, parts.verified, runtime) if verified and whole else None
    sizes = size_bytes(source), size_bytes(result)
    compared = None
    if options.layers:
        feeding = Feeding(dataset, indices=tuple(parts.verified))
        compared, why_not = layers_report(source, result, feeding, runtime, progress)
        notes += [why_not] if why_not else []
    report = QuantizeReport(
        source=model_info(source),
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        options={**options.as_json(model=model), "activations": options.integers},
        data=dataset.source,
        preprocessing=dataset.preprocessing,
        calibration_samples=len(parts.fitted),
        measured_samples=len(parts.verified) if verified else 0,
        held_out=parts.unseen,
        nodes=built.rows,
        outputs=outputs,
        bias_correction=_correction(builder, built),
        integers=integers,
        accuracy=accuracy,
        speed=speed,
        missed=_missed(accuracy, outputs, options),
        warnings=tuple(warnings(options, sizes, speed, outputs)) if whole else (),
        notes=tuple(notes),
        layers=compared,
        seconds=time.perf_counter() - started,
    )
    if max_error is not None and report.relative > max_error:
        failure = failure or too_far(report.relative, max_error)
    if failure:
        raise VerificationError(f"{failure}; nothing was written", report)
    return QuantizeResult(result, report, reads=reads)


def _missed(
    accuracy: AccuracyDrop | None, outputs: Sequence[OutputError], options: QuantizeOptions
) -> tuple[MissedLimit, ...]:
    found = missed_error(max((one.relative for one in outputs), default=0.0), options.max_error)
    if accuracy is None or accuracy.drop <= accuracy.limit:
        return found
    nearest = rounded_up(accuracy.drop)
    return (MissedLimit(limit="max_drop", allowed=accuracy.limit, measured=accuracy.drop, nearest=nearest), *found)


def _corrector(data: Dataset, parts: Partition, options: RuntimeOptions, progress: Progress | None) -> Correct:
    def correct(prepared: onnx.ModelProto, simulated: onnx.ModelProto, quantized: Collection[str]) -> Corrections:
        return find_corrections(prepared, simulated, quantized, data, parts.fitted, options, progress)

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
    parts: Partition,
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
        outputs = measure(builder.source, builder.build(spared, quick=True).model, data, parts.verified, options)
        return max((found.relative for found in outputs), default=0.0)

    found = spare(builder.layers(built.rows), drop, error, limit, progress)
    if found.names:
        built = builder.build(found.names, f"{spelled('max_drop')}: it costs too much accuracy")
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


def _texts(result: Model) -> list[str]:
    """What the user's nodes say may be more than all the rest, as in files of PyTorch's exporter."""
    held = [
        onnx.NodeProto(doc_string=node.doc_string, metadata_props=node.metadata_props)
        for node in result.proto.graph.node
    ]
    size, whole = sum(node.ByteSize() for node in held), size_bytes(result)
    if size < _MANY_TEXTS * whole:
        return []
    return [
        f"{size:,} of the {whole:,} bytes are metadata and texts of your nodes;"
        f" {spelled('names', 'short')} leaves them out"
    ]


def _int8_on_x86() -> str:
    """As measured in benchmarks/quantized_latency.py."""
    return (
        "int8 activations suit ARM and microcontrollers; on x86 processors with VNNI,"
        f" {spelled('activations', 'uint8')} runs two to three times as fast in ONNX Runtime"
    )
