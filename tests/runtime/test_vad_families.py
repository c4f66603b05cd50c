"""Every family hears speech alone: words and times beside long silence, batches, clips, recordings without speech."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vad_weights import with_vad

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.granite_speech.recognizer import GraniteRecognizer
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.results import Transcript
from runtime.transcript_files import transcript_formats

RATE = 16000
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SPOKEN = json.loads((SAMPLES / "samples.json").read_text())
Opened = Callable[[str], Any]


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return the recogniser of an artifact with a VAD of loudness, by the name of its fixture."""
    found: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in found:
            copy = with_vad(request.getfixturevalue(name), tmp_path_factory.mktemp("vad") / "artifact")
            found[name] = open_recognizer(open_artifact(copy), threads=1)
        return found[name]

    return get


@pytest.fixture
def parakeet(opened: Opened) -> ParakeetRecognizer:
    return opened("parakeet_artifact")


@pytest.fixture
def whisper(opened: Opened) -> WhisperRecognizer:
    return opened("pocket_artifact")


@pytest.fixture
def granite(opened: Opened) -> GraniteRecognizer:
    return opened("granite_artifact")


def read(name: str) -> np.ndarray:
    return np.concatenate(list(open_audio(SAMPLES / name).blocks(RATE)))


def zeros(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def recognize(recognizer: Any, samples: np.ndarray, **options: Any) -> Transcript:
    return recognizer.recognize(open_audio(samples, rate=RATE), recognizer.options(**options))


def words(result: Transcript) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for segment in result.segments for word in segment.words]


def tokens(result: Transcript) -> list[tuple[str, float, float]]:
    return [(token.text, token.start, token.end) for s in result.segments for token in s.token_times]


# --- Parakeet ---


@pytest.mark.parametrize("silence_s", [(0, 60), (60, 0), (60, 60)])
@pytest.mark.parametrize("name", ["short_en_2.wav", "short_en_3.wav", "joined_en.wav"])
def test_parakeet_keeps_every_word_beside_a_minute_of_zeros(
    parakeet: ParakeetRecognizer, name: str, silence_s: tuple[int, int]
) -> None:
    """Features are normalised over the whole recording: without a VAD words are lost or become others."""
    samples = np.concatenate([zeros(silence_s[0]), read(name), zeros(silence_s[1])])
    alone, found = recognize(parakeet, read(name), vad=False), recognize(parakeet, samples)
    assert found.text == SPOKEN[name]["text"] == alone.text
    for pairs in (words, tokens):
        assert [part[0] for part in pairs(found)] == [part[0] for part in pairs(alone)]
        for (_, start, end), (_, own_start, own_end) in zip(pairs(found), pairs(alone), strict=True):
            # A frame of the encoder more or less: speech begins on a chunk of the VAD.
            assert (start, end) == pytest.approx((own_start + silence_s[0], own_end + silence_s[0]), abs=0.081)
    assert recognize(parakeet, samples, vad=False, full_attention_s=1000).text != found.text
    (speech,) = found.speech
    assert speech.start == pytest.approx(max(0, silence_s[0] - 0.4), abs=0.2)
    assert speech.end <= found.audio.duration_s


def test_pauses_are_in_the_times(parakeet: ParakeetRecognizer) -> None:
    """Three recordings with 20 s and 45 s between them."""
    names = ["short_en_2.wav", "joined_en.wav", "short_en_3.wav"]
    parts = [read(name) for name in names]
    samples = np.concatenate([parts[0], zeros(20), parts[1], zeros(45), parts[2]])
    found = recognize(parakeet, samples)
    assert found.text == " ".join(SPOKEN[name]["text"] for name in names)
    starts = np.cumsum([0, len(parts[0]) / RATE + 20, len(parts[1]) / RATE + 45])
    expected = [name for name in names for _ in SPOKEN[name]["text"].split()]
    for (_, start_s, end_s), name in zip(words(found), expected, strict=True):
        at = names.index(name)
        assert starts[at] - 0.1 <= start_s <= end_s <= starts[at] + len(parts[at]) / RATE + 0.1
        assert found.speech[at].start - 1e-6 <= start_s <= end_s <= found.speech[at].end + 1e-6
    times = [time for _, *pair in words(found) for time in pair]
    assert times == sorted(times)
    assert len(recognize(parakeet, samples, vad_min_silence_duration_ms=30_000).speech) == 2


def test_a_segment_ends_at_a_pause_that_was_cut_out(parakeet: ParakeetRecognizer) -> None:
    speech = read("short_en_3.wav")
    alone = words(recognize(parakeet, speech))
    cut = round((alone[4][2] + alone[5][1]) / 2 * RATE)  # Close the gate. Set the | alarm to one.
    samples = np.concatenate([speech[:cut], zeros(20), speech[cut:]])
    found, by_gap = recognize(parakeet, samples), recognize(parakeet, samples, segment_gap_s=15)
    assert words(by_gap) == words(found)
    assert [segment.text.split()[0] for segment in found.segments] == ["Close", "Set"]
    assert [segment.text.split()[0] for segment in by_gap.segments] == ["Close", "Set", words(found)[5][0]]
    assert by_gap.segments[2].start - by_gap.segments[1].end >= 15


def test_parakeet_by_windows_hears_the_same(parakeet: ParakeetRecognizer) -> None:
    samples = np.concatenate([zeros(40), read("joined_en.wav"), zeros(40), read("short_en_2.wav")])
    whole = recognize(parakeet, samples)
    windows = recognize(parakeet, samples, attention="windows", chunk_s=6)
    assert windows.text == whole.text == f"{SPOKEN['joined_en.wav']['text']} {SPOKEN['short_en_2.wav']['text']}"
    assert windows.speech == whole.speech
    with pytest.raises(InputError, match=r"found 1[0-9]\.[0-9] s, which take"):  # what is heard counts, not the file
        recognize(parakeet, samples, attention="full", full_attention_s=10)


def test_a_batch_is_each_alone(parakeet: ParakeetRecognizer) -> None:
    many = [
        np.concatenate([zeros(30), read("short_en_2.wav")]),
        zeros(5),
        read("short_en_3.wav"),
        np.concatenate([read("joined_en.wav"), zeros(30)]),
    ]
    audios = [open_audio(samples, rate=RATE) for samples in many]
    together = parakeet.recognize_batch(audios)
    alone = [recognize(parakeet, samples) for samples in many]
    assert [(found.text, words(found), found.speech) for found in together] == [
        (found.text, words(found), found.speech) for found in alone
    ]
    assert together[1].text == ""
    assert all(found.timings["vad_s"] > 0 for found in together)


def test_a_clip_of_it(parakeet: ParakeetRecognizer) -> None:
    samples = np.concatenate([read("short_en_3.wav"), zeros(30), read("short_en_2.wav"), zeros(20)])
    found = recognize(parakeet, samples, clip=(20, 45))
    assert found.text == SPOKEN["short_en_2.wav"]["text"]
    start_s = (len(samples) - len(read("short_en_2.wav"))) / RATE - 20
    assert words(found)[0][1] == pytest.approx(start_s + 0.08, abs=0.081)
    assert found.timings["rtf"] == pytest.approx(found.timings["total_s"] / 25)


# --- Whisper ---


@pytest.mark.parametrize("timestamps", [False, True])
def test_whisper_hears_what_it_hears_alone(whisper: WhisperRecognizer, *, timestamps: bool) -> None:
    speech = read("short_de.wav")
    alone = recognize(whisper, speech, timestamps=timestamps, temperatures=[0.0])
    samples = np.concatenate([zeros(32), speech, zeros(40)])
    found = recognize(whisper, samples, timestamps=timestamps, temperatures=[0.0], vad_speech_pad_ms=0)
    assert (found.text, found.language) == (alone.text, "de")
    (span,) = found.speech
    for segment, own in zip(found.segments, alone.segments, strict=True):
        assert segment.tokens == own.tokens
        assert (segment.start, segment.end) == pytest.approx((own.start + 32, own.end + 32), abs=0.04)
        assert span.start <= segment.start <= segment.end <= span.end


def test_subtitles_tell_the_recording_s_time(whisper: WhisperRecognizer, tmp_path: Path) -> None:
    samples = np.concatenate([zeros(600), read("short_en.wav")])
    found = recognize(whisper, samples, timestamps=True)
    transcript_formats()["srt"].write(found, tmp_path / "a.srt")
    assert (tmp_path / "a.srt").read_text().splitlines()[1].startswith("00:09:59,")  # the padding


# --- Granite ---


def test_granite_s_chunks_lie_where_speech_is(granite: GraniteRecognizer) -> None:
    speech = read("jfk.flac")
    samples = np.concatenate([zeros(20), speech, zeros(20), speech])
    found = recognize(granite, samples, max_new_tokens=4, chunk_s=6, vad_speech_pad_ms=0)
    assert len(found.speech) == 2
    assert len(found.segments) >= 4
    assert found.segments[0].start == found.speech[0].start == pytest.approx(20, abs=0.7)
    assert found.segments[-1].end == found.speech[-1].end <= found.audio.duration_s
    assert all(a.end <= b.start + 1e-6 for a, b in pairwise(found.segments))
    pieces: list[str] = []
    options = granite.options(max_new_tokens=4, chunk_s=6, vad_speech_pad_ms=0)
    streamed = granite.recognize(open_audio(samples, rate=RATE), options, on_text=pieces.append)
    assert "".join(pieces) == streamed.text == found.text


# --- all ---


@pytest.mark.parametrize("name", ["pocket_artifact", "parakeet_artifact", "granite_artifact"])
def test_without_speech_there_is_no_text(opened: Opened, name: str) -> None:
    recognizer, told = opened(name), []
    for seconds in (0.01, 1, 300):
        audio = open_audio(zeros(seconds), rate=RATE)
        found = recognizer.recognize(audio, recognizer.options(), lambda *now: told.append(now))
        assert (found.text, found.segments, found.speech) == ("", (), ())
        assert found.to_json()["speech"] == []
        assert found.audio.duration_s == seconds
        assert found.timings.keys() <= {"load_s", "vad_s", "decode_s", "total_s", "rtf"}
        assert found.timings["total_s"] < 5
    assert recognize(recognizer, zeros(1), vad=False).speech is None


@pytest.mark.parametrize("name", ["pocket_artifact", "parakeet_artifact", "granite_artifact"])
def test_an_artifact_without_a_vad_says_so(request: pytest.FixtureRequest, name: str) -> None:
    recognizer = open_recognizer(open_artifact(request.getfixturevalue(name)), threads=1)
    with pytest.raises(InputError, match="--vad: expected an artifact with a VAD, this has none; export"):
        recognize(recognizer, read("short_en.wav"), vad=True)


def test_options_are_refused_without_speech_too(parakeet: ParakeetRecognizer, whisper: WhisperRecognizer) -> None:
    with pytest.raises(InputError, match="--decode-steps"):
        recognize(parakeet, zeros(1), decode="device", decode_steps=7)
    with pytest.raises(InputError, match="--language"):
        recognize(whisper, zeros(1), language="klingon")


@pytest.mark.parametrize("name", ["pocket_artifact", "parakeet_artifact", "granite_artifact"])
def test_golden_runs_hear_all_of_a_recording(request: pytest.FixtureRequest, name: str) -> None:
    """The source implementation has no VAD: texts are compared without, in an artifact with one, too."""
    content = open_artifact(request.getfixturevalue(name)).content
    assert content.recordings
    assert {recording.options["vad"] for recording in content.recordings} == {False}
