"""The modes that a plan chooses from."""

from collections.abc import Sequence

from onnxsep.errors import ModeNotFoundError, OptionError, spelled
from onnxsep.modes.base import AnyMode, Mode, find_mode

USUAL = ("linear-bottleneck", "depthwise", "cp", "spatial", "tucker", "channel", "pointwise")
"""Each of them is the best at some budget, of some layer."""


def forms(wanted: Sequence[str | AnyMode]) -> tuple[Mode, ...]:
    """The modes of a plan.

    Args:
        wanted: By name or as objects; nothing: the usual ones that are installed.

    Raises:
        ModeNotFoundError: There is no such mode.
        OptionError: One takes several nodes at a time, which a plan cannot name.
    """
    found: list[Mode] = []
    for one in wanted or USUAL:
        try:
            mode = find_mode(one)
        except ModeNotFoundError:
            if wanted:
                raise
            continue
        if not isinstance(mode, Mode):
            raise OptionError(
                f"{spelled('modes')} {mode.name}: it takes blocks of several nodes, and a plan is for layers"
            )
        if mode not in found:
            found.append(mode)
    return tuple(found)
