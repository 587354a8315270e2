"""The language of patterns: an expression of nodes, constants and tensors that come from outside.

What the expressions mean and how they are found is in ``matching``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from onnxsep.graph.index import Index
from onnxsep.graph.places import Place

Accept = Callable[[Index, Place], str | None]
"""Looks closer at a node: None, or the reason why it is none of these, as in "has 3 groups"."""


@dataclass(frozen=True)
class Value:
    """A tensor that comes from outside and is not constant: an input, or what any other node computes."""

    role: str


@dataclass(frozen=True)
class Const:
    """A constant tensor. ``optional``: the operand may be left out."""

    role: str
    optional: bool = False


class Op:
    """The first output of a node.

    Args:
        role: What the node is in the pattern.
        op_types: One of ONNX's own operators, or several.
        operands: What it reads.
        optional: Whether it may be missing, so that its first operand stands in its place.
        any_order: Whether its operands may stand in any order; those of operators that commute always may.
        rest: Whether it may have more operands.
        accept: Looks closer at the node.

    Attributes:
        least: How many operands it has at least.
        ends: Operators of the nodes that may compute it.
        is_open: Whether it may also be a tensor that no node of the pattern computes.
    """

    def __init__(
        self,
        role: str,
        op_types: str | tuple[str, ...],
        *operands: "Operand",
        optional: bool = False,
        any_order: bool = False,
        rest: bool = False,
        accept: Accept | None = None,
    ) -> None:
        self.role, self.operands = role, operands
        self.op_types = (op_types,) if isinstance(op_types, str) else op_types
        self.optional, self.any_order, self.rest, self.accept = optional, any_order, rest, accept

        self.least = sum(1 for operand in operands if not (isinstance(operand, Const) and operand.optional))
        further = ends(operands[0]) if optional and operands else ()
        self.ends = tuple(dict.fromkeys((*self.op_types, *further)))
        self.is_open = optional and bool(operands) and is_open(operands[0])


class Either:
    """One of several forms; the first that matches is taken. Its attributes are those of ``Op``."""

    def __init__(self, *forms: "Operand") -> None:
        self.forms = forms
        self.ends = tuple(dict.fromkeys(op_type for form in forms for op_type in ends(form)))
        self.is_open = any(map(is_open, forms))


Operand: TypeAlias = Value | Const | Op | Either


def ends(pattern: Operand) -> tuple[str, ...]:
    """Operators of the nodes that may compute what an expression says."""
    return () if isinstance(pattern, Value | Const) else pattern.ends


def is_open(pattern: Operand) -> bool:
    """Whether it may be a tensor that no node of the pattern computes."""
    return isinstance(pattern, Value | Const) or pattern.is_open
