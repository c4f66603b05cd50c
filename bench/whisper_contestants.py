"""Who takes part: our engines, transformers in eager mode, and faster-whisper (CTranslate2), all in float32.

Each does the same work: the mel features of one window in, a fixed number of greedy tokens out, the end token
forbidden so that nobody stops early.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Floats
from runtime.families.whisper.encoder_decoder import WhisperEncoderDecoder
from runtime.families.whisper.rules import Rule, SuppressTokens, choose
from runtime.families.whisper.settings import WhisperDims, WhisperSettings


class Contestant(Protocol):
    """One implementation with its weights loaded."""

    name: str

    def encode(self, mel: Floats) -> Any:
        """Encode mel f32 [n_mels, n_frames]."""

    def decode(self, encoded: Any, prompt: Sequence[int], count: int, *, distinct: bool) -> list[int]:
        """Return exactly `count` greedy tokens after `prompt`; `distinct`: none of them twice."""


class Ours:
    """One of our engines under the decode loop that `atlasport run` uses."""

    def __init__(self, artifact: Artifact, engine: str, threads: int) -> None:
        self.name = f"atlasport {engine}"
        content = artifact.content
        self._settings = WhisperSettings.model_validate(content.settings)
        dims = WhisperDims.model_validate(content.dims)
        opened = open_engine(artifact, engine, "cpu", threads, ["encoder", "step"])
        self._decoder = WhisperEncoderDecoder(opened, content.graphs, dims, self._settings)

    def encode(self, mel: Floats) -> Any:
        """Encode mel f32 [n_mels, n_frames]; includes the keys and values for cross-attention."""
        return self._decoder.encode(mel)

    def decode(self, encoded: Any, prompt: Sequence[int], count: int, *, distinct: bool) -> list[int]:
        """Return exactly `count` greedy tokens after `prompt`; `distinct`: none of them twice."""
        rules: list[Rule] = [SuppressTokens([self._settings.eot])]
        if distinct:
            rules.append(_forbid_repeats)
        unused = np.random.default_rng(0)
        prompted = self._decoder.prompted(encoded, prompt)
        decoding = self._decoder.decode(prompted, rules, lambda logits: choose(logits, 0.0, unused), count)
        return list(decoding.tokens)


def _forbid_repeats(logits: Floats, tokens: Sequence[int]) -> None:
    logits[list(tokens)] = -np.inf


class Transformers:
    """transformers' modules in eager mode with its key-value cache, without the overhead of `generate`."""

    name = "transformers eager"

    def __init__(self, folder: Path, eot: int) -> None:
        from transformers import WhisperForConditionalGeneration

        self._model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self._eot = eot

    @torch.inference_mode()
    def encode(self, mel: Floats) -> Any:
        """Encode mel f32 [n_mels, n_frames]."""
        return self._model.model.encoder(torch.from_numpy(mel)[None]).last_hidden_state

    @torch.inference_mode()
    def decode(self, encoded: Any, prompt: Sequence[int], count: int, *, distinct: bool) -> list[int]:
        """Return exactly `count` greedy tokens after `prompt`; `distinct`: none of them twice."""
        tokens, cache, fed = list[int](), None, list(prompt)
        while len(tokens) < count:
            output = self._model(
                encoder_outputs=(encoded,),
                decoder_input_ids=torch.tensor([fed]),
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits = output.logits[0, -1]
            logits[[self._eot, *(tokens if distinct else [])]] = -torch.inf
            fed = [int(logits.argmax())]
            tokens += fed
        return tokens


class FasterWhisper:
    """faster-whisper's model; CTranslate2 does the decoding."""

    name = "faster-whisper"

    def __init__(self, folder: Path, eot: int, threads: int) -> None:
        from ctranslate2.converters import TransformersConverter
        from faster_whisper import WhisperModel

        converted = folder / "ctranslate2"
        TransformersConverter(str(folder)).convert(str(converted), quantization="float32")
        # Without a tokenizer beside the weights it fetches one from the hub.
        shutil.copy(folder / "tokenizer.json", converted)
        self._model = WhisperModel(str(converted), device="cpu", compute_type="float32", cpu_threads=threads)
        self._eot = eot

    def encode(self, mel: Floats) -> Any:
        """Encode mel f32 [n_mels, n_frames]."""
        return self._model.encode(mel)

    def decode(self, encoded: Any, prompt: Sequence[int], count: int, *, distinct: bool) -> list[int]:
        """Return exactly `count` greedy tokens after `prompt`; `distinct`: none of them twice."""
        # CTranslate2 allows half of max_length for new tokens.
        result = self._model.model.generate(
            encoded,
            [list(prompt)],
            beam_size=1,
            max_length=2 * count,
            suppress_blank=False,
            suppress_tokens=[self._eot],
            no_repeat_ngram_size=1 if distinct else 0,
        )
        return [int(token) for token in result[0].sequences_ids[0]]


def write_checkpoint(artifact: Artifact, folder: Path) -> None:
    """Write the artifact's weights as a transformers checkpoint, so that all contestants have the same."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from export.families.whisper.source import transformers_model

    dims = WhisperDims.model_validate(artifact.content.dims)
    settings = WhisperSettings.model_validate(artifact.content.settings)
    special = {
        "pad_token_id": settings.eot,
        "bos_token_id": settings.eot,
        "eos_token_id": settings.eot,
        "decoder_start_token_id": settings.sot,
    }
    rules = {
        "suppress_tokens": list(settings.suppress_tokens),
        "begin_suppress_tokens": list(settings.begin_suppress_tokens),
    }
    model = transformers_model(dims, settings, artifact.file("weights.safetensors"))
    languages = {f"<|{code}|>": token for code, token in settings.languages.items()}
    model.generation_config = GenerationConfig(lang_to_id=languages, **special, **rules)
    model.save_pretrained(folder)

    tokenizer = artifact.file(settings.tokenizer_file)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": None, "bos_token": None, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    shutil.copy(tokenizer, folder / "tokenizer.json")
