"""The order of execution with the lowest peak: against all orders, and on examples that are solved by hand."""

import random
from collections.abc import Iterator, Sequence

import pytest

from onnxsep.graph import execution_order
from onnxsep.graph.execution_order import Program, Step, best_order, peak


def all_orders(steps: Sequence[Step], done: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    if len(done) == len(steps):
        yield done
    for number, step in enumerate(steps):
        if number not in done and set(step.after) <= set(done):
            yield from all_orders(steps, (*done, number))


def simulated(program: Program, order: Sequence[int]) -> int:
    """The peak by the definition, without any bookkeeping: what is made and still has a use."""
    made, highest = set(program.given), 0
    for place, number in enumerate(order):
        step = program.steps[number]
        later = {buffer for other in order[place:] for buffer in program.steps[other].reads} | program.kept
        made = {buffer for buffer in made if buffer in later} | set(step.writes)
        highest = max(highest, sum(program.sizes[buffer] for buffer in made) + step.extra)
    return highest


def random_program(seed: int) -> Program:
    pick = random.Random(seed)
    sizes = [pick.randint(1, 9) for _ in range(pick.randint(0, 2))]
    given = frozenset(range(len(sizes)))
    makers: dict[int, int] = {}
    steps = []
    for number in range(pick.randint(1, 7)):
        reads = tuple(buffer for buffer in range(len(sizes)) if pick.random() < 0.35)
        after = tuple({makers[buffer] for buffer in reads if buffer in makers})
        writes = tuple(range(len(sizes), len(sizes) + pick.choice([0, 1, 1, 1, 2])))
        makers.update((buffer, number) for buffer in writes)
        sizes += [pick.randint(1, 9) for _ in writes]
        steps.append(Step(reads, writes, after, pick.choice([0, 0, 0, 4])))
    return Program(steps, sizes, given, frozenset(buffer for buffer in range(len(sizes)) if pick.random() < 0.15))


@pytest.mark.parametrize("seeds", [range(start, start + 60) for start in range(0, 240, 60)])
def test_no_order_has_a_lower_peak(seeds: range) -> None:
    for seed in seeds:
        program = random_program(seed)
        found = best_order(program)
        assert found.optimal
        assert found.peak == peak(program, found.steps) == simulated(program, found.steps), seed
        assert found.peak == min(simulated(program, order) for order in all_orders(program.steps)), seed


@pytest.mark.parametrize("work", [0, 20])
def test_with_little_work_the_order_is_no_worse_than_the_given_one(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_order, "_MOST_WORK", work)
    worse = 0
    for seed in range(150):
        program = random_program(seed)
        found = best_order(program)
        best = min(simulated(program, order) for order in all_orders(program.steps))
        assert best <= found.peak == simulated(program, found.steps) <= simulated(program, range(len(program.steps)))
        assert not found.optimal or found.peak == best  # what is called optimal is
        worse += found.peak > best
    assert worse  # else this tests nothing


def branches(lengths: Sequence[Sequence[int]], given: int, last: int) -> Program:
    """Chains of tensors of these sizes, all from one input, and a step that reads the last one of each."""
    sizes, steps, ends = [given], list[Step](), []
    for chain in lengths:
        source = 0
        for place, size in enumerate(chain):
            sizes.append(size)
            steps.append(Step((source,), (len(sizes) - 1,), (len(steps) - 1,) if place else ()))
            source = len(sizes) - 1
        ends.append((source, len(steps) - 1))
    sizes.append(last)
    steps.append(Step(tuple(end for end, _ in ends), (len(sizes) - 1,), tuple(maker for _, maker in ends)))
    return Program(steps, sizes, frozenset({0}), frozenset({len(sizes) - 1}))


def test_two_branches_by_hand() -> None:
    # Input of 10. One branch needs 100 and leaves 60; the other needs 150 and leaves 5. First the one that leaves 60:
    # 10 + 100, 10 + 100 + 60, then 10 + 60 + 150, and 60 + 150 + 5: 220 is the most. First the one that leaves 5:
    # 10 + 150, 10 + 150 + 5, then 10 + 5 + 100 and 100 + 60 + 5: 165.
    program = branches([(100, 60), (150, 5)], given=10, last=1)
    assert peak(program, range(5)) == 220
    found = best_order(program)
    assert (found.peak, found.optimal, found.steps) == (165, True, [2, 3, 0, 1, 4])


def test_branches_that_must_take_turns() -> None:
    # Each branch has hills of 90 and 50, with 10 between and 30 behind. One branch after the other: 10 + 30 + 90.
    program = branches([(90, 10, 50, 30), (90, 10, 50, 30)], given=10, last=1)
    assert peak(program, range(9)) == 130
    # Both hills of 90 first: 10 + 90 + 10, 10 + 10 + 90, 10 + 90 + 10 (the input is free). Then the others:
    # 10 + 10 + 50, 50 + 30 + 10, 30 + 10 + 50, 30 + 50 + 30.
    assert best_order(program).peak == 110


def test_long_chains_are_cut_into_steps() -> None:
    count = 5_000
    steps = [Step((number,), (number + 1,), (number - 1,) if number else ()) for number in range(count)]
    sizes = [1 + number % 7 for number in range(count + 1)]
    found = best_order(Program(steps, sizes, frozenset({0}), frozenset({count})))
    assert found == (list(range(count)), 13, True)  # 6 + 7


def test_wide_programs_end() -> None:
    program = branches([(50 + number % 31, 3) for number in range(300)], given=5, last=1)
    found = best_order(program)
    assert sorted(found.steps) == list(range(601))
    assert found.peak == peak(program, found.steps) <= peak(program, range(601))


def test_an_empty_program_needs_nothing() -> None:
    assert best_order(Program([], [])) == ([], 0, True)
