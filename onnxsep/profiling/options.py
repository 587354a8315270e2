"""The options of ``profile``."""

from onnxsep.errors import OptionError, spelled
from onnxsep.options.specs import record
from onnxsep.planner.budget_options import Forms, Quantizing
from onnxsep.planner.which_layers import WhichLayers
from onnxsep.running.options import Opening, Seeded, Shaped, Telling


@record
class ProfileOptions(Quantizing, Forms, WhichLayers, Opening, Shaped, Seeded, Telling):
    """What ``profile`` is asked for."""

    def check(self) -> None:
        """Refuse modes that are not there, and those that take blocks of several nodes.

        Raises:
            OptionError: An option cannot be used.
            ModeNotFoundError: There is no such mode.
        """
        from onnxsep.planner.forms import block_forms

        super().check()
        if blocks := block_forms(self.modes):
            name = blocks[0].name
            raise OptionError(f"{spelled('modes')} {name}: it takes blocks of several nodes, and a kit times layers")
