"""Word times against openai-whisper's own (make_word_fits.py), against transformers' attention, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.whisper.dtw import cheapest_path
from runtime.families.whisper.hallucinations import first_hallucination, frames_past, is_anomalous, leading_silence
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.families.whisper.word_splitting import TimedWord, split_words
from runtime.families.whisper.words import Spoken, Stretch, place_words

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
FITS = json.loads(Path(__file__).with_name("word_fits_of_openai_whisper.json").read_text(encoding="utf-8"))
STAMP = 101


@pytest.fixture(scope="module")
def pocket(pocket_artifact: Path) -> WhisperRecognizer:
    return open_recognizer(open_artifact(pocket_artifact), threads=1)


def path_by_hand(cost: list[list[float]]) -> list[tuple[int, int]]:
    """Return the cheapest way by a table that is filled cell by cell."""
    best: dict[tuple[int, int], tuple[np.float32, tuple[int, int] | None]] = {}
    for i, row in enumerate(cost):
        for j, value in enumerate(row):
            both, above, left = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
            totals = {place: best[place][0] for place in (both, above, left) if place in best}
            came: tuple[int, int] | None = None
            if totals:
                least = min(totals.values())
                # Of equal ones the column, else there is but one.
                equal = [place for place, total in totals.items() if total == least]
                came = equal[0] if len(equal) == 1 else left
            best[i, j] = (np.float32(value + (best[came][0] if came else 0.0)), came)
    place: tuple[int, int] | None = (len(cost) - 1, len(cost[0]) - 1)
    way = []
    while place:
        way.append(place)
        place = best[place][1]
    return way[::-1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 12), (9, 40), (30, 31)])
def test_the_cheapest_path_is_that_of_a_table(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(sum(shape)).standard_normal(shape)
    rows, columns = cheapest_path(cost)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == path_by_hand(cost.tolist())


def test_words_begin_where_transformers_attention_says(pocket: WhisperRecognizer, pocket_checkpoint: Path) -> None:
    """Attention of all tokens in one call, normalised by torch; the pocket's words are single spaces apart."""
    audio = open_audio(SAMPLES / "short_en.wav")
    (segment,) = pocket.recognize(audio, WhisperOptions(word_timestamps=True, language="en")).segments
    model = transformers.WhisperForConditionalGeneration.from_pretrained(pocket_checkpoint, attn_implementation="eager")
    settings = pocket.settings
    text = [token for token in segment.tokens if token < settings.eot]
    start = [settings.sot, settings.languages["en"], settings.tasks["transcribe"]]
    tokens = torch.tensor([[*start, settings.no_timestamps, *text, settings.eot]])
    samples = np.concatenate(list(audio.blocks(16000)))
    n_mels = len(samples) // 160
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(pocket_checkpoint)
    mel = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features
    mel[:, :, n_mels:] = 0
    with torch.inference_mode():
        found = model(mel, decoder_input_ids=tokens, output_attentions=True)
        heads = [found.cross_attentions[layer][0, head] for layer, head in ((0, 0), (0, 1), (1, 3))]
        weights = torch.stack(heads)[..., : n_mels // 2]
        weights = weights / weights.sum(-1, keepdim=True)
        std, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        padded = torch.nn.functional.pad((weights - mean) / std, (3, 3), mode="reflect")
        matrix = padded.unfold(-1, 7, 1).median(-1).values.mean(0)[len(start) : -1]
        probabilities = found.logits[0, len(start) : -1, : settings.eot].softmax(-1)
    frames: dict[int, int] = {}
    for row, frame in path_by_hand((-matrix.double()).tolist()):
        frames.setdefault(row, frame)
    assert segment.words
    at = 0
    for word in segment.words:
        # A token at a time, until the text is the word's.
        stop = next(n for n in range(at + 1, len(text) + 1) if pocket.tokenizer.decode(text[at:n]).strip() == word.text)
        assert word.start == pytest.approx(frames[at] * 0.02)
        assert word.end == pytest.approx(frames[stop] * 0.02)
        expected = [float(probabilities[place, text[place]]) for place in range(at, stop)]
        assert word.confidence == pytest.approx(np.mean(expected), abs=1e-4)
        at = stop
    assert at == len(text)
    assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)


@pytest.mark.parametrize("case", FITS, ids=range(len(FITS)))
def test_words_and_segments_fit_as_in_openai_whisper(case: dict) -> None:
    words = [TimedWord(*word) for word in case["words"]]
    segments = [Spoken(start, end, tuple(tokens)) for start, end, tokens in case["segments"]]
    lengths = [len([token for token in segment.tokens if token != STAMP]) for segment in segments]
    place_words(words, segments, lengths, case["seek"] / 100, case["last_speech"])
    found = [
        [segment.start, segment.end, *((word.text, word.start, word.end) for word in segment.words)]
        for segment in segments
    ]
    for ours, (start, end, theirs) in zip(found, case["fit"], strict=True):
        assert ours[:2] == pytest.approx([start, end])
        assert [word[0] for word in ours[2:]] == [word[0] for word in theirs]
        for mine, other in zip(ours[2:], theirs, strict=True):
            assert mine[1:] == pytest.approx(other[1:])


def test_words_of_tokens() -> None:
    def decode(tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")

    english = [*b" So, it's me"]
    assert [word for word, _ in split_words(english, decode, "en")] == [" So", ",", " it", "'s", " me"]
    japanese = [*"今日は".encode()]
    assert split_words(japanese, decode, "ja") == [(character, [*character.encode()]) for character in "今日は"]
    assert split_words(japanese, decode, "en") == [("今日は", japanese)]
    # A byte that never makes a character is a word of its own where words are characters.
    assert [word for word, _ in split_words([0xE4, *b"ab"], decode, "zh")] == ["\ufffd", "a", "b"]


def spoken(start: float, seconds: float, probability: float) -> Spoken:
    words = [TimedWord(" w", [1], start + n * seconds, start + (n + 1) * seconds, probability) for n in range(3)]
    return Spoken(words[0].start, words[-1].end, (1, 1, 1), words)


def test_what_counts_as_made_up() -> None:
    assert is_anomalous(spoken(0.0, 0.3, 0.1))
    assert is_anomalous(spoken(0.0, 0.06, 0.9))  # each (0.133 - 0.06) x 15 = 1.1
    assert is_anomalous(spoken(0.0, 3.1, 0.9))
    assert not is_anomalous(spoken(0.0, 0.3, 0.9))
    assert not is_anomalous(None)
    window = Stretch(seek=1000, n_frames=3000, total=4000, length=3000)  # 10 to 40 s
    speech, noise = spoken(20.0, 0.3, 0.9), spoken(30.0, 0.3, 0.1)
    assert leading_silence([noise], window) == 20
    assert leading_silence([speech, noise], window) == 0
    assert first_hallucination([speech, noise], window, 0.0, 2.0) == 1
    assert first_hallucination([speech, spoken(21.5, 0.3, 0.1), spoken(23, 0.3, 0.9)], window, 0.0, 2.0) is None
    assert frames_past(noise, window, 2.0) == 2000
    assert frames_past(spoken(38.5, 0.3, 0.1), window, 2.0) == 3000
    assert frames_past(spoken(10.2, 0.3, 0.1), window, 2.0) == 100


def test_options_of_words(pocket: WhisperRecognizer) -> None:
    with pytest.raises(InputError, match=r"--hallucination-silence: .*expected --word-timestamps beside it"):
        WhisperOptions.from_flags({"--hallucination-silence": "2"})
    assert WhisperOptions.from_flags({"--hallucination-silence": "2", "--word-timestamps": True}).times_words
    audio = open_audio(SAMPLES / "short_en.wav")
    assert pocket.recognize(audio).segments[0].words is None
    # To highlight words takes their times.
    clip = pocket.recognize(audio, WhisperOptions(highlight_words=True, clip=(1.0, None)))
    times = [time for segment in clip.segments for word in segment.words or () for time in (word.start, word.end)]
    assert times
    assert times == sorted(times)
    assert times[0] >= 1.0
    assert times[-1] <= audio.info.duration_s


def test_windows_go_on_behind_the_last_word(pocket: WhisperRecognizer) -> None:
    """A recording of several windows: words cover the text, in order, whatever is skipped."""
    for options in ({}, {"hallucination_silence_threshold": 2.0}):
        given = WhisperOptions(word_timestamps=True, temperatures=(0.0,), max_new_tokens=60, **options)
        found = pocket.recognize(open_audio(SAMPLES / "joined_en.wav"), given)
        assert found.segments
        for segment in found.segments:
            assert segment.words
            assert " ".join(word.text for word in segment.words) == segment.text
            assert 0 <= segment.start < segment.end <= found.audio.duration_s
        starts = [segment.start for segment in found.segments]
        assert starts == sorted(starts)
