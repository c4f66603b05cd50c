"""Parakeet-CTC's golden cases: those of the encoder, whose outputs are logits, and recordings."""

from __future__ import annotations

from collections.abc import Sequence

from export.families.parakeet_ctc.margins import Listening
from export.fastconformer.cases import WHOLE, EncoderCases, heard_in
from export.golden import Clip, Golden
from runtime.artifact import Artifact
from runtime.engines.base import Engine


def ctc_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
    """Return golden cases and recordings; see FamilyModel.golden."""
    maker = EncoderCases(artifact, engine)
    maker.sounds()
    maker.recordings(clips)
    recognizer = Listening(artifact, engine)
    for clip in clips:
        result = heard_in(clip, recognizer, WHOLE)
        margins = recognizer.margins_of(result["segments"])
        maker.golden.add_recording(clip, WHOLE, result, margins=margins)
    return maker.golden
