"""Parakeet-CTC as the runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.family import Family, WarmUp
from runtime.fastconformer.memory import attention_memory
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.settings import FastConformerDims, FastConformerSettings
from runtime.transcript_files import transcript_formats

if TYPE_CHECKING:
    from runtime.families.parakeet_ctc.recognizer import CtcRecognizer


def _open(artifact: Artifact, engine: Engine, load_s: float | None) -> CtcRecognizer:
    from runtime.families.parakeet_ctc.recognizer import CtcRecognizer

    return CtcRecognizer(artifact, engine, load_s)


FAMILY = Family(
    "Speech",
    "Parakeet-CTC",
    FastConformerOptions,
    transcript_formats(),
    _open,
    in_batches=True,
    memory=attention_memory(FastConformerDims, FastConformerSettings),
    warm_up=WarmUp(0.01),  # silence is not encoded
)
