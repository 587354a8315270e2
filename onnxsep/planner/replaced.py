"""A model with some of its layers or blocks replaced."""

from collections.abc import Mapping, Sequence

import onnx

from onnxsep.engine.factors import Factorized
from onnxsep.engine.replacements import Replacement
from onnxsep.engine.surgery import replace_matches
from onnxsep.graph.places import Place
from onnxsep.model.io import Model


def replaced(model: Model, rows: Sequence[Replacement], factors: Mapping[Place, Factorized]) -> Model:
    """A changed copy; the source stays as it is.

    Args:
        model: The source.
        rows: What takes the place of what.
        factors: Of each, by its place.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    replace_matches(proto, rows, factors)
    return Model(proto, path=model.path, base_dir=model.base_dir, follow_links=model.follow_links)
