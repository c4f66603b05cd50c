"""Cnn8Rnn's golden cases: recordings of several lengths, and what the fp32 graphs make of them.

Cases of the head are named after their recording, those of the frontend `<recording>_audio`, of the gates
`<recording>_gates`, of the recurrence `<recording>_steps_<call>`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.golden import Clip, Golden, read_samples
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.cnn8rnn.network import Network
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.families.cnn8rnn.settings import (
    FRONTEND,
    GATES,
    HEAD,
    RECURRENCE,
    Cnn8RnnFrontend,
    Cnn8RnnSettings,
)
from runtime.limits import SCORE_BAND

SPEECH_FILE = REPOSITORY_ROOT / "samples" / "jfk.flac"
SOUNDS_FILE = REPOSITORY_ROOT / "samples" / "sed_1.flac"
_SEED = 0
# Of the gates' frames, every third is kept: the arrays are six times as wide as the states.
_GATES_STRIDE = 3
# Added to speech, at -80 dB of full scale. Its recording has nothing in the highest mels: what stands there is 120 dB
# below the frame's loudest, where float32 rounds by 0.01 dB (torch.stft by 0.016) and no two engines agree.
_NOISE = np.float32(1e-4)


def cnn8rnn_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
    """Return golden cases and recordings; see FamilyModel.golden."""
    golden = Golden()
    frontend = artifact.part("frontend", Cnn8RnnFrontend)
    settings = artifact.part("settings", Cnn8RnnSettings)
    network = Network(artifact.content, engine, settings.frames_per_score)
    gates: dict[str, Array] = {}
    for name, (audio, note) in _recordings(frontend, settings).items():
        real = name in {"speech", "sounds"}
        outputs = engine.run(FRONTEND, {"audio": audio[None]})
        golden.add_case(f"{name}_audio", FRONTEND, note, {"audio": audio[None]}, outputs, real=real)
        outputs = engine.run(GATES, {"logmel": outputs["logmel"]})
        gates[name] = outputs["gates"]
        inputs = {"logmel": f"{name}_audio/logmel"}
        golden.add_case(f"{name}_gates", GATES, note, inputs, outputs, strides={"gates": _GATES_STRIDE}, real=real)
        states = network.states(gates[name], gates[name].shape[2])
        golden.add_case(name, HEAD, note, {"states": states}, engine.run(HEAD, {"states": states}), real=real)
    _add_recurrence(golden, engine, gates, int(artifact.content.graphs[RECURRENCE].inputs[0].shape[2]))
    recognizer = Cnn8RnnRecognizer(artifact, engine)
    for clip in clips:
        result, *bounds = (
            recognizer.recognize(open_audio(clip.path), options).to_json()
            for options in (Cnn8RnnOptions(), _shifted(SCORE_BAND), _shifted(-SCORE_BAND))
        )
        certain, possible = (bound["events"] for bound in bounds)
        heard = {part: result[part] for part in ("tags", "events")}
        golden.add_recording(clip, {}, heard, bounds=(certain, possible))
    return golden


def _shifted(by: float) -> Cnn8RnnOptions:
    """Return the default options with both thresholds that much higher."""
    default = Cnn8RnnOptions()
    return Cnn8RnnOptions(high=default.high + by, low=default.common_low + by)


def _add_recurrence(golden: Golden, engine: Engine, gates: dict[str, Array], steps: int) -> None:
    """Add calls of the recurrence: the first of a recording, those that go on from the states before, and others."""
    for name in ("speech", "sounds"):
        h = np.zeros_like(gates[name][0, :, :1, : gates[name].shape[3] // 3])
        for call, note in enumerate(("its first steps, from zeros", "those that follow, from the states before")):
            inputs = {"gates": gates[name][:, :, call * steps : (call + 1) * steps], "h": h}
            outputs = engine.run(RECURRENCE, inputs)
            golden.add_case(f"{name}_steps_{call + 1}", RECURRENCE, note, inputs, outputs, real=True)
            h = outputs["new_h"]
    h = np.random.default_rng(_SEED).uniform(-1, 1, h.shape).astype(np.float32)
    inputs = {"gates": gates["noise"][:, :, :steps], "h": h}
    note = "white noise, from states that no recording has"
    golden.add_case("states", RECURRENCE, note, inputs, engine.run(RECURRENCE, inputs))


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
