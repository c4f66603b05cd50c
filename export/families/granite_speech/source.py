"""transformers' own Granite Speech, as the source that golden outputs are compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from transformers.audio_utils import mel_filter_bank

from export.golden import Golden, read_samples
from export.json_files import without_byte_order_marks
from export.lora_source import NO_ADAPTER, add_adapter
from export.parity import arrays_of, tensors_of
from runtime.engines.base import Array, Floats
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import (
    DECODE,
    EMBED,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteSettings,
)
from runtime.manifest import Recording, TeacherForced

if TYPE_CHECKING:
    from export.families.granite_speech.checkpoint import GraniteCheckpoint
    from export.families.granite_speech.standin import RandomGranite

Tensors = dict[str, torch.Tensor]
# torch.nn.BatchNorm1d's default.
_EPSILON = 1e-5


class TransformersGranite:
    """GraniteSpeechForConditionalGeneration in fp32.

    Its logits are divided by `logits_scaling`, which transformers' GraniteForCausalLM does and its Granite Speech
    forgets; greedy text is the same. It takes no padding, so that a recording's own frames are given to it. Its
    feature extractor needs torchaudio: the log-mel is that of torch.stft and transformers' mel_filter_bank.

    Parameters
    ----------
    folder : Path or None
        The checkpoint, loaded by transformers itself, its normalisation unfolded; None for random weights.
    weights : Path
        For random weights, the safetensors file that holds them in fp32.
    checkpoint : GraniteCheckpoint or RandomGranite
        What export read: prompts, tokens, front-end, and the network of random weights.
    adapter : Path or None
        Folder of a LoRA adapter, which is not merged here.

    """

    def __init__(
        self,
        folder: Path | None,
        weights: Path,
        checkpoint: GraniteCheckpoint | RandomGranite,
        *,
        adapter: Path | None = None,
    ) -> None:
        self.implementation = f"transformers {transformers.__version__}, logits divided by logits_scaling"
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.dims, self._frontend, self._settings = checkpoint.dims, checkpoint.frontend, checkpoint.settings
        if folder is None:
            self.model = transformers_model(self.dims, self._settings, weights)
        else:
            with without_byte_order_marks(folder) as plain:
                self.model = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(
                    plain, dtype=torch.float32, **NO_ADAPTER
                )
            if adapter is not None:
                add_adapter(self.model, adapter, _transformers_name)
        self.model.eval().requires_grad_(requires_grad=False)
        self._dtype = torch.float32
        self._tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
        self._graphs: dict[str, Callable[..., Tensors]] = {
            ENCODE_PROJECT: self._encode_project,
            EMBED: self._embed,
            PREFILL: self._prefill,
            DECODE: self._decode,
        }

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what transformers computes where `graph` does."""
        with torch.inference_mode():
            outputs = self._graphs[graph](**tensors_of(inputs, self._dtype))
        return arrays_of(outputs)

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on."""
        self.model.to(dtype)
        self._dtype = dtype

    def teacher_forced(self, golden: Golden, run: TeacherForced) -> Floats:
        """Return the logits [n, V] of one call with all tokens of a run, by golden embeddings of its sound."""
        case = next(case for case in golden.cases if case.name == run.encoder_case)
        tokens = torch.tensor([run.tokens[:-1]])
        # One that the model says itself is none of the sound's.
        audio = (tokens[0] == self._settings.audio_token) & (torch.arange(tokens.shape[1]) < run.prompt)
        rows = golden.arrays[case.outputs["audio_embeds"].key].reshape(-1, self.dims.lm_dim)[: int(audio.sum())]
        with torch.inference_mode():
            embeds = self._embed(tokens)["embeds"].clone()
            embeds[0, audio] = torch.from_numpy(rows).to(self._dtype)
            outputs = self.model(inputs_embeds=embeds, logits_to_keep=len(run.tokens) - run.prompt)
            logits = outputs.logits[0] / self._settings.scales.logits_scaling
        found: Floats = logits.float().numpy()
        return found

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether `generate` gives the golden run's tokens, chunk by chunk."""
        options = GraniteOptions.parse(recording.options)
        rate = self._frontend.sample_rate
        samples = torch.from_numpy(read_samples(path, rate))
        for segment in recording.result["segments"]:
            chunk = samples[round(segment["start"] * rate) : round(segment["end"] * rate)]
            tokens = list(segment["tokens"])
            if not tokens and not chunk.any():
                continue  # digital silence, which nobody reads
            ended = segment["finish"] == "end"
            # What ended by its own is asked for the end token too.
            found = self.generate(chunk, instruction(options), len(tokens) + ended)
            if found != tokens + ([found[-1]] if ended and found[-1] in self._settings.eos else []):
                return False
        return True

    def generate(self, samples: torch.Tensor, text: str, max_new_tokens: int) -> list[int]:
        """Return the greedy tokens for a recording [n] f32 and an instruction, the end token included."""
        features = self.features(samples)
        prompt = prompt_text(text, self.dims.n_embeds(features.shape[1]), self._settings)
        ids = torch.tensor([self._tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=ids,
                input_features=features,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(self._settings.eos),
                pad_token_id=self._settings.eos[0],
            )
        return [int(token) for token in tokens[0, ids.shape[1] :]]

    def features(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the log-mel features [1, n_frames, 2 * n_mels] of a recording [n] f32."""
        frontend = self._frontend
        # A recording that cannot be reflected at its ends is padded with zeros.
        samples = F.pad(samples, (0, max(0, frontend.n_fft // 2 + 1 - len(samples))))
        window = torch.hann_window(frontend.win_length, dtype=torch.float64)
        spectrum = torch.stft(
            samples.double(),
            frontend.n_fft,
            frontend.hop_length,
            frontend.win_length,
            window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        filters = mel_filter_bank(
            frontend.n_fft // 2 + 1, frontend.n_mels, 0.0, frontend.sample_rate / 2, frontend.sample_rate
        )
        mel = spectrum.abs().square().T @ torch.from_numpy(filters)
        logmel = mel.clamp(min=1e-10).log10()
        logmel = torch.maximum(logmel, logmel.max() - 8.0) / 4.0 + 1.0
        return logmel[: len(logmel) // 2 * 2].reshape(1, -1, 2 * frontend.n_mels).float()

    def _encode_project(self, features: torch.Tensor, length: torch.Tensor) -> Tensors:
        n_units, unit, _ = features.shape
        encoder = self.model.model.encoder
        hidden = encoder(features.flatten(0, 1)[None, : int(length)]).last_hidden_state
        padding = (0, 0, 0, n_units * unit - int(length))
        outputs = {"encoder_out": F.pad(hidden, padding), "ctc_logits": F.pad(encoder.out(hidden), padding)}
        # transformers pads the last window with zeros; the windows behind it are zeros and nothing else.
        outputs["audio_embeds"] = self.model.model.projector(outputs["encoder_out"])
        return {name: tensor.view(n_units, -1, tensor.shape[-1]) for name, tensor in outputs.items()}

    def _embed(self, tokens: torch.Tensor) -> Tensors:
        llm_tokens = tokens.masked_fill(tokens == self._settings.audio_token, 0)
        return {"embeds": self.model.get_input_embeddings()(llm_tokens)}

    def _prefill(self, embeds: torch.Tensor, length: torch.Tensor) -> Tensors:
        return self._after(transformers.DynamicCache(), inputs_embeds=embeds[:, : int(length)])

    def _decode(self, tokens: torch.Tensor, pos: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        cache = transformers.DynamicCache()
        rows = int(pos)
        for index, (keys, values) in enumerate(zip(k, v, strict=True)):
            cache.update(keys[None, :, :rows], values[None, :, :rows], index)
        return self._after(cache, input_ids=tokens, position_ids=pos[None])

    def _after(self, cache: transformers.DynamicCache, **inputs: torch.Tensor) -> Tensors:
        """Return the logits of the last row of `inputs`, and what they add to the cache."""
        before = cache.get_seq_length()
        outputs = self.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return {
            "logits": outputs.logits[:, -1] / self._settings.scales.logits_scaling,
            "new_k": torch.cat([layer.keys[:, :, before:] for layer in cache.layers]),
            "new_v": torch.cat([layer.values[:, :, before:] for layer in cache.layers]),
        }


def transformers_model(
    dims: GraniteDims, settings: GraniteSettings, weights: Path
) -> transformers.GraniteSpeechForConditionalGeneration:
    """Return transformers' network with the weights of an artifact's weights.safetensors, mapped from the file."""
    model = _empty_model(dims, settings)
    state: Tensors = {}
    # Mapped, not read: pages come in as they are used.
    for name, tensor in load_file(weights).items():
        state |= _unfolded(name, tensor)
    if dims.tied:
        state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    state |= {name: torch.zeros((), dtype=torch.int64) for name in counters}
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model


def _unfolded(name: str, tensor: torch.Tensor) -> Tensors:
    """Return a graph's parameter as transformers names it: a bias of depth_conv is a normalisation that only adds."""
    if name.endswith("depth_conv.conv.bias"):
        norm = "model." + name.replace("depth_conv.conv.bias", "batch_norm.")
        parts = {"weight": 1.0, "running_mean": 0.0, "running_var": 1.0 - _EPSILON}
        return {norm + part: torch.full_like(tensor, value) for part, value in parts.items()} | {norm + "bias": tensor}
    if re.search(r"\.(up|down)_conv\.weight$", name):
        tensor = tensor[:, :, None]
    return {_transformers_name(name): tensor}


def _empty_model(dims: GraniteDims, settings: GraniteSettings) -> transformers.GraniteSpeechForConditionalGeneration:
    """Return transformers' network on the meta device, but for the tensors that are not stored."""
    scales = settings.scales
    config = transformers.GraniteSpeechConfig(
        audio_token_index=settings.audio_token,
        window_size=dims.window,
        downsample_rate=dims.downsample,
        has_lora_adapter=False,
        tie_word_embeddings=bool(dims.tied),
        encoder_config={
            "model_type": "granite_speech_encoder",
            "input_dim": 2 * dims.n_mels,
            "num_layers": dims.enc_layers,
            "hidden_dim": dims.enc_dim,
            "feedforward_mult": dims.enc_ffn // dims.enc_dim,
            "num_heads": dims.enc_heads,
            "dim_head": dims.enc_head_dim,
            "output_dim": dims.n_ctc,
            "context_size": dims.enc_context,
            "max_pos_emb": dims.enc_max_pos,
            "conv_kernel_size": dims.enc_conv_kernel,
            "conv_expansion_factor": dims.enc_conv_dim // dims.enc_dim,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": dims.proj_dim,
            "num_hidden_layers": dims.proj_layers,
            "num_attention_heads": dims.proj_heads,
            "intermediate_size": dims.proj_ffn,
            "encoder_hidden_size": dims.enc_dim,
            "cross_attention_frequency": 1,
            "layer_norm_eps": scales.projector_norm_eps,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": dims.n_vocab,
            "hidden_size": dims.lm_dim,
            "intermediate_size": dims.lm_ffn,
            "num_hidden_layers": dims.lm_layers,
            "num_attention_heads": dims.lm_heads,
            "num_key_value_heads": dims.lm_kv_heads,
            "attention_multiplier": scales.attention_multiplier,
            "embedding_multiplier": scales.embedding_multiplier,
            "residual_multiplier": scales.residual_multiplier,
            "logits_scaling": scales.logits_scaling,
            "rms_norm_eps": scales.rms_norm_eps,
            "max_position_embeddings": dims.n_ctx,
            "rope_parameters": {"rope_theta": scales.rope_theta, "rope_type": "default"},
            "eos_token_id": list(settings.eos),
            "tie_word_embeddings": bool(dims.tied),
        },
    )
    with torch.device("meta"):
        model = transformers.GraniteSpeechForConditionalGeneration(config)
    places = torch.arange(dims.enc_context)
    model.model.encoder.attention_dists = places[:, None] - places + dims.enc_max_pos
    # Computed anew, on the CPU.
    rotary = model.model.language_model.rotary_emb
    model.model.language_model.rotary_emb = type(rotary)(config.text_config)
    return model


def _transformers_name(name: str) -> str:
    """Return transformers 5's name of what the hub's files, or an adapter's, call `name`."""
    if name.startswith("model."):
        return name
    if name.startswith("language_model."):
        name = name.removeprefix("language_model.").replace("model.", "language_model.", 1)
    return name if name.startswith("lm_head") else f"model.{name}"
