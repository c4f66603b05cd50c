"""Parakeet-CTC's golden cases: those of the encoder, whose outputs are logits, and recordings."""

from __future__ import annotations

from collections.abc import Sequence

from export.fastconformer.cases import EncoderCases
from export.golden import Clip, Golden
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.parakeet_ctc.recognizer import CtcRecognizer


def ctc_golden(artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
    """Return golden cases and recordings; see FamilyModel.golden."""
    maker = EncoderCases(artifact, engine)
    maker.sounds()
    maker.recordings(clips)
    maker.heard(clips, CtcRecognizer(artifact, engine))
    return maker.golden
