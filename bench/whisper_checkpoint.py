"""An artifact's Whisper as a transformers folder, which all peers are made of, so that all have the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from runtime.artifact import Artifact
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend, WhisperSettings


def write_checkpoint(artifact: Artifact, folder: Path) -> None:
    """Write weights, tokenizer, front-end and the settings of `generate`."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperFeatureExtractor
    from transformers.utils import logging

    from export.families.whisper.source import transformers_model

    logging.disable_progress_bar()
    dims, settings = artifact.part("dims", WhisperDims), artifact.part("settings", WhisperSettings)
    frontend = artifact.part("frontend", WhisperFrontend)
    model = transformers_model(dims, settings, artifact.file("weights.safetensors"))
    model.generation_config = GenerationConfig(
        pad_token_id=settings.eot,
        bos_token_id=settings.eot,
        eos_token_id=settings.eot,
        decoder_start_token_id=settings.sot,
        prev_sot_token_id=settings.sot_prev,
        no_timestamps_token_id=settings.no_timestamps,
        max_initial_timestamp_index=settings.max_initial_timestamp_index,
        max_length=dims.n_text_ctx,
        suppress_tokens=list(settings.suppress_tokens),
        begin_suppress_tokens=list(settings.begin_suppress_tokens),
        is_multilingual=bool(settings.languages),
        lang_to_id={f"<|{code}|>": token for code, token in settings.languages.items()},
        task_to_id=settings.tasks,
        return_timestamps=True,
    )
    model.save_pretrained(folder)
    WhisperFeatureExtractor(
        feature_size=frontend.n_mels,
        sampling_rate=frontend.sample_rate,
        hop_length=frontend.hop_length,
        chunk_length=frontend.n_samples // frontend.sample_rate,
        n_fft=frontend.n_fft,
    ).save_pretrained(folder)

    tokenizer = artifact.file(settings.tokenizer_file)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": None, "bos_token": None, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    shutil.copy(tokenizer, folder / "tokenizer.json")
