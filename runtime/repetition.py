"""Sees a text that goes round in circles: greedy decoding may repeat a phrase until it runs out of tokens."""

from __future__ import annotations

from collections.abc import Sequence

# Speech repeats too: somebody says no twelve times, a chorus comes back. A loop is only what is repeated at once, token
# by token, at least so often and for at least so long: over ten seconds of the fastest speech.
MIN_REPEATS = 8
MIN_TOKENS = 64
MAX_PERIOD = 32


def loop_start(tokens: Sequence[int]) -> int | None:
    """Return how many tokens to keep of a text that ends in a loop, None where it does not.

    A loop is the same 1 to 32 tokens at least 8 times in a row, and at least 64 tokens in all. What is kept ends with
    the first of them. Checked after each token, a text without a loop is left as it is.
    """
    found = _loop(tokens)
    return None if found is None else found[0]


def _loop(tokens: Sequence[int]) -> tuple[int, int] | None:
    """Return how many tokens to keep of a text that ends in a loop, and how long a round is."""
    for period in range(1, MAX_PERIOD + 1):
        length = period * max(MIN_REPEATS, -(-MIN_TOKENS // period))
        if len(tokens) < length:
            continue
        # Most periods end here, before anything is copied.
        if tokens[-1] == tokens[-1 - period] and tokens[-length:-period] == tokens[period - length :]:
            return len(tokens) - length + period, period
    return None


def without_loops(tokens: Sequence[int]) -> list[int]:
    """Return the places of `tokens` that are left where each loop is heard once; see `loop_start`."""
    kept: list[int] = []
    own: list[int] = []  # the tokens at those places
    period = 0
    for place, token in enumerate(tokens):
        if period and token == own[-period]:
            own.append(own.pop(-period))  # the loop goes on: its round turns by one
            continue
        period = 0
        kept.append(place)
        own.append(token)
        if found := _loop(own):
            count, period = found
            del kept[count:], own[count:]
    return kept
