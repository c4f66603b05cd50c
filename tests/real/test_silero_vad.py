"""Silero's own network, from the package index into an artifact: its probabilities and spans, and what they do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from make_silero_spans import mixtures
from safetensors.numpy import load_file
from trained_models import Trained, atlasport, recording
from vad_weights import with_vad

from runtime.artifact import open_artifact
from runtime.families import open_recognizer
from runtime.spoken import error_rates
from runtime.vad.options import SpeechOptions
from runtime.vad.silero import VAD_NAME, open_vad
from runtime.vad.spans import speech_spans

pytestmark = pytest.mark.real
RATE = 16000
HERE = Path(__file__).resolve().parent
SILERO = json.loads((HERE.parent / "silero_spans.json").read_text())
SPOKEN = json.loads((HERE / "recordings.json").read_text())


@pytest.fixture(scope="session")
def pocket_with_vad(shared_folder: Path) -> Path:
    """whisper-pocket with silero's VAD."""
    with FileLock(shared_folder / "vad.lock"):
        target = shared_folder / "vad" / "whisper-pocket" / "fp32"
        if not target.exists():
            out = shared_folder / "vad"
            done = atlasport("export", "whisper-pocket", "--vad", "--formats", "onnx", "--out", out, cwd=shared_folder)
            assert "voice activity detection by silero-vad==6.2.3 (mit)" in done.stdout
    return target


def test_the_artifact_has_it_with_its_licence(pocket_with_vad: Path) -> None:
    files = open_artifact(pocket_with_vad).content.files
    assert files[VAD_NAME].size == pytest.approx(1.24e6, rel=0.01)
    licence = (pocket_with_vad / "vad.LICENSE.txt").read_bytes()
    assert b"MIT License" in licence
    assert b"Silero Team" in licence
    assert files["vad.LICENSE.txt"].sha256 == hashlib.sha256(licence).hexdigest()


def test_probabilities_and_spans_are_silero_s(pocket_with_vad: Path) -> None:
    """Against silero-vad 6.2.3's own TorchScript, see make_silero_spans.py."""
    vad = open_vad(open_artifact(pocket_with_vad))
    cases = {case["name"]: case for case in SILERO["cases"]}
    for name, samples in mixtures(recording).items():
        probabilities, n_samples = vad.probabilities(np.array_split(samples, 7))
        assert n_samples == cases[name]["n_samples"]
        np.testing.assert_allclose(probabilities, cases[name]["probabilities"], atol=0.0006)
        for options, expected in zip(SILERO["options"], cases[name]["spans"], strict=True):
            own = {"min_speech_duration_ms": 250, "min_silence_duration_ms": 100, "speech_pad_ms": 30, **options}
            parsed = SpeechOptions.parse({f"vad_{key}": value for key, value in own.items()})
            assert [list(span) for span in speech_spans(probabilities.tolist(), n_samples, parsed)] == expected


def test_long_pauses_and_no_speech(trained: Trained, pocket_with_vad: Path, tmp_path: Path) -> None:
    """whisper-tiny.en by the command line: the words of all recordings at their times, none where nobody speaks."""
    artifact = with_vad(trained("whisper-tiny.en", "fp32"), tmp_path / "tiny", load_file(pocket_with_vad / VAD_NAME))
    names = ["librivox_austen_0870.wav", "librispeech_84-121550-0000.flac", "cards_005.wav"]
    parts, starts, at = [], [], 0
    for name, pause_s in zip(names, (35, 60, 20), strict=True):
        samples = soundfile.read(recording(name), dtype="float32")[0]
        noise = (0.003 * np.random.default_rng(at).standard_normal(pause_s * RATE)).astype(np.float32)
        parts += [noise, samples]
        starts.append((at + len(noise)) / RATE)
        at += len(noise) + len(samples)
    soundfile.write(tmp_path / "pauses.wav", np.concatenate(parts), RATE)
    soundfile.write(tmp_path / "noise.wav", parts[0], RATE)
    done = atlasport("run", artifact, "pauses.wav", "noise.wav", "--timestamps", "--json", cwd=tmp_path)
    found, nothing = map(json.loads, done.stdout.splitlines())
    assert error_rates(" ".join(SPOKEN[name]["text"] for name in names), found["text"])[0] <= 0.12
    assert len(found["speech"]) == 3
    for name, start_s, speech in zip(names, starts, found["speech"], strict=True):
        own = [s for s in found["segments"] if start_s - 0.5 <= s["start"] and s["end"] <= speech["end"] + 1e-6]
        heard = " ".join(segment["text"] for segment in own)
        assert error_rates(SPOKEN[name]["text"], heard)[0] <= 0.4
    assert (nothing["text"], nothing["segments"], nothing["speech"]) == ("", [], [])


def test_a_box_serves_it(pocket_with_vad: Path, tmp_path: Path) -> None:
    """Served: the recording's words at its times, after a warm-up by silence."""
    assert open_recognizer(open_artifact(pocket_with_vad), threads=1).options().vad is None
    source = tmp_path / "in"
    source.mkdir()
    speech = soundfile.read(recording("short_en.wav"), dtype="float32")[0]
    soundfile.write(source / "a.wav", np.concatenate([np.zeros(40 * RATE, np.float32), speech]), RATE)
    soundfile.write(source / "b.wav", np.zeros(RATE, np.float32), RATE)
    atlasport("serve-dir", source, "out", pocket_with_vad, "--format", "json", "--once", cwd=tmp_path)
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.json"))]
    assert [result["text"] for result in results] == ["set a timer for twenty six minutes", ""]
    assert results[0]["segments"][0]["start"] >= 39
    assert results[0]["segments"][-1]["end"] <= results[0]["audio"]["duration_s"]
