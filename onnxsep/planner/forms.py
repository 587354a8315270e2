"""The modes that a plan chooses from."""

from collections.abc import Iterator, Sequence

from onnxsep.errors import ModeNotFoundError, OptionError, spelled
from onnxsep.modes.base import AnyMode, Mode, find_mode
from onnxsep.modes.block import LEAST_SQUARES, BlockMode
from onnxsep.modes.width import WidthMode

USUAL = ("linear-bottleneck", "depthwise", "cp", "spatial", "tucker", "channel", "pointwise")
"""Each of them is the best at some budget, of some layer."""


def forms(wanted: Sequence[str | AnyMode]) -> tuple[Mode, ...]:
    """The modes of a plan that take single layers.

    Args:
        wanted: By name or as objects; nothing: the usual ones that are installed.

    Raises:
        ModeNotFoundError: There is no such mode.
        OptionError: One changes the ends of what it takes, or saves nothing.
    """
    return tuple(mode for mode in _found(wanted) if isinstance(mode, Mode))


def block_forms(wanted: Sequence[str | AnyMode]) -> tuple[BlockMode, ...]:
    """The modes of a plan that take blocks of several nodes, each with the settings that are tried.

    The arguments and errors are those of ``forms``.
    """
    found: list[BlockMode] = []
    for mode in _found(wanted):
        if isinstance(mode, BlockMode):
            found += [mode] if mode.given else [mode.with_settings(settings) for settings in mode.tries]
    return tuple(found)


def _found(wanted: Sequence[str | AnyMode]) -> Iterator[Mode | BlockMode]:
    seen: list[AnyMode] = []
    for one in wanted or USUAL:
        try:
            mode = find_mode(one)
        except ModeNotFoundError:
            if wanted:
                raise
            continue
        if isinstance(mode, WidthMode) or (isinstance(mode, BlockMode) and (reason := _unfit(mode))):
            reason = "it changes the widths of layers" if isinstance(mode, WidthMode) else reason
            raise OptionError(f"{spelled('modes')} {mode.name}: {reason}, so that it is no candidate of a plan")
        if mode not in seen:
            seen.append(mode)
            yield mode


def _unfit(mode: BlockMode) -> str:
    """Why a block mode is no candidate; "" where it is one."""
    if mode.exact or mode.appends:
        return "it saves nothing by itself" if mode.appends else "it is exact, and rewrites whole networks"
    return "" if mode.fits == LEAST_SQUARES else "its new weights are not fitted block by block"
