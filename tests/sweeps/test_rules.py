"""The front, the choice of the best, and the rule that stops trials: by hand and against a slow oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equidial.errors import ArgumentError
from equidial.sweeps._front import choose, dominates, front
from equidial.sweeps._pruning import dominated_by_margin

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_dominates(found: list[tuple[int, int]]) -> None:
    slow = {i for i, p in enumerate(found) if not any(q[0] >= p[0] and q[1] <= p[1] and q != p for q in found)}
    assert set(front(found)) == slow
    assert [found[i][1] for i in front(found)] == sorted(found[i][1] for i in slow)


@given(points)
def test_the_best_is_on_the_front(found: list[tuple[int, int]]) -> None:
    if found:
        for best in (choose(found, "knee"), choose(found, "accuracy"), choose(found, max_error=6)):
            assert not any(dominates(other, found[best]) for other in found)


def test_the_choice_by_hand() -> None:
    found = [(0.5, 0.0), (0.8, 0.1), (0.9, 0.5), (1.0, 1.0), (0.7, 0.9)]
    # above the line from (0.5, 0) to (1, 1), scaled: 0, 0.6 - 0.1, 0.8 - 0.5, 0
    assert choose(found) == 1
    assert choose(found, "accuracy") == 3
    assert choose(found, max_error=0.6) == 2
    assert choose(found, max_error=0.0) == 0
    with pytest.raises(ArgumentError, match="smallest error of 0"):
        choose(found, max_error=-1.0)
    with pytest.raises(ArgumentError, match="a finished trial"):
        choose([])


@pytest.mark.parametrize("found", [[(0.5, 0.5)], [(0.5, 0.5), (0.5, 0.5)], [(0.5, 0.5), (0.4, 0.6)]])
def test_a_front_of_one_point(found: list[tuple[float, float]]) -> None:
    assert choose(found) == 0


def trial(accuracy: float, error: float, spread: float = 0.01) -> list[tuple[float, float]]:
    """Three seeds with standard deviation ``spread`` of both; the first is the mean."""
    return [(accuracy, error), (accuracy + spread, error + spread), (accuracy - spread, error - spread)]


# standard deviation 0.01; after one seed the margin is 2 * 0.01 * sqrt(2) = 0.0283, after two 0.02
FINISHED = [trial(0.9, 0.1), trial(0.8, 0.05), trial(0.5, 0.9)]


@pytest.mark.parametrize(
    ("seeds", "margin", "startup", "stopped"),
    [
        ([(0.86, 0.14)], 2.0, 3, True),
        ([(0.88, 0.14)], 2.0, 3, False),  # not beaten clearly in accuracy
        ([(0.86, 0.12)], 2.0, 3, False),  # nor here in error
        ([(0.95, 0.99)], 2.0, 3, False),  # the best accuracy
        ([(0.10, 0.01)], 2.0, 3, False),  # the least error
        ([(0.86, 0.14)], 4.0, 3, False),
        ([(0.86, 0.14)], float("inf"), 3, False),
        ([(0.86, 0.14)], 2.0, 4, False),  # too few have finished
        ([], 2.0, 3, False),
        # means of two seeds 0.88 and 0.13 against 0.905 and 0.105: gaps 0.025, margin 0.02
        ([(0.87, 0.13), (0.89, 0.13)], 2.0, 3, True),
        ([(0.87, 0.13), (0.91, 0.13)], 2.0, 3, False),
    ],
)
def test_the_rule_by_hand(seeds: list[tuple[float, float]], margin: float, startup: int, stopped: bool) -> None:
    assert dominated_by_margin(seeds, FINISHED, margin, startup) is stopped


def test_what_is_equal_up_to_chance_is_hardly_ever_stopped() -> None:
    """One distribution: beaten by one of eleven, in two independent objectives by two deviations each, is rare.

    The difference of two draws exceeds two of its deviations with probability 0.0228; eleven times its square bounds
    the rate by 0.0057, to which the estimate of the spread and four deviations of the count are added.
    """
    groups = np.random.default_rng(0).normal(0.5, 0.01, (2000, 12, 3, 2))
    rate = np.mean([dominated_by_margin(group[0][:1], group[1:], 2.0, 10) for group in groups])
    assert 0.0005 < rate < 0.0057 * 1.15 + 4 * (0.0057 / 2000) ** 0.5


def test_one_seed_never_stops_anything() -> None:
    assert dominated_by_margin([(0.0, 1.0)], [[(1.0, 0.0)]] * 20, 0.0, 1) is False
