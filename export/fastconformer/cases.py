"""Golden cases of front-end and encoder: sounds of several lengths, and recordings.

Encoder cases are named after their sound, frontend cases `<sound>_audio`. A recording has an encoder case, its whole
features, for verify to tell encoder and search apart; it has no frontend case, as float32 does not determine what
stands in mels that a recording leaves empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from export.golden import Clip, Golden, read_samples, segments_of
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.fastconformer.recognizer import FastConformerRecognizer
from runtime.fastconformer.settings import ENCODER, FRONTEND, FastConformerFrontend, recording_case

SPEECH, SPEECH_FILE = "speech", REPOSITORY_ROOT / "samples" / "jfk.flac"
# The longest recording with an encoder case.
WHOLE_S = 60
_SEED = 0
# Added to speech, at -80 dB of full scale. Its recording has nothing in the highest mels: what stands there is 120 dB
# below the frame's loudest, where float32 rounds by 0.01 dB and no two engines agree.
_NOISE = np.float32(1e-4)
# Of a sound, in seconds, and what stands in memory beyond a recording's end, which no graph may mix in.
_LONGEST_S, _GARBAGE = 8, np.float32(3.0)


# All of a recording, as the source hears it.
WHOLE: dict[str, Any] = {"vad": False}


def heard_in(clip: Clip, recognizer: FastConformerRecognizer[Any, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recogniser hears in a recording, as far as it is compared."""
    found = recognizer.recognize(open_audio(clip.path), recognizer.options(**options))
    return {"text": found.text, "segments": segments_of(found, "words", "token_times", "confidence")}


class EncoderCases:
    """Adds cases to `golden`; a family adds those of its decoder."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.engine = engine
        self.frontend = artifact.part("frontend", FastConformerFrontend)
        self.golden = Golden()

    def sounds(self) -> None:
        """Add frontend and encoder cases of sounds that every artifact has."""
        rate = self.frontend.sample_rate
        rng = np.random.default_rng(_SEED)
        speech = read_samples(SPEECH_FILE, rate)[: _LONGEST_S * rate]
        speech += _NOISE * rng.standard_normal(len(speech), dtype=np.float32)
        shortest = self.frontend.hop_length
        self._sound(SPEECH, f"{_LONGEST_S} s of real speech, with faint noise", [speech])
        self._sound("silence", "zeros", [np.zeros(rate, np.float32)])
        self._sound("noise", "white noise", [0.1 * rng.standard_normal(5 * rate // 2, dtype=np.float32)])
        self._sound("shortest", "the shortest recording: one frame", [speech[rate : rate + shortest]])
        self._sound("odd", "real speech; its samples fill no last frame", [speech[rate : 4 * rate + 777]])
        parts = [speech[rate : rate + count] for count in (rate, 5 * rate // 2 + 99, shortest)]
        self._sound("batch", f"three lengths; {_GARBAGE} beyond the end of each", parts)

    def recordings(self, clips: Sequence[Clip]) -> dict[str, float]:
        """Add an encoder case for each recording that is not too long; return the cases with their seconds."""
        rate = self.frontend.sample_rate
        seconds = {}
        for clip in clips:
            audio = read_samples(clip.path, rate)
            if not self.frontend.hop_length <= len(audio) <= WHOLE_S * rate:
                continue
            features = self.engine.run(FRONTEND, {"audio": audio[None], "length": np.array([len(audio)])})
            name = recording_case(clip.path.stem)
            self.case(name, ENCODER, f"the whole of {clip.path.name}", features, real=True)
            seconds[name] = len(audio) / rate
        return seconds

    def _sound(self, name: str, note: str, parts: Sequence[Floats]) -> None:
        """Add a frontend and an encoder case of one recording, or of a padded batch."""
        length = np.array([len(part) for part in parts], np.int64)
        audio = np.full((len(parts), length.max()), _GARBAGE)
        for row, part in zip(audio, parts, strict=True):
            row[: len(part)] = part
        real = name == SPEECH
        self.case(f"{name}_audio", FRONTEND, note, {"audio": audio, "length": length}, real=real)
        features: Array | str = f"{name}_audio/features"
        if len(parts) > 1:
            features = self.golden.arrays[f"{name}_audio/features"].copy()
            for row, count in zip(features, length // self.frontend.hop_length, strict=True):
                row[:, count:] = _GARBAGE
        inputs: dict[str, Array | str] = {"features": features, "features_len": f"{name}_audio/features_len"}
        self.case(name, ENCODER, note, inputs, real=real)

    def case(
        self, name: str, graph: str, note: str, inputs: Mapping[str, Array | str], *, real: bool
    ) -> dict[str, Array]:
        """Add a case and return its outputs; `real`: it follows from a recording."""
        arrays = {key: self.golden.arrays[value] if isinstance(value, str) else value for key, value in inputs.items()}
        outputs = self.engine.run(graph, arrays)
        self.golden.add_case(name, graph, note, inputs, outputs, real=real)
        return outputs
