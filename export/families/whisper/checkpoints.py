"""A Whisper checkpoint in any of its layouts."""

from __future__ import annotations

from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.ctranslate2 import CTranslate2Whisper, is_ctranslate2
from export.families.whisper.openai import OpenAIWhisper
from export.families.whisper.standin import RandomWhisper
from export.weights import Weights
from runtime.families.whisper.settings import WhisperDims

AnyWhisper = WhisperCheckpoint | CTranslate2Whisper | OpenAIWhisper | RandomWhisper


def open_checkpoint(weights: Weights) -> AnyWhisper:
    """Open a checkpoint: a folder in transformers' or CTranslate2's layout, OpenAI's file, or random weights.

    Raises
    ------
    InputError
        A damaged or partial checkpoint, or one of a network that is not supported.

    """
    if weights.path is None:
        return RandomWhisper(WhisperDims(**weights.sizes))
    if weights.path.is_file():
        return OpenAIWhisper(weights.path, weights.tokenizer)
    if is_ctranslate2(weights.path):
        return CTranslate2Whisper(weights.path, weights.tokenizer)
    return WhisperCheckpoint(weights.path, weights.tokenizer)
