"""Cnn8Rnn's golden cases: recordings of several lengths, and what the fp32 graphs make of them.

Body cases are named after their recording, frontend cases `<recording>_audio`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.golden import Clip, Golden, read_samples
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.families.cnn8rnn.settings import BODY, FRONTEND, Cnn8RnnDims, Cnn8RnnFrontend, Cnn8RnnSettings

SPEECH_FILE = REPOSITORY_ROOT / "samples" / "jfk.flac"
SOUNDS_FILE = REPOSITORY_ROOT / "samples" / "sed_1.flac"
_SEED = 0
# Added to speech, at -80 dB of full scale. Its recording has nothing in the highest mels: what stands there is 120 dB
# below the frame's loudest, where float32 rounds by 0.01 dB (torch.stft by 0.016) and no two engines agree.
_NOISE = np.float32(1e-4)


def cnn8rnn_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
    """Return golden cases and recordings.

    Parameters
    ----------
    artifact : Artifact
        With fp32 graphs; the rest of it may be unfinished.
    engine : Engine
        Its graphs.
    clips : Sequence[Clip]
        Recordings, heard with the default options.

    """
    golden = Golden()
    dims = artifact.part("dims", Cnn8RnnDims)
    frontend = artifact.part("frontend", Cnn8RnnFrontend)
    settings = artifact.part("settings", Cnn8RnnSettings)
    states: Array = np.zeros((2, 1, dims.n_hidden), np.float32)
    for name, (audio, note) in _recordings(frontend, settings).items():
        outputs = engine.run(FRONTEND, {"audio": audio[None]})
        real = name in {"speech", "sounds"}
        golden.add_case(f"{name}_audio", FRONTEND, note, {"audio": audio[None]}, outputs, real=real)
        logmel = outputs["logmel"]
        outputs = engine.run(BODY, {"logmel": logmel, "h0": states})
        golden.add_case(name, BODY, note, {"logmel": f"{name}_audio/logmel", "h0": states}, outputs, real=real)
    # A short recording, which first states change most.
    states = np.random.default_rng(_SEED).uniform(-1, 1, states.shape).astype(np.float32)
    key = "short_audio/logmel"
    outputs = engine.run(BODY, {"logmel": golden.arrays[key], "h0": states})
    note = "short, with first states of the GRU other than zero"
    golden.add_case("states", BODY, note, {"logmel": key, "h0": states}, outputs)
    recognizer = Cnn8RnnRecognizer(artifact, engine)
    for clip in clips:
        result = recognizer.recognize(open_audio(clip.path), Cnn8RnnOptions()).to_json()
        golden.add_recording(clip, {}, {part: result[part] for part in ("tags", "events")})
    return golden


def _recordings(frontend: Cnn8RnnFrontend, settings: Cnn8RnnSettings) -> dict[str, tuple[Floats, str]]:
    """Return samples f32 [n] and notes by name; no two are equally long, and none as long as the traced example."""
    rate = frontend.sample_rate
    rng = np.random.default_rng(_SEED)
    sounds, speech = read_samples(SOUNDS_FILE, rate), read_samples(SPEECH_FILE, rate)
    speech = speech + _NOISE * rng.standard_normal(len(speech), dtype=np.float32)
    shortest = (settings.frames_per_score - 1) * frontend.hop_length
    return {
        "speech": (speech[: 10 * rate], "10 s of real speech, with faint noise"),
        "sounds": (sounds, "synthetic sounds"),
        "silence": (np.zeros(rate, np.float32), "zeros"),
        "noise": (0.1 * rng.standard_normal(5 * rate // 2, dtype=np.float32), "white noise"),
        "shortest": (speech[rate : rate + shortest], "the shortest recording: one score"),
        "short": (speech[rate : rate + 3 * rate // 10], "0.3 s of real speech"),
        "odd": (speech[rate : 4 * rate + 777], "real speech; its frames and samples fill no last score or hop"),
    }
