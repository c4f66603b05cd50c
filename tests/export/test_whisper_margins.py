"""Margins of Whisper's decisions: by so much a logit has to change for another one to be taken, and no less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from export.families.whisper.margins import Listening
from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.decisions import Decision, decisions_of, same_decision
from runtime.engines import open_engine
from runtime.engines.base import Engine, Floats
from runtime.families.whisper.encoder_decoder import Decoding, WhisperEncoderDecoder
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.families.whisper.settings import WhisperSettings
from runtime.manifest import Recording


class Nudged(WhisperRecognizer):
    """Lowers logits of one step of the first window: of one token, or of all timestamps."""

    def __init__(self, artifact: Artifact, engine: Engine, step: int, tokens: int | slice, by: float) -> None:
        super().__init__(artifact, engine)
        outer = self

        class Decoder(WhisperEncoderDecoder):
            def decode(
                self, prompted: Any, rules: Any, choose: Callable[..., Any], most: int | None = None
            ) -> Decoding:
                def nudge(logits: Floats, said: Sequence[int]) -> None:
                    if not outer.done and len(said) == step:
                        logits[tokens] -= by

                decoding = super().decode(prompted, [nudge, *rules], choose, most)
                outer.done = True
                return decoding

        self.done = False
        self._model = Decoder(engine, artifact.content.graphs, self.dims, self.settings)


@pytest.fixture(scope="module")
def artifact(pocket_artifact: Path) -> Artifact:
    return open_artifact(pocket_artifact)


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Iterator[Engine]:
    opened = open_engine(artifact, "onnxruntime", "cpu", 1)
    yield opened
    opened.close()


def golden_of(artifact: Artifact, name: str) -> tuple[Recording, list[Decision], frozenset[int]]:
    recording = next(recording for recording in artifact.content.recordings if recording.name == name)
    special = frozenset(WhisperSettings.model_validate(artifact.content.settings).special)
    return recording, decisions_of(recording.result["segments"], special), special


def test_every_decision_has_a_margin(artifact: Artifact) -> None:
    for recording in artifact.content.recordings:
        decisions = decisions_of(recording.result["segments"], golden_of(artifact, recording.name)[2])
        assert recording.margins is not None
        assert len(recording.margins["tokens"]) == len(decisions)
        assert min(recording.margins["tokens"]) > 0


def test_the_margin_of_a_time_is_what_it_takes_to_move_it(artifact: Artifact, engine: Engine) -> None:
    """The end of long_en's first segment is a timestamp among others, and a timestamp in place of text."""
    recording, golden, special = golden_of(artifact, "long_en")
    tokens = recording.result["segments"][0]["tokens"]
    place = 1 + sum(token not in special for token in tokens)
    assert golden[place] == ("time", recording.result["segments"][0]["end"])
    assert tokens[-1] in special
    margin = (recording.margins or {})["tokens"][place]
    times = WhisperSettings.model_validate(artifact.content.settings).timestamps

    def first_other(lowered: int | slice, by: float) -> int | None:
        recognizer = Nudged(artifact, engine, len(tokens) - 1, lowered, by)
        heard = recognizer.recognize(open_audio(artifact.file(recording.file)), WhisperOptions.parse(recording.options))
        found = decisions_of(heard.to_json()["segments"], special)
        pairs = zip(golden, found, strict=False)
        return next((place for place, pair in enumerate(pairs) if not same_decision(*pair)), None)

    ways = (tokens[-1], slice(times.start, times.stop))
    assert [first_other(way, 0.95 * margin) for way in ways] == [None, None]
    assert place in {first_other(way, 1.05 * margin) for way in ways}


def test_margins_of_a_refused_try_do_not_count(artifact: Artifact, engine: Engine) -> None:
    """Nonsense that is sampled first has choices of its own, which are nobody's."""
    recording, _, special = golden_of(artifact, "short_en")
    listening = Listening(artifact, engine)
    options = WhisperOptions(temperatures=(10.0, 1e-3), max_new_tokens=40, vad=False)
    segments = listening.recognize(open_audio(artifact.file(recording.file)), options).to_json()["segments"]
    assert [segment["temperature"] for segment in segments] == [1e-3]
    assert decisions_of(segments, special) == decisions_of(recording.result["segments"], special)
    assert recording.margins is not None
    margins = listening.decoder.margins_of([segment["tokens"] for segment in segments])
    assert margins == pytest.approx(recording.margins["tokens"], rel=1e-3)
