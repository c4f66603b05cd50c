"""The language of recordings in which nobody speaks at first, and how probable it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from whisper_reference import RATE, Reference, samples

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.whisper.language_detection import WindowLanguages, spoken_language
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.results import Transcript

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LANGUAGES = {"short_en.wav": "en", "short_de.wav": "de", "short_es.wav": "es"}


@pytest.fixture(scope="module")
def pocket(pocket_artifact: Path) -> WhisperRecognizer:
    return open_recognizer(open_artifact(pocket_artifact), threads=1)


def hear(recognizer: WhisperRecognizer, audio: np.ndarray, **options: object) -> Transcript:
    options = {"temperatures": (0.0,), "vad": False, **options}
    return recognizer.recognize(open_audio(audio.astype(np.float32), rate=RATE), WhisperOptions.parse(options))


def of(ja: float, en: float, no_speech: float) -> WindowLanguages:
    return WindowLanguages({"en": en, "ja": ja}, no_speech)


def test_windows_with_speech_decide() -> None:
    silence, speech = of(0.1, 0.9, 0.95), of(0.95, 0.05, 0.1)
    assert spoken_language([silence, silence, speech]) == ("ja", pytest.approx(0.95))
    assert spoken_language([silence] * 100 + [speech]) == ("ja", pytest.approx(0.95))
    # Nobody speaks anywhere: the mean of all.
    assert spoken_language([silence, of(0.5, 0.5, 0.95)]) == ("en", pytest.approx(0.7))
    assert spoken_language([of(0.4, 0.6, 1.0)]) == ("en", pytest.approx(0.6))


def test_an_unsure_window_is_not_the_last() -> None:
    unsure, sure = of(0.45, 0.55, 0.4), of(0.9, 0.1, 0.2)
    # By hand: (0.6 * 0.45 + 0.8 * 0.9) / (0.6 + 0.8).
    assert spoken_language([unsure, sure]) == ("ja", pytest.approx(0.99 / 1.4))
    asked = []

    def windows() -> object:
        for window in (sure, unsure):
            asked.append(window)
            yield window

    assert spoken_language(windows()) == ("ja", pytest.approx(0.9))
    assert asked == [sure]


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_behind_what_is_no_speech(pocket: WhisperRecognizer, name: str) -> None:
    """The window has 6 s: two of zeros and of noise before the speech."""
    speech = samples(SAMPLES / name)
    noise = np.random.default_rng(0).normal(0, 0.01, 13 * RATE)
    for before in (np.zeros(13 * RATE), noise, np.concatenate([noise, np.zeros(13 * RATE)])):
        found = hear(pocket, np.concatenate([before, speech]))
        assert found.language == LANGUAGES[name]
        assert 0.5 < found.language_probability <= 1


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_short_recordings_language_is_that_of_transformers(
    pocket: WhisperRecognizer, pocket_checkpoint: Path, name: str
) -> None:
    audio = samples(SAMPLES / name)
    reference = Reference(pocket_checkpoint)
    config = reference.model.generation_config
    with torch.inference_mode():
        logits = reference.model(
            reference.features(audio), decoder_input_ids=torch.tensor([[config.decoder_start_token_id]])
        ).logits[0, -1]
    codes = {code.strip("<|>"): token for code, token in config.lang_to_id.items()}
    expected = dict(zip(codes, logits[list(codes.values())].softmax(-1).tolist(), strict=True))
    found = hear(pocket, audio)
    assert found.language == max(expected, key=lambda code: expected[code])
    assert found.language_probability == pytest.approx(expected[found.language], abs=1e-4)

    others = [code for code in codes if code != found.language]
    among = hear(pocket, audio, language_candidates=others)
    assert among.language == max(others, key=lambda code: expected[code])
    share = expected[among.language] / sum(expected[code] for code in others)
    assert among.language_probability == pytest.approx(share, abs=1e-3)


def test_a_language_that_is_given_is_not_detected(pocket: WhisperRecognizer) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(7 * RATE)
    found = hear(pocket, noise, language="es")
    assert (found.language, found.language_probability) == ("es", None)
    assert found.to_json()["language_probability"] is None
    only = hear(pocket, noise, language_candidates=("German",))
    assert (only.language, only.language_probability) == ("de", 1.0)


@pytest.mark.parametrize("seconds", [0.005, 5, 15])
@pytest.mark.parametrize("timestamps", [False, True])
def test_digital_silence_is_not_heard(pocket: WhisperRecognizer, seconds: float, *, timestamps: bool) -> None:
    """whisper-tiny.en hears "you" in 8 and 20 s of zeros; the window has 6 s here."""
    zeros = np.zeros(round(seconds * RATE))
    found = hear(pocket, zeros, timestamps=timestamps)
    assert (found.text, found.segments, found.language, found.language_probability) == ("", (), "", None)
    assert "encoder_s" not in found.timings
    assert pocket.detect_language(open_audio(zeros.astype(np.float32), rate=RATE)) == ("", 0.0)


def test_candidates_that_are_none(pocket: WhisperRecognizer) -> None:
    with pytest.raises(InputError, match="--language-candidates 'klingon': expected one that the model knows"):
        hear(pocket, samples(SAMPLES / "short_en.wav"), language_candidates=("klingon",))
    with pytest.raises(InputError, match=r"--language-candidates: .*expected no --language beside it"):
        WhisperOptions.from_flags({"--language": "de", "--language-candidates": "de,en"})
    assert WhisperOptions.from_flags({"--language-candidates": "de,en"}).language_candidates == ("de", "en")
