"""Which nodes make a quantisation fail: found by quantising fewer of them."""

from collections.abc import Callable, Collection, Sequence

Trial = Callable[[Sequence[str]], str]

_NEAR = 8  # nodes before a layer that may be what it fails with


def culprits(candidates: Sequence[str], layers: Collection[str], trial: Trial) -> dict[str, str]:
    """The nodes that must stay in float, with the reason.

    Of the shortest beginning of the graph that fails, the last node does it; it is found by bisection. Where that is a
    layer, and leaving one of the nodes before it is enough, too, that one is left.

    Args:
        candidates: Names of nodes, in graph order.
        layers: Those of them that have weights, for which quantising is worth most.
        trial: Quantises these and no others; says what is wrong with the result, "" where nothing is.
    """
    found: dict[str, str] = {}
    rest = list(candidates)
    while rest and (reason := trial(rest)):
        good, bad = 0, len(rest)
        while bad - good > 1:
            middle = (good + bad) // 2
            wrong = trial(rest[:middle])
            good, bad, reason = (good, middle, wrong) if wrong else (middle, bad, reason)
        place = bad - 1
        if rest[place] in layers:
            near = [other for other in range(place - 1, max(place - 1 - _NEAR, -1), -1) if rest[other] not in layers]
            enough = (other for other in near if not trial([*rest[:other], *rest[other + 1 : bad]]))
            place = next(enough, place)
        found[rest.pop(place)] = reason
    return found
