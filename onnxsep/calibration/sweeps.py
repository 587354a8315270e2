"""How many sweeps of alternating least squares a fit takes."""

from onnxsep.algebra.linalg import Array

_FIRST, _NEXT = 6, 4  # before the first round of the target behind an activation, and in each round
_SMALL = 2**16  # elements of a weight, up to which a sweep costs little beside the walk along the network
_FIRST_OF_SMALL, _NEXT_OF_SMALL = 16, 10  # low ranks need more: ResNet-20 at .148, KL .571 -> .526 (40: .526)


def sweeps_of(weight: Array) -> tuple[int, int]:
    """Before the first round, and in each further one."""
    return (_FIRST_OF_SMALL, _NEXT_OF_SMALL) if weight.size <= _SMALL else (_FIRST, _NEXT)
