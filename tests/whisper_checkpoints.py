"""Random Whisper checkpoints as transformers writes them, small but with the real layout of tokens and windows."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.families.whisper.standin import standin_tokenizer
from runtime.families.whisper.settings import WhisperDims

ENGLISH_ONLY = 51864


def write_random_checkpoint(
    folder: Path, vocabulary: int, *, window_s: int = 30, n_mels: int = 80, decoder_layers: int = 2
) -> Path:
    """Write a checkpoint of width 64 with two encoder layers into `folder`, by transformers' own save_pretrained."""
    positions = 50 * window_s
    dims = WhisperDims(
        n_mels=n_mels,
        n_audio_ctx=positions,
        n_audio_state=64,
        n_audio_head=2,
        n_audio_layer=2,
        n_audio_ffn=128,
        n_vocab=vocabulary,
        n_text_ctx=448,
        n_text_state=64,
        n_text_head=2,
        n_text_layer=decoder_layers,
        n_text_ffn=128,
    )
    tokenizer = standin_tokenizer(dims)

    def token(name: str) -> int:
        return tokenizer.token_to_id(f"<|{name}|>")

    multilingual = vocabulary != ENGLISH_ONLY
    never = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    ends = {"pad_token_id": token("endoftext"), "bos_token_id": token("endoftext"), "eos_token_id": token("endoftext")}
    of_languages = {
        "lang_to_id": {f"<|{code}|>": token(code) for code in LANGUAGES if token(code) is not None},
        "task_to_id": {"transcribe": token("transcribe"), "translate": token("translate")},
    }
    generation = transformers.GenerationConfig(
        **ends,
        **(of_languages if multilingual else {}),
        is_multilingual=multilingual,
        decoder_start_token_id=token("startoftranscript"),
        no_timestamps_token_id=token("notimestamps"),
        prev_sot_token_id=token("startofprev"),
        max_initial_timestamp_index=50,
        suppress_tokens=[1, 2, 7, 8, 9, *(token(name) for name in never)],
        begin_suppress_tokens=[220, token("endoftext")],
        return_timestamps=False,
        max_length=448,
    )
    config = transformers.WhisperConfig(
        **ends,
        vocab_size=vocabulary,
        num_mel_bins=n_mels,
        d_model=64,
        encoder_layers=2,
        decoder_layers=decoder_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=positions,
        decoder_start_token_id=token("startoftranscript"),
    )
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fan-in scaled, so that what is said depends on the audio and on the text before it.
            if parameter.dim() > 1 and "embed" not in name:
                parameter.normal_(0, 1.5 * parameter[0].numel() ** -0.5)
        model.model.decoder.embed_tokens.weight.normal_(0, 0.3)
        model.model.decoder.embed_positions.weight.normal_(0, 0.3)
    model.generation_config = generation
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=n_mels, chunk_length=window_s).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
