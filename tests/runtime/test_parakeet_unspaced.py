"""Words, sentences and segments of Japanese and Chinese, whose words have no spaces between them, by hand."""

# ruff: noqa: RUF001 - their marks are the point
from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from sentencepiece import SentencePieceTrainer

from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.search import Emission
from runtime.families.parakeet_tdt.timestamps import timed_tokens
from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer
from runtime.fastconformer.transcript import timed_segments
from runtime.results import Segment

TEXTS = [
    "今日は良い天気です。明日も晴れますか？はい！",
    "我们去北京。你好吗？",
    "iPhone を 買いました。「はい。」",
    "go on",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SubwordTokenizer:
    """A SentencePiece model of characters, with bytes for those that it lacks."""
    file = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, model_type="bpe", vocab_size=330, byte_fallback=True,
        normalization_rule_name="identity",
        character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    file.write_bytes(model.getvalue())
    from sentencepiece import SentencePieceProcessor

    return SubwordTokenizer(file, SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())


def heard(tokenizer: SubwordTokenizer, pieces: Sequence[str], at: Sequence[int] = (), **options: object) -> tuple:
    """Return the segments of pieces that are found at frames `at`, two frames apart by default, one frame long."""
    frames = at or range(0, 2 * len(pieces), 2)
    rows = [
        Emission(tokenizer.pieces.index(piece.replace(" ", SPACE)), frame, 1, -0.1, 0.2)
        for piece, frame in zip(pieces, frames, strict=True)
    ]
    tokens = timed_tokens(rows, tokenizer, "max_prob")
    return timed_segments(
        tokens, tokenizer, ParakeetOptions.parse(options), 0.08, lambda *span: tuple(round(time, 6) for time in span)
    )


def words(segments: Sequence[Segment]) -> list[list[str]]:
    return [[word.text for word in segment.words] for segment in segments]


def test_each_token_is_a_word_with_its_time(tokenizer: SubwordTokenizer) -> None:
    found = heard(tokenizer, ["今", "日", "は", "良", "い"])
    assert words(found) == [["今", "日", "は", "良", "い"]]
    assert [(word.start, word.end) for word in found[0].words] == [
        (0.0, 0.08), (0.16, 0.24), (0.32, 0.4), (0.48, 0.56), (0.64, 0.72)
    ]  # fmt: skip
    assert found[0].text == "今日は良い"


def test_sentences_end_at_their_marks(tokenizer: SubwordTokenizer) -> None:
    found = heard(tokenizer, [*"今日。", *"明日？", *"はい！", *"我们"])
    assert words(found) == [["今", "日。"], ["明", "日？"], ["は", "い！"], ["我", "们"]]
    assert [segment.text for segment in found] == ["今日。", "明日？", "はい！", "我们"]
    quoted = heard(tokenizer, [*"「はい。」", *"今日"])
    assert [segment.text for segment in quoted] == ["「はい。」", "今日"]


def test_segments_end_at_pauses(tokenizer: SubwordTokenizer) -> None:
    pieces = [*"今日は良い"]
    # A frame is 0.08 s: from 0.24 to 0.80 s are 0.56, to 0.88 s 0.64.
    assert len(heard(tokenizer, pieces, [0, 2, 10, 12, 14])) == 1
    found = heard(tokenizer, pieces, [0, 2, 11, 12, 14])
    assert [segment.text for segment in found] == ["今日", "は良い"]
    assert (found[0].end, found[1].start) == (0.24, 0.88)
    assert len(heard(tokenizer, pieces, [0, 2, 11, 12, 14], segment_gap_s=1.0)) == 1
    # Words with spaces end at sentences alone, as NeMo has it.
    assert len(heard(tokenizer, [" ", "g", "o", " ", "o", "n"], [0, 1, 2, 30, 31, 32])) == 1


def test_words_of_other_scripts_stay_whole(tokenizer: SubwordTokenizer) -> None:
    found = heard(tokenizer, [" ", *"iPhone", *"を"])
    assert words(found) == [["iPhone", "を"]]
    assert found[0].text == "iPhoneを"


def test_bytes_of_a_character_are_one_word(tokenizer: SubwordTokenizer) -> None:
    """鳥 is none of the vocabulary: e9 b3 a5."""
    found = heard(tokenizer, ["今", "<0xE9>", "<0xB3>", "<0xA5>", "は"])
    assert words(found) == [["今", "鳥", "は"]]
    assert found[0].text == "今鳥は"
