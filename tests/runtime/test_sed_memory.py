"""Memory does not grow with the recording, whatever is kept and written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sed_reference import RATE, long_recording

LIMIT_BYTES = 32e6

# Anonymous memory: mapped pages of the scores' file are the system's to take back.
RECOGNIZE = """
import json, sys, threading, time
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import family_of, open_recognizer
def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
peak, stop = [0], threading.Event()
def watch():
    while not stop.wait(0.02):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
artifact = open_artifact(Path(sys.argv[1]))
family = family_of(artifact)
result = open_recognizer(artifact, threads=1).recognize(
    open_audio(sys.argv[2]), family.options.parse({"scores": True, "median": 7})
)
for name, format in family.formats.items():
    format.write(result, Path(sys.argv[3]) / name)
stop.set()
watcher.join()
print(json.dumps({"peak": peak[0], "events": len(result.events), "end": max(event.offset for event in result.events)}))
"""


def write_recording(path: Path, minutes: int) -> Path:
    minute = long_recording(60)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for index in range(minutes):
            file.write(np.roll(minute, index * 1000))
    return path


def run(artifact: Path, recording: Path, out: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", RECOGNIZE, str(artifact), str(recording), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_hours_need_no_more_than_three_minutes(sed_artifact: Path, tmp_path: Path) -> None:
    short = run(sed_artifact, write_recording(tmp_path / "minutes.wav", 3), tmp_path)
    long = run(sed_artifact, write_recording(tmp_path / "hours.wav", 180), tmp_path)
    assert long["end"] == 10_800
    assert long["events"] > 50 * short["events"] > 5000
    assert len(np.load(tmp_path / "npz")["scores"]) == 1_080_001
    assert long["peak"] - short["peak"] < LIMIT_BYTES, (short, long)
