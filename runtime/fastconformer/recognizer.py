"""What the recognisers over a FastConformer share: recordings whole in batches, or alone in windows."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine, Floats
from runtime.errors import InputError
from runtime.family import BatchRecognizer, OnSegment, Progress, in_turn
from runtime.fastconformer.batches import batches
from runtime.fastconformer.encoder import Encoded, FastConformer
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.tokenizer import SubwordTokenizer
from runtime.fastconformer.transcript import TimedToken, remark_of, timed_segments
from runtime.fastconformer.windows import Window, WindowSizes, cut_windows
from runtime.repetition import without_loops
from runtime.results import Transcript
from runtime.silence import is_silent
from runtime.vad.heard import Heard, listen
from runtime.vad.silero import open_vad

OptionsT = TypeVar("OptionsT", bound=FastConformerOptions)
FoundT = TypeVar("FoundT")


class Search(Protocol[FoundT]):
    """Finds what is in one batch of recordings; `place` is a recording's in it."""

    def whole(self, encoded: Encoded, places: Sequence[int]) -> list[list[FoundT]]:
        """Return what is found in each of some recordings, encoded whole."""

    def windows(self, windows: Iterable[Window], place: int) -> Iterator[tuple[list[FoundT], int]]:
        """Yield what is found in each window, and the recording's frame up to which it has been searched."""


class FastConformerRecognizer(BatchRecognizer[OptionsT, Transcript], Generic[OptionsT, FoundT]):
    """Transcribes recordings with one opened artifact; a family says how it searches the encoder's outputs."""

    # What runs the graphs; a subclass says which.
    model_type: type[FastConformer]

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        super().__init__(artifact, engine, load_s)
        self.model = self.model_type(artifact, engine)
        self.tokenizer = SubwordTokenizer(artifact.file(self.model.settings.tokenizer_file), self.model.dims.n_vocab)
        self._vad = open_vad(artifact)

    @abstractmethod
    def search(self, n_recordings: int, options: OptionsT) -> Search[FoundT]:
        """Return the search for a batch; InputError where the model cannot do what an option asks for."""

    @abstractmethod
    def timed_tokens(self, found: Sequence[FoundT], options: OptionsT) -> list[TimedToken]:
        """Return the tokens of what was found in a recording."""

    @in_turn
    def recognize(
        self,
        audio: Audio,
        options: OptionsT | None = None,
        on_progress: Progress | None = None,
        *,
        on_segment: OnSegment | None = None,
    ) -> Transcript:
        """Return the text of a recording, whose segments are known when all is heard; see `Recognizer`."""
        transcript = self.recognize_batch([audio], options, on_progress)[0]
        if on_segment:
            for segment in transcript.segments:
                on_segment(segment)
        return transcript

    @in_turn
    def recognize_batch(
        self, audios: Sequence[Audio], options: OptionsT | None = None, on_progress: Progress | None = None
    ) -> list[Transcript]:
        """Return the texts of several recordings, which go through the graphs in padded batches of like lengths.

        Long ones go alone, window by window. Text and times are those of each alone. `timings` are each recording's
        share of the batch's, by its length; `counts` are the batch's.
        """
        options = options or self.options()
        started = time.perf_counter()
        self.model.timer.take()
        self.model.take_counts()
        recordings = [listen(audio, options, self._vad, self.model.timer) for audio in audios]
        found = self._found(recordings, options, on_progress)
        seconds = sum(heard.clip_s for heard in recordings)
        timings = self._timings(self.model.timer, started, seconds)
        counts = {**self.model.take_counts(), "audio_s": seconds}
        return [
            self._result(heard, own, options, _shares(timings, heard.clip_s / seconds), counts)
            for heard, own in zip(recordings, found, strict=True)
        ]

    def _found(
        self, recordings: Sequence[Heard], options: OptionsT, on_progress: Progress | None
    ) -> list[list[FoundT]]:
        """Return what is found in each recording: those that fit full attention in batches, the others alone."""
        search = self.search(len(recordings), options)
        long = [self._in_windows(heard, options) for heard in recordings]
        whole = iter(
            self._whole(search, recordings, [place for place, in_windows in enumerate(long) if not in_windows], options)
        )
        found = []
        for place, heard in enumerate(recordings):
            own: list[FoundT] = []
            parts = self._by_windows(search, heard, place, options) if long[place] else [(next(whole), heard.seconds)]
            for part, done_s in parts:
                own += part
                if on_progress:
                    on_progress(min(done_s, heard.seconds), heard.seconds)
            found.append(own)
        return found

    def _in_windows(self, heard: Heard, options: OptionsT) -> bool:
        """Tell whether a recording goes through the encoder in windows; full attention has a limit.

        Raises
        ------
        InputError
            Full attention is asked for and the recording is longer.

        """
        own_s = heard.seconds
        limit_s = options.full_attention_s or self.model.settings.full_attention_s
        if options.attention != "full" or own_s <= limit_s:
            return options.attention == "windows" or own_s > limit_s
        needed = self.model.encoder_bytes(own_s) / 2**30
        raise InputError(
            f"{heard.audio.path}: expected at most {limit_s:g} s for full attention, found {own_s:.1f} s, which take "
            f"about {needed:.1f} GiB beside the weights; use --attention windows, or a higher --full-attention-limit"
        )

    def _whole(
        self, search: Search[FoundT], heard: Sequence[Heard], places: Sequence[int], options: OptionsT
    ) -> list[list[FoundT]]:
        """Return what is found in some recordings by full attention; one without a frame or sound has nothing in it."""
        recordings = {place: np.concatenate([np.zeros(0, np.float32), *self._blocks(heard[place])]) for place in places}
        lengths = {place: self.model.n_frames(len(samples)) for place, samples in recordings.items()}
        heard_in = {place: n for place, n in lengths.items() if n and not is_silent(recordings[place])}
        most = self.model.batch_bytes(options.full_attention_s or self.model.settings.full_attention_s)
        found: dict[int, list[FoundT]] = {place: [] for place in places}
        for kept in batches(heard_in, self.model.bytes_of_frames, most):
            encoded = self.model.encode([recordings[place] for place in kept])
            found |= zip(kept, search.whole(encoded, kept), strict=True)
        return list(found.values())

    def _by_windows(
        self, search: Search[FoundT], heard: Heard, place: int, options: OptionsT
    ) -> Iterator[tuple[list[FoundT], float]]:
        """Yield what is found in each window of a recording, and the seconds done; it is read as it goes."""
        model = self.model
        sizes = WindowSizes.from_seconds(options.left_s, options.chunk_s, options.right_s, model.frame_s)
        windows = cut_windows(self._blocks(heard), model.frame_samples, model.frame_s, sizes)
        # A recording of less than a frame, or a rest of one behind the last boundary, has nothing in it.
        windows = (window for window in windows if model.n_frames(len(window.samples)))
        for part, n_frames in search.windows(windows, place):
            yield part, n_frames * model.frame_s

    def _blocks(self, heard: Heard) -> Iterator[Floats]:
        """Return a recording's samples, f32 [n] each."""
        return heard.blocks(self.model.frontend.sample_rate)

    def _result(
        self,
        heard: Heard,
        found: Sequence[FoundT],
        options: OptionsT,
        timings: dict[str, float],
        counts: dict[str, float],
    ) -> Transcript:
        """Return the result of what was found in a recording."""
        # With that of the search's own engine, which is opened when it is first needed.
        load = {} if self._load_s is None else {"load_s": self._load_s + self.model.load_s}
        tokens = self.timed_tokens(found, options)
        tokens = [tokens[place] for place in without_loops([timed.token for timed in tokens])]
        segments = timed_segments(tokens, self.tokenizer, options, self.model.frame_s, heard.place)
        return Transcript(
            **self._circumstances(heard.audio, options, load | timings),
            subtitles=options.subtitles,
            text=self.tokenizer.decode([timed.token for timed in tokens]),
            segments=segments,
            counts=counts,
            speech=heard.speech,
            remark=remark_of(self._engine.device, segments, counts),
        )


def _shares(timings: dict[str, float], part: float) -> dict[str, float]:
    """Return the part of a batch's seconds that falls to one of its recordings."""
    return {stage: value if stage == "rtf" else value * part for stage, value in timings.items()}
