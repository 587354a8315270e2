"""What computes each operator of ONNX with torch, in all its versions; see :mod:`onnxsep.training.converters`.

To add an operator, write a function that reads the node's attributes and gives a function of tensors, and put it into
the table of the module that it fits in; a form of it into ``tests/operator_forms.py``. Modules that are imported here
need torch.
"""

from onnxsep.training import (
    elementwise,
    indexing,
    matrices,
    normalizations,
    pools,
    recurrent,
    reductions,
    regions,
    resampling,
    sequences,
    shaping,
    windows,
)
from onnxsep.training.attributes import Builder

OPERATORS: dict[str, Builder] = {
    **windows.TABLE,
    **pools.TABLE,
    **matrices.TABLE,
    **normalizations.TABLE,
    **elementwise.TABLE,
    **reductions.TABLE,
    **shaping.TABLE,
    **indexing.TABLE,
    **resampling.TABLE,
    **recurrent.TABLE,
    **regions.TABLE,
    **sequences.TABLE,
}
