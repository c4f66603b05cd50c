"""Trained Whisper against openai-whisper on the same weights (references.json), and against what people say was spoken.

references.json is openai-whisper's, written by make_references.py; recordings.json holds the human transcripts.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jiwer
import pytest
from trained_models import HERE, Trained, recording

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import open_recognizer
from runtime.families.whisper.options import WhisperOptions
from runtime.family import Recognizer
from runtime.results import Transcript

pytestmark = pytest.mark.real

REFERENCES: dict[str, dict[str, dict[str, Any]]] = json.loads((HERE / "references.json").read_text(encoding="utf-8"))
RECORDINGS: dict[str, dict[str, Any]] = json.loads((HERE / "recordings.json").read_text(encoding="utf-8"))
MODES: dict[str, dict[str, Any]] = {
    "timestamps": {"timestamps": True},
    "no_timestamps": {},
    "translate": {"task": "translate", "timestamps": True},
}
# Logits of two correct fp32 implementations differ by less; a choice between candidates closer than that is nobody's.
NEAR_TIE = 2e-3
CASES = [(model, file, mode) for model, files in REFERENCES.items() for file, modes in files.items() for mode in modes]


@cache
def _recognizer(trained: Trained, model: str, precision: str, engine: str) -> Recognizer:
    return open_recognizer(open_artifact(trained(model, precision)), engine, threads=1)


def hear(recognizer: Recognizer, file: str, **options: Any) -> Transcript:
    result = recognizer.recognize(open_audio(recording(file)), WhisperOptions.parse({"temperatures": [0.0], **options}))
    assert isinstance(result, Transcript)
    return result


@pytest.mark.parametrize(("model", "file", "mode"), CASES)
def test_fp32_hears_what_openai_whisper_hears(model: str, file: str, mode: str, trained: Trained):
    _compare(_recognizer(trained, model, "fp32", "onnxruntime"), model, file, mode)


@pytest.mark.parametrize("model", REFERENCES)
@pytest.mark.parametrize("mode", ["timestamps", "no_timestamps"])
def test_torchscript_hears_it_too(model: str, mode: str, trained: Trained):
    for file in ("jfk.flac", "librivox_austen_0870.wav"):
        _compare(_recognizer(trained, model, "fp32", "torchscript"), model, file, mode)


def _compare(recognizer: Recognizer, model: str, file: str, mode: str) -> None:
    reference = REFERENCES[model][file][mode]
    # openai-whisper decodes at most half of the positions.
    options = {**MODES[mode], "max_new_tokens": 224}
    if RECORDINGS[file]["language"] is None and model == "whisper-base":
        # Of what nobody speaks it takes the language from other features than the text: padded samples.
        options["language"] = reference["language"]
    ours = hear(recognizer, file, **options)
    if reference["margin"] < NEAR_TIE:
        pytest.skip(f"openai-whisper chose between candidates {reference['margin']} apart")
    assert ours.text == reference["text"]
    assert ours.language == reference["language"]
    segments = reference["segments"]
    assert len(ours.segments) == len(segments)
    for mine, theirs in zip(ours.segments, segments, strict=True):
        assert list(mine.tokens) == theirs["tokens"]
        # Ours are never behind the recording's end, theirs may be.
        times = [min(theirs[place], ours.audio.duration_s) for place in ("start", "end")]
        assert [mine.start, mine.end] == pytest.approx(times, abs=0.011)
        assert mine.avg_logprob == pytest.approx(theirs["avg_logprob"], abs=2e-3)
        assert mine.no_speech_prob == pytest.approx(theirs["no_speech_prob"], abs=2e-3)


@pytest.mark.parametrize("model", REFERENCES)
@pytest.mark.parametrize(
    ("precision", "engine"),
    [
        ("fp32", "onnxruntime"),
        ("fp32", "pt2"),
        ("fp16", "onnxruntime"),
        ("fp16", "torchscript"),
        ("bf16", "torchscript"),
    ],
)
def test_words_are_those_that_were_spoken(model: str, precision: str, engine: str, trained: Trained):
    """Errors against people's transcripts: no more than openai-whisper's own, but for one word below fp32."""
    if model == "whisper-base" and (precision, engine) in {("bf16", "torchscript"), ("fp16", "onnxruntime")}:
        pytest.skip("minutes on a CPU, and tiny.en shows it")
    recognizer = _recognizer(trained, model, precision, engine)
    said, heard, theirs = [], [], []
    for file, known in RECORDINGS.items():
        if known["text"] and known["language"] == "en":
            said.append(_plain(known["text"]))
            heard.append(_plain(hear(recognizer, file).text))
            theirs.append(_plain(REFERENCES[model][file]["no_timestamps"]["text"]))
    errors, limit = _errors(jiwer.process_words(said, heard)), _errors(jiwer.process_words(said, theirs))
    assert limit < 0.25 * sum(len(text.split()) for text in said)
    assert errors <= limit + (precision != "fp32")


@pytest.mark.parametrize(("precision", "engine"), [("fp32", "onnxruntime")])
def test_japanese_is_written_as_it_was_spoken(precision: str, engine: str, trained: Trained):
    recognizer = _recognizer(trained, "whisper-base", precision, engine)
    for file, known in RECORDINGS.items():
        if known["language"] == "ja":
            ours = hear(recognizer, file)
            theirs = REFERENCES["whisper-base"][file]["no_timestamps"]["text"]
            said = _plain(known["text"])
            assert ours.language == "ja"
            assert jiwer.cer(said, _plain(ours.text)) <= jiwer.cer(said, _plain(theirs)) + 0.03


def _errors(measures: jiwer.WordOutput) -> int:
    return int(measures.substitutions + measures.deletions + measures.insertions)


def _plain(text: str) -> str:
    clean = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()])
    return str(clean(text))
