"""transformers' own Whisper, as the source that golden outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from export.checkpoint import without_byte_order_marks
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.standin import RandomWhisper
from export.graphs import load_mapped
from runtime.audio import open_audio
from runtime.engines.base import Array
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.settings import WhisperDims, WhisperSettings
from runtime.manifest import Recording

Outputs = dict[str, torch.Tensor]


class TransformersWhisper:
    """WhisperForConditionalGeneration and WhisperFeatureExtractor in fp32.

    Parameters
    ----------
    folder : Path or None
        The checkpoint, loaded by transformers itself; None for random weights.
    weights : Path
        For random weights, the safetensors file that holds them in fp32.
    checkpoint : WhisperCheckpoint or RandomWhisper
        What export read: network and front-end of random weights, and the tokens that an older checkpoint's
        generation_config.json lacks.

    """

    def __init__(self, folder: Path | None, weights: Path, checkpoint: WhisperCheckpoint | RandomWhisper) -> None:
        frontend, settings = checkpoint.frontend, checkpoint.settings
        self.implementation = f"transformers {transformers.__version__}"
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if folder is None:
            self.model = transformers_model(checkpoint.dims, settings, weights)
            self._extract = transformers.WhisperFeatureExtractor(
                feature_size=frontend.n_mels,
                sampling_rate=frontend.sample_rate,
                hop_length=frontend.hop_length,
                chunk_length=frontend.n_samples // frontend.sample_rate,
                n_fft=frontend.n_fft,
            )
        else:
            with without_byte_order_marks(folder) as plain:
                self.model = transformers.WhisperForConditionalGeneration.from_pretrained(plain, dtype=torch.float32)
                self._extract = transformers.WhisperFeatureExtractor.from_pretrained(plain)
        self.model.eval()
        _complete(self.model.generation_config, settings)
        self._frontend, self._settings = frontend, settings
        self._tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
        self._graphs: dict[str, Callable[[Outputs], Outputs]] = {
            "frontend": self._mel,
            "encoder": self._encode,
            "step": self._decode,
        }

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what transformers computes where `graph` does."""
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            outputs = self._graphs.get(graph, self._decode)(tensors)
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether `generate` gives the golden run's text."""
        return self.transcribe(path, recording.options) == str(recording.result["text"])

    def transcribe(self, path: Path, options: Mapping[str, Any]) -> str:
        """Return the text that `generate` gives, sequentially over windows if there are several."""
        ours = WhisperOptions.parse(options)
        audio = np.concatenate(list(open_audio(path).blocks(self._frontend.sample_rate)))
        long = len(audio) > self._frontend.n_samples
        features = self._extract(
            audio,
            sampling_rate=self._frontend.sample_rate,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=not long,
            padding="longest" if long else "max_length",
        )
        multilingual = {"language": ours.language, "task": ours.task} if self._settings.languages else {}
        with torch.inference_mode():
            tokens = self.model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                return_timestamps=ours.timestamps or long,
                condition_on_prev_tokens=ours.condition_on_previous_text,
                temperature=ours.temperatures,
                compression_ratio_threshold=ours.compression_ratio_threshold,
                logprob_threshold=ours.logprob_threshold,
                no_speech_threshold=ours.no_speech_threshold,
                max_new_tokens=ours.max_new_tokens,
                **multilingual,
            )
        text: str = self._tokenizer.decode([token for token in tokens[0].tolist() if token < self._settings.eot])
        return text.strip()

    def _mel(self, inputs: Outputs) -> Outputs:
        rate = self._frontend.sample_rate
        features = self._extract(inputs["audio"][0].numpy(), sampling_rate=rate, return_tensors="pt")
        return {"mel": features.input_features}

    def _encode(self, inputs: Outputs) -> Outputs:
        hidden = self.model.get_encoder()(inputs["mel"]).last_hidden_state
        outputs = {"hidden": hidden}
        for index, layer in enumerate(self.model.get_decoder().layers):
            attention = layer.encoder_attn
            for kind, projection in (("k", attention.k_proj), ("v", attention.v_proj)):
                heads = projection(hidden).unflatten(-1, (attention.num_heads, attention.head_dim))
                outputs[f"cross_{kind}_{index}"] = heads.transpose(1, 2)
        return outputs

    def _decode(self, inputs: Outputs) -> Outputs:
        """Run the decoder on the case's tokens after its cache rows; only `rows`, where given, get logits."""
        decoder = self.model.get_decoder()
        cross = transformers.DynamicCache()
        cached = transformers.DynamicCache()
        for index in range(len(decoder.layers)):
            cross.update(inputs[f"cross_k_{index}"], inputs[f"cross_v_{index}"], index)
            if f"self_k_{index}" in inputs:
                cached.update(inputs[f"self_k_{index}"], inputs[f"self_v_{index}"], index)
        cache = transformers.EncoderDecoderCache(cached, cross)
        tokens = inputs["tokens"]
        # With the cross-attention cache filled, of the encoder's output only its presence counts.
        absent = torch.zeros(1, 1, self.model.config.d_model)
        hidden = decoder(tokens, encoder_hidden_states=absent, past_key_values=cache, use_cache=True).last_hidden_state
        wanted = hidden[:, inputs["rows"]] if "rows" in inputs else hidden
        outputs = {"logits": self.model.proj_out(wanted)}
        for index, layer in enumerate(cache.self_attention_cache.layers):
            outputs[f"new_self_k_{index}"] = layer.keys[:, :, -tokens.shape[1] :]
            outputs[f"new_self_v_{index}"] = layer.values[:, :, -tokens.shape[1] :]
        return outputs


def transformers_model(
    dims: WhisperDims, settings: WhisperSettings, weights: Path
) -> transformers.WhisperForConditionalGeneration:
    """Return transformers' Whisper with the weights of an artifact's weights.safetensors, mapped from the file."""
    config = transformers.WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=dims.n_audio_ffn,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=dims.n_text_ffn,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        decoder_start_token_id=settings.sot,
        bos_token_id=settings.eot,
        eos_token_id=settings.eot,
        pad_token_id=settings.eot,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(config)
    load_mapped(model.model, weights)
    # The vocabulary projection is not in the file.
    model.tie_weights()
    return model


def _complete(generation: Any, settings: WhisperSettings) -> None:
    """Set what the checkpoint's generation settings leave open."""
    values = {
        "decoder_start_token_id": settings.sot,
        "eos_token_id": settings.eot,
        "pad_token_id": settings.eot,
        "prev_sot_token_id": settings.sot_prev,
        "no_timestamps_token_id": settings.no_timestamps,
        "suppress_tokens": list(settings.suppress_tokens) or None,
        "begin_suppress_tokens": list(settings.begin_suppress_tokens) or None,
        "max_initial_timestamp_index": settings.max_initial_timestamp_index,
        "max_length": settings.max_length,
        "is_multilingual": bool(settings.languages),
        "lang_to_id": {f"<|{code}|>": token for code, token in settings.languages.items()},
        "task_to_id": settings.tasks,
    }
    for name, value in values.items():
        if getattr(generation, name, None) is None:
            setattr(generation, name, value)
