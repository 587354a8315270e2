"""The mark that a pruned model bears, and what other commands say about its zeros.

The mark says how the zeros came about; which weights are pruned is simply where they are zero.
"""

from collections.abc import Iterable

import numpy as np
import onnx

from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.graph.constants import read_constant
from onnxsep.graph.marks import PREFIX
from onnxsep.model.io import Model

SPARSITY_KEY = PREFIX + "sparsity"
_MANY = 0.2  # from this share of zeros on, a model without the mark counts as pruned


def set_mark(proto: onnx.ModelProto, value: str) -> None:
    """Write the mark into the model's metadata, in place of an older one."""
    for entry in proto.metadata_props:
        if entry.key == SPARSITY_KEY:
            entry.value = value
            return
    proto.metadata_props.add(key=SPARSITY_KEY, value=value)


def read_mark(proto: onnx.ModelProto) -> str | None:
    """What the mark says, such as "0.590400 magnitude" or "0.500000 2:4"; None where there is none."""
    return next((entry.value for entry in proto.metadata_props if entry.key == SPARSITY_KEY), None)


def counts_as_pruned(proto: onnx.ModelProto, zeros: int, weights: int) -> bool:
    """Whether a model is a pruned one: it bears the mark, or many of its weights are zero."""
    return read_mark(proto) is not None or zeros >= _MANY * weights


def dense_factor_notes(model: Model, sites: Sites, replaced: Iterable[ConvSite]) -> list[str]:
    """What a rewrite must tell about a pruned source: the factors of its weights are dense.

    Args:
        model: the source.
        sites: where the layers were found in it.
        replaced: the layers that get new factors; their weights are read.

    Returns:
        One note, or none where there are no zeros to lose: where they are few and the model bears no mark.
    """
    weights = zeros = 0
    for constant in dict.fromkeys(site.weight for site in replaced):
        values = read_constant(model, sites.scopes, constant)
        weights += values.size
        zeros += values.size - int(np.count_nonzero(values))
    if not zeros or not counts_as_pruned(model.proto, zeros, weights):
        return []
    return [
        f"the source is pruned: {zeros:,} of the {weights:,} weights of the replaced layers are zero, and their "
        "factors are dense; prune the result instead, or after it"
    ]
