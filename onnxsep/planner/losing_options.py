"""The options about what a model may lose, which ``plan`` and ``rewrite`` have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxsep.data.options import DATA_GROUP, Labelled
from onnxsep.errors import OptionError, spelled
from onnxsep.options.lazy import lazy
from onnxsep.options.specs import option, record

if TYPE_CHECKING:
    from onnxsep.running.metric import Metric
else:
    __getattr__, __dir__ = lazy(__name__, {"onnxsep.running.metric": ("Metric",)})


@record
class Losing(Labelled):
    """What is lost, and how that is measured."""

    metric: str | Metric | None = option(
        default=None,
        group=DATA_GROUP,
        typed=str,
        metavar="MODULE:FUNCTION",
        help="Your own metric, as for evaluate: plans are chosen by it, and {target} drop= is what it falls by.",
        doc="a function, or ``module:function``, as for :func:`onnxsep.evaluate`: plans are chosen by what it falls by"
        " with a layer replaced, and ``drop=`` counts in it.",
    )

    def check_losing(self, target: str | Sequence[str]) -> None:
        """Refuse options about a loss where none is asked for.

        Args:
            target: What a plan is to reach; nothing where none is made.

        Raises:
            OptionError: One of them would do nothing.
        """
        from onnxsep.planner.targets import losses_of, parse_targets

        losses = losses_of(parse_targets([target] if isinstance(target, str) else target))
        if self.metric is not None and not target:
            raise OptionError(f"{spelled('metric')} is for {spelled('target')}, which chooses by it")
        accuracy = any(one.kind == "drop" for one in losses)
        if self.labels is not None and not accuracy and self.metric is None:
            raise OptionError(f"{spelled('labels')} is for {spelled('target')} drop=, such as drop=1")
        if self.output is not None and (not accuracy or self.metric is not None):
            raise OptionError(f"{spelled('output')} is for {spelled('target')} drop= without {spelled('metric')}")
