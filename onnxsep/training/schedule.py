"""Learning rates over a run."""

import math
from typing import Literal

Schedule = Literal["one-cycle", "constant"]
_WARM_UP = 0.1  # share of the steps


def one_cycle(step: int, steps: int) -> float:
    """The share of the largest learning rate at a step (1 to ``steps``): linear up, then along a cosine to zero."""
    warm_up = max(1, round(_WARM_UP * steps))
    if step <= warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))


def share_of_rate(schedule: Schedule, step: int, steps: int) -> float:
    """The share of the largest learning rate at a step, 1 to ``steps``."""
    return one_cycle(step, steps) if schedule == "one-cycle" else 1.0
