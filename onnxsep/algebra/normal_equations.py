"""What the normal equations of one factor of an einsum are made of, all other factors given.

With M = sum of others times x the objective <M G, M> - 2 <C, M> has the slope 2 (H x - b), where b is the product of C
with the other factors and

    H x = (others)^T ((others x) G)

Nothing of the size of M is needed for that: the product of the other factors with themselves over the outputs and over
all else that only they have is small (for a depthwise separable Conv it has the size of a Conv's channels squared), and
so is that of G with x. ``Step.operator`` leaves the order to ``onnxsep.algebra.contraction``, which finds these.

H is a sum of Kronecker products. The factor's letters are *bonds*, which only factors have, and *free* ones, those of
the inputs; letters of the inputs or outputs that another factor has too do not mix (*batch*): for each of them H has a
block of its own on its diagonal. A block is approximated by one Kronecker product of its partial traces,

    H ~ A (x) B / tr H,   A[free, free'] = sum over bonds,   B[bonds, bonds'] = sum over free letters

which is exact where H is one such product, as the blocks of a depthwise kernel are (A the taps' correlations, B the
products of the pointwise weights), and is the preconditioner elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Trace:
    """A partial trace of H: the einsum of the others, the others again, and G, whose letters may be tied.

    Attributes:
        equation: with ``gram`` as the last operand.
        gram: letters of G's axes as they are in the equation.
        tied: letters of G's axes before those that stand twice were made one.
        letters: the unknowns of this matrix.
    """

    equation: str
    gram: str
    tied: str
    letters: str


@dataclass(frozen=True)
class Step:
    """The einsums of one factor's normal equations H d = r."""

    own: str  # the factor's letters
    adjoint: str  # the other factors, and something of M's shape -> the factor's shape
    operator: str  # the others, the others again, G, the factor -> H times the factor
    normal: str  # the others, the others again, G -> H
    blocks: tuple["Block", ...]  # H is the Kronecker product of these, if there is more than one
    unknowns: str  # the factor's letters, but for the output where it only selects the row
    per_output: str  # the output's letter where each output has a system of its own
    shared: bool  # every output has the same system
    batch: str  # see above
    free: Trace
    bonds: Trace


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
    # The letters of the factor that the others do not have are delta functions between input and unknown: as both
    # bear the same letter, they need no operand.
    twice = [*others, *(_primed(term, output) for term in others)]
    operands = [*twice, inputs + _primed(inputs, output)]
    per_output = output if mixed else ""
    batch = "".join(letter for letter in own if letter in result and any(letter in term for term in others))
    free = "".join(letter for letter in unknowns if letter in inputs and letter not in batch)
    bonds = "".join(letter for letter in unknowns if letter not in inputs)

    def trace(letters: str) -> Trace:
        tied = output + "".join(letter for letter in own if letter not in letters)
        gram = inputs + _primed(inputs, tied)
        once = "".join(dict.fromkeys(gram))
        terms = [*others, *(_primed(term, tied) for term in others), once]
        return Trace(f"{','.join(terms)}->{batch}{letters}{letters.upper()}", once, gram, letters)

    return Step(
        own=own,
        adjoint=",".join([*others, result]) + "->" + own,
        operator=",".join([*twice, inputs + _primed(inputs, output), _primed(own, output)]) + "->" + own,
        normal=f"{','.join(operands)}->{per_output}{unknowns}{_primed(unknowns, output)}",
        blocks=() if mixed else _independent_blocks(operands, unknowns),
        unknowns=unknowns,
        per_output=per_output,
        shared=selects and not mixed,
        batch=batch,
        free=trace(free),
        bonds=trace(bonds),
    )


def _primed(letters: str, kept: str) -> str:
    """The letters of the second copy of an operand; some are the same in both."""
    return "".join(letter if letter in kept else letter.upper() for letter in letters)
