"""The options of ``quantize`` that say what the quantiser makes."""

from collections.abc import Sequence
from typing import Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.patterns import as_patterns
from onnxsep.options.specs import Options, option, record

Format = Literal["qdq", "qoperator"]
Activations = Literal["int8", "uint8"]
Method = Literal["minmax", "entropy", "percentile"]
Names = Literal["keep", "short"]
Biases = Literal["float", "int32"]


@record
class Settings(Options):
    """How a model is quantised; weights are always int8, symmetric around 0."""

    format: Format = option(
        default="qdq",
        help="qdq: float operators between QuantizeLinear and DequantizeLinear; qoperator.",
        doc='"qdq" puts QuantizeLinear / DequantizeLinear around the float operators, which any runtime reads;'
        ' "qoperator" uses ONNX Runtime\'s integer operators.',
    )
    activations: Activations | None = option(
        default=None,
        help="int8 or uint8; by default int8, and uint8 with {int8_io}.",
        doc='"int8" or "uint8"; by default int8, and uint8 with ``int8_io``.',
    )
    per_channel: bool = option(
        default=True,
        flag="--per-channel/--per-tensor",
        help="One scale for each output channel of a weight, or one.",
        doc="a scale for each output channel of a weight, else one for the whole weight.",
    )
    reduce_range: bool = option(
        default=False,
        help="7-bit weights, for CPUs without VNNI when activations are uint8.",
        doc="7-bit weights, for CPUs whose 8-bit multiplication saturates (AVX2, AVX-512 without VNNI) when activations"
        " are uint8.",
    )
    method: Method = option(
        default="minmax",
        help="How ranges of activations are found: minmax, entropy, percentile.",
        doc='how ranges of activations are found: "minmax", "entropy" or "percentile".',
    )
    percentile: float | None = option(
        default=None,
        help="Percent of the values that a range holds; 99.999 by default.",
        doc="for the last of these: the share of the values, in percent, that a range holds; 99.999 by default.",
    )
    exclude: str | Sequence[str] = option(
        default=(),
        help="Leave nodes whose name matches in float (glob).",
        doc="glob patterns; nodes whose name matches one stay in float.",
    )
    names: Names = option(
        default="keep",
        help="keep: your tensors and nodes keep their names; short: only inputs and outputs do.",
        doc='"keep": the source\'s tensors and nodes keep their names, what onnxsep makes has short ones; "short": only'
        " inputs and outputs keep theirs, and nodes have no names, texts or metadata: the smallest file.",
    )
    biases: Biases | None = option(
        default=None,
        help="float or int32 (for ONNX Runtime before 1.21); by default float where 1.21 fuses such layers.",
        doc='"float", which newer runtimes quantise themselves, or "int32". By default they are floats where ONNX'
        " Runtime 1.21 fuses layers that have such, which it does not from opset 21 on with ``per_channel``, and"
        ' integers elsewhere and with the format "qoperator".',
    )
    equalize: bool = option(
        default=True,
        flag="--equalize/--no-equalize",
        help="Scale the channels between two layers in a row alike (computes the same).",
        doc="scale channels between two layers in a row, which leaves what they compute, so that they are alike; kept"
        " where the error on samples that do not calibrate is lower with it.",
    )
    bias_correction: bool = option(
        default=True,
        flag="--bias-correction/--no-bias-correction",
        help="Change biases so that each layer's output keeps its mean over the samples.",
        doc="change biases so that the mean of each quantised layer's output, over the calibration samples, is that of"
        " the float model; kept where the error on samples that do not calibrate is lower with it.",
    )
    int8_io: bool = option(
        default=False,
        help="Float inputs and outputs become integers of the type of the activations (uint8 by default), as on a "
        "microcontroller; metadata tell scale and zero point.",
        doc="float inputs and outputs become the integers that they are quantised to, of the type of the activations."
        " The metadata tell their scales and zero points (:mod:`onnxsep.running.integer_io`), by which :func:`evaluate`"
        " feeds such a model with real numbers.",
    )

    def check(self) -> None:
        """Refuse values that make no sense, alone or together.

        Raises:
            OptionError: one of them cannot be used.
        """
        super().check()
        percentile = spelled("percentile")
        if self.percentile is not None and self.method != "percentile":
            raise OptionError(
                f"{percentile} needs {spelled('method', 'percentile')}; add it, or leave out {percentile}"
            )
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise OptionError(
                f"{percentile} {self.percentile:g} is not above 50 and at most 100; use one such as 99.99"
            )

        if self.biases == "float" and self.format == "qoperator":
            raise OptionError(
                f"{spelled('format', 'qoperator')} has biases in int32; leave out {spelled('biases', 'float')}"
            )

    @property
    def float_biases(self) -> bool:
        """Whether biases are floats."""
        return self.format == "qdq" and self.biases != "int32"

    @property
    def integers(self) -> Activations:
        """The type of the activations."""
        return self.activations or ("uint8" if self.int8_io else "int8")

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of the nodes that stay in float."""
        return as_patterns(self.exclude)

    @property
    def opset(self) -> int:
        """The lowest version of the standard operators that the result can have: per-channel scales came with 13."""
        return 13 if self.format == "qdq" and self.per_channel else 11
