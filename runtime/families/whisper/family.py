"""Whisper as the runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.settings import ALIGN
from runtime.family import Family, WarmUp
from runtime.transcript_files import transcript_formats

if TYPE_CHECKING:
    from runtime.families.whisper.recognizer import WhisperRecognizer


def _open(artifact: Artifact, engine: Engine, load_s: float | None) -> WhisperRecognizer:
    from runtime.families.whisper.recognizer import WhisperRecognizer

    return WhisperRecognizer(artifact, engine, load_s)


FAMILY = Family(
    "Speech",
    "Whisper",
    WhisperOptions,
    transcript_formats(timed={"timestamps": True}),
    _open,
    on_demand=(ALIGN,),
    # Silence is not encoded, and noise would be tried at every temperature.
    warm_up=WarmUp(0.01, {"temperatures": (0.0,), "max_new_tokens": 2}),
)
