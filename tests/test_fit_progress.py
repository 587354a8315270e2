"""The line of progress moves within a Conv."""

from dataclasses import dataclass, field

import numpy as np
from calibration_models import MODEL, X, fitted

from onnxsep.algebra.als import Problem, alternate
from onnxsep.options.progress import note, under


@dataclass
class Line:
    """What is told, and what is said to begin."""

    done: list[str] = field(default_factory=list)
    begun: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.done.append(what)

    def begin(self, what: str, done: int, total: int) -> None:
        self.begun.append((what, done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_it_moves_within_a_conv() -> None:
    line = Line()
    fitted(MODEL, X, progress=line, verify="none", memory_limit="8GB")
    convs = [what.partition(":")[0] for what in line.done if " -> " in what]
    assert convs
    for number, name in enumerate(convs):
        own = [
            what.partition(": ")[2] for what, done, _ in line.begun if what.startswith(f"{name}: ") and done == number
        ]
        assert own[0].startswith(("running 1 of ", "gathering"))
        assert "gathering" in own
        assert own.index("gathering") < own.index(next(what for what in own if what.startswith("fit 1 of ")))
        assert any(what.endswith((", sweep 2 of 16", ", sweep 2 of 32")) for what in own)
    assert [text for text in line.notes if text.startswith("fitting to ") and text.endswith(" of memory")]


def test_a_function_is_told_of_whole_convs_alone() -> None:
    told: list[str] = []
    fitted(MODEL, X, progress=lambda what, done, total: told.append(what), verify="none", memory_limit="8GB")
    assert told
    assert not [what for what in told if "sweep" in what or "running" in what or "memory" in what]


def test_notes_stand_under_headings() -> None:
    line = Line()
    note(under("step 2", line), "this")
    note(None, "that")
    note(lambda *told: None, "that")
    assert line.notes == ["step 2: this"]


def test_sweeps_are_told_as_they_begin() -> None:
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((4, 2)), rng.standard_normal((2, 6))]
    told: list[tuple[int, int]] = []
    problem = Problem(np.eye(6), rng.standard_normal((4, 6)))
    alternate("or,ri->oi", factors, problem, sweeps=3, tolerance=0.0, told=lambda *count: told.append(count))
    assert told == [(1, 3), (2, 3), (3, 3)]
