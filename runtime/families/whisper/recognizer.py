"""Opens a Whisper artifact for transcription."""

from __future__ import annotations

import time

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.families.whisper.encoder_decoder import WhisperEncoderDecoder
from runtime.families.whisper.features import Features, open_features
from runtime.families.whisper.options import AUTO, WhisperOptions
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.families.whisper.windows import Transcription
from runtime.family import OnSegment, Progress, Recognizer, in_turn
from runtime.results import Segment, Transcript
from runtime.vad.heard import Heard, listen
from runtime.vad.silero import open_vad

DEFAULT_OPTIONS = WhisperOptions()


class WhisperRecognizer(Recognizer[WhisperOptions, Transcript]):
    """Transcribes recordings with one opened artifact."""

    options_type = WhisperOptions

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        super().__init__(artifact, engine, load_s)
        self.dims = artifact.part("dims", WhisperDims)
        self.frontend = artifact.part("frontend", WhisperFrontend)
        self.settings = artifact.part("settings", WhisperSettings)
        self.tokenizer = WhisperTokenizer(artifact.file(self.settings.tokenizer_file), self.settings.special)
        self._model = WhisperEncoderDecoder(engine, self._content.graphs, self.dims, self.settings)
        self._vad = open_vad(artifact)

    @in_turn
    def recognize(
        self,
        audio: Audio,
        options: WhisperOptions = DEFAULT_OPTIONS,
        on_progress: Progress | None = None,
        *,
        on_segment: OnSegment | None = None,
    ) -> Transcript:
        """Return the text of a recording of any length, whose length memory does not grow with; see `Recognizer`."""
        started = time.perf_counter()
        self._model.timer.take()
        transcription = Transcription(self._model, self.tokenizer, self.dims, self.settings, options)
        heard = listen(audio, options, self._vad, self._model.timer)
        segments = self._segments(transcription, heard, on_progress, on_segment) if heard.seconds else []
        tokens = [token for segment in segments for token in segment.tokens]
        language = transcription.language or ""
        return Transcript(
            **self._circumstances(audio, options, self._timings(self._model.timer, started, heard.clip_s)),
            subtitles=options.subtitles,
            text=self.tokenizer.decode(tokens).strip(),
            language=language,
            language_probability=transcription.language_probability,
            segments=tuple(segments),
            speech=heard.speech,
            task=transcription.task,
            prompt=transcription.prompt,
            remark=", ".join(filter(None, (language and f"language {language}", transcription.prompt_note))),
        )

    @in_turn
    def detect_language(self, audio: Audio, options: WhisperOptions | None = None) -> tuple[str, float]:
        """Return the code of the language that is spoken and its probability; see `Recognizer`."""
        if not self.settings.languages:
            raise InputError(f"{self._content.model}: expected a model of several languages, found one of English only")
        options = (options or DEFAULT_OPTIONS).model_copy(update={"language": AUTO})
        transcription = Transcription(self._model, self.tokenizer, self.dims, self.settings, options)
        heard = listen(audio, options, self._vad, self._model.timer)
        return transcription.detected(self._features(heard)) if heard.seconds else ("", 0.0)

    def _segments(
        self,
        transcription: Transcription,
        heard: Heard,
        on_progress: Progress | None,
        on_segment: OnSegment | None,
    ) -> list[Segment]:
        segments = []
        for found in transcription.segments(self._features(heard), on_progress):
            segments.append(heard.placed(found))
            if on_segment:
                on_segment(segments[-1])
        return segments

    def _features(self, heard: Heard) -> Features:
        with self._model.timer.measure("frontend_s"):
            return open_features(lambda: heard.blocks(self.frontend.sample_rate), self.frontend, self._model.mel)
