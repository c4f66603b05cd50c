"""Decisions along teacher-forced runs: which flips a near-tie excuses, and how many of them. No graph is run."""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from runtime.differences import compare, kl_divergence
from runtime.engines.base import Floats
from runtime.limits import judge, limit_of
from runtime.manifest import Content
from verify.metrics import top2_margin
from verify.results import ForcedAccuracy

# Of the test whether an engine flips more often than the source does.
_SIGNIFICANCE = 0.001


def allowed_logit_error(golden: Floats, share: float) -> Floats:
    """Return the largest logit error that a limit of `share` of the largest logit lets pass, per row [n, V].

    With the measured error instead, "equal tokens where the margin exceeds 2 max|d|" holds for any two arrays, broken
    ones too: an error below half the margin cannot move the best token. The allowed error makes it a test.
    """
    centred = golden - golden.mean(axis=-1, keepdims=True)
    allowed: Floats = np.float32(share) * np.abs(centred).max(axis=-1)
    return allowed


def judge_forced(
    name: str,
    golden: Floats,
    actual: Floats,
    content: Content,
    *,
    head: str = "tokens",
    pool: str = "logits",
    real: bool = True,
) -> ForcedAccuracy:
    """Compare logits [n, V] f32 of one softmax, `head`, with the golden ones; `real`: they follow from a recording.

    Below fp32 another choice is excused where the golden margin is below twice what the source's own gaps between
    candidates are off by, 95 of 100 times, in that precision; in fp32, where an error within the limits explains it.
    """
    tolerances, precision = content.tolerances, content.variant
    known = tolerances.decisions.get(head)
    near_tie = 2 * known.pair_error if known is not None and precision != "fp32" else None
    margin = top2_margin(golden)
    allowed = 2 * allowed_logit_error(golden, limit_of(tolerances, precision, pool, "max_relative"))
    decisive = margin > allowed if near_tie is None else margin >= near_tie
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(actual).all(axis=-1))
    agree = (golden.argmax(axis=-1) == actual.argmax(axis=-1)) & finite
    divergence = np.where(finite, kl_divergence(golden, np.where(finite[:, None], actual, 0.0)), np.inf)
    difference = compare(actual, golden, "float32", logits=True)
    return ForcedAccuracy(
        name=name,
        head=head,
        real=real,
        positions=len(golden),
        decided=int(decisive.sum()),
        flipped=int((decisive & ~agree).sum()),
        agreed=int(agree.sum()),
        near_tie=near_tie,
        kl_max=float(divergence.max()),
        kl_mean=float(divergence.mean()),
        least_margin=float(margin.min()),
        flipped_margin=float(margin[~agree].max(initial=0)),
        difference=difference,
        judged=judge(difference, tolerances, precision, pool, logits=True),
    )


def most_flips(source_flips: int, source_positions: int, positions: int) -> int:
    """Return how many flips at `positions` are not significantly more often than the source's (p >= 0.001).

    Given all flips of both, those of an engine that flips as often are binomial by its share of the positions.
    """
    share = positions / (positions + source_positions)

    def chance(flips: int) -> float:
        both = flips + source_flips
        return sum(comb(both, i) * share**i * (1 - share) ** (both - i) for i in range(flips, both + 1))

    most = 0
    while most < positions and chance(most + 1) >= _SIGNIFICANCE:
        most += 1
    return most
