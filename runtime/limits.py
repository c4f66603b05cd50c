"""How far an output may be from golden: the larger of a constant and k times what correct implementations differ by."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from runtime.differences import Difference
from runtime.manifest import Metric, Tolerances, Variant

# What rounding may do to a score of sounds: one this close to its threshold may fall on either side.
SCORE_BAND = 0.02


class Judged(BaseModel):
    """One metric of one output against its limit; `floor` is None where none was measured, `share` is value / limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    metric: Metric
    value: float
    limit: float
    floor: float | None
    share: float


def limit_of(tolerances: Tolerances, precision: Variant, pool: str, metric: Metric) -> float:
    """Return the limit of one metric for the outputs of a pool."""
    rule = tolerances.rules[precision][metric]
    return max(rule.constant, rule.k * tolerances.floors.get(pool, {}).get(metric, 0.0))


def forced_pool(heads: Mapping[str, tuple[int, int]], head: str) -> str:
    """Return the pool of a teacher-forced run's logits: that of all logits where there is one softmax."""
    return "logits" if len(heads) == 1 else f"logits {head}"


def judge(
    difference: Difference, tolerances: Tolerances, precision: Variant, pool: str, *, logits: bool
) -> tuple[Judged, ...]:
    """Return every metric that the rules of a precision limit and that applies to the output."""
    judged = []
    for metric, rule in tolerances.rules[precision].items():
        value: float | None = getattr(difference, metric)
        if value is None or (rule.logits_only and not logits):
            continue
        limit = limit_of(tolerances, precision, pool, metric)
        floor = tolerances.floors.get(pool, {}).get(metric)
        share = math.inf if math.isinf(value) else value / limit
        judged.append(Judged(metric=metric, value=value, limit=limit, floor=floor, share=share))
    return tuple(judged)
