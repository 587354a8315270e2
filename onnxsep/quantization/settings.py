"""The options of a quantisation."""

from dataclasses import dataclass
from typing import Literal, get_args

from onnxsep.errors import OptionError

Format = Literal["qdq", "qoperator"]
Activations = Literal["int8", "uint8"]
Method = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True)
class Settings:
    """How a model is quantised; weights are always int8, symmetric around 0.

    Attributes:
        format: "qdq" puts QuantizeLinear / DequantizeLinear around the float operators, which any runtime reads;
            "qoperator" uses ONNX Runtime's integer operators.
        activations: Type of the activations.
        per_channel: One scale for each output channel of a weight, else one for the whole weight.
        reduce_range: 7-bit weights, for CPUs whose 8-bit multiplication saturates (AVX2, AVX-512 without VNNI) when
            activations are uint8.
        method: How the range of an activation is chosen.
        percentile: For ``method="percentile"``: the share, in percent, of the values that the range holds.
        exclude: Glob patterns; nodes whose name matches one stay in float.
        keep_names: Keep the long names that the quantiser makes.
        equalize: Make the channels between two layers in a row alike, before all else.
        bias_correction: Give each layer's output the mean back that quantising shifts.
        int8_io: Inputs and outputs hold the integers that they are quantised to.
    """

    format: Format = "qdq"
    activations: Activations = "int8"
    per_channel: bool = True
    reduce_range: bool = False
    method: Method = "minmax"
    percentile: float | None = None
    exclude: tuple[str, ...] = ()
    keep_names: bool = False
    equalize: bool = True
    bias_correction: bool = True
    int8_io: bool = False

    def check(self) -> None:
        """Refuse values that make no sense, alone or together.

        Raises:
            OptionError: one of them cannot be used.
        """
        for option, value, known in (
            ("--format", self.format, get_args(Format)),
            ("--activations", self.activations, get_args(Activations)),
            ("--method", self.method, get_args(Method)),
        ):
            if value not in known:
                raise OptionError(f"{option} {value!r} is not one of {', '.join(known)}")
        if self.percentile is not None and self.method != "percentile":
            raise OptionError("--percentile needs --method percentile; add it, or leave out --percentile")
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise OptionError(
                f"--percentile {self.percentile:g} is not above 50 and at most 100; use one such as 99.99"
            )

    @property
    def opset(self) -> int:
        """The lowest version of the standard operators that the result can have: per-channel scales came with 13."""
        return 13 if self.format == "qdq" and self.per_channel else 11
