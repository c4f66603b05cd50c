"""Tokens to text and back: against sentencepiece, NeMo's references, and a tokenizer.json of the same vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parakeet_nets import ITEMS
from parakeet_tokens import model_bytes, pocket_tokenizer
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtime.errors import DamagedArtifactError
from runtime.fastconformer.timestamps import Span, words_of
from runtime.fastconformer.tokenizer import SubwordTokenizer

OURS = pocket_tokenizer()
THEIRS = SentencePieceProcessor(model_proto=model_bytes())


@pytest.fixture(scope="module")
def of_json(tmp_path_factory: pytest.TempPathFactory) -> SubwordTokenizer:
    """A tokenizer.json with the same pieces: a unigram model that knows no merges but spells the same way."""
    vocabulary = [(THEIRS.id_to_piece(token), -float(token)) for token in range(192)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return SubwordTokenizer(path, 192)


@pytest.mark.parametrize("name", list(ITEMS))
def test_nemos_texts(name: str) -> None:
    item = ITEMS[name]
    assert OURS.decode(item["token_ids"]) == item["text"]
    assert [OURS.pieces[token] for token in item["token_ids"]] == item["pieces"]
    assert [[OURS.texts[token]] for token in item["token_ids"]] == [row["char"] for row in item["char_offsets"]]


@settings(max_examples=100)
@given(tokens=st.lists(st.integers(0, 191), max_size=20))
def test_any_tokens(tokens: list[int]) -> None:
    """sentencepiece's text, but for a space before a punctuation mark and at the ends."""
    expected = THEIRS.decode(tokens)
    for mark in ".,?":
        expected = expected.replace(f" {mark}", mark)
    assert OURS.decode(tokens).split() == expected.split()


@settings(max_examples=100)
@given(text=st.text(alphabet="abc ABC.,?éñ世", max_size=30))
def test_encode(text: str) -> None:
    assert OURS.encode(text) == tuple(THEIRS.encode(text, out_type=int))


def test_text_comes_back() -> None:
    text = "Hello, Peter. Is the bird green?"
    assert OURS.decode(OURS.encode(text)) == text
    assert OURS.unknown not in OURS.encode(text)
    assert OURS.unknown in OURS.encode("Ärger")
    assert OURS.pieces[OURS.unknown] == "<unk>"


def test_punctuation() -> None:
    """The marks that stand for themselves; not the brackets of <unk>."""
    assert OURS.punctuation == {".", ",", "?"}


def test_of_json(of_json: SubwordTokenizer) -> None:
    assert of_json.pieces == OURS.pieces
    assert of_json.punctuation == OURS.punctuation
    assert of_json.texts[1:] == OURS.texts[1:]
    for item in ITEMS.values():
        assert of_json.decode(item["token_ids"]) == item["text"]
    text = "Close the window."
    assert of_json.decode(of_json.encode(text)) == text


def test_punctuation_within_words(tmp_path: Path) -> None:
    """As in parakeet-tdt-0.6b-v2's vocabulary: the apostrophe is a mark of its own and stays in its word."""
    pieces = ["<unk>", "[CLS]", "##-", "\u2581;", "\u2581", "\u2581don", "'", "t", "\u2581go", "%", "!"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = SubwordTokenizer(tmp_path / "tokenizer.json", len(pieces))
    assert ours.punctuation == {"'", "%", "!"}
    tokens = [5, 6, 7, 8, 10]
    assert ours.decode(tokens) == "don't go!"
    spans = [Span(place, place + 1) for place in range(5)]
    assert [word.text for word in words_of(tokens, spans, ours)] == ["don't", "go!"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"\x00\x01nothing", "expected a SentencePiece model"),
        ("tokenizer.json", b"{}", "expected a tokenizer of the tokenizers library"),
        ("tokenizer.model", None, "expected at least 193 tokens, found 192"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(model_bytes() if content is None else content)
    with pytest.raises(DamagedArtifactError, match=message) as caught:
        SubwordTokenizer(path, 193)
    assert "\n" not in str(caught.value)
