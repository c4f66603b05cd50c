"""The pocket model on whole recordings against NeMo: alone, in batches, on the host and on the device; errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from parakeet_nets import ITEMS, REFERENCE, reference_triples, triples

import atlasport
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.engines import open_engine
from runtime.errors import InputError
from runtime.families import family_of, open_recognizer
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.fastconformer.batches import batches
from runtime.results import Transcript

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NAMES = list(ITEMS)
RATE = 16000


@pytest.fixture(scope="module", params=["onnxruntime", "torchscript"])
def engines(parakeet_artifact: Path, request: pytest.FixtureRequest) -> ParakeetRecognizer:
    return open_recognizer(open_artifact(parakeet_artifact), request.param, threads=1)


@pytest.fixture(scope="module")
def pocket(parakeet_artifact: Path) -> ParakeetRecognizer:
    return open_recognizer(open_artifact(parakeet_artifact), threads=1)


def recording(name: str) -> Path:
    return REFERENCE / f"{name}.wav"


def recognize(recognizer: ParakeetRecognizer, path: Path, **options: Any) -> Transcript:
    return recognizer.recognize(open_audio(path), ParakeetOptions.parse(options))


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def heard(result: Transcript) -> dict[str, Any]:
    """The parts that do not depend on how it was run; probabilities to four digits."""
    parts = result.to_json()
    return {"text": parts["text"], "segments": _rounded(parts["segments"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def assert_is_nemos(result: Transcript, name: str) -> None:
    item = ITEMS[name]
    assert result.text == item["text"]
    words = [word for segment in result.segments for word in segment.words]
    found = [(word.text, word.start, word.end) for word in words]
    assert found == [(word["word"], word["start"], word["end"]) for word in item["words"]]
    assert [token.id for segment in result.segments for token in segment.token_times] == item["token_ids"]


# --- NeMo's references ---


@pytest.mark.parametrize("steps", [None, 8, 32])
def test_tokens_frames_and_durations(engines: ParakeetRecognizer, steps: int | None) -> None:
    decoder = engines.model
    recordings = [soundfile.read(recording(name), dtype="float32")[0] for name in NAMES]
    alone = [decoder.decode(decoder.encode([samples]), steps)[0] for samples in recordings]
    together = decoder.decode(decoder.encode(recordings), steps)
    padded = decoder.decode(decoder.encode([recordings[0], np.zeros(8 * RATE, np.float32)]), steps)
    for found in (alone, together, padded[:1]):
        expected = [reference_triples(name) for name in NAMES[: len(found)]]
        assert [triples(emissions) for emissions in found] == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"decode": "device"}, {"decode": "device", "decode_steps": 8}])
def test_text_and_times(engines: ParakeetRecognizer, name: str, options: dict[str, Any]) -> None:
    assert_is_nemos(recognize(engines, recording(name), **options), name)


@pytest.mark.parametrize("options", [{}, {"decode": "device"}])
@pytest.mark.parametrize("names", [NAMES, ["t4", "t1"], ["t2", "t2", "t2"], ["t3"]], ids=" ".join)
def test_a_batch_is_like_each_alone(engines: ParakeetRecognizer, names: list[str], options: dict[str, Any]) -> None:
    parsed = ParakeetOptions.parse(options)
    results = engines.recognize_batch([open_audio(recording(name)) for name in names], parsed)
    for name, result in zip(names, results, strict=True):
        assert_is_nemos(result, name)
        assert heard(recognize(engines, recording(name), **options)) == heard(result)
        assert result.audio.path == str(recording(name))


def test_python_api(parakeet_artifact: Path) -> None:
    recognizer = atlasport.open(parakeet_artifact, threads=1)
    assert recognizer.transcribe(recording("t1")).text == "Is the bird green?"


# --- lengths, clips, formats of audio ---


@pytest.mark.parametrize("options", [{}, {"decode": "device"}])
@pytest.mark.parametrize("n_samples", [1, 159, 160, 161, 319, 320, 1279, 1280, 1281, 1600])
def test_short_recordings(engines: ParakeetRecognizer, tmp_path: Path, n_samples: int, options: dict[str, Any]) -> None:
    """Down to one sample: nothing is heard, and nothing fails; nor does it disturb others in its batch."""
    samples = soundfile.read(recording("t1"), dtype="float32")[0][:n_samples]
    short = write(tmp_path / "short.wav", samples)
    result = recognize(engines, short, **options)
    assert result.audio.duration_s == pytest.approx(n_samples / RATE)
    assert all(token.start <= n_samples / RATE for segment in result.segments for token in segment.token_times)
    audios = [open_audio(short), open_audio(recording("t2"))]
    assert_is_nemos(engines.recognize_batch(audios, ParakeetOptions.parse(options))[1], "t2")


@pytest.mark.parametrize("n_samples", [*range(0, 2000, 111), 16000, 16399, 99999])
def test_frames_by_length(pocket: ParakeetRecognizer, n_samples: int) -> None:
    """As many as the encoder says."""
    decoder = pocket.model
    encoded = decoder.encode([np.zeros(n_samples, np.float32), np.zeros(16000, np.float32)])
    expected = pocket._engine.get(encoded.frames_len)
    np.testing.assert_array_equal(encoded.lengths, expected)


@pytest.mark.parametrize("options", [{}, {"attention": "windows"}, {"decode": "device"}, {"hotwords": ("radio:20",)}])
@pytest.mark.parametrize("seconds", [1, 10, 60])
def test_silence(pocket: ParakeetRecognizer, options: dict[str, Any], seconds: int) -> None:
    """NeMo hears nothing in zeros of 1 to 120 s; decoded, they are whole sentences by exact normalisation."""
    zeros = open_audio(np.zeros(seconds * RATE, np.float32), rate=RATE)
    found = pocket.recognize(zeros, ParakeetOptions.parse({"vad": False, **options}))
    assert (found.text, found.segments) == ("", ())


@pytest.mark.parametrize("options", [{}, {"decode": "device"}])
def test_silent_windows_are_not_decoded(pocket: ParakeetRecognizer, options: dict[str, Any]) -> None:
    speech = soundfile.read(recording("t2"), dtype="float32")[0]
    samples = np.concatenate([np.zeros(30 * RATE, np.float32), speech, np.zeros(30 * RATE, np.float32), speech])
    sizes = {"vad": False, "attention": "windows", "chunk_s": 6, "left_s": 2, "right_s": 1}
    found = pocket.recognize(open_audio(samples, rate=RATE), ParakeetOptions.parse({**sizes, **options}))
    assert found.text == f"{ITEMS['t2']['text']} {ITEMS['t2']['text']}"
    starts = [word.start for segment in found.segments for word in segment.words]
    seconds = len(speech) / RATE
    assert all(30 <= start <= 30 + seconds or start >= 60 + seconds for start in starts)


def test_no_time_lies_behind_the_end(pocket: ParakeetRecognizer) -> None:
    """A token's duration may reach beyond: cut anywhere, the last word ends with the recording."""
    samples = soundfile.read(recording("t2"), dtype="float32")[0]
    for count in range(len(samples) // 2, len(samples), 997):
        found = pocket.recognize(open_audio(samples[:count], rate=RATE), ParakeetOptions.parse({"vad": False}))
        ends = [one.end for segment in found.segments for one in (segment, *segment.words, *segment.token_times)]
        assert max(ends, default=0) <= count / RATE
    half = len(samples) / RATE / 2
    clip = pocket.recognize(open_audio(samples, rate=RATE), ParakeetOptions.parse({"vad": False, "clip": (0.1, half)}))
    assert all(segment.end <= half for segment in clip.segments)


def test_batches_are_of_like_lengths() -> None:
    def square(n_frames: int) -> int:
        return n_frames**2

    clips = dict.fromkeys(range(15), 12) | {15: 1437}
    assert batches(clips, square, square(5000)) == [list(range(15)), [15]]
    # By hand: the attention of four recordings of 500 frames is that of one of 1000.
    assert [len(batch) for batch in batches(dict.fromkeys(range(10), 500), square, square(1000))] == [4, 4, 2]
    assert batches({"long": 3000, "a": 10, "b": 11}, square, square(1000)) == [["a", "b"], ["long"]]
    assert batches({}, square, square(1000)) == []


def test_a_batch_takes_at_most_half_of_the_memory_that_is_left(pocket: ParakeetRecognizer) -> None:
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(meminfo["MemTotal"].split()[0]) * 1024
    hour = pocket.model.n_frames(3600 * RATE)
    assert pocket.model.bytes_of_frames(10 * hour) > total  # what a limit of ten hours would let through
    assert 0 < pocket.model.batch_bytes(36000) <= total / 2
    assert pocket.model.batch_bytes(1.0) == pocket.model.bytes_of_frames(12)


def test_one_long_recording_does_not_make_the_others_of_its_batch_long(pocket: ParakeetRecognizer) -> None:
    """15 clips of a second with one of 115 s cost 15 times the CPU and 11 times the memory of one by one."""
    speech = soundfile.read(recording("t2"), dtype="float32")[0]
    long = np.tile(speech, 12)
    audios = [open_audio(samples, rate=RATE) for samples in (speech, long, speech, speech)]
    found = pocket.recognize_batch(audios)
    assert [one.text for one in found] == [pocket.recognize(audio).text for audio in audios]
    assert found[0].counts["calls"] == 4  # front-end and encoder for the short ones, and for the long one


def test_a_clip_is_a_recording_of_its_own(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    path = SAMPLES / "joined_en.wav"
    samples, rate = soundfile.read(path, dtype="float32")
    cut = recognize(pocket, write(tmp_path / "cut.wav", samples[round(1.5 * rate) : 4 * rate], rate))
    clip = recognize(pocket, path, clip=(1.5, 4.0))
    assert clip.text == cut.text == "Turn off the radio. Close the window."
    expected = [(word.text, round(word.start + 1.5, 6)) for segment in cut.segments for word in segment.words]
    assert [(word.text, word.start) for segment in clip.segments for word in segment.words] == expected
    assert recognize(pocket, path, clip=(1.5, None)).text.startswith(clip.text)


def test_times_are_those_of_the_voice(pocket: ParakeetRecognizer) -> None:
    """Against the synthesiser's own times: sentences begin and end within 0.2 s of it."""
    known = json.loads((SAMPLES / "samples.json").read_text())["joined_en.wav"]["segments"]
    result = recognize(pocket, SAMPLES / "joined_en.wav", segment_gap_s=0.5)
    for utterance in known:
        starts, ends = ([getattr(part, side) for part in result.segments] for side in ("start", "end"))
        assert min(abs(start - utterance["start"]) for start in starts) < 0.2
        assert min(abs(end - utterance["end"]) for end in ends) < 0.2


def test_other_rates_and_channels(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    from soxr import resample

    at_48 = resample(soundfile.read(recording("t4"), dtype="float32")[0], RATE, 48000)
    result = recognize(pocket, write(tmp_path / "stereo.wav", np.stack([at_48, at_48], axis=1), 48000))
    assert result.text == ITEMS["t4"]["text"]


# --- timings and counts ---


def test_timings(pocket: ParakeetRecognizer) -> None:
    result = recognize(pocket, recording("t4"))
    assert list(result.timings) == ["load_s", "frontend_s", "encoder_s", "decode_s", "total_s", "rtf"]
    assert result.timings["rtf"] == pytest.approx(result.timings["total_s"] / result.audio.duration_s, rel=1e-3)
    assert sum(result.timings[f"{stage}_s"] for stage in ("frontend", "encoder", "decode")) < result.timings["total_s"]


def test_timings_of_a_batch_are_shared_by_length(pocket: ParakeetRecognizer) -> None:
    first, second = pocket.recognize_batch([open_audio(recording("t1")), open_audio(recording("t4"))])
    ratio = first.audio.duration_s / second.audio.duration_s
    assert first.timings["total_s"] / second.timings["total_s"] == pytest.approx(ratio, rel=1e-3)
    assert first.timings["rtf"] == second.timings["rtf"]
    assert first.counts == second.counts
    assert first.counts["audio_s"] == pytest.approx(first.audio.duration_s + second.audio.duration_s, abs=1e-3)


def test_counts(pocket: ParakeetRecognizer) -> None:
    """Two calls and three copies for a recording of any length where the host searches."""
    item = ITEMS["t4"]
    host = recognize(pocket, recording("t4")).counts
    assert (host["calls"], host["copies_in"], host["copies_out"]) == (2, 2, 1)
    # One call for each frame that was looked at.
    assert host["host_calls"] == item["joint_calls"]
    device = recognize(pocket, recording("t4"), decode="device", decode_steps=8).counts
    n_calls = -(-item["joint_calls"] // 8)
    assert (device["calls"], device["copies_in"], device["copies_out"]) == (3 + n_calls, 7, 7 * n_calls)
    assert device["host_calls"] == 0
    # A copy out waits, and so does each stage on the device at its end.
    assert (host["syncs"], device["syncs"]) == (1 + 2, 7 * n_calls + 3)


def test_operators_are_counted(parakeet_artifact: Path) -> None:
    """Those of torch's graphs; more where the device searches, the same each time."""
    recognizer = open_recognizer(open_artifact(parakeet_artifact), "torchscript", threads=1)
    counts = [
        recognize(recognizer, recording("t1"), **options).counts["operators"]
        for options in ({}, {}, {"decode": "device"}, {"decode": "device"})
    ]
    assert 0 < counts[0] == counts[1] < counts[2] == counts[3]


class Elsewhere:
    """An engine that says it is on another device."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.device = "cuda:0"
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.called.append(graph)
        return self._engine.run(graph, inputs)


@pytest.mark.parametrize("decode", ["host", "device"])
def test_where_it_runs(parakeet_artifact: Path, decode: str) -> None:
    """The encoder on the device; the search on a CPU engine of its own, or wholly on the device."""
    artifact = open_artifact(parakeet_artifact)
    engine = Elsewhere(open_engine(artifact, threads=1))
    recognizer = ParakeetRecognizer(artifact, engine, 0.0)
    result = recognize(recognizer, recording("t1"), decode=decode)
    assert_is_nemos(result, "t1")
    assert result.device == "cuda:0"
    assert result.timings["load_s"] == recognizer.model.load_s  # the artifact's own took 0.0
    if decode == "host":
        assert engine.called == ["frontend", "encoder"]
        assert result.counts["host_calls"] > 0
        assert recognizer.model.load_s > 0
    else:
        assert engine.called == ["frontend", "encoder", "step", "decode_32"]
        assert (result.counts["host_calls"], recognizer.model.load_s) == (0, 0)


# --- options and errors ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "npu"}, "option decode"),
        ({"decode_steps": 7}, r"--decode-steps: expected one that the artifact has \(8, 32\), found 7"),
        ({"confidence": "tsallis"}, "option confidence"),
        ({"aggregation": "max"}, "option aggregation"),
        ({"segment_gap_s": 0}, "option segment_gap_s"),
        ({"language": "en"}, "option language: this model's family has no such option"),
        ({"clip": (9, 10)}, "expected a start within its 1.0"),
    ],
)
def test_bad_options(pocket: ParakeetRecognizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        recognize(pocket, recording("t1"), **options)
    assert "\n" not in str(caught.value)


def test_confidence_options_change_confidence_only(pocket: ParakeetRecognizer) -> None:
    usual = recognize(pocket, recording("t2"))
    other = recognize(pocket, recording("t2"), confidence="entropy", aggregation="min")
    assert other.text == usual.text
    pairs = zip(usual.segments, other.segments, strict=True)
    assert all(a.words[0].start == b.words[0].start and a.confidence != b.confidence for a, b in pairs)


def test_family(parakeet_artifact: Path) -> None:
    family = family_of(open_artifact(parakeet_artifact))
    assert family.in_batches
    assert list(family.formats) == ["txt", "srt", "vtt", "tsv", "json"]
