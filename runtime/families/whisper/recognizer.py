"""Opens a Whisper artifact for transcription."""

from __future__ import annotations

import time
from dataclasses import replace

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine
from runtime.families.whisper.decoder import WhisperDecoder
from runtime.families.whisper.features import open_features
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.families.whisper.windows import Progress, Transcription
from runtime.results import Segment, Transcript

DEFAULT_OPTIONS = WhisperOptions()


class WhisperRecognizer:
    """Transcribes recordings with one opened artifact.

    Parameters
    ----------
    artifact : Artifact
        Of the family "whisper".
    engine : Engine
        The artifact's graphs, opened.
    load_s : float or None
        What opening took, in seconds; goes into the timings.

    """

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        content = artifact.content
        self._content = content
        self._engine = engine
        self._load_s = load_s
        self.dims = artifact.part("dims", WhisperDims)
        self.frontend = artifact.part("frontend", WhisperFrontend)
        self.settings = artifact.part("settings", WhisperSettings)
        self.tokenizer = WhisperTokenizer(artifact.file(self.settings.tokenizer_file), self.settings.special)
        self._decoder = WhisperDecoder(engine, content.graphs, self.dims, self.settings)

    def recognize(
        self, audio: Audio, options: WhisperOptions = DEFAULT_OPTIONS, on_progress: Progress | None = None
    ) -> Transcript:
        """Return the text of a recording of any length.

        Parameters
        ----------
        audio : Audio
            The recording; memory does not grow with its length.
        options : WhisperOptions
            How to transcribe.
        on_progress : callable or None
            Called with seconds done and seconds in all after each window.

        Raises
        ------
        InputError
            The audio cannot be read, the clip lies behind its end, or the model cannot do what an option asks for.

        """
        started = time.perf_counter()
        self._decoder.watch.take()
        transcription = Transcription(self._decoder, self.tokenizer, self.dims, self.settings, options)
        start_s, end_s = options.clip or (0.0, None)
        with self._decoder.watch.measure("frontend_s"):
            features = open_features(
                lambda: audio.blocks(self.frontend.sample_rate, start_s, end_s), self.frontend, self._decoder.mel
            )
        segments = list(transcription.segments(features, on_progress))
        tokens = [token for segment in segments for token in segment.tokens]

        timings = {} if self._load_s is None else {"load_s": self._load_s}
        timings |= self._decoder.watch.take()
        timings["total_s"] = time.perf_counter() - started
        timings["rtf"] = timings["total_s"] / features.duration_s
        return Transcript(
            model=self._content.model,
            variant=self._content.variant,
            device=self._engine.device,
            engine=self._engine.name,
            audio=audio.info,
            text=self.tokenizer.decode(tokens).strip(),
            language=transcription.language or "",
            segments=tuple(_shifted(segment, start_s) for segment in segments),
            timings=timings,
            simulated=self._engine.probe.facts.simulated,
        )


def _shifted(segment: Segment, by_s: float) -> Segment:
    """Return the segment `by_s` seconds later, to the microsecond: sums of binary fractions leave noise behind."""
    return replace(segment, start=round(segment.start + by_s, 6), end=round(segment.end + by_s, 6))
