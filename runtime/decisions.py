"""What a transcript decides, one thing after the other: where another run of the same model goes another way.

`Recording.margins` has how near each of these decisions was to another; export writes them, verify reads them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

# "time" in seconds, "token", or "stop": there is no more.
Decision: TypeAlias = tuple[str, float]

# The margin where there was no choice.
SURE = float(np.finfo(np.float32).max)
_SAME_TIME_S = 1e-3


def decisions_of(segments: Sequence[Mapping[str, Any]], special: Container[int] = ()) -> list[Decision]:
    """Return what a transcript's `segments`, as in its JSON, decide, in its order.

    That is of each segment its start, its tokens but the `special` ones, its end; and that nothing follows the last.
    Tokens that have times of their own are followed by when they start.
    """
    found: list[Decision] = []
    for segment in segments:
        found.append(("time", segment["start"]))
        times = segment.get("token_times") or ()
        for place, token in enumerate(segment["tokens"]):
            if token not in special:
                found.append(("token", token))
                found += [("time", times[place]["start"])] if times else []
        found.append(("time", segment["end"]))
    return [*found, ("stop", 0.0)]


def same_decision(one: Decision, other: Decision) -> bool:
    """Return whether two decisions are the same; times to a millisecond."""
    return one[0] == other[0] and abs(one[1] - other[1]) < (_SAME_TIME_S if one[0] == "time" else 1)
