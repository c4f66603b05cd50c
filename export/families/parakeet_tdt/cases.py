"""Parakeet's golden cases: sounds of several lengths, steps of a search along them, and recordings.

Encoder cases are named after their sound, frontend cases `<sound>_audio`. A recording has an encoder case, its whole
features, for verify to tell encoder and search apart; it has no frontend case, as float32 does not determine what
stands in mels that a recording leaves empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from export.golden import Clip, Golden, read_samples, segments_of
from export.registry import REPOSITORY_ROOT
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.parakeet_tdt.search import HostSearch
from runtime.families.parakeet_tdt.settings import (
    ENCODER,
    FRONTEND,
    JOIN,
    STEP,
    ParakeetDims,
    ParakeetFrontend,
    ParakeetSettings,
    decode_graph,
)
from runtime.families.parakeet_tdt.teacher_forcing import TeacherForcingEngine, recording_case
from runtime.manifest import TeacherForced

SPEECH, SPEECH_FILE = "speech", REPOSITORY_ROOT / "samples" / "jfk.flac"
# The longest recording with an encoder case, and the longest with logits for every step of its search.
WHOLE_S, _SEARCHED_S = 60, 12
_SEED = 0
# Added to speech, at -80 dB of full scale. Its recording has nothing in the highest mels: what stands there is 120 dB
# below the frame's loudest, where float32 rounds by 0.01 dB and no two engines agree.
_NOISE = np.float32(1e-4)
# Of a sound, in seconds, and what stands in memory beyond a recording's end, which no graph may mix in.
_LONGEST_S, _GARBAGE = 8, np.float32(3.0)
# The rows of a batch: every other emission from the middle of the search on.
_ROWS = 3


def parakeet_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
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
    maker = _GoldenMaker(artifact, engine)
    maker.sounds()
    maker.recordings(clips)
    maker.steps()
    maker.search()
    recognizer = ParakeetRecognizer(artifact, engine)
    for clip in clips:
        result = recognizer.recognize(open_audio(clip.path), ParakeetOptions())
        segments = segments_of(result, "words", "token_times", "confidence")
        maker.golden.add_recording(clip, {}, {"text": result.text, "segments": segments})
    return maker.golden


class _GoldenMaker:
    """Adds cases to `golden`, sounds first, as the search's read their frames."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self.engine = engine
        self.dims = artifact.part("dims", ParakeetDims)
        self.frontend = artifact.part("frontend", ParakeetFrontend)
        self.settings = artifact.part("settings", ParakeetSettings)
        self.golden = Golden()
        self.searched = SPEECH

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

    def recordings(self, clips: Sequence[Clip]) -> None:
        """Add an encoder case for each recording that is not too long; the first short one is searched."""
        rate = self.frontend.sample_rate
        for clip in clips:
            audio = read_samples(clip.path, rate)
            if not self.frontend.hop_length <= len(audio) <= WHOLE_S * rate:
                continue
            features = self.engine.run(FRONTEND, {"audio": audio[None], "length": np.array([len(audio)])})
            name = recording_case(clip.path.stem)
            self._case(name, ENCODER, f"the whole of {clip.path.name}", features)
            if self.searched == SPEECH and len(audio) <= _SEARCHED_S * rate:
                self.searched = name

    def _sound(self, name: str, note: str, parts: Sequence[Floats]) -> None:
        """Add a frontend and an encoder case of one recording, or of a padded batch."""
        length = np.array([len(part) for part in parts], np.int64)
        audio = np.full((len(parts), length.max()), _GARBAGE)
        for row, part in zip(audio, parts, strict=True):
            row[: len(part)] = part
        self._case(f"{name}_audio", FRONTEND, note, {"audio": audio, "length": length})
        features: Array | str = f"{name}_audio/features"
        if len(parts) > 1:
            features = self.golden.arrays[f"{name}_audio/features"].copy()
            for row, count in zip(features, length // self.frontend.hop_length, strict=True):
                row[:, count:] = _GARBAGE
        inputs: dict[str, Array | str] = {"features": features, "features_len": f"{name}_audio/features_len"}
        self._case(name, ENCODER, note, inputs)

    def steps(self) -> None:
        """Add cases of step, join and decode_N, from the start and from the middle of a search."""
        dims, sound = self.dims, self.searched
        frames: Floats = self.golden.arrays[f"{sound}/frames"]
        empty: Floats = np.zeros((dims.pred_layers, 1, dims.pred_hidden), np.float32)
        start: dict[str, Array] = {"token": np.array([dims.blank]), "h": empty, "c": empty}
        first = self._case("step_start", STEP, "the first step", {**start, "frame": frames[:, 0]})
        zero = np.zeros(1, np.int64)
        state = {"t": zero, "token": start["token"], "count": zero, "predicted": first["predicted"]}
        states = self._search(frames, {**state, "h": first["new_h"], "c": first["new_c"]})
        middle = states[len(states) // 2]
        for n_steps in self.settings.decode_steps:
            for name, state in (("start", states[0]), ("middle", middle)):
                inputs: dict[str, Array | str] = {
                    "frames": f"{sound}/frames",
                    "frames_len": f"{sound}/frames_len",
                    **state,
                }
                note = f"{n_steps} steps of the search from its {name} on"
                self._case(f"{decode_graph(n_steps)}_{name}", decode_graph(n_steps), note, inputs)
        rows = (states[len(states) // 2 :: 2] or [middle])[:_ROWS]
        for name, note, chosen in (("middle", "from the middle of a search", [middle]), ("batch", "a batch", rows)):
            at = np.minimum(np.concatenate([state["t"] for state in chosen]), frames.shape[1] - 1)
            inputs = {key: np.concatenate([state[key] for state in chosen], axis=1) for key in "hc"}
            inputs["token"] = np.concatenate([state["token"] for state in chosen])
            self._case(f"step_{name}", STEP, f"{note}, after an emission", {**inputs, "frame": frames[0, at]})
            predicted = np.concatenate([state["predicted"] for state in chosen])
            self._case(f"join_{name}", JOIN, f"{note}, after a blank", {"frame": frames[0, at], "predicted": predicted})

    def _search(self, frames: Floats, state: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Return the states of a greedy search, every few steps, by the shortest of the graphs decode_N."""
        graph = decode_graph(min(self.settings.decode_steps))
        length: NDArray[np.int64] = np.array(frames.shape[1:2])
        states = [dict(state)]
        while states[-1]["t"][0] < length[0]:
            outputs = self.engine.run(graph, {"frames": frames, "frames_len": length, **states[-1]})
            states.append({key: outputs[f"new_{key}"] for key in state})
        return states[:-1]

    def search(self) -> None:
        """Add the logits of step and join along the search that the recogniser makes."""
        frames, lengths = (self.golden.arrays[f"{self.searched}/{name}"] for name in ("frames", "frames_len"))
        recorder = TeacherForcingEngine(self.engine)
        search = HostSearch(recorder, self.dims, self.settings, "float32")
        found, _ = search.run(frames, lengths, search.start(1))
        tokens = tuple(emission.token for emission in found[0])
        run = TeacherForced(name="search", encoder_case=self.searched, tokens=tokens, prompt=0, logits="search/logits")
        self.golden.add_teacher_forced(run, recorder.rows)

    def _case(self, name: str, graph: str, note: str, inputs: Mapping[str, Array | str]) -> dict[str, Array]:
        """Add a case and return its outputs."""
        arrays = {key: self.golden.arrays[value] if isinstance(value, str) else value for key, value in inputs.items()}
        outputs = self.engine.run(graph, arrays)
        self.golden.add_case(name, graph, note, inputs, outputs)
        return outputs
