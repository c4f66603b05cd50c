"""Reads what config.json, generation_config.json and the processor's files say of a Granite Speech checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from export.json_files import read_json
from runtime.errors import InputError
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteScales, GraniteSettings

_LARGEST = 1 << 20
# Relatives with a model_type of their own, and what they need that the graphs here lack.
_RELATIVES = {
    "granite_speech_plus": "a projector over several encoder layers' outputs",
    "granite_speech_nar": "an editing decoder (attention in both directions over a BPE draft)",
    "granite_speech5_ctc": "the encoder of Granite Speech 5, which has no language model",
}
# Language models of the same series.
_OTHER_DECODERS = {
    "granitemoe": "a mixture of experts",
    "granitemoeshared": "a mixture of experts",
    "granitemoehybrid": "Mamba layers and a mixture of experts",
    "bamba": "Mamba layers",
    "mamba": "Mamba layers",
    "mamba2": "Mamba layers",
}
_ENCODER = {
    "enc_layers": "num_layers",
    "enc_dim": "hidden_dim",
    "enc_heads": "num_heads",
    "enc_conv_kernel": "conv_kernel_size",
    "enc_context": "context_size",
    "enc_max_pos": "max_pos_emb",
    "n_ctc": "output_dim",
}
# transformers' defaults for what older files may lack.
_ENCODER_DEFAULTS = {"conv_kernel_size": 15, "context_size": 200, "max_pos_emb": 512}
_PROJECTOR = {
    "proj_layers": "num_hidden_layers",
    "proj_dim": "hidden_size",
    "proj_heads": "num_attention_heads",
    "proj_ffn": "intermediate_size",
}
_DECODER = {
    "lm_layers": "num_hidden_layers",
    "lm_dim": "hidden_size",
    "lm_heads": "num_attention_heads",
    "lm_ffn": "intermediate_size",
    "n_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
}
# What the graphs compute: the value of a key, with transformers' default where the key is missing.
_SUPPORTED_PROJECTOR = {
    "model_type": ("blip_2_qformer", "blip_2_qformer"),
    "hidden_act": ("gelu", "gelu"),
    "cross_attention_frequency": (2, 1),
    "use_qformer_text_input": (False, False),
    "position_embedding_type": ("absolute", "absolute"),
}
_SUPPORTED_DECODER = {
    "hidden_act": ("silu", "silu"),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "rope_scaling": (None, None),
}
_MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
# The vocabulary of Granite 3.3, whose RoPE has another base than Granite 4's.
_VOCABULARY_3_3, _ROPE_THETA_3_3 = 49160, 10_000_000.0
# torchaudio's names for the settings of a mel spectrogram.
_MELSPEC = {
    "sample_rate": "sample_rate",
    "n_fft": "n_fft",
    "win_length": "win_length",
    "hop_length": "hop_length",
    "n_mels": "n_mels",
}


class _Section:
    """A part of a JSON file whose keys are read with checks; errors name file and key."""

    def __init__(self, path: Path, values: object, name: str = "") -> None:
        self.path, self.name = path, name
        if not isinstance(values, dict):
            raise InputError(f"{path}: {name}: expected an object with settings, found {values!r:.80}; get it again")
        self.values: Mapping[str, Any] = values

    def section(self, key: str) -> _Section:
        return _Section(self.path, self.values.get(key), key)

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise self.refused(key, value, f"a number from 1 to {_LARGEST}")
        return value

    def real(self, key: str, default: float, section: Mapping[str, Any] | None = None) -> float:
        """Return a finite number above 0."""
        value = (self.values if section is None else section).get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.refused(key, value, "a number above 0")
        return float(value)

    def token(self, key: str, value: object) -> int:
        if type(value) is not int or not 0 <= value <= _LARGEST:
            raise self.refused(key, value, "a token's id")
        return value

    def expect(self, supported: Mapping[str, tuple[object, object]]) -> None:
        for key, (default, value) in supported.items():
            if self.values.get(key, default) != value:
                raise self.refused(key, self.values.get(key, default), repr(value))

    def refused(self, key: str, found: object, supported: str) -> InputError:
        where = f"{self.name}.{key}" if self.name else key
        return InputError(
            f"{self.path}: {where}: found {found!r:.80}, supported is {supported}; give another checkpoint"
        )


class GraniteConfig:
    """The network that a config.json describes, every key checked.

    Attributes
    ----------
    dims, scales : GraniteDims, GraniteScales
        Sizes and constants.
    audio_token : int
        The id that stands for one audio embedding.
    eos : tuple[int, ...]
        The ids that end an answer: generation_config.json's, else config.json's.
    has_adapter : bool
        The language model hears only with a LoRA adapter that lies beside it.
    files : tuple[Path, ...]
        What was read.

    Raises
    ------
    InputError
        A file or key is missing, or states a network that the graphs do not compute; names what is missing.

    """

    def __init__(self, folder: Path) -> None:
        path = folder / "config.json"
        root = _Section(path, read_json(path))
        _refuse_relatives(root)
        encoder, projector, decoder = (root.section(f"{part}_config") for part in ("encoder", "projector", "text"))
        projector.expect(_SUPPORTED_PROJECTOR)
        _refuse_decoders(decoder)
        decoder.expect(_SUPPORTED_DECODER)
        self.dims = _dims(root, encoder, projector, decoder)
        self.scales = _scales(projector, decoder)
        audio = root.values.get("audio_token_index", root.values.get("audio_token_id"))
        self.audio_token = root.token("audio_token_index", audio)
        generation = folder / "generation_config.json"
        self.files: tuple[Path, ...] = (path, *((generation,) if generation.is_file() else ()))
        self.eos = _ends(generation, decoder, self.dims.n_vocab)
        # transformers' default, which 3.3 may leave out.
        self.has_adapter = bool(root.values.get("has_lora_adapter", True))


def granite_frontend(folder: Path, dims: GraniteDims) -> tuple[Path, GraniteFrontend]:
    """Return the front-end of transformers' GraniteSpeechFeatureExtractor, and the file that describes it.

    Raises
    ------
    InputError
        No such file, or one of another front-end or network.

    """
    path, values = _feature_extractor(folder)
    section = _Section(path, values, "the feature extractor")
    section.expect({"feature_extractor_type": ("GraniteSpeechFeatureExtractor", "GraniteSpeechFeatureExtractor")})
    window, rate = section.values.get("projector_window_size", 15), section.values.get("projector_downsample_rate", 5)
    if (window, rate) != (dims.window, dims.downsample):
        raise section.refused(
            "projector_window_size", [window, rate], f"config.json's {[dims.window, dims.downsample]}"
        )
    melspec = section.values.get("melspec_kwargs", {})
    if not isinstance(melspec, dict) or melspec.keys() - _MELSPEC.keys():
        raise section.refused("melspec_kwargs", melspec, f"{', '.join(_MELSPEC)}")
    flat = {
        key: section.values[key] for key in ("n_fft", "win_length", "hop_length", "n_mels") if key in section.values
    }
    sizes = {"sample_rate": section.values.get("sampling_rate", 16000), "n_mels": dims.n_mels} | melspec | flat
    try:
        frontend = GraniteFrontend(**sizes)
    except ValidationError as error:
        first = error.errors()[0]
        raise section.refused(str(first["loc"][0]), first["input"], first["msg"]) from error
    if frontend.n_mels != dims.n_mels or frontend.win_length > frontend.n_fft:
        raise section.refused("n_mels", frontend.n_mels, f"{dims.n_mels}, half of the encoder's input_dim")
    return path, frontend


def standard_scales(dims: GraniteDims) -> GraniteScales:
    """Return the constants that the published models of these dims have; config.json has no say in random weights.

    Attention is scaled by 1 / head_dim in all of them. RoPE's base is 1e7 in 3.3 and 1e4 since.
    """
    theta = {"rope_theta": _ROPE_THETA_3_3} if dims.n_vocab == _VOCABULARY_3_3 else {}
    return GraniteScales(attention_multiplier=1 / dims.head_dim, **theta)


def padded_lengths(n_ctx: int) -> dict[str, tuple[int, ...]]:
    """Return the lengths that prompts and caches are padded to: GraniteSettings' own, within a context of `n_ctx`."""
    fields = ("prefill_lengths", "cache_lengths")
    defaults = {name: GraniteSettings.model_fields[name].default for name in fields}
    return {
        name: (*(length for length in lengths if length < n_ctx), min(n_ctx, lengths[-1]))
        if n_ctx < lengths[-1]
        else lengths
        for name, lengths in defaults.items()
    }


def ctc_characters(n_ctc: int) -> str:
    """Return the encoder's own output characters by id; id 0 is the blank.

    The model card of granite-speech-4.1-2b: the first 256 character codes, then 92 of Katakana. The order of the
    latter is not public: ids from 256 on are left out. Codes that do not print are never text: U+FFFD stands for them.
    Other numbers of outputs have another alphabet, which is not known.
    """
    if n_ctc not in (256, 348):
        return ""
    return "".join(chr(code) if chr(code).isprintable() else "\ufffd" for code in range(256))


def _refuse_relatives(root: _Section) -> None:
    kind = root.values.get("model_type")
    if kind != "granite_speech":
        missing = _RELATIVES.get(str(kind), "")
        lacks = f" ({kind} needs {missing})" if missing else ""
        raise root.refused("model_type", kind, f"'granite_speech'{lacks}")
    if root.values.get("quantization_config") is not None:
        raise root.refused("quantization_config", root.values["quantization_config"], "weights that are not quantised")


def _refuse_decoders(decoder: _Section) -> None:
    kind = decoder.values.get("model_type", "granite")
    if kind != "granite":
        missing = _OTHER_DECODERS.get(str(kind), "")
        lacks = f" ({kind} needs {missing})" if missing else ""
        raise decoder.refused("model_type", kind, f"the dense 'granite'{lacks}")


def _dims(root: _Section, encoder: _Section, projector: _Section, decoder: _Section) -> GraniteDims:
    sizes = {ours: encoder.positive(theirs, _ENCODER_DEFAULTS.get(theirs)) for ours, theirs in _ENCODER.items()}
    sizes |= {ours: projector.positive(theirs) for ours, theirs in _PROJECTOR.items()}
    sizes |= {ours: decoder.positive(theirs) for ours, theirs in _DECODER.items()}
    dims = GraniteDims(
        **sizes,
        n_mels=encoder.positive("input_dim", 160) // 2,
        enc_head_dim=encoder.positive("dim_head", max(1, sizes["enc_dim"] // sizes["enc_heads"])),
        enc_ffn=sizes["enc_dim"] * encoder.positive("feedforward_mult", 4),
        enc_conv_dim=sizes["enc_dim"] * encoder.positive("conv_expansion_factor", 2),
        window=root.positive("window_size", 15),
        downsample=root.positive("downsample_rate", 5),
        lm_kv_heads=decoder.positive("num_key_value_heads", sizes["lm_heads"]),
        tied=int(_tied(root, decoder)),
    )
    _check_encoder(encoder, dims)
    if projector.positive("encoder_hidden_size", dims.enc_dim) != dims.enc_dim:
        found = projector.values["encoder_hidden_size"]
        raise projector.refused("encoder_hidden_size", found, f"the encoder's width, {dims.enc_dim}")
    if dims.proj_dim % dims.proj_heads:
        raise projector.refused("num_attention_heads", dims.proj_heads, f"a divisor of {dims.proj_dim}")
    if dims.window % dims.downsample:
        raise root.refused("downsample_rate", dims.downsample, f"a divisor of window_size, {dims.window}")
    head_dim = decoder.values.get("head_dim") or dims.head_dim
    if dims.lm_dim % dims.lm_heads or dims.head_dim % 2 or head_dim != dims.head_dim:
        raise decoder.refused("num_attention_heads", dims.lm_heads, f"heads of one even size that fill {dims.lm_dim}")
    if dims.lm_heads % dims.lm_kv_heads:
        supported = f"a divisor of num_attention_heads, {dims.lm_heads}"
        raise decoder.refused("num_key_value_heads", dims.lm_kv_heads, supported)
    return dims


def _check_encoder(encoder: _Section, dims: GraniteDims) -> None:
    if encoder.values.get("cat_hidden_layers"):
        raise encoder.refused("cat_hidden_layers", encoder.values["cat_hidden_layers"], "the last layer's output alone")
    if encoder.positive("input_dim", 160) % 2:
        raise encoder.refused("input_dim", encoder.values["input_dim"], "two mel frames, an even number")
    if not dims.enc_conv_kernel % 2:
        raise encoder.refused("conv_kernel_size", dims.enc_conv_kernel, "an odd number")
    if dims.enc_context > dims.enc_max_pos:
        raise encoder.refused("context_size", dims.enc_context, f"at most max_pos_emb, {dims.enc_max_pos}")


def _tied(root: _Section, decoder: _Section) -> bool:
    """Return whether the head is the embedding; the whole model's word counts, as in transformers."""
    stated = root.values.get("tie_word_embeddings", decoder.values.get("tie_word_embeddings", True))
    if type(stated) is not bool:
        raise root.refused("tie_word_embeddings", stated, "true or false")
    return stated


def _scales(projector: _Section, decoder: _Section) -> GraniteScales:
    rope = decoder.values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise decoder.refused("rope_parameters", rope, "rope_type 'default'")
    # Where both spellings are there, transformers takes the newer.
    theta = decoder.real("rope_theta", decoder.real("rope_theta", 10000.0), rope)
    return GraniteScales(
        **{name: decoder.real(name, 1.0) for name in _MULTIPLIERS},
        rope_theta=theta,
        rms_norm_eps=decoder.real("rms_norm_eps", 1e-6),
        projector_norm_eps=projector.real("layer_norm_eps", 1e-12),
    )


def _ends(generation: Path, decoder: _Section, n_vocab: int) -> tuple[int, ...]:
    stated = read_json(generation).get("eos_token_id") if generation.is_file() else None
    stated = decoder.values.get("eos_token_id") if stated is None else stated
    tokens = stated if isinstance(stated, list) else [stated]
    ends = tuple(decoder.token("eos_token_id", token) for token in tokens)
    if not ends or max(ends) >= n_vocab:
        raise decoder.refused("eos_token_id", stated, f"token ids below {n_vocab}")
    return ends


def _feature_extractor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the feature extractor's settings: in a file of their own, or a part of the processor's."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    path = folder / "processor_config.json"
    config = read_json(path) if path.is_file() else {}
    for part in ("audio_processor", "feature_extractor"):
        if isinstance(config.get(part), dict):
            return path, config[part]
    raise InputError(
        f"{folder}: expected preprocessor_config.json or processor_config.json with an audio_processor, found neither; "
        "get the whole repository"
    )
