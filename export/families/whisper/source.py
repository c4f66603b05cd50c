"""transformers' own Whisper, as the source that golden outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TASK_IDS

from export.families.whisper.checkpoint import has_frontend
from export.families.whisper.checkpoints import AnyWhisper
from export.families.whisper.generation import NOT_HONOURED
from export.families.whisper.tokenizer import TOKENIZER_JSON
from export.golden import Golden
from export.graphs import load_mapped
from export.json_files import without_byte_order_marks
from export.lora_source import NO_ADAPTER, add_adapter
from export.parity import arrays_of, tensors_of
from runtime.audio import open_audio
from runtime.engines.base import Array, Floats
from runtime.families.whisper.options import AUTO, WhisperOptions
from runtime.families.whisper.settings import WhisperDims, WhisperSettings
from runtime.manifest import Recording, TeacherForced
from runtime.silence import is_silent

Outputs = dict[str, torch.Tensor]
# What random weights have of their own, under transformers' names.
_OWN = {
    "begin_suppress_tokens",
    "language",
    "max_initial_timestamp_index",
    "max_length",
    "max_new_tokens",
    "suppress_tokens",
    "task",
}


class TransformersWhisper:
    """WhisperForConditionalGeneration and WhisperFeatureExtractor in fp32.

    Parameters
    ----------
    folder : Path or None
        The checkpoint, loaded by transformers itself; None for random weights and for what it does not read.
    weights : Path
        Without a folder, the safetensors file that holds them in fp32, an adapter merged.
    checkpoint : AnyWhisper
        What export read: network, front-end and settings where there is no folder; of a folder where its tokenizer is,
        and its front-end where the folder states none.
    adapter : Path or None
        Folder of a LoRA adapter of what transformers loads, which is not merged here.

    """

    def __init__(
        self, folder: Path | None, weights: Path, checkpoint: AnyWhisper, *, adapter: Path | None = None
    ) -> None:
        frontend, settings = checkpoint.frontend, checkpoint.settings
        self.implementation = f"transformers {transformers.__version__}"
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if folder is None:
            self.model = transformers_model(checkpoint.dims, settings, weights)
            for name, value in settings.model_dump(mode="json", include=_OWN).items():
                setattr(self.model.generation_config, name, value)
        else:
            with without_byte_order_marks(folder) as plain:
                self.model = transformers.WhisperForConditionalGeneration.from_pretrained(
                    plain, dtype=torch.float32, **NO_ADAPTER
                )
            if adapter is not None:
                add_adapter(self.model, adapter, lambda name: f"model.{name.removeprefix('model.')}")
        if folder is not None and has_frontend(folder):
            with without_byte_order_marks(folder) as plain:
                self._extract = transformers.WhisperFeatureExtractor.from_pretrained(plain)
        else:
            self._extract = transformers.WhisperFeatureExtractor(
                feature_size=frontend.n_mels,
                sampling_rate=frontend.sample_rate,
                hop_length=frontend.hop_length,
                chunk_length=frontend.n_samples // frontend.sample_rate,
                n_fft=frontend.n_fft,
            )
        self.model.eval()
        self._dtype = torch.float32
        self._tokenizer = _tokenizer(checkpoint)
        _complete(self.model, self._tokenizer, settings)
        self._frontend = frontend
        self._special = settings.special
        self._alignment_heads = checkpoint.alignment_heads
        self._graphs: dict[str, Callable[[Outputs], Outputs]] = {
            "frontend": self._mel,
            "encoder": self._encode,
            "step": self._decode,
            "align": self._align,
        }

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, all but the front-end."""
        self.model.to(dtype)
        self._dtype = dtype

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what transformers computes where `graph` does."""
        dtype = torch.float32 if graph == "frontend" else self._dtype
        with torch.inference_mode():
            outputs = self._graphs.get(graph, self._decode)(tensors_of(inputs, dtype))
        return arrays_of(outputs)

    def teacher_forced(self, golden: Golden, run: TeacherForced) -> Floats:
        """Return the logits [n, V] of one call with all tokens of a run, by golden outputs of the encoder."""
        case = next(case for case in golden.cases if case.name == run.encoder_case)
        cross = {name: golden.arrays[out.key] for name, out in case.outputs.items() if name.startswith("cross_")}
        logits: Floats = self.run("step", {"tokens": np.array([run.tokens[:-1]]), **cross})["logits"]
        return logits[0, run.prompt - 1 :]

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether `generate` gives the golden run's text, and took its language.

        It detects the language in the first window alone; where it finds another one there, it is told which.
        """
        golden = recording.result.get("language")
        text, language = self._generate(path, recording.options)
        seconds = WhisperOptions.parse(recording.options).seconds_of(open_audio(path).info.duration_s)
        if language not in {None, golden} and seconds > self._frontend.n_samples / self._frontend.sample_rate:
            text, language = self._generate(path, {**recording.options, "language": golden})
        return text == str(recording.result["text"]) and language in {None, golden}

    def transcribe(self, path: Path, options: Mapping[str, Any]) -> str:
        """Return the text that `generate` gives, sequentially over windows if there are several."""
        return self._generate(path, options)[0]

    def _generate(self, path: Path, options: Mapping[str, Any]) -> tuple[str, str | None]:
        """Return text and language (None where there is no choice, or nothing was said).

        What the options leave open is the checkpoint's own choice. Digital silence is not asked for, as at run time.
        """
        ours = WhisperOptions.parse(options)
        rate, (start_s, end_s) = self._frontend.sample_rate, ours.clip or (0.0, None)
        audio = np.concatenate(list(open_audio(path).blocks(rate, start_s, end_s)))
        if is_silent(audio):
            return "", None
        long = len(audio) > self._frontend.n_samples
        features = self._extract(
            audio,
            sampling_rate=rate,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=not long,
            padding="longest" if long else "max_length",
        )
        # Zero features behind the recording's end, as openai/whisper has them and transformers from 30 s on.
        features.input_features[:, :, len(audio) // self._frontend.hop_length :] = 0.0
        timestamps = ours.timestamps or long
        with torch.inference_mode(), self._language(ours):
            output = self.model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                return_timestamps=timestamps,
                condition_on_prev_tokens=ours.condition_on_previous_text,
                temperature=ours.temperatures,
                compression_ratio_threshold=ours.compression_ratio_threshold,
                logprob_threshold=ours.logprob_threshold,
                no_speech_threshold=ours.no_speech_threshold,
                return_segments=True,
                **self._named(ours),
            )
        segments = output["segments"][0]
        if not segments:
            return "", None
        result = segments[0]["result"]
        sequence = (result if isinstance(result, torch.Tensor) else result["sequences"]).tolist()
        n_prompt = segments[0]["idxs"][0]
        tokens = [token for segment in segments for token in segment["tokens"].tolist()]
        # Without timestamps a window is decoded once; transformers goes on behind a pair that an untrained model says.
        text: str = self._tokenizer.decode(tokens if timestamps else sequence[n_prompt:], skip_special_tokens=True)
        codes = {token: name.strip("<|>") for name, token in _languages(self.model.generation_config).items()}
        return text.strip(), next((codes[token] for token in sequence[:n_prompt] if token in codes), None)

    def _named(self, options: WhisperOptions) -> dict[str, Any]:
        """Return the arguments of `generate` that only count where an option names them."""
        prompt = (options.initial_prompt or "").strip()
        named = {
            "task": options.task if _languages(self.model.generation_config) else None,
            "max_new_tokens": options.max_new_tokens,
            "suppress_tokens": None if options.suppress_tokens is None else list(options.suppress_tokens),
            "prompt_ids": self._tokenizer.get_prompt_ids(prompt, return_tensors="pt") if prompt else None,
        }
        return {name: value for name, value in named.items() if value is not None}

    @contextmanager
    def _language(self, options: WhisperOptions) -> Iterator[None]:
        """Set the language that an option names; `generate` takes none for the checkpoint's."""
        generation = self.model.generation_config
        usual = generation.language
        if options.language is not None and _languages(generation):
            generation.language = None if options.language.strip().lower() == AUTO else options.language
        try:
            yield
        finally:
            generation.language = usual

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
        absent = torch.zeros(1, 1, self.model.config.d_model, dtype=self._dtype)
        hidden = decoder(tokens, encoder_hidden_states=absent, past_key_values=cache, use_cache=True).last_hidden_state
        wanted = hidden[:, inputs["rows"]] if "rows" in inputs else hidden
        outputs = {"logits": self.model.proj_out(wanted)}
        for index, layer in enumerate(cache.self_attention_cache.layers):
            outputs[f"new_self_k_{index}"] = layer.keys[:, :, -tokens.shape[1] :]
            outputs[f"new_self_v_{index}"] = layer.values[:, :, -tokens.shape[1] :]
        return outputs

    def _align(self, inputs: Outputs) -> Outputs:
        """Run the decoder on all tokens; attention scores are of the queries that its cross-attention makes."""
        queries: dict[int, torch.Tensor] = {}
        attentions = [layer.encoder_attn for layer in self.model.get_decoder().layers]
        hooks = [
            attention.q_proj.register_forward_hook(lambda *call, place=place: queries.update({place: call[-1]}))
            for place, attention in enumerate(attentions)
        ]
        try:
            logits = self._decode(inputs)["logits"][:, :-1].float()
        finally:
            for hook in hooks:
                hook.remove()
        scores = []
        for layer, head in self._alignment_heads:
            attention = attentions[layer]
            columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            key = inputs[f"cross_k_{layer}"][:, head]
            scores.append(queries[layer][..., columns] @ key.transpose(1, 2) * attention.scaling)
        targets = inputs["tokens"][:, 1:]
        everything = torch.arange(logits.shape[-1])
        special = (everything >= self._special.start) & (everything < self._special.stop)
        likely = logits.where(~special, -torch.inf).softmax(-1).gather(2, targets[..., None])[..., 0]
        return {"scores": torch.stack(scores, dim=1), "probabilities": likely}


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


def _tokenizer(checkpoint: AnyWhisper) -> transformers.WhisperTokenizer:
    """Return transformers' tokenizer of the checkpoint's folder; without a folder, of what export wrote."""
    if checkpoint.tokenizer_folder is not None:
        return transformers.WhisperTokenizer.from_pretrained(checkpoint.tokenizer_folder)
    with TemporaryDirectory() as folder:
        (Path(folder) / TOKENIZER_JSON).write_bytes(checkpoint.tokenizer_json)
        return transformers.WhisperTokenizer.from_pretrained(folder)


def _languages(generation: Any) -> dict[str, int]:
    return getattr(generation, "lang_to_id", None) or {}


def _complete(
    model: transformers.WhisperForConditionalGeneration,
    tokenizer: transformers.WhisperTokenizer,
    settings: WhisperSettings,
) -> None:
    """Set what the checkpoint's generation settings leave open, and take back what export does not honour.

    Whether a model is multilingual is the only thing that is asked of `settings`; an older checkpoint does not say it.
    """
    generation = model.generation_config

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(f"<|{name}|>"))

    values: dict[str, Any] = {
        "decoder_start_token_id": token("startoftranscript"),
        "eos_token_id": token("endoftext"),
        "pad_token_id": token("endoftext"),
        "prev_sot_token_id": token("startofprev"),
        "no_timestamps_token_id": token("notimestamps"),
        "max_length": model.config.max_target_positions,
        "is_multilingual": bool(settings.languages),
        "language": None,
        "task": None,
    }
    if settings.languages:
        known = tokenizer.get_vocab()
        values["lang_to_id"] = {f"<|{code}|>": token(code) for code in LANGUAGES if f"<|{code}|>" in known}
        values["task_to_id"] = {name: token(name) for name in TASK_IDS if f"<|{name}|>" in known}
    for name, value in values.items():
        if getattr(generation, name, None) is None:
            setattr(generation, name, value)
    generation.eos_token_id = token("endoftext")
    for name, neutral in NOT_HONOURED.items():
        setattr(generation, name, neutral)
    if _languages(generation):
        _unfold(generation, getattr(model.config, "forced_decoder_ids", None))
    else:
        # An English-only model has no choice, and transformers refuses to be given one.
        generation.language = generation.task = None


def _unfold(generation: Any, older: list[list[int | None]] | None) -> None:
    """Put `forced_decoder_ids` as language and task, and transcription where the checkpoint has no task.

    transformers then leaves the task's token out of the prompt, which export never does.
    """
    forced = getattr(generation, "forced_decoder_ids", None) or older or []
    # Those that begin elsewhere do not count.
    tokens = [token for _, token in forced] if forced and forced[0][0] == 1 else []
    if generation.language is None and generation.task is None:
        generation.language = next((name for name, token in _languages(generation).items() if token in tokens), None)
        generation.task = next((name for name, token in generation.task_to_id.items() if token in tokens), None)
    generation.task = generation.task or "transcribe"
