"""LSTM, GRU and RNN, time step by time step, in the layout of ONNX's weights."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from onnxsep.training.attributes import Attributes, Builder, Call

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
Step = Callable[..., tuple[Any, ...]]
"""One time step: (input, state, weights of the direction) to the new state, whose first tensor is the output."""


def _lstm(f: Call, g: Call, h: Call, couple: bool) -> Step:
    """Gates in the order i, o, f, c; a peephole P for i, o and f."""

    def step(x: Any, state: Sequence[Any], r: Any, b: Any, p: Any) -> tuple[Any, ...]:
        hidden, cell = state
        i, o, forget, c = (x + hidden @ r.t() + b[1]).chunk(4, -1)
        p_i, p_o, p_f = (0.0, 0.0, 0.0) if p is None else p.chunk(3, -1)
        gate = f(i + p_i * cell)
        kept = 1 - gate if couple else f(forget + p_f * cell)
        cell = kept * cell + gate * g(c)
        return f(o + p_o * cell) * h(cell), cell

    return step


def _gru(f: Call, g: Call, linear_before_reset: bool) -> Step:
    """Gates in the order z, r, h."""

    def step(x: Any, state: Sequence[Any], r: Any, b: Any, _: Any) -> tuple[Any, ...]:
        (hidden,) = state
        x_z, x_r, x_h = x.chunk(3, -1)
        r_z, r_r, r_h = r.chunk(3, 0)
        b_z, b_r, b_h = b[1].chunk(3, -1)
        update, reset = f(x_z + hidden @ r_z.t() + b_z), f(x_r + hidden @ r_r.t() + b_r)
        if linear_before_reset:
            new = g(x_h + reset * (hidden @ r_h.t() + b_h))
        else:
            new = g(x_h + (reset * hidden) @ r_h.t() + b_h)
        return ((1 - update) * new + update * hidden,)

    return step


def _rnn(f: Call) -> Step:
    return lambda x, state, r, b, _: (f(x + state[0] @ r.t() + b[1]),)


def _direction(step: Step, x: Any, state: Sequence[Any], w: Any, r: Any, b: Any, p: Any) -> tuple[Any, Any]:
    """The outputs of all time steps [time, batch, hidden], and the last state."""
    driven = x @ w.t() + b[0]
    found = []
    for item in driven:
        state = step(item, state, r, b, p)
        found.append(state[0])
    return torch.stack(found), state


def _recurrent(op_type: str) -> Builder:
    cells = 2 if op_type == "LSTM" else 1

    def build(attributes: Attributes) -> Call:
        directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
        backwards = directions[attributes.choice("direction", tuple(directions))]
        batch_first = attributes.flag("layout")
        attributes.ignore("hidden_size")
        # Defaults of ONNX, which is what exporters write; others have parameters.
        names = [name.decode().lower() for name in attributes.get("activations", ())]
        names = names or [name.lower() for name in _DEFAULTS[op_type] * len(backwards)]
        if any(name not in _ACTIVATIONS for name in names) or attributes.get("clip"):
            raise NotImplementedError("clip and activations other than Sigmoid, Tanh and Relu are not supported")
        kinds: dict[str, Callable[..., Step]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
        kind = kinds[op_type]
        if op_type == "LSTM":
            kind = functools.partial(kind, couple=attributes.flag("input_forget"))
        elif op_type == "GRU":
            kind = functools.partial(kind, linear_before_reset=attributes.flag("linear_before_reset"))
        each = len(_DEFAULTS[op_type])
        steps = [
            kind(*(_ACTIVATIONS[name] for name in names[each * index : each * (index + 1)]))
            for index in range(len(backwards))
        ]

        def call(x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, *rest: Any) -> Any:
            first, peephole = list(rest[:cells]), (*rest, None, None, None)[2]
            first += [None] * (cells - len(first))
            x, *first = (t.transpose(0, 1) if batch_first and t is not None else t for t in (x, *first))
            if lengths is not None and bool((lengths != x.shape[0]).any()):
                raise NotImplementedError("sequences of different lengths are not supported")
            hidden = r.shape[-1]
            found, last = [], []
            for index, (reverse, step) in enumerate(zip(backwards, steps, strict=True)):
                bias = x.new_zeros(2, w.shape[1]) if b is None else b[index].reshape(2, -1)
                state = [x.new_zeros(x.shape[1], hidden) if t is None else t[index] for t in first]
                own = None if peephole is None else peephole[index]
                y, end = _direction(step, x.flip(0) if reverse else x, state, w[index], r[index], bias, own)
                found.append(y.flip(0) if reverse else y)
                last.append(end)
            whole, ends = torch.stack(found, 1), [torch.stack(parts) for parts in zip(*last, strict=True)]
            if batch_first:
                whole, ends = whole.permute(2, 0, 1, 3), [part.transpose(0, 1) for part in ends]
            return (whole, *ends)

        return call

    return build


TABLE: dict[str, Builder] = {name: _recurrent(name) for name in _DEFAULTS}
