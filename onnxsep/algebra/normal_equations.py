"""What the normal equations of one factor of an einsum are made of, all other factors given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Step:
    """The einsums of one factor's normal equations H d = r."""

    product: str  # all factors -> M
    adjoint: str  # the other factors, and something of M's shape -> the factor's shape
    normal: str  # the others, the others again, G -> H
    blocks: tuple["Block", ...]  # H is the Kronecker product of these, if there is more than one
    diagonal: str  # the same -> the diagonal of H
    unknowns: str  # the factor's letters, but for the output where it only selects the row
    per_output: str  # the output's letter where each output has a system of its own
    shared: bool  # every output has the same system


@dataclass(frozen=True)
class Block:
    """Some of the operands of ``normal``, connected by their letters, and the unknowns among these."""

    operands: tuple[int, ...]
    equation: str
    unknowns: str


def _independent_blocks(operands: Sequence[str], unknowns: str) -> tuple[Block, ...]:
    """Divide the operands into groups that share no letter; their Kronecker product is much cheaper to invert."""
    groups: list[tuple[set[str], list[int]]] = []
    for number, operand in enumerate(operands):
        touching = [group for group in groups if group[0] & set(operand)]
        groups = [group for group in groups if not group[0] & set(operand)]
        letters = set(operand).union(*(group[0] for group in touching))
        groups.append((letters, sorted([number, *(member for group in touching for member in group[1])])))
    blocks = []
    for letters, members in groups:
        own = "".join(letter for letter in unknowns if letter in letters)
        equation = ",".join(operands[member] for member in members) + "->" + own + own.upper()
        blocks.append(Block(tuple(members), equation, own))
    return tuple(blocks)


@cache
def normal_equations(equation: str, position: int) -> Step:
    """What the normal equations of the factor at a position of an einsum are made of."""
    left, result = equation.split("->")
    terms = left.split(",")
    output, inputs = result[0], result[1:]
    own = terms[position]
    others = [term for place, term in enumerate(terms) if place != position]
    selects = output in own
    mixed = selects and any(output in term for term in others)
    unknowns = own.replace(output, "")

    def primed(letters: str) -> str:
        return "".join(letter if letter == output else letter.upper() for letter in letters)

    # The letters of the factor that the others do not have are delta functions between input and unknown: as both
    # bear the same letter, they need no operand.
    operands = ",".join([*others, *map(primed, others), inputs + primed(inputs)])
    per_output = output if mixed else ""
    halves = unknowns + primed(unknowns)
    twice = [*others, *(_halfprimed(term, unknowns, output) for term in others)]
    inner = inputs + _halfprimed(inputs, unknowns, output)
    return Step(
        product=equation,
        adjoint=",".join([*others, result]) + "->" + own,
        normal=f"{operands}->{per_output}{halves}",
        blocks=() if mixed else _independent_blocks(operands.split(","), unknowns),
        diagonal=",".join([*twice, inner]) + f"->{per_output}{unknowns}",
        unknowns=unknowns,
        per_output=per_output,
        shared=selects and not mixed,
    )


def _halfprimed(letters: str, unknowns: str, output: str) -> str:
    """The second copy of an operand on the diagonal: letters of the unknowns are the same in both copies."""
    return "".join(letter if letter in unknowns or letter == output else letter.upper() for letter in letters)
