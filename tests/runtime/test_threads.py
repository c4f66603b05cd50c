"""One recogniser used by eight threads at once hears what it hears alone; of every family."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.families import open_recognizer

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SPEECH = ("short_en.wav", "short_de.wav", "short_es.wav", "short_en_2.wav")
SOUNDS = ("sed_1.flac", "sed_2.flac")
THREADS = 8


@pytest.mark.parametrize(
    ("artifact", "files", "options"),
    [
        ("pocket_artifact", SPEECH, {"timestamps": True}),
        ("granite_artifact", SPEECH, {"max_new_tokens": 8}),
        ("parakeet_artifact", SPEECH, {}),
        pytest.param("ctc_artifact", SPEECH, {}, marks=pytest.mark.slow),
        ("sed_artifact", SOUNDS, {}),
    ],
)
def test_eight_threads(
    artifact: str, files: tuple[str, ...], options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    recognizer = open_recognizer(open_artifact(request.getfixturevalue(artifact)), threads=1)

    def hear(name: str) -> dict[str, Any]:
        found = recognizer.recognize(open_audio(SAMPLES / name), recognizer.options(**options)).to_json()
        # How often the device was asked is counted alone too.
        return {key: value for key, value in found.items() if key not in {"timings", "tokens_per_s"}}

    alone = {name: hear(name) for name in files}
    wanted = [files[(thread + turn) % len(files)] for turn in range(2) for thread in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(hear, wanted))
    assert found == [alone[name] for name in wanted]
