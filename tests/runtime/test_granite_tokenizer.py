"""Granite Speech's tokenizer against transformers', and its text as a stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from granite_checkpoints import AUDIO, END_OF_TEXT, VOCABULARY, granite_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import DamagedArtifactError, InputError
from runtime.families.granite_speech.tokenizer import GraniteTokenizer

TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)


@pytest.fixture(scope="module")
def tokenizer(granite_checkpoint: Path) -> GraniteTokenizer:
    return GraniteTokenizer(granite_checkpoint / "tokenizer.json", VOCABULARY, AUDIO)


@pytest.fixture(scope="module")
def original(granite_checkpoint: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(granite_checkpoint)


@given(tokens=TOKENS)
def test_text_is_transformers(
    tokenizer: GraniteTokenizer, original: transformers.PreTrainedTokenizerBase, tokens: list[int]
) -> None:
    expected = original.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(tokens) == expected


@given(text=st.text(max_size=40))
def test_text_comes_back_from_its_tokens(tokenizer: GraniteTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_prompt(text)) == text


@given(tokens=TOKENS)
def test_a_stream_is_the_text_in_pieces(tokenizer: GraniteTokenizer, tokens: list[int]) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(tokens)


def test_a_character_streams_when_its_last_byte_is_there(tokenizer: GraniteTokenizer) -> None:
    tokens = tokenizer.encode_prompt("é日")
    assert len(tokens) == 5  # bytes: the vocabulary has no such pieces
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokens] == ["", "é", "", "", "日"]
    assert stream.finish() == ""


def test_half_a_character_comes_out_at_the_end(tokenizer: GraniteTokenizer) -> None:
    stream = tokenizer.stream()
    assert stream.push(tokenizer.encode_prompt("é")[0]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("special", ["<|audio|>", "<|end_of_text|>", "<|start_of_role|>"])
def test_a_special_token_in_an_instruction_is_refused(tokenizer: GraniteTokenizer, special: str) -> None:
    tokenizer.refuse_special("what does <|this|> mean?")
    with pytest.raises(InputError) as error:
        tokenizer.refuse_special(f"a{special} b")
    assert str(error.value) == f"--prompt: expected plain text, found the special token {special}; leave it out"


def test_special_tokens_leave_no_text(tokenizer: GraniteTokenizer) -> None:
    tokens = tokenizer.encode_prompt("hear")
    assert tokenizer.decode([AUDIO, *tokens, AUDIO, END_OF_TEXT]) == "hear"


def test_an_audio_token_that_is_not_marked_as_special_leaves_none_either(tmp_path: Path) -> None:
    library = granite_tokenizer()
    library.save(str(tmp_path / "tokenizer.json"))
    audio, other = library.token_to_id("t"), library.token_to_id("i")
    assert GraniteTokenizer(tmp_path / "tokenizer.json", VOCABULARY, audio).decode([other, audio]) == "i"


def test_padding_and_truncation_in_the_file_are_left_out(tmp_path: Path) -> None:
    library = granite_tokenizer()
    library.enable_truncation(3)
    library.enable_padding(length=100)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = GraniteTokenizer(tmp_path / "tokenizer.json", VOCABULARY, AUDIO)
    assert len(tokenizer.encode_prompt("<|audio|>" * 50)) == 50


@pytest.mark.parametrize(("text", "n_vocab", "said"), [("{}", 384, "expected a tokenizer"), (None, 300, "at most 300")])
def test_another_file_is_damage(tmp_path: Path, text: str | None, n_vocab: int, said: str) -> None:
    file = tmp_path / "tokenizer.json"
    if text is None:
        granite_tokenizer().save(str(file))
    else:
        file.write_text(text)
    with pytest.raises(DamagedArtifactError, match=said) as error:
        GraniteTokenizer(file, n_vocab, AUDIO)
    assert "\n" not in str(error.value)
