"""Word times of trained Whisper against openai-whisper's with the same weights (word_references.json)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trained_models import HERE, Trained, recording

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import open_recognizer
from runtime.families.whisper.options import WhisperOptions
from runtime.results import Transcript

pytestmark = pytest.mark.real

REFERENCES: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (HERE / "word_references.json").read_text(encoding="utf-8")
)
VARIANTS: dict[str, dict[str, Any]] = {"words": {}, "guarded": {"hallucination_silence_threshold": 2.0}}
# A choice between candidates that are closer, in logits, is nobody's.
NEAR_TIE = 2e-3
NEAR_S, FAR_S, SHARE = 0.0401, 0.2001, 0.95


@pytest.mark.parametrize("model", REFERENCES)
def test_words_and_their_times_are_those_of_openai_whisper(model: str, trained: Trained) -> None:
    recognizer = open_recognizer(open_artifact(trained(model, "fp32")), "onnxruntime", threads=1)
    distances: list[float] = []
    for file, variants in REFERENCES[model].items():
        for variant, reference in variants.items():
            if reference["margin"] < NEAR_TIE:
                continue
            # openai-whisper decodes at most half of the positions, and tells the language from other features.
            given = {"language": reference["language"]} if recognizer.settings.languages else {}
            options = {"temperatures": [0.0], "max_new_tokens": 224, "word_timestamps": True, **given}
            found = recognizer.recognize(
                open_audio(recording(file)), WhisperOptions.parse({**options, **VARIANTS[variant]})
            )
            assert isinstance(found, Transcript)
            ours = [word for segment in found.segments for word in segment.words or ()]
            theirs = [word for _, _, words in reference["segments"] for word in words if word[0].strip()]
            assert [word.text for word in ours] == [word[0].strip() for word in theirs], (file, variant)
            for mine, (_, start, end, probability) in zip(ours, theirs, strict=True):
                # Ours are never behind the recording's end, theirs may be.
                end_s = found.audio.duration_s
                distances += [abs(mine.start - min(start, end_s)), abs(mine.end - min(end, end_s))]
                assert mine.confidence == pytest.approx(probability, abs=5e-3)
    assert len(distances) > 100
    assert max(distances) <= FAR_S
    assert sum(distance <= NEAR_S for distance in distances) >= SHARE * len(distances)
