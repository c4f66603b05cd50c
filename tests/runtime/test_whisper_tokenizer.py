"""Tokens to text and back, against transformers' tokenizer of the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runtime.errors import DamagedArtifactError, InputError
from runtime.families.whisper.tokenizer import WhisperTokenizer

POCKET = Path(__file__).resolve().parents[2] / "pocket" / "whisper-pocket"
SPECIAL, TIMESTAMPS = range(640, 952), range(651, 952)
OURS = WhisperTokenizer(POCKET / "tokenizer.json", SPECIAL)
THEIRS = AutoTokenizer.from_pretrained(POCKET)


@settings(max_examples=150)
@given(tokens=st.lists(st.integers(0, 951), max_size=30))
def test_any_tokens(tokens: list[int]) -> None:
    """Special tokens and timestamps leave no text; bytes that are no character become U+FFFD."""
    text = [token for token in tokens if token not in TIMESTAMPS]
    assert OURS.decode(tokens) == THEIRS.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", ["naïve café", "日本語", "🙂👍🏽", "Straße — übel", "mañana"])
def test_characters_spread_over_tokens(text: str) -> None:
    tokens = OURS.encode_prompt(text)
    assert OURS.decode(tokens) == " " + text
    # Some token alone is no character: only together do they make one.
    assert any("�" in OURS.decode([token]) for token in tokens)


@settings(max_examples=60)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), max_size=40))
def test_prompt_ids(text: str) -> None:
    expected = THEIRS(" " + text.strip(), add_special_tokens=False).input_ids
    assert OURS.encode_prompt(text) == tuple(expected)


@pytest.mark.parametrize("text", ["<|endoftext|>", "hello <|en|>", "<|0.00|>"])
def test_special_tokens_in_a_prompt(text: str) -> None:
    with pytest.raises(InputError, match="--prompt: expected plain text, found the special token"):
        OURS.encode_prompt(text)


def test_not_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DamagedArtifactError, match="expected a tokenizer"):
        WhisperTokenizer(path, SPECIAL)
