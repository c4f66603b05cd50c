"""Opens a Parakeet artifact for transcription."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine, Floats
from runtime.errors import InputError
from runtime.families.parakeet_tdt.hotwords import HotwordChooser, hotword_tree
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.search import Chooser, Emission
from runtime.families.parakeet_tdt.tokenizer import ParakeetTokenizer
from runtime.families.parakeet_tdt.transcript import remark_of, timed_segments
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer
from runtime.families.parakeet_tdt.windows import WindowSizes, cut_windows, search_windows
from runtime.family import BatchRecognizer, Progress, in_turn
from runtime.results import Transcript

DEFAULT_OPTIONS = ParakeetOptions()


class ParakeetRecognizer(BatchRecognizer[ParakeetOptions, Transcript]):
    """Transcribes recordings with one opened artifact."""

    options_type = ParakeetOptions

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        super().__init__(artifact, engine, load_s)
        self.model = ParakeetTransducer(artifact, engine)
        settings, dims = self.model.settings, self.model.dims
        self.tokenizer = ParakeetTokenizer(artifact.file(settings.tokenizer_file), dims.n_vocab)

    @in_turn
    def recognize(
        self, audio: Audio, options: ParakeetOptions = DEFAULT_OPTIONS, on_progress: Progress | None = None
    ) -> Transcript:
        """Return the text of a recording; see `Recognizer`."""
        return self.recognize_batch([audio], options, on_progress)[0]

    @in_turn
    def recognize_batch(
        self,
        audios: Sequence[Audio],
        options: ParakeetOptions = DEFAULT_OPTIONS,
        on_progress: Progress | None = None,
    ) -> list[Transcript]:
        """Return the texts of several recordings, which go through the graphs as one padded batch.

        Long ones go alone, window by window. Text and times are those of each alone. `timings` are each recording's
        share of the batch's, by its length; `counts` are the batch's.
        """
        started = time.perf_counter()
        self.model.timer.take()
        self.model.take_counts()
        seconds = [options.seconds_of(audio.info.duration_s) for audio in audios]
        found = self._emissions(audios, seconds, options, on_progress)
        timings = self._timings(self.model.timer, started, sum(seconds))
        counts = {**self.model.take_counts(), "audio_s": sum(seconds)}
        return [
            self._result(audio, emissions, options, _shares(timings, own_s / sum(seconds)), counts)
            for audio, emissions, own_s in zip(audios, found, seconds, strict=True)
        ]

    def _emissions(
        self,
        audios: Sequence[Audio],
        seconds: Sequence[float],
        options: ParakeetOptions,
        on_progress: Progress | None,
    ) -> list[list[Emission]]:
        """Return what is found in each recording: all that fit full attention in one batch, the others alone."""
        tree = hotword_tree(options.hotwords, options.hotword_weight, self.tokenizer.encode, self.tokenizer.unknown)
        choosers = [HotwordChooser(tree, self.model.dims.blank) if tree else None for _ in audios]
        long = [self._in_windows(audio, own_s, options) for audio, own_s in zip(audios, seconds, strict=True)]
        short = [row for row, in_windows in enumerate(long) if not in_windows]
        whole = iter(self._whole([audios[row] for row in short], options, [choosers[row] for row in short]))
        found = []
        for audio, own_s, chooser, in_windows in zip(audios, seconds, choosers, long, strict=True):
            emissions: list[Emission] = []
            parts = self._by_windows(audio, options, chooser) if in_windows else [(next(whole), own_s)]
            for part, done_s in parts:
                emissions += part
                if on_progress:
                    on_progress(min(done_s, own_s), own_s)
            found.append(emissions)
        return found

    def _in_windows(self, audio: Audio, own_s: float, options: ParakeetOptions) -> bool:
        """Tell whether a recording goes through the encoder in windows; full attention has a limit.

        Raises
        ------
        InputError
            Full attention is asked for and the recording is longer.

        """
        limit_s = options.full_attention_s or self.model.settings.full_attention_s
        if options.attention != "full" or own_s <= limit_s:
            return options.attention == "windows" or own_s > limit_s
        needed = self.model.encoder_bytes(own_s) / 2**30
        raise InputError(
            f"{audio.path}: expected at most {limit_s:g} s for full attention, found {own_s:.1f} s, which take about "
            f"{needed:.1f} GiB beside the weights; use --attention windows, or a higher --full-attention-limit"
        )

    def _whole(
        self, audios: Sequence[Audio], options: ParakeetOptions, choosers: Sequence[Chooser | None]
    ) -> list[list[Emission]]:
        """Return what is found in each recording by full attention; one without a frame has nothing in it."""
        steps = self._device_steps(options)
        recordings = [np.concatenate(list(self._blocks(audio, options))) for audio in audios]
        rows = [row for row, samples in enumerate(recordings) if self.model.n_frames(len(samples))]
        found: list[list[Emission]] = [[] for _ in recordings]
        if rows:
            encoded = self.model.encode([recordings[row] for row in rows])
            emissions = self.model.decode(encoded, steps, [choosers[row] for row in rows])
            for row, own in zip(rows, emissions, strict=True):
                found[row] = own
        return found

    def _by_windows(
        self, audio: Audio, options: ParakeetOptions, chooser: Chooser | None
    ) -> Iterator[tuple[list[Emission], float]]:
        """Yield what is found in each window of a recording, and the seconds done; it is read as it goes."""
        model = self.model
        sizes = WindowSizes.from_seconds(options.left_s, options.chunk_s, options.right_s, model.frame_s)
        windows = cut_windows(self._blocks(audio, options), model.frame_samples, model.frame_s, sizes)
        for emissions, n_frames in search_windows(model, windows, self._device_steps(options), chooser):
            yield emissions, n_frames * model.frame_s

    def _blocks(self, audio: Audio, options: ParakeetOptions) -> Iterator[Floats]:
        """Return a recording's samples, f32 [n] each."""
        return audio.blocks(self.model.frontend.sample_rate, options.start_s, options.end_s)

    def _device_steps(self, options: ParakeetOptions) -> int | None:
        """Return the steps of one call of the search on the device, None for the search on the host."""
        known = self.model.settings.decode_steps
        if options.decode_steps is not None and options.decode_steps not in known:
            listing = ", ".join(map(str, known)) or "none"
            raise InputError(
                f"--decode-steps: expected one that the artifact has ({listing}), found {options.decode_steps}"
            )
        if options.decode == "host":
            return None
        if not known:
            raise InputError("--decode: the artifact has no graph for the search on the device; use host")
        return options.decode_steps or max(known)

    def _result(
        self,
        audio: Audio,
        emissions: Sequence[Emission],
        options: ParakeetOptions,
        timings: dict[str, float],
        counts: dict[str, float],
    ) -> Transcript:
        """Return the result of what was found in a recording."""
        # With that of the search's own engine, which is opened when it is first needed.
        load = {} if self._load_s is None else {"load_s": self._load_s + self.model.load_s}
        segments = timed_segments(emissions, self.tokenizer, options, self.model.frame_s, options.start_s)
        return Transcript(
            **self._circumstances(audio, options, load | timings),
            text=self.tokenizer.decode([emission.token for emission in emissions]),
            segments=segments,
            counts=counts,
            remark=remark_of(self._engine.device, segments, counts),
        )


def _shares(timings: dict[str, float], part: float) -> dict[str, float]:
    """Return the part of a batch's seconds that falls to one of its recordings."""
    return {stage: value if stage == "rtf" else value * part for stage, value in timings.items()}
