"""Which heads align: what checkpoints state, OpenAI's table, and the last layers of the decoder without either."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.families.whisper.alignment import PUBLISHED, last_half, published_heads, stated_heads
from export.registry import MODELS
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims

DIMS = WhisperDims(**MODELS["whisper-pocket"].dims)  # two layers of four heads
LAST = ((1, 0), (1, 1), (1, 2), (1, 3))


def test_heads_are_those_that_a_checkpoint_states() -> None:
    assert stated_heads([[1, 3], [0, 1], [1, 3]], DIMS, "x") == ((0, 1), (1, 3))
    assert stated_heads(None, DIMS, "x") == last_half(DIMS) == LAST


@pytest.mark.parametrize("stated", [[[7, 0], [1, 1]], [[0, 4]], [[-1, 0]], []])
def test_heads_of_another_network_do_not_count(stated: list) -> None:
    """A distilled decoder keeps the list of large-v3 and two of its layers."""
    assert stated_heads(stated, DIMS, "x") == LAST


@pytest.mark.parametrize("stated", ["heads", [1, 2], [[1]], [[0, "x"]], 5])
def test_what_is_no_list_of_heads_is_refused(stated: object) -> None:
    with pytest.raises(InputError, match="config: expected alignment_heads"):
        stated_heads(stated, DIMS, "config")


def test_openai_s_table_is_by_file(tmp_path: Path) -> None:
    (tmp_path / "own.pt").write_bytes(b"a fine-tune")
    assert published_heads(tmp_path / "own.pt", DIMS) == LAST
    assert len(PUBLISHED) == 12
    # base, as Systran's faster-whisper-base states it.
    base = PUBLISHED["ed3a0b6b1c0edf879ad9b11b1af5a0e6ab5db9205f891f668f8b0e6c6326e34e"]
    assert base.split() == ["3.1", "4.2", "4.3", "4.7", "5.1", "5.2", "5.4", "5.6"]
