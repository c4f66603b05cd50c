"""Intervals against all resamples there are, counted out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from verify.bootstrap import LEVEL, change, estimate

# Errors and words of four recordings: 256 resamples, whose rates are far enough apart at the interval's ends.
BEFORE = [(0.0, 10.0), (1.0, 10.0), (2.0, 5.0), (9.0, 20.0)]
AFTER = [(1.0, 10.0), (1.0, 10.0), (4.0, 5.0), (9.0, 20.0)]


def rate(parts: list[tuple[float, float]]) -> float:
    return sum(errors for errors, _ in parts) / sum(words for _, words in parts)


def exact(values: list[float]) -> tuple[float, ...]:
    return tuple(np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def test_a_rate_is_of_all_recordings_together_and_its_interval_of_the_resamples() -> None:
    found = estimate(BEFORE)
    assert found is not None
    assert (found.value, found.recordings) == (pytest.approx(12 / 45), 4)
    resamples = [rate([BEFORE[i] for i in draw]) for draw in product(range(4), repeat=4)]
    assert (found.low, found.high) == pytest.approx(exact(resamples), abs=0.02)


def test_a_change_is_of_the_same_recordings() -> None:
    found = change(BEFORE, AFTER)
    assert found is not None
    assert found.value == pytest.approx(3 / 45)
    resamples = [
        rate([AFTER[i] for i in draw]) - rate([BEFORE[i] for i in draw]) for draw in product(range(4), repeat=4)
    ]
    assert (found.low, found.high) == pytest.approx(exact(resamples), abs=0.02)
    same = change(BEFORE, BEFORE)
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_what_cannot_be_told() -> None:
    one = estimate([(1.0, 4.0)])
    assert one is not None
    assert (one.value, one.low, one.high) == (0.25, None, None)
    assert estimate([]) is None
    assert estimate([(0.0, 0.0), (2.0, 0.0)]) is None
    assert estimate([(1.0, 2.0)] * 3) == estimate([(1.0, 2.0)] * 3)
