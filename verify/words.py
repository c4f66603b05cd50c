"""Whether words got worse: one-sided 95 % Clopper-Pearson bounds of the share that did. Nothing here runs a graph."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma, log

# A loss of as many words is what MLPerf's rule allows, and what is to be excluded.
LOSS_LIMIT = 0.01
_MISS = 0.05  # one side of 95 %
_HALVINGS = 40


def loss_bounds(worse: int, words: int) -> tuple[float, float]:
    """Return the lower and the upper bound of the true share of words that get worse, if `worse` of `words` did."""
    lower = _root(lambda share: 1 - _at_most(worse - 1, words, share) - _MISS) if worse else 0.0
    upper = _root(lambda share: _MISS - _at_most(worse, words, share)) if worse < words else 1.0
    return lower, upper


def answer(worse: int, words: int) -> str:
    """Return what a test says of a loss above 1 %: proven to be less, not excluded, or more."""
    lower, upper = loss_bounds(worse, words)
    found = f"{worse} of {words} words worse"
    if lower > LOSS_LIMIT:
        return f"{found}: a loss above {100 * LOSS_LIMIT:g} % is proven"
    if upper <= LOSS_LIMIT:
        return f"{found}: a loss of at most {100 * LOSS_LIMIT:g} % is proven"
    return f"{found}: a loss of up to {100 * upper:.2g} % is not excluded"


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return high


def _at_most(count: int, trials: int, share: float) -> float:
    """Return the chance of at most `count` successes."""
    if not 0 < share < 1:
        return float(share <= 0 or count >= trials)
    return sum(
        exp(
            lgamma(trials + 1) - lgamma(i + 1) - lgamma(trials - i + 1) + i * log(share) + (trials - i) * log(1 - share)
        )
        for i in range(count + 1)
    )
