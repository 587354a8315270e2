"""The options about who measures for a plan, and where it is kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from onnxsep.errors import OptionError, spelled
from onnxsep.options.specs import Options, option, record

WORK = "Measuring"


@record
class Working(Options):
    """Who measures, and where it is kept."""

    workers: int = option(
        default=1,
        minimum=1,
        group=WORK,
        per_run=True,
        help="Processes that measure candidates; they share the threads. Latencies are measured by one, alone.",
        doc="processes that measure candidates; the threads are shared among them, and the plan is the same. Latencies"
        " are measured by one process, while the others wait.",
    )
    scheduler: str | None = option(
        default=None,
        group=WORK,
        metavar="tcp://HOST:8786",
        per_run=True,
        help="Measure on the workers of this Dask cluster (onnxsep[distributed]).",
        doc="the address of the scheduler of a Dask cluster, whose workers measure then; it needs"
        " ``onnxsep[distributed]`` here and there.",
    )
    latency_resource: str | None = option(
        default=None,
        group=WORK,
        metavar="NAME",
        per_run=True,
        help="With {scheduler}: measure latencies on workers that have this resource; else this machine's.",
        doc="with ``scheduler``: latencies are measured on a worker of Dask that has this resource, one at a time;"
        " None: on this machine.",
    )
    cache: str | os.PathLike[str] | None = option(
        default=None,
        group=WORK,
        typed=Path,
        metavar="FOLDER",
        writes="onnxsep.planner.cache:CACHE",
        help="Keep what is measured in this folder, and take what is there: an interrupted run goes on. By default"
        " OUT.cache, beside OUT.",
        doc="a folder in which all that is measured is kept, and found again, so that an interrupted run can go on;"
        " None: it is lost.",
    )

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            OptionError: It does.
        """
        super().check()
        if self.scheduler is not None and self.workers != 1:
            raise OptionError(
                f"{spelled('scheduler')} has workers of its own, so leave {spelled('workers')} out, or the other"
            )
        if self.scheduler is not None and not re.fullmatch(r"(\w+://)?[^\s/]+:\d+", self.scheduler):
            raise OptionError(f"{spelled('scheduler')} {self.scheduler!r} is no address such as tcp://host:8786")
        if self.latency_resource is not None and self.scheduler is None:
            raise OptionError(f"{spelled('latency_resource')} is for {spelled('scheduler')}, which is missing")

    def role(self, name: str) -> Literal["read", "written", "unused"]:
        """A cache that is not named is not written."""
        return "unused" if name == "cache" and self.cache is None else super().role(name)

    def working_given(self) -> list[str]:
        """Those of these options that were given."""
        return [name for name in ("scheduler", "latency_resource", "cache") if getattr(self, name) is not None] + (
            ["workers"] if self.workers != 1 else []
        )
