"""Parakeet-CTC's golden cases: those of the encoder, whose outputs are logits, and recordings."""

from __future__ import annotations

from collections.abc import Sequence

from export.fastconformer.cases import EncoderCases
from export.golden import Clip, Golden, segments_of
from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.engines.base import Engine
from runtime.families.parakeet_ctc.recognizer import CtcRecognizer


def ctc_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
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
    maker = EncoderCases(artifact, engine)
    maker.sounds()
    maker.recordings(clips)
    recognizer = CtcRecognizer(artifact, engine)
    for clip in clips:
        # All of the recording, as the source hears it.
        options = {"vad": False}
        result = recognizer.recognize(open_audio(clip.path), recognizer.options(**options))
        segments = segments_of(result, "words", "token_times", "confidence")
        maker.golden.add_recording(clip, options, {"text": result.text, "segments": segments})
    return maker.golden
