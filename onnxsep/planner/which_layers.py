"""The options about which layers get another form, which several commands have."""

from __future__ import annotations

from collections.abc import Sequence

from onnxsep.options.specs import Options, option, record

CONVS = "Which Convs"


@record
class WhichLayers(Options):
    """Which layers get another form."""

    include_first: bool = option(
        default=False,
        group=CONVS,
        help="Replace first Convs too (reached straight from an input).",
        doc="replace first Convs too (those reached from a graph input without passing another Conv).",
    )
    recurse: bool = option(default=False, group=CONVS, help="Replace Convs that onnxsep made.")
    only: str | Sequence[str] = option(
        default=(),
        group=CONVS,
        help="Only Convs whose name matches (glob).",
        doc="glob patterns; a Conv whose name matches none is left alone.",
    )
    skip: str | Sequence[str] = option(
        default=(),
        group=CONVS,
        help="Not the Convs whose name matches (glob).",
        doc="glob patterns; a Conv whose name matches one is left alone.",
    )
    round_ranks: int = option(
        default=0,
        help="Make channels in between multiples of this, 8 or 16.",
        doc="make channel counts multiples of this, 8 or 16, which suit ONNX Runtime; 0: as they are.",
    )

    def check(self) -> None:
        """Refuse channel counts that cannot be made multiples of such a number.

        Raises:
            OptionError: they cannot.
        """
        from onnxsep.modes.ranks import check_rounding

        super().check()
        check_rounding(self.round_ranks)
