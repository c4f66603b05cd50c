"""Granite Speech as the runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.granite_speech.memory import cache_memory
from runtime.families.granite_speech.options import GraniteOptions
from runtime.family import Family, WarmUp
from runtime.transcript_files import transcript_formats

if TYPE_CHECKING:
    from runtime.families.granite_speech.recognizer import GraniteRecognizer


def _open(artifact: Artifact, engine: Engine, load_s: float | None) -> GraniteRecognizer:
    from runtime.families.granite_speech.recognizer import GraniteRecognizer

    return GraniteRecognizer(artifact, engine, load_s)


FAMILY = Family(
    "Speech",
    "Granite Speech",
    GraniteOptions,
    transcript_formats(),
    _open,
    streams=True,
    memory=cache_memory,
    # Of silence the language model is not asked; two tokens are a prefill and a step.
    warm_up=WarmUp(0.01, {"max_new_tokens": 2}),
)
