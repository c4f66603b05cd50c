"""Parakeet's golden cases: those of the encoder, steps of a search along them, and recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.families.parakeet_tdt.margins import Listening
from export.fastconformer.cases import SPEECH, WHOLE, EncoderCases, heard_in
from export.golden import Clip, Golden
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Array, Engine, Floats
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.search import HostSearch
from runtime.families.parakeet_tdt.settings import (
    JOIN,
    STEP,
    ParakeetDims,
    ParakeetSettings,
    decode_graph,
)
from runtime.families.parakeet_tdt.teacher_forcing import TeacherForcingEngine
from runtime.manifest import TeacherForced

# The longest recording with logits for every step of its search, in seconds.
_SEARCHED_S = 12
# The rows of a batch: every other emission from the middle of the search on.
_ROWS = 3
# Hotwords that are tried until one changes a text, and windows in a recording until its text stays.
_HOTWORDS, _WINDOWS = 6, (3, 2)


def parakeet_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip], *, trained: bool) -> Golden:
    """Return golden cases and recordings; see FamilyModel.golden.

    `trained` is False for random weights, whose recordings are heard with no other options.
    """
    maker = _GoldenMaker(artifact, engine)
    maker.sounds()
    short = [case for case, seconds in maker.recordings(clips).items() if seconds <= _SEARCHED_S]
    maker.searched = next(iter(short), SPEECH)
    maker.steps()
    maker.search()
    maker.transcripts(clips, Listening(artifact, engine), trained=trained)
    return maker.golden


class _GoldenMaker(EncoderCases):
    """Adds cases to `golden`, sounds first, as the search's read their frames: those of the case `searched`."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        super().__init__(artifact, engine)
        self.dims = artifact.part("dims", ParakeetDims)
        self.settings = artifact.part("settings", ParakeetSettings)
        self.searched = SPEECH

    def steps(self) -> None:
        """Add cases of step, join and decode_N, from the start and from the middle of a search."""
        dims, sound = self.dims, self.searched
        frames: Floats = self.golden.arrays[f"{sound}/frames"]
        empty: Floats = np.zeros((dims.pred_layers, 1, dims.pred_hidden), np.float32)
        start: dict[str, Array] = {"token": np.array([dims.blank]), "h": empty, "c": empty}
        first = self.case("step_start", STEP, "the first step", {**start, "frame": frames[:, 0]}, real=True)
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
                self.case(f"{decode_graph(n_steps)}_{name}", decode_graph(n_steps), note, inputs, real=True)
        rows = (states[len(states) // 2 :: 2] or [middle])[:_ROWS]
        for name, note, chosen in (("middle", "from the middle of a search", [middle]), ("batch", "a batch", rows)):
            at = np.minimum(np.concatenate([state["t"] for state in chosen]), frames.shape[1] - 1)
            inputs = {key: np.concatenate([state[key] for state in chosen], axis=1) for key in "hc"}
            inputs["token"] = np.concatenate([state["token"] for state in chosen])
            inputs["frame"] = frames[0, at]
            self.case(f"step_{name}", STEP, f"{note}, after an emission", inputs, real=True)
            predicted = np.concatenate([state["predicted"] for state in chosen])
            inputs = {"frame": frames[0, at], "predicted": predicted}
            self.case(f"join_{name}", JOIN, f"{note}, after a blank", inputs, real=True)

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
        n_tokens, logits = self.dims.n_vocab + 1, recorder.rows
        run = TeacherForced(
            name="search",
            encoder_case=self.searched,
            tokens=tokens,
            prompt=0,
            logits="search/logits",
            heads={"tokens": (0, n_tokens), "durations": (n_tokens, logits.shape[1])},
        )
        self.golden.add_teacher_forced(run, logits)

    def transcripts(self, clips: Sequence[Clip], recognizer: Listening, *, trained: bool) -> None:
        """Add what is heard in each recording; in one also with a hotword, and in the longest window by window."""
        hotwords = {}
        for clip in clips:
            self._transcript(clip, recognizer, {})
            hotwords[clip.file] = recognizer.telling_hotwords()[:_HOTWORDS]
        plain = {recording.file: _tokens(recording.result) for recording in self.golden.recordings}
        spoken = [clip for clip in clips if plain[clip.file]]
        if trained and spoken:
            self._with_hotword([(clip, pair) for clip in spoken for pair in hotwords[clip.file]], recognizer, plain)
            self._by_windows(max(spoken, key=_seconds), recognizer, plain)

    def _with_hotword(
        self, tries: Sequence[tuple[Clip, tuple[str, float]]], recognizer: Listening, plain: Mapping[str, list[int]]
    ) -> None:
        """Add a recording with the first hotword that changes what is heard in it."""
        for clip, pair in tries:
            options = {**WHOLE, "hotwords": [list(pair)]}
            if _tokens(heard_in(clip, recognizer, options)) != plain[clip.file]:
                # What a person says is in it is not what this hotword makes of it.
                self._transcript(replace(clip, reference=None), recognizer, options, f"{clip.path.stem}_hotword")
                return

    def _by_windows(self, clip: Clip, recognizer: Listening, plain: Mapping[str, list[int]]) -> None:
        """Add a recording in windows, unless a boundary changes its text: no source has that."""
        for count in _WINDOWS:
            options = {**WHOLE, "attention": "windows", "chunk_s": max(1.0, round(_seconds(clip) / count, 1))}
            if _tokens(heard_in(clip, recognizer, options)) == plain[clip.file]:
                self._transcript(clip, recognizer, options, f"{clip.path.stem}_windows")
                return

    def _transcript(
        self, clip: Clip, recognizer: Listening, wanted: Mapping[str, Any], name: str | None = None
    ) -> None:
        options = {**WHOLE, **wanted}
        recognizer.model.steps.clear()
        result = heard_in(clip, recognizer, options)
        margins = recognizer.margins_of(result["segments"], ParakeetOptions.parse(options))
        self.golden.add_recording(clip, options, result, name=name, margins=margins)


def _tokens(result: Mapping[str, Any]) -> list[int]:
    return [token for segment in result["segments"] for token in segment["tokens"]]


def _seconds(clip: Clip) -> float:
    return open_audio(clip.path).info.duration_s
