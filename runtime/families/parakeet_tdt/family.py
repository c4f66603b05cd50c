"""Parakeet-TDT as the runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings
from runtime.family import Family, WarmUp
from runtime.fastconformer.memory import attention_memory
from runtime.fastconformer.settings import ENCODER, FRONTEND
from runtime.transcript_files import transcript_formats

if TYPE_CHECKING:
    from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer


def _open(artifact: Artifact, engine: Engine, load_s: float | None) -> ParakeetRecognizer:
    from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer

    return ParakeetRecognizer(artifact, engine, load_s)


FAMILY = Family(
    "Speech",
    "Parakeet",
    ParakeetOptions,
    transcript_formats(),
    _open,
    # The search on the device is an option: its graphs of many steps are opened when they are called.
    graphs=(FRONTEND, ENCODER, STEP, JOIN),
    in_batches=True,
    memory=attention_memory(ParakeetDims, ParakeetSettings),
    warm_up=WarmUp(0.01),  # silence is not encoded
)
