"""JSON from whoever: what it may cost is settled before it is parsed."""

from __future__ import annotations

import json
from typing import Any

# Of a safetensors file's header: some 30,000 tensors, ten values each.
MAX_HEADER_BYTES = 8 * 2**20
MAX_HEADER_VALUES = 300_000


def check_values(data: bytes, values: int) -> None:
    """Refuse a JSON text with more than so many values.

    Bytes say little: 16 MiB of `[],` are 400 MB when parsed, and gigabytes when pydantic says what is wrong with each.
    Every value stands behind a comma or an opening bracket, which are counted; those in strings, too, so that a text
    may be refused for its punctuation.

    Raises
    ------
    ValueError
        There are more.

    """
    if sum(map(data.count, (b",", b"[", b"{"))) >= values:
        raise ValueError(f"more than {values:,} values")


def load_json(data: bytes, values: int) -> Any:
    """Return what a JSON text of at most so many values holds, in UTF-8, 16 or 32, with or without a byte order mark.

    Raises
    ------
    ValueError
        It is no JSON, holds more values, or is nested too deep.

    """
    check_values(data, values)
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
