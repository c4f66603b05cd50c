"""What a NeMo model_config.yaml says of a FastConformer; refuses by name what the graphs do not compute."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend, FastConformerSettings

_LARGEST = 1 << 20
_SHOWN = 80
_MISSING = object()
_FULL_ATTENTION = (None, [-1, -1], [[-1, -1]])
_LOCAL_ATTENTION = "rel_pos_local_attn"


@dataclass(frozen=True)
class Section:
    """What may stand in a section.

    Attributes
    ----------
    target : str or None
        NeMo's class.
    supported : mapping
        By key: what NeMo takes where the key is not there, and what the graphs compute.
    read, irrelevant : str
        Keys that are read elsewhere, and those that only training, streaming or memory depend on. Others are refused,
        as nobody knows what they change.

    """

    target: str | None
    read: str
    irrelevant: str = ""
    supported: Mapping[str, tuple[Any, tuple[Any, ...]]] = field(default_factory=dict)

    def unknown(self, section: Mapping[str, Any]) -> list[str]:
        """Return the keys of a section that are not known."""
        known = {*self.supported, *self.read.split(), *self.irrelevant.split()}
        return [key for key in section if key not in known]


# pad_to and pad_value fill frames beyond the length, which the encoder masks; the window and the mel filters themselves
# are tensors of the checkpoint.
SECTIONS = {
    "preprocessor": Section(
        "AudioToMelSpectrogramPreprocessor",
        "_target_ sample_rate features n_fft window_size window_stride n_window_size n_window_stride preemph",
        "window lowfreq highfreq mel_norm dither pad_to pad_value max_duration use_grads rng nb_augmentation_prob "
        "nb_max_freq stft_exact_pad stft_conv",
        {
            "normalize": ("per_feature", ("per_feature",)),
            "log": (True, (True,)),
            "log_zero_guard_type": ("add", ("add",)),
            "log_zero_guard_value": (2**-24, (2**-24,)),
            "frame_splicing": (1, (1,)),
            "exact_pad": (False, (False,)),
            "mag_power": (2.0, (2.0,)),
            "use_torchaudio": (False, (False,)),
        },
    ),
    "encoder": Section(
        "ConformerEncoder",
        "_target_ att_context_size feat_in feat_out n_layers d_model n_heads ff_expansion_factor conv_kernel_size "
        "subsampling_conv_channels use_bias xscaling",
        "subsampling_conv_chunking_factor reduction_position reduction_factor att_context_probs att_chunk_context_size "
        "pos_emb_max_len dropout dropout_pre_encoder dropout_emb dropout_att stochastic_depth_drop_prob "
        "stochastic_depth_mode stochastic_depth_start_layer global_tokens_spacing global_attn_separate "
        "use_pytorch_sdpa use_pytorch_sdpa_backends sync_max_audio_length rope_base rotary_fraction use_triton",
        {
            "self_attention_model": ("rel_pos", ("rel_pos", _LOCAL_ATTENTION)),
            "att_context_style": ("regular", ("regular",)),
            "untie_biases": (True, (True,)),
            "subsampling": ("striding", ("dw_striding",)),
            "subsampling_factor": (4, (8,)),
            "causal_downsampling": (False, (False,)),
            "reduction": (None, (None,)),
            "conv_norm_type": ("batch_norm", ("batch_norm",)),
            "conv_context_size": (None, (None,)),
            "conv_context_style": ("regular", ("regular",)),
            "global_tokens": (0, (0,)),
        },
    ),
}


class FastConformerConfig(ABC):
    """A model_config.yaml, checked.

    `tokenizer_member` names the SentencePiece model in the archive. `notes` say what it states that the artifact does
    otherwise.

    Raises
    ------
    InputError
        The model is of another class, or has an option that is not supported; names key and value.

    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._notes: list[str] = []
        # The class of the model, without its module.
        self.target = str(config.get("target", "nothing")).rpartition(".")[2]
        sections = SECTIONS | self.decoder_sections()
        for name, section in sections.items():
            found = str(self._section(name).get("_target_", section.target)).rpartition(".")[2]
            if section.target is not None and found != section.target:
                raise self._refused(f"{name}._target_", found, section.target)
        for name, section in sections.items():
            self._check_section(name, section)
        self.settings = self.read_settings()
        self._check_attention()
        self.frontend = self._frontend()
        self.dims = self.read_dims()
        self.tokenizer_member = self._tokenizer()
        self.notes = tuple(self._notes)

    @abstractmethod
    def decoder_sections(self) -> dict[str, Section]:
        """Return what is known of the decoder's sections by their names; InputError for a model of another class."""

    @abstractmethod
    def read_settings(self) -> FastConformerSettings:
        """Return how to decode."""

    @abstractmethod
    def read_dims(self) -> FastConformerDims:
        """Return the network."""

    @abstractmethod
    def name_of(self, stored: str) -> str | None:
        """Return the network's name of a tensor of the archive, None for one of a head that is left out."""

    def _check_section(self, name: str, known: Section) -> None:
        section = self._section(name)
        for key, (default, supported) in known.supported.items():
            value = section.get(key, default)
            # 1 == True: a bool is only equal to a bool.
            if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in supported):
                raise self._refused(f"{name}.{key}", value, " or ".join(map(short, supported)))
        if unknown := known.unknown(section):
            raise InputError(
                f"{self._where}: {name}.{short(unknown[0])}: {short(section[unknown[0]])}: not known here, and it "
                "may change what the network computes; if only training reads it, take it out of "
                "model_config.yaml and pack the .nemo again"
            )

    def _check_attention(self) -> None:
        """Read attention within a distance as full attention: NeMo changes one to the other with the same weights.

        NeMo 3.0.0, ConformerEncoder.change_attention_model.
        """
        encoder = self._section("encoder")
        context = encoder.get("att_context_size")
        if encoder.get("self_attention_model") != _LOCAL_ATTENTION:
            if context not in _FULL_ATTENTION:
                raise self._refused("encoder.att_context_size", context, " or ".join(map(short, _FULL_ATTENTION)))
            return
        sides = context[0] if isinstance(context, list) and context and isinstance(context[0], list) else context
        if not isinstance(sides, list) or [type(side) for side in sides] != [int, int] or max(sides) <= 0:
            raise self._refused("encoder.att_context_size", context, "two numbers of frames, as local attention needs")
        self._notes.append(
            f"encoder.self_attention_model {_LOCAL_ATTENTION} with att_context_size {sides}: exported with full "
            f"attention, of the same weights, for recordings up to {self.settings.full_attention_s:g} s; longer ones "
            "go through the encoder in windows"
        )

    def _frontend(self) -> FastConformerFrontend:
        section = self._section("preprocessor")
        rate = self._positive("preprocessor.sample_rate", section.get("sample_rate", 16000))
        window = self._samples("window_size", 0.02, rate)
        hop = self._samples("window_stride", 0.01, rate)
        n_fft = section.get("n_fft") or 2 ** math.ceil(math.log2(window))
        preemphasis = section.get("preemph", 0.97)
        if preemphasis is not None and (not isinstance(preemphasis, int | float) or not 0 <= preemphasis < 1):
            raise self._refused("preprocessor.preemph", preemphasis, "a number from 0 to 1 or null")
        if self._positive("preprocessor.n_fft", n_fft) < window:
            raise self._refused("preprocessor.n_fft", n_fft, f"at least the window's {window} samples")
        return FastConformerFrontend(
            sample_rate=rate,
            n_fft=n_fft,
            win_length=window,
            hop_length=hop,
            n_mels=self._positive("preprocessor.features", section.get("features", 64)),
            preemphasis=preemphasis or 0.0,
        )

    def _samples(self, key: str, default: float, rate: int) -> int:
        """Return a length that is stated in samples or in seconds, as NeMo rounds it."""
        section = self._section("preprocessor")
        samples = section.get(f"n_{key}")
        if samples is not None:
            return self._positive(f"preprocessor.n_{key}", samples)
        seconds = section.get(key, default)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds * rate < _LARGEST:
            raise self._refused(f"preprocessor.{key}", seconds, "a time in seconds")
        return self._positive(f"preprocessor.{key}", int(seconds * rate))

    def _encoder_dims(self) -> dict[str, int]:
        """Return the sizes of the encoder by their names in FastConformerDims."""
        encoder = self._section("encoder")
        d_model = self._positive("encoder.d_model", encoder.get("d_model"))
        channels = encoder.get("subsampling_conv_channels", -1)
        if channels != -1:
            channels = self._positive("encoder.subsampling_conv_channels", channels)
        dims = {
            "n_mels": self._positive("encoder.feat_in", encoder.get("feat_in")),
            "n_layers": self._positive("encoder.n_layers", encoder.get("n_layers")),
            "d_model": d_model,
            "n_heads": self._positive("encoder.n_heads", encoder.get("n_heads", 4)),
            "d_ff": d_model * self._positive("encoder.ff_expansion_factor", encoder.get("ff_expansion_factor", 4)),
            "conv_kernel": self._positive("encoder.conv_kernel_size", encoder.get("conv_kernel_size", 31)),
            "subsampling_factor": encoder["subsampling_factor"],
            "subsampling_channels": d_model if channels == -1 else channels,
            "use_bias": self._flag("encoder.use_bias", encoder.get("use_bias", True)),
            "xscaling": self._flag("encoder.xscaling", encoder.get("xscaling", True)),
        }
        if d_model % dims["n_heads"] or d_model % 2:
            raise self._refused("encoder.n_heads", dims["n_heads"], f"a divisor of d_model {d_model}, which is even")
        if dims["conv_kernel"] % 2 == 0:
            raise self._refused("encoder.conv_kernel_size", dims["conv_kernel"], "an odd number")
        feat_out = encoder.get("feat_out", -1)
        if feat_out not in (None, -1, 0, d_model):
            raise self._refused("encoder.feat_out", feat_out, "-1: no projection after the encoder")
        self._check_equal("preprocessor.features", self.frontend.n_mels, dims["n_mels"], "encoder.feat_in")
        return dims

    def _check_equal(self, key: str, value: object, expected: int, owner: str) -> None:
        """Refuse a size that is stated a second time, and otherwise."""
        if value not in (None, expected):
            raise self._refused(key, value, f"{expected} as {owner}")

    def _tokenizer(self) -> str:
        section = self._section("tokenizer")
        kind = section.get("type")
        if kind != "bpe":
            raise self._refused("tokenizer.type", kind, "bpe: one SentencePiece model")
        path = section.get("model_path")
        if not isinstance(path, str) or not path.startswith("nemo:"):
            raise self._refused("tokenizer.model_path", path, "nemo:<a member of the archive>")
        return path.removeprefix("nemo:")

    def _section(self, name: str, default: object = _MISSING) -> dict[str, Any]:
        value: Any = self._config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None and default is not _MISSING:
            value = default
        if not isinstance(value, dict):
            raise self._refused(name, value, "a section of settings")
        return value

    def _positive(self, key: str, value: object) -> int:
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise self._refused(key, value, f"a number from 1 to {_LARGEST}")
        return value

    def _flag(self, key: str, value: object) -> int:
        if not isinstance(value, bool):
            raise self._refused(key, value, "true or false")
        return int(value)

    def _refused(self, key: str, found: object, supported: str) -> InputError:
        return InputError(
            f"{self._where}: {key}: found {short(found)}, supported is {supported}; give another checkpoint"
        )


def short(value: object) -> str:
    """Return a value as a message shows it."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
