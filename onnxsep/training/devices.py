"""Where training runs: the CPU, or a GPU that torch has."""

import re
from typing import Any

from onnxsep.errors import OptionError, spelled
from onnxsep.training.choices import Precision

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device(name: str) -> None:
    """Refuse a name that is none of a device.

    Raises:
        OptionError: It is not one of auto, cpu, cuda, cuda:N, mps.
    """
    if not _NAMES.fullmatch(name):
        raise OptionError(
            f"{spelled('device')} {name!r} is not one of auto, cpu, cuda, cuda:0 (or another number), mps"
        )


def find_device(torch: Any, name: str, process: int = 0, processes: int = 1) -> Any:
    """The torch device of a name.

    Args:
        torch: The package.
        name: "auto" is a GPU where torch has one, else the CPU.
        process: The number of this process on this machine: without a number in the name it takes that GPU.
        processes: How many processes train together. Apple's GPU can be used by one only.

    Raises:
        OptionError: torch has no such device, or it cannot be used by several processes.
    """
    check_device(name)
    if name == "auto":
        if torch.cuda.is_available() and process < torch.cuda.device_count():
            name = "cuda"
        else:
            name = "mps" if _has_mps(torch) and processes == 1 else "cpu"
    if name == "mps" and processes > 1:
        raise OptionError(
            f"{spelled('device', 'mps')} cannot be used by several processes; use one"
            f" process, or {spelled('device', 'cpu')}"
        )
    if name == "mps" and not _has_mps(torch):
        raise OptionError(f"{spelled('device', 'mps')}: this torch has no Apple GPU; use {spelled('device', 'cpu')}")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(name[5:]) if ":" in name else process
        if processes > 1 and ":" in name:
            raise OptionError(
                f"{spelled('device', name)} would be used by {processes} processes;"
                f" {spelled('device', 'cuda')} gives each its own"
            )
        if index >= count:
            has = f"{count} NVIDIA GPU(s)" if count else "no NVIDIA GPU"
            raise OptionError(
                f"{spelled('device', name)}: torch sees {has} and number {index} is asked"
                f" for; use {spelled('device', 'cpu')}"
            )
        name = f"cuda:{index}"
    return torch.device(name)


def quickest_precision(torch: Any, name: str) -> Precision:
    """In which precision layers are trained quickest: bfloat16 where the processor multiplies such numbers itself.

    Args:
        torch: The package.
        name: Of the device, as for :func:`find_device`.

    Raises:
        OptionError: as :func:`find_device`.
    """
    if find_device(torch, name).type != "cpu":
        return "float32"
    has = (getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile"))
    return "bfloat16" if any(known is not None and known() for known in has) else "float32"


def _has_mps(torch: Any) -> bool:
    backend = getattr(torch.backends, "mps", None)
    return backend is not None and bool(backend.is_available())
