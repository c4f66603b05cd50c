"""Cnn8Rnn as the runtime sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.outputs import FORMATS
from runtime.family import Family

if TYPE_CHECKING:
    from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer


def _open(artifact: Artifact, engine: Engine, load_s: float | None) -> Cnn8RnnRecognizer:
    from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer

    return Cnn8RnnRecognizer(artifact, engine, load_s)


FAMILY = Family("Sound events", "Cnn8Rnn", Cnn8RnnOptions, FORMATS, _open)
