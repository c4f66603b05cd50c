"""Opens a Cnn8Rnn artifact and finds the sound events of recordings."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from runtime.artifact import Artifact
from runtime.audio import Audio
from runtime.engines.base import Engine, Floats
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError
from runtime.families.cnn8rnn.classes import find_labels, read_classes
from runtime.families.cnn8rnn.events import EventDetector, Run, scores_lasting, scores_within
from runtime.families.cnn8rnn.framewise import FramewiseWriter
from runtime.families.cnn8rnn.heads import ClipPooling, scores_from_logits
from runtime.families.cnn8rnn.network import Network
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.settings import FRONTEND, Cnn8RnnDims, Cnn8RnnFrontend, Cnn8RnnSettings
from runtime.families.cnn8rnn.windows import cut_windows
from runtime.family import Progress, Recognizer, in_turn
from runtime.results import Event, SoundEvents, Tag
from runtime.timer import Timer

DEFAULT_OPTIONS = Cnn8RnnOptions()


class Cnn8RnnRecognizer(Recognizer[Cnn8RnnOptions, SoundEvents]):
    """Finds sound events with one opened artifact.

    Attributes
    ----------
    labels : tuple of str
        The model's classes, in the order of its logits.

    Raises
    ------
    DamagedArtifactError
        The manifest or the list of classes does not describe such a model.

    """

    options_type = Cnn8RnnOptions

    def __init__(self, artifact: Artifact, engine: Engine, load_s: float | None = None) -> None:
        super().__init__(artifact, engine, load_s)
        self.dims = artifact.part("dims", Cnn8RnnDims)
        self.frontend = artifact.part("frontend", Cnn8RnnFrontend)
        self.settings = artifact.part("settings", Cnn8RnnSettings)
        try:
            self.labels = read_classes(artifact.file(self.settings.classes_file), self.dims.n_classes)
        except InputError as error:
            raise DamagedArtifactError(f"{error}; export the model again") from error
        self.timer = Timer(engine)
        self._network = Network(self._content, engine, self.settings.frames_per_score)

    @in_turn
    def recognize(
        self, audio: Audio, options: Cnn8RnnOptions = DEFAULT_OPTIONS, on_progress: Progress | None = None
    ) -> SoundEvents:
        """Return the sounds of a recording of any length, whose length memory does not grow with; see `Recognizer`.

        Raises
        ------
        EnvironmentNotFitError
            The device returned scores that are not finite, or there is no room for framewise scores.

        """
        started = time.perf_counter()
        self.timer.take()
        places = self._places(options)
        labels = tuple(self.labels[place] for place in places)
        detector = self._detector(options, labels)
        pooling = ClipPooling(len(labels))
        framewise = FramewiseWriter(labels, self.frontend, self.settings) if options.scores else None
        wanted_s = options.seconds_of(audio.info.duration_s)
        start_s, end_s = options.start_s, min(options.end_s or np.inf, audio.info.duration_s)
        n_frames = 0
        blocks = audio.blocks(self.frontend.sample_rate, start_s, end_s)
        for window in cut_windows(blocks, self.frontend, self.settings):
            logmel = self.logmel(window.samples)
            scores = scores_from_logits(self.logits(logmel[:, window.frames])[window.scores, places])
            detector.push(scores)
            pooling.push(scores)
            if framewise:
                framewise.push(scores, logmel[:, window.kept_frames])
            n_frames = window.n_frames
            if on_progress:
                done_s = n_frames * self.frontend.hop_length / self.frontend.sample_rate
                on_progress(min(done_s, wanted_s), wanted_s)
        runs = detector.finish()

        return SoundEvents(
            **self._circumstances(audio, options, self._timings(self.timer, started, wanted_s)),
            tags=_tags(pooling.result(), labels, options.top_k),
            events=tuple(self._event(run, labels, n_frames, start_s, end_s) for run in runs),
            resolution_s=self.step_s,
            remark=f"times in steps of {1000 * self.step_s:.0f} ms",
            scores=framewise.result(n_frames, start_s) if framewise else None,
        )

    @property
    def step_s(self) -> float:
        """Seconds from one score to the next: the true time resolution."""
        return self.settings.frames_per_score * self.frontend.hop_length / self.frontend.sample_rate

    def logmel(self, samples: Floats) -> Floats:
        """Return the log-mel frames f32 [n_mels, 1 + n // hop_length], in dB, of samples f32 [n]."""
        with self.timer.measure("frontend_s"):
            audio = self._engine.put(samples[None], "float32")
            logmel: Floats = self._engine.get(self._engine.run(FRONTEND, {"audio": audio})["logmel"])[0]
            return logmel

    def logits(self, logmel: Floats) -> Floats:
        """Return the logits f32 [n_frames // frames_per_score, n_classes] of log-mel frames f32 [n_mels, n_frames].

        Raises
        ------
        EnvironmentNotFitError
            They are not finite.

        """
        with self.timer.measure("body_s"):
            logits = self._network.logits(logmel)
        if not np.isfinite(logits).all():
            raise EnvironmentNotFitError(
                f"{self._content.model}/{self._content.variant}: expected finite logits, found NaN or Inf from "
                f"{self._engine.name} on {self._engine.device}; `atlasport verify` tells which graph, fp32 may be right"
            )
        return logits

    def _places(self, options: Cnn8RnnOptions) -> list[int]:
        """Return the places of the classes that the options leave."""
        if options.labels is None:
            return list(range(len(self.labels)))
        return list(dict.fromkeys(find_labels(options.labels, self.labels, "labels")))

    def _detector(self, options: Cnn8RnnOptions, labels: Sequence[str]) -> EventDetector:
        high, low = options.thresholds_of(labels, self.labels)
        return EventDetector(
            high,
            low,
            options.median,
            longest_gap=scores_within(options.gap_s, self.step_s),
            shortest=scores_lasting(options.min_duration_s, self.step_s),
        )

    def _event(self, run: Run, labels: Sequence[str], n_frames: int, start_s: float, end_s: float) -> Event:
        """Return a run as an event in seconds; one that reaches the last score ends with the recording, at `end_s`."""
        reaches_end = run.stop >= n_frames // self.settings.frames_per_score
        offset = end_s if reaches_end else start_s + run.stop * self.step_s
        # To the microsecond: sums of binary fractions leave noise behind.
        return Event(round(start_s + run.start * self.step_s, 6), round(offset, 6), labels[run.place], run.score)


def _tags(scores: Floats, labels: Sequence[str], count: int) -> tuple[Tag, ...]:
    """Return the classes with the highest scores f32 [n_classes], highest first."""
    highest = np.argsort(-scores, kind="stable")[:count]
    return tuple(Tag(labels[place], float(scores[place])) for place in highest)
