"""What a graph tells of a Conv without data, for the start of its factors."""

import numpy as np

from onnxsep.algebra.linalg import Array
from onnxsep.algebra.weight_metric import Inputs
from onnxsep.engine.matches import ConvSite
from onnxsep.engine.sites import Sites
from onnxsep.errors import FactorizationError
from onnxsep.graph.constants import read_constant
from onnxsep.graph.places import Constant
from onnxsep.model.io import Model
from onnxsep.modes.base import Task


def start_task(model: Model, sites: Sites, site: ConvSite, weight: Array) -> Task:
    """The Conv with what stands before and behind it.

    Args:
        model: the source.
        sites: its convolutions.
        site: one of them.
        weight: of it, [out_channels, in_channels / group, *kernel_shape].
    """
    inputs = _inputs(model, sites, site)
    return Task(
        site.conv, weight, inputs=inputs, gains=None if inputs is None else normalization_gains(model, sites, site)
    )


def _inputs(model: Model, sites: Sites, site: ConvSite) -> Inputs | None:
    """What is known of what it reads."""
    if site.rectified:
        return Inputs(smooth=site.smooth)
    if site.input_moments is None:
        return None
    mean, deviation = (_vector(model, sites, one, site.conv.in_channels) for one in site.input_moments)
    return None if mean is None or deviation is None else Inputs(site.smooth, mean, np.abs(deviation))


def normalization_gains(model: Model, sites: Sites, site: ConvSite) -> Array | None:
    """What the BatchNormalization behind a Conv multiplies its outputs by; None where it cannot be used."""
    if site.normalization is None:
        return None
    scale, variance, epsilon = site.normalization
    sizes, squares = (_vector(model, sites, one, site.conv.out_channels) for one in (scale, variance))
    if sizes is None or squares is None:
        return None
    with np.errstate(all="ignore"):
        gains = sizes / np.sqrt(squares + epsilon)
    return gains if np.isfinite(gains).all() else None


def _vector(model: Model, sites: Sites, constant: Constant, size: int) -> Array | None:
    """A constant, [size]; None where it cannot be read, or is another."""
    try:
        values: Array = read_constant(model, sites.scopes, constant).astype(np.float64)
    except FactorizationError:
        return None
    return values if values.shape == (size,) and np.isfinite(values).all() else None
