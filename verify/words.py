"""Whether words got worse: one-sided 95 % Clopper-Pearson bounds of the share that did. Nothing here runs a graph.

Words of one recording are no independent trials: behind a near-tie all of them follow from it. The bounds count as many
words as would be worth the same if they were independent: by the design effect of clusters (Kish, Survey Sampling,
1965, chapter 5), with the variance of a ratio over recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, lgamma, log
from typing import TypeAlias

# A loss of as many words is what MLPerf's rule allows, and what is to be excluded.
LOSS_LIMIT = 0.01
_MISS = 0.05  # one side of 95 %
_HALVINGS = 40
Counts: TypeAlias = tuple[int, int]  # words that got worse, of so many


def independent(recordings: Sequence[Counts]) -> Counts:
    """Return words that got worse, of so many, that say as much as those of `recordings` if words were independent.

    No more than there are. One recording, some of whose words got worse, is one trial that is neither.
    """
    worse, words = (sum(counts) for counts in zip(*recordings, strict=True))
    if not 0 < worse < words:
        return worse, words
    if len(recordings) == 1:
        return 0, 1
    share = worse / words
    spread = sum((bad - share * count) ** 2 for bad, count in recordings) * len(recordings) / (len(recordings) - 1)
    effect = max(1.0, spread / (words * share * (1 - share)))
    return int(worse / effect), max(1, int(words / effect))


def loss_bounds(recordings: Sequence[Counts]) -> tuple[float, float]:
    """Return the lower and the upper bound of the true share of words that get worse."""
    worse, words = independent(recordings)
    lower = _root(lambda share: 1 - _at_most(worse - 1, words, share) - _MISS) if worse else 0.0
    upper = _root(lambda share: _MISS - _at_most(worse, words, share)) if worse < words else 1.0
    return lower, upper


def answer(recordings: Sequence[Counts]) -> str:
    """Return what a test says of a loss above 1 %: proven to be less, not excluded, or more."""
    lower, upper = loss_bounds(recordings)
    found = "{} of {} words worse".format(*(sum(counts) for counts in zip(*recordings, strict=True)))
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
