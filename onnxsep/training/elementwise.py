"""Operators that work element by element: arithmetic, comparisons and activations."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from onnxsep.training.attributes import Attributes, Builder, Call, plain

# ---------------------------------------------------------------- two tensors and more


def _binary(function: Call) -> Builder:
    """Also as opset 6 and older broadcast: the axes of the second tensor are those from ``axis`` on."""

    def build(attributes: Attributes) -> Call:
        attributes.ignore("broadcast")
        axis = attributes.get("axis")
        if axis is None:
            return function

        def call(a: Any, b: Any) -> Any:
            behind = a.dim() - axis % a.dim() - b.dim()
            return function(a, b.reshape(*b.shape, *[1] * behind))

        return call

    return build


def _divide(a: Any, b: Any) -> Any:
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _power(a: Any, b: Any) -> Any:
    if a.is_floating_point() or not b.is_floating_point():
        return torch.pow(a, b)
    return torch.pow(a.to(b.dtype), b).to(a.dtype)


def _modulo(attributes: Attributes) -> Call:
    return torch.fmod if attributes.flag("fmod") else torch.remainder


def _variadic(function: Callable[[Any, Any], Any], *, mean: bool = False) -> Builder:
    def call(*tensors: Any) -> Any:
        whole = functools.reduce(function, tensors)
        return whole / len(tensors) if mean else whole

    return plain(call)


def _shift(attributes: Attributes) -> Call:
    left = attributes.choice("direction", ("LEFT", "RIGHT")) == "LEFT"
    return torch.bitwise_left_shift if left else torch.bitwise_right_shift


# ---------------------------------------------------------------- activations


def _clip(attributes: Attributes) -> Call:
    fixed = attributes.get("min"), attributes.get("max")

    def call(x: Any, least: Any = None, most: Any = None) -> Any:
        low, high = (own if tensor is None else tensor for own, tensor in zip(fixed, (least, most), strict=True))
        if low is not None:
            x = x.clamp(min=low)
        return x if high is None else x.clamp(max=high)

    return call


def _prelu(attributes: Attributes) -> Call:
    per_channel = attributes.opset < 7

    def call(x: Any, slope: Any) -> Any:
        if per_channel and slope.numel() > 1:
            slope = slope.reshape(-1, *[1] * (x.dim() - 2))
        return torch.where(x < 0, x * slope, x)

    return call


def _leaky_relu(attributes: Attributes) -> Call:
    alpha = attributes.get("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


def _elu(attributes: Attributes) -> Call:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


def _celu(attributes: Attributes) -> Call:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


def _selu(attributes: Attributes) -> Call:
    alpha, gamma = (
        attributes.get("alpha", 1.67326319217681884765625),
        attributes.get("gamma", 1.05070102214813232421875),
    )
    return lambda x: gamma * functional.elu(x, alpha)


def _thresholded_relu(attributes: Attributes) -> Call:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _hard_sigmoid(attributes: Attributes) -> Call:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return lambda x: (x * alpha + beta).clamp(0, 1)


def _gelu(attributes: Attributes) -> Call:
    approximate = attributes.choice("approximate", ("none", "tanh"))
    return lambda x: functional.gelu(x, approximate=approximate)


def _swish(attributes: Attributes) -> Call:
    alpha = attributes.get("alpha", 1.0)
    return lambda x: x * torch.sigmoid(x * alpha)


def _shrink(attributes: Attributes) -> Call:
    bias, edge = attributes.get("bias", 0.0), attributes.get("lambd", 0.5)

    def call(x: Any) -> Any:
        return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, torch.zeros_like(x)))

    return call


def _is_inf(attributes: Attributes) -> Call:
    negative, positive = attributes.flag("detect_negative", True), attributes.flag("detect_positive", True)
    return lambda x: torch.isinf(x) & (((x < 0) & negative) | ((x > 0) & positive))


# ---------------------------------------------------------------- types

_DTYPES = {
    1: torch.float32,  # the numbers of onnx.TensorProto; every float is float32 here
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,
    11: torch.float32,
    16: torch.float32,
}


def dtype_of(number: int) -> Any:
    """The torch type for the number of a type in ONNX.

    Raises:
        NotImplementedError: There is none.
    """
    if number not in _DTYPES:
        raise NotImplementedError(f"tensors of the type {number} are not supported")
    return _DTYPES[number]


def _cast(attributes: Attributes) -> Call:
    attributes.ignore("saturate", "round_mode")
    dtype = dtype_of(attributes.need("to"))
    return lambda x: x.to(dtype)


def _cast_like(attributes: Attributes) -> Call:
    attributes.ignore("saturate", "round_mode")
    return lambda x, other: x.to(other.dtype)


TABLE: dict[str, Builder] = {
    **{
        name: plain(getattr(torch, name.lower()))
        for name in (
            *("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Sqrt", "Exp", "Log", "Erf", "Reciprocal", "IsNaN"),
            *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh"),
            *("Sigmoid", "Relu"),
        )
    },
    "Not": plain(torch.logical_not),
    "Softplus": plain(functional.softplus),
    "Softsign": plain(functional.softsign),
    "HardSwish": plain(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "Mish": plain(functional.mish),
    "BitwiseNot": plain(torch.bitwise_not),
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded_relu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Swish": _swish,
    "Shrink": _shrink,
    "PRelu": _prelu,
    "Clip": _clip,
    "IsInf": _is_inf,
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Pow": _binary(_power),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Xor": _binary(torch.logical_xor),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "BitwiseAnd": plain(torch.bitwise_and),
    "BitwiseOr": plain(torch.bitwise_or),
    "BitwiseXor": plain(torch.bitwise_xor),
    "BitShift": _shift,
    "Mod": _modulo,
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "Mean": _variadic(torch.add, mean=True),
    "Where": plain(torch.where),
    "Cast": _cast,
    "CastLike": _cast_like,
}
