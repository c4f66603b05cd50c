"""How sure the model was of a token, a word and a segment: numbers from 0 to 1, 1 being sure.

The formulas are NeMo's (nemo/collections/asr/parts/utils/asr_confidence_utils.py) with alpha = 1, over the V + 1
token probabilities p at the step that emitted the token; blanks and durations do not count:

- `max_prob`: (p_token * (V + 1) - 1) / V, which is 0 where all tokens are equally likely;
- `entropy`: 1 - H / ln(V + 1) with the Shannon (Gibbs) entropy H = -sum(p * ln(p)), linearly normalised.

NeMo's own default is another one (Tsallis' entropy, alpha 1/3, exponential): its numbers are not comparable with
these. A word's confidence is the mean, the minimum or the product of those of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

Method = Literal["max_prob", "entropy"]
Aggregation = Literal["mean", "min", "prod"]

AGGREGATIONS: dict[Aggregation, Callable[[Sequence[float]], float]] = {
    "mean": lambda values: math.fsum(values) / len(values),
    "min": min,
    "prod": math.prod,
}


def token_confidence(logprob: float, entropy: float, n_tokens: int, method: Method) -> float:
    """Return the confidence of one token out of `n_tokens`, the blank included.

    `logprob` is its natural log-probability, `entropy` that of the distribution in nats. A token that hotwords put in
    the place of a likelier one may be less likely than chance: its `max_prob` is then 0.
    """
    value = (
        (math.exp(logprob) * n_tokens - 1) / (n_tokens - 1)
        if method == "max_prob"
        else 1 - entropy / math.log(n_tokens)
    )
    return min(max(value, 0.0), 1.0)
