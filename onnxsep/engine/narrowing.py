"""Narrowing: the channels that a width mode takes out of a model, and everything that goes with them.

Of each group the channels stay whose filters are the largest (H. Li et al. 2017: the sum over the Convs that make a
channel, of their filters' Euclidean norms, each times what a BatchNormalization behind it multiplies by). The weights
of what stays are the source's own. So the result equals the source in which nobody reads the channels that are gone.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxsep.engine.channels import Channels
from onnxsep.engine.families import Gone, Importance, WeightCounter, filter_norms
from onnxsep.engine.following import follow
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.planning import naming
from onnxsep.engine.sites import Sites
from onnxsep.engine.starts import normalization_gains
from onnxsep.errors import OptionError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.places import Place
from onnxsep.model.io import Model
from onnxsep.modes.width import Group, WidthMode
from onnxsep.options.patterns import check_patterns, left_out


@dataclass(frozen=True)
class Narrowing:
    """What is to become of the channels of a model.

    Attributes:
        channels: as they were followed.
        gone: which of them go.
        shapes: of the weights that change, by the place of the Conv, Gemm or MatMul.
        narrower: the groups that lose channels, with how many they keep.
        reasons: by the place of a Conv whose filters all stay, why.
    """

    channels: Channels
    gone: Gone
    shapes: Mapping[Place, tuple[int, ...]]
    narrower: tuple[tuple[Group, int], ...]
    reasons: Mapping[Place, str] = field(default_factory=dict)


def plan_narrowing(
    model: Model,
    sites: Sites,
    mode: WidthMode,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    weigh: bool = True,
) -> Narrowing:
    """Which channels of a model go.

    Args:
        model: the source.
        sites: its Convs, Gemms and MatMuls.
        mode: says how many channels stay.
        only: glob patterns; groups of which no Conv matches one stay.
        skip: glob patterns; groups of which a Conv matches one stay.
        weigh: compare filters; without, the last channels go and no weight is read.

    Raises:
        OptionError: a pattern matches no Conv, or what was asked for does not fit the model.
        PassError: the mode failed.
    """
    check_patterns([item.name for item in sites.found], only, skip, "convolution")
    found = _Groups(model, sites, only, skip)
    with naming(mode, ""):
        wanted = dict(mode.widths(found.groups))
    goes: set[int] = set()
    narrower: list[tuple[Group, int]] = []
    reasons: dict[Place, str] = {}
    for number, group in enumerate(found.groups):
        keeps = wanted.get(number)
        reason = _left(group, keeps, mode)
        reasons.update((place, reason) for place in found.places[number] if reason)
        if keeps is not None and not reason:
            goes.update(found.smallest(number, group.channels - keeps, weigh=weigh))
            narrower.append((group, keeps))
    gone = np.isin(found.every, list(goes))
    counter = WeightCounter(sites, found.channels)
    shapes = {
        item.place: shape
        for item in sites.found
        if isinstance(item, ConvSite) and (shape := counter.shape(item.weight, gone)) != item.conv.weight_shape
    }
    return Narrowing(found.channels, gone, shapes, tuple(narrower), reasons)


def _left(group: Group, wanted: int | None, mode: WidthMode) -> str:
    if wanted is None:
        return mode.why_not(group)
    if wanted < 1:
        raise OptionError(f"mode {mode.name}: {group.names[0]!r} cannot have {wanted} channels; give 1 or more")
    if group.stays:
        return f"its channels stay: {group.stays}"
    if wanted == group.channels:
        return f"it has {wanted} channels already"
    if wanted > group.channels:
        return f"it has {group.channels} channels, fewer than the {wanted} that were asked for"
    return ""


class _Groups:
    """The groups of a model: their Convs, and the classes of channels that these make."""

    def __init__(self, model: Model, sites: Sites, only: Sequence[str], skip: Sequence[str]) -> None:
        self._model, self._sites, self._only, self._skip = model, sites, only, skip
        self.channels = follow(model, sites)
        self.every = self.channels.classes()
        self._frozen = self.channels.frozen()
        self._at = {item.place: item for item in sites.found if isinstance(item, ConvSite)}
        makers: dict[int, list[Place]] = defaultdict(list)
        for place, ids in self.channels.filters.items():
            if place not in self.channels.depthwise:
                for one in np.unique(self.every[ids]).tolist():
                    makers[one].append(place)
        members: dict[tuple[Place, ...], list[int]] = defaultdict(list)
        for one in sorted(makers):
            members[tuple(makers[one])].append(one)
        self.places, self.classes = list(members), list(members.values())
        several = Counter(place for places in self.places for place in places)
        self.groups = [
            self._group(places, classes, any(several[place] > 1 for place in places))
            for places, classes in members.items()
        ]

    def _group(self, places: Sequence[Place], classes: Sequence[int], parted: bool) -> Group:
        convs = [self._at[place] for place in places]
        reasons = [self._frozen[one] for one in classes if one in self._frozen]
        reasons += ["only some of its channels go with those of other layers"] if parted else []
        told = ((site.name, left_out(site.name, self._only, self._skip)) for site in convs)
        reasons += [f"{name!r} is {why}" for name, why in told if why]
        return Group(
            tuple(site.conv for site in convs),
            tuple(site.name for site in convs),
            len(classes),
            any(site.first for site in convs),
            len(convs) > 1,
            reasons[0] if reasons else "",
        )

    def smallest(self, number: int, count: int, *, weigh: bool) -> list[int]:
        """The classes of a group that matter least."""
        classes = self.classes[number]
        if not weigh:
            return classes[len(classes) - count :]
        weighed = self._importance(number)
        return sorted(classes, key=lambda one: (weighed[one], one))[:count]

    def _importance(self, number: int) -> NDArray[np.float64]:
        """By class, of those of a group."""
        found, seen = Importance(len(self.every)), set()
        for place in self.places[number]:
            site = self._at[place]
            if site.weight in seen:
                continue
            seen.add(site.weight)
            norms, ones = filter_norms(read_constant(self._model, self._sites.scopes, site.weight), "l2")
            gains = normalization_gains(self._model, self._sites, site)
            found.add(self.every[self.channels.filters[place]], norms * (1 if gains is None else abs(gains)), ones)
        return found.values()
