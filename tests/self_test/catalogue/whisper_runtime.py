"""Faults of Whisper's pipeline, not of a graph: what a port of it gets wrong, patched into the modules of `runtime`.

Each is heard in the recordings whose names end as the catalogue says: the one that is there for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.audio import recording as audio
from runtime.families.whisper import encoder_decoder, windows
from runtime.kv_cache import KvCache
from self_test.known_fault import KnownFault, Patch, everything, in_runtime, named, now_and_then, recordings, wrapped


def _without_last_window(segments: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def cut(self: Any, features: Any, on_progress: Any) -> Iterator[Any]:
        window = self._dims.n_frames
        features.n_frames -= features.n_frames % window if features.n_frames > window else 0
        return segments(self, features, on_progress)

    return cut


def _late(segment: Callable[..., Any]) -> Callable[..., Any]:
    def late(*arguments: Any) -> Any:
        found = segment(*arguments)
        return replace(found, start=found.start + 0.02)

    return late


def _one_channel(_mono: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def first(_self: Any, cuts: Any) -> Iterator[Any]:
        for part, begin, stop in cuts:
            for frames in part.read(begin, stop, 10 * part.rate):
                yield np.ascontiguousarray(frames[:, 0])

    return first


def _nearest(_resampled: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def nearest(chunks: Iterator[Any], source: int, target: int) -> Iterator[Any]:
        samples = np.concatenate(list(chunks))
        count = len(samples) * target // source
        yield samples[np.arange(count) * source // target]

    return nearest


def _each_block(change: Callable[[Any], Any]) -> Callable[..., Any]:
    def make(blocks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        return lambda *arguments, **named: (change(block).astype(np.float32) for block in blocks(*arguments, **named))

    return make


def _rows_lost(first: int) -> Callable[..., Any]:
    def make(write: Callable[..., None]) -> Callable[..., None]:
        def partly(self: Any, outputs: Any, at: int, count: int) -> None:
            if at < first:
                write(self, outputs, at, min(count, first - at))

        return partly

    return make


def _prompt_without(kind: Callable[[Any], set[int]]) -> Callable[..., Any]:
    def make(prompt: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def less(self: Any, **named: Any) -> list[int]:
            return [token for token in prompt(self, **named) if token not in kind(self._settings)]

        return less

    return make


def _prompt_with(token: Callable[[Any], dict[int, int]]) -> Callable[..., Any]:
    def make(prompt: Callable[..., list[int]]) -> Callable[..., list[int]]:
        def other(self: Any, **named: Any) -> list[int]:
            return [token(self._settings).get(one, one) for one in prompt(self, **named)]

        return other

    return make


def _nothing_before(_encode: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: ()


def _at_most(limit: int) -> Callable[..., Any]:
    def make(room: Callable[..., int]) -> Callable[..., int]:
        return lambda *arguments: min(limit, room(*arguments))

    return make


def _off(_call: Callable[..., None]) -> Callable[..., None]:
    return lambda *_: None


def _no_silence(judge: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: replace(judge(*arguments), is_silence=False)


def _accepted(judge: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: replace(judge(*arguments), accepted=True)


def _greedy(begin: Callable[..., None]) -> Callable[..., None]:
    return lambda *arguments: begin(*arguments[:-1], arguments[-1].model_copy(update={"temperatures": (0.0,)}))


TRANSCRIPTION = windows.Transcription


def _said_for(told: Callable[[Any], dict[int, int]]) -> Patch:
    return wrapped(TRANSCRIPTION, "_prompt", _prompt_with(told))


# By model and name, with a recording in which the fault has to show.
_RUNTIME: dict[tuple[str, str], tuple[Patch, str]] = {
    ("whisper-tiny.en", "last window lost"): (
        wrapped(TRANSCRIPTION, "segments", _without_last_window),
        "dialogue_en",
    ),
    ("whisper-tiny.en", "one channel"): (wrapped(audio.Audio, "_mono", _one_channel), "dialogue_en"),
    ("whisper-tiny.en", "timestamp rules off"): (wrapped(windows.TimestampRules, "__call__", _off), "dialogue_en"),
    ("whisper-tiny.en", "starts 0.02 s late"): (wrapped(TRANSCRIPTION, "_segment", _late), "dialogue_en"),
    ("whisper-tiny.en", "nearest sample"): (wrapped(audio, "_resampled", _nearest), "jfk"),
    ("whisper-tiny.en", "clipped"): (
        wrapped(audio.Audio, "blocks", _each_block(lambda block: np.clip(block, -0.1, 0.1))),
        "jfk",
    ),
    ("whisper-tiny.en", "offset of 0.05"): (
        wrapped(audio.Audio, "blocks", _each_block(lambda block: block + 0.05)),
        "jfk_timestamps",
    ),
    ("whisper-tiny.en", "30 tokens"): (
        wrapped(encoder_decoder.WhisperEncoderDecoder, "_room", _at_most(30)),
        "fast_en",
    ),
    ("whisper-tiny.en", "cache rows from 40 on"): (wrapped(KvCache, "write", _rows_lost(40)), "fast_en"),
    ("whisper-tiny.en", "cache rows from 150 on"): (wrapped(KvCache, "write", _rows_lost(150)), "fast_en"),
    ("whisper-tiny.en", "suppressed tokens allowed"): (
        wrapped(windows.SuppressTokens, "__call__", _off),
        "dialogue_en",
    ),
    ("whisper-tiny.en", "no_timestamps left out"): (
        wrapped(TRANSCRIPTION, "_prompt", _prompt_without(lambda s: {s.no_timestamps})),
        "fast_en",
    ),
    ("whisper-tiny.en", "prompt ignored"): (
        wrapped(windows.WhisperTokenizer, "encode_prompt", _nothing_before),
        "jfk_prompt",
    ),
    ("whisper-tiny.en", "fallback dead"): (wrapped(windows, "judge", _accepted), "jfk_fallback"),
    ("whisper-tiny.en", "temperature 0 alone"): (wrapped(TRANSCRIPTION, "__init__", _greedy), "jfk_fallback"),
    ("whisper-base", "translated"): (
        _said_for(lambda s: {s.tasks["transcribe"]: s.tasks["translate"]}),
        "common_voice_ja_38843402",
    ),
    ("whisper-base", "not translated"): (
        _said_for(lambda s: {s.tasks["translate"]: s.tasks["transcribe"]}),
        "common_voice_ja_38843402_translate",
    ),
    ("whisper-base", "language fixed"): (
        _said_for(lambda s: dict.fromkeys(s.languages.values(), s.languages["en"])),
        "common_voice_ja_38843402",
    ),
}

FAULTS = [
    *(
        KnownFault(name, "runtime", "whisper", model, "fp32", f"pipeline, {heard}", in_runtime(patch), named(heard))
        for (model, name), (patch, heard) in _RUNTIME.items()
    ),
    KnownFault(
        "no-speech dead",
        "runtime",
        "whisper",
        "whisper-pocket",
        "fp32",
        "pipeline",
        in_runtime(wrapped(windows, "judge", _no_silence)),
        recordings(),
    ),
    *(
        KnownFault(
            f"one call of the {graph} in {every} wrong",
            "runtime",
            "whisper",
            "whisper-pocket",
            "fp32",
            graph,
            now_and_then(graph, every),
            everything,
        )
        for graph, every in (("encoder", 10), ("step", 50))
    ),
]
