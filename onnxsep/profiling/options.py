"""The options of ``profile``."""

from onnxsep.options.specs import record
from onnxsep.planner.budget_options import Forms, Quantizing
from onnxsep.planner.which_layers import WhichLayers
from onnxsep.running.options import Opening, Seeded, Shaped, Telling


@record
class ProfileOptions(Quantizing, Forms, WhichLayers, Opening, Shaped, Seeded, Telling):
    """What ``profile`` is asked for."""
