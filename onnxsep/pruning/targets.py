"""Which weights may be pruned, each stored tensor once, and why the others are left alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.matches import ConvSite, Rejected
from onnxsep.engine.sites import Sites
from onnxsep.graph.constants import read_constant
from onnxsep.graph.places import Constant, Place
from onnxsep.model.io import Model
from onnxsep.options.patterns import check_patterns, left_out


@dataclass(frozen=True)
class Target:
    """One stored weight and the layers that use it.

    ``values`` are as stored; ``oriented`` puts the output channels first whatever the layer.
    """

    constant: Constant
    users: tuple[ConvSite, ...]
    values: NDArray[np.generic]

    @property
    def oriented(self) -> NDArray[np.generic]:
        """[out_channels, in_channels / group, *kernel_shape], a view of the values."""
        return self.values.T if self.users[0].transposed else self.values

    @property
    def zeros(self) -> int:
        """Elements that are zero already."""
        return self.values.size - int(np.count_nonzero(self.values))


@dataclass
class Targets:
    """What may be pruned, and by the place of each other layer why it may not."""

    found: list[Target] = field(default_factory=list)
    left: dict[Place, str] = field(default_factory=dict)


def find_targets(model: Model, sites: Sites, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Targets:
    """Read every weight that may be pruned.

    A weight that something else uses too is left alone: pruning it would change that as well.

    Args:
        model: the source.
        sites: its layers.
        only: glob patterns; a layer whose name matches none is left alone.
        skip: glob patterns; a layer whose name matches one is left alone.

    Raises:
        OptionError: a pattern matches the name of no layer.
        ModelLoadError: a weight cannot be read.
    """
    check_patterns([item.name for item in sites.found], only, skip, "layer")
    targets, users = Targets(), defaultdict[Constant, list[ConvSite]](list)
    for item in sites.found:
        if isinstance(item, Rejected):
            targets.left[item.place] = item.reason
        else:
            users[item.weight].append(item)
    for constant, found in users.items():
        reason = _reason(found, only, skip)
        if not reason:
            values = read_constant(model, sites.scopes, constant)
            if np.isfinite(values.astype(np.float32 if values.dtype.itemsize < 8 else np.float64)).all():
                targets.found.append(Target(constant, tuple(found), values))
                continue
            reason = "its weight holds NaN or infinity"
        for site in found:
            targets.left[site.place] = left_out(site.name, only, skip) or reason
    return targets


def _reason(users: Sequence[ConvSite], only: Sequence[str], skip: Sequence[str]) -> str:
    """Why the weight of these layers stays as it is; empty where it may be pruned."""
    site = users[0]
    for user in users:
        why = left_out(user.name, only, skip)
        if why:
            return f"its weight is also used by {user.op_type} {user.name!r}, which is {why}"
    if not site.stored:
        return "its weight is computed by an expression of constants; only stored weights are pruned"
    if site.pinned:
        return f"its weight is also used by {site.pinned[0]}"
    if len({user.transposed for user in users}) > 1:
        return "its weight is also used transposed, by another layer"
    return ""
