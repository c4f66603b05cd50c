"""Memory does not grow with the recording."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from whisper_reference import RATE, samples

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LIMIT_BYTES = 24e6

# Four tokens a window make no pair of timestamps: each of the 6 s windows is decoded, and once.
TRANSCRIBE = """
import json, sys
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import family_of, open_recognizer
from verify.environment import peak_resident_bytes
artifact = open_artifact(Path(sys.argv[1]))
options = family_of(artifact).options.parse({"max_new_tokens": 4, "temperatures": [0.0], "no_speech_threshold": None})
transcript = open_recognizer(artifact, threads=1).recognize(open_audio(sys.argv[2]), options)
peak = peak_resident_bytes()
print(json.dumps({"peak": peak, "segments": len(transcript.segments), "end": transcript.segments[-1].end}))
"""


def write_recording(path: Path, minutes: int) -> Path:
    speech = samples(SAMPLES / "long_en.wav")[: 20 * RATE]
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for index in range(3 * minutes):
            # No two stretches are equal, and the loudest is the last: the maximum is not known before the end.
            file.write(np.roll(speech, index * 1000) * (0.5 + 0.5 * index / (3 * minutes)))
    return path


def run(artifact: Path, recording: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", TRANSCRIBE, str(artifact), str(recording)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_hours_need_no_more_than_three_minutes(pocket_artifact: Path, tmp_path: Path) -> None:
    short = run(pocket_artifact, write_recording(tmp_path / "minutes.wav", 3))
    long = run(pocket_artifact, write_recording(tmp_path / "hours.wav", 180))
    assert short["segments"] > 10
    assert long["segments"] > 50 * short["segments"]
    assert long["end"] > 10_750
    assert long["peak"] - short["peak"] < LIMIT_BYTES, (short, long)
