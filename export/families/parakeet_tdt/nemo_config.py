"""What a NeMo model_config.yaml says of a FastConformer-TDT; refuses by name what the graphs do not compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime.errors import InputError
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetFrontend, ParakeetSettings

# A transducer over SentencePiece, alone or (hybrid) with a CTC head beside it, which is left out.
_MODELS = ("EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel")
_LARGEST = 1 << 20
_SHOWN = 80
# For models without a limit of symbols: a frame with so many would never end.
_NO_LIMIT = 1000
_MISSING = object()

# By section: what NeMo takes where the key is not there, and what the graphs compute. Keys that only training,
# streaming or memory depend on are in _IRRELEVANT; others are refused, as nobody knows what they change.
_FULL_ATTENTION = (None, [-1, -1], [[-1, -1]])
_LOCAL_ATTENTION = "rel_pos_local_attn"
_SUPPORTED: dict[str, dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "preprocessor": {
        "normalize": ("per_feature", ("per_feature",)),
        "log": (True, (True,)),
        "log_zero_guard_type": ("add", ("add",)),
        "log_zero_guard_value": (2**-24, (2**-24,)),
        "frame_splicing": (1, (1,)),
        "exact_pad": (False, (False,)),
        "mag_power": (2.0, (2.0,)),
        "use_torchaudio": (False, (False,)),
    },
    "encoder": {
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
    "decoder": {"normalization_mode": (None, (None,)), "blank_as_pad": (True, (True,))},
    "decoder.prednet": {"rnn_hidden_size": (-1, (None, -1, 0))},
    "joint": {},
    "joint.jointnet": {"activation": ("relu", ("relu",))},
}
_READ = {
    "preprocessor": "_target_ sample_rate features n_fft window_size window_stride n_window_size n_window_stride "
    "preemph",
    "encoder": "_target_ att_context_size feat_in feat_out n_layers d_model n_heads ff_expansion_factor "
    "conv_kernel_size subsampling_conv_channels use_bias xscaling",
    "decoder": "_target_ prednet vocab_size",
    "decoder.prednet": "pred_hidden pred_rnn_layers",
    "joint": "_target_ jointnet num_classes num_extra_outputs vocabulary",
    "joint.jointnet": "joint_hidden encoder_hidden pred_hidden",
}
# pad_to and pad_value fill frames beyond the length, which the encoder masks; the window and the mel filters themselves
# are tensors of the checkpoint.
_IRRELEVANT = {
    "preprocessor": "window lowfreq highfreq mel_norm dither pad_to pad_value max_duration use_grads rng "
    "nb_augmentation_prob nb_max_freq stft_exact_pad stft_conv",
    "encoder": "subsampling_conv_chunking_factor reduction_position reduction_factor att_context_probs "
    "att_chunk_context_size pos_emb_max_len dropout dropout_pre_encoder dropout_emb dropout_att "
    "stochastic_depth_drop_prob stochastic_depth_mode stochastic_depth_start_layer global_tokens_spacing "
    "global_attn_separate use_pytorch_sdpa use_pytorch_sdpa_backends sync_max_audio_length rope_base rotary_fraction "
    "use_triton",
    "decoder": "random_state_sampling",
    "decoder.prednet": "t_max dropout forget_gate_bias weights_init_scale hidden_hidden_bias_scale",
    "joint": "log_softmax preserve_memory fuse_loss_wer fused_batch_size experimental_fuse_loss_wer masking_prob",
    "joint.jointnet": "dropout",
}
_TARGETS = {
    "preprocessor": "AudioToMelSpectrogramPreprocessor",
    "encoder": "ConformerEncoder",
    "decoder": "RNNTDecoder",
    "joint": "RNNTJoint",
}


_SEARCHES = ("greedy_batch", "greedy")
_PHRASES = ("model_path", "key_phrases_file", "key_phrases_list", "key_phrase_items_list")


class NemoConfig:
    """A model_config.yaml, checked.

    `tokenizer_member` names the SentencePiece model in the archive. `notes` say what it states that the artifact does
    otherwise.

    Raises
    ------
    InputError
        The model is another than a FastConformer-TDT, or has an option that is not supported; names key and value.

    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._config, self._where = config, where
        self._notes: list[str] = []
        self._check_target()
        for section, names in _TARGETS.items():
            found = str(self._section(section).get("_target_", names)).rpartition(".")[2]
            if found != names:
                raise self._refused(f"{section}._target_", found, names)
        for section in _SUPPORTED:
            self._check_section(section)
        self.settings = self._settings()
        self._check_attention()
        self._check_search()
        self.frontend = self._frontend()
        self.dims = self._dims(len(self.settings.durations))
        self.tokenizer_member = self._tokenizer()
        self.notes = tuple(self._notes)

    def _check_target(self) -> None:
        target = str(self._config.get("target", "nothing")).rpartition(".")[2]
        if target not in _MODELS:
            kind = "a CTC model" if "CTC" in target and "Hybrid" not in target else target
            raise self._refused("target", kind, f"a TDT model ({' or '.join(_MODELS)})")
        if target == _MODELS[1]:
            self._notes.append("hybrid model: its TDT head is exported, its CTC head is left out")

    def _check_section(self, name: str) -> None:
        section = self._section(name)
        for key, (default, supported) in _SUPPORTED[name].items():
            value = section.get(key, default)
            # 1 == True: a bool is only equal to a bool.
            if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in supported):
                raise self._refused(f"{name}.{key}", value, " or ".join(map(_short, supported)))
        known = {*_SUPPORTED[name], *_READ[name].split(), *_IRRELEVANT[name].split()}
        unknown = [key for key in section if key not in known]
        if unknown:
            raise InputError(
                f"{self._where}: {name}.{_short(unknown[0])}: {_short(section[unknown[0]])}: not known here, and it "
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
                raise self._refused("encoder.att_context_size", context, " or ".join(map(_short, _FULL_ATTENTION)))
            return
        sides = context[0] if isinstance(context, list) and context and isinstance(context[0], list) else context
        if not isinstance(sides, list) or [type(side) for side in sides] != [int, int] or max(sides) <= 0:
            raise self._refused("encoder.att_context_size", context, "two numbers of frames, as local attention needs")
        self._notes.append(
            f"encoder.self_attention_model {_LOCAL_ATTENTION} with att_context_size {sides}: exported with full "
            f"attention, of the same weights, for recordings up to {self.settings.full_attention_s:g} s; longer ones "
            "go through the encoder in windows"
        )

    def _check_search(self) -> None:
        """Note what NeMo's search has and ours has not."""
        decoding, greedy = self._section("decoding", {}), self._section("decoding.greedy", {})
        strategy = decoding.get("strategy", _SEARCHES[0])
        if strategy not in _SEARCHES:
            self._notes.append(f"decoding.strategy {_short(strategy)} is not honoured: the search is greedy")
        boosted = self._section("decoding.greedy.boosting_tree", {})
        if greedy.get("ngram_lm_model"):
            self._notes.append("decoding.greedy.ngram_lm_model is not honoured: no language model is fused")
        if any(boosted.get(key) for key in _PHRASES):
            self._notes.append("decoding.greedy.boosting_tree is not honoured; give hotwords at run time")

    def _settings(self) -> ParakeetSettings:
        decoding, loss = self._section("decoding", {}), self._section("loss", {})
        # As NeMo: the loss decides, or durations that decoding states; model_type is a word that it does not read.
        stated = loss.get("loss_name") == "tdt" or decoding.get("durations")
        kind = "tdt" if stated else decoding.get("model_type", loss.get("loss_name", "rnnt"))
        extra = self._section("joint").get("num_extra_outputs", 0)
        if kind != "tdt" or not extra:
            what = f"{kind} with {_short(extra)} duration outputs (joint.num_extra_outputs)"
            raise self._refused("decoding.model_type", what, "tdt, with durations")
        places = {
            "decoding.durations": decoding.get("durations"),
            "loss.tdt_kwargs.durations": self._section("loss.tdt_kwargs", {}).get("durations"),
            "model_defaults.tdt_durations": self._section("model_defaults", {}).get("tdt_durations"),
        }
        # An empty list is NeMo's default for a model whose loss states them.
        found = {place: value for place, value in places.items() if value is not None and value != []}
        place, durations = next(iter(found.items()), ("decoding.durations", None))
        if not isinstance(durations, list) or not all(type(frames) is int and frames >= 0 for frames in durations):
            raise self._refused(place, durations, "a list of frames")
        for other, value in found.items():
            if value != durations:
                raise self._refused(other, value, f"{_short(durations)} as in {place}")
        if len(durations) != extra:
            raise self._refused("joint.num_extra_outputs", extra, f"{len(durations)}, one for each duration")
        if len(set(durations)) != len(durations) or not any(durations):
            raise self._refused(place, durations, "different frames, not only 0")
        return ParakeetSettings(durations=tuple(durations), max_symbols=self._max_symbols())

    def _max_symbols(self) -> int:
        """Return how many symbols a frame may emit.

        Where none is stated, NeMo's batched search takes 10, but for one without CUDA graphs or for the search of one
        recording at a time, which have no limit (NeMo 3.0.0, label_looping_base.py and rnnt_greedy_decoding.py).
        """
        greedy = self._section("decoding.greedy", {})
        values = [greedy[key] for key in ("max_symbols", "max_symbols_per_step") if greedy.get(key) is not None]
        if values:
            return self._positive("decoding.greedy.max_symbols", values[0])
        alone = self._section("decoding", {}).get("strategy") == _SEARCHES[1]
        if not alone and greedy.get("use_cuda_graph_decoder", True):
            return 10
        self._notes.append(f"decoding.greedy.max_symbols is null, no limit: here a frame may emit {_NO_LIMIT} symbols")
        return _NO_LIMIT

    def _frontend(self) -> ParakeetFrontend:
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
        return ParakeetFrontend(
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

    def _dims(self, n_durations: int) -> ParakeetDims:
        encoder, prednet = self._section("encoder"), self._section("decoder.prednet")
        d_model = self._positive("encoder.d_model", encoder.get("d_model"))
        channels = encoder.get("subsampling_conv_channels", -1)
        dims = ParakeetDims(
            n_mels=self._positive("encoder.feat_in", encoder.get("feat_in")),
            n_layers=self._positive("encoder.n_layers", encoder.get("n_layers")),
            d_model=d_model,
            n_heads=self._positive("encoder.n_heads", encoder.get("n_heads", 4)),
            d_ff=d_model * self._positive("encoder.ff_expansion_factor", encoder.get("ff_expansion_factor", 4)),
            conv_kernel=self._positive("encoder.conv_kernel_size", encoder.get("conv_kernel_size", 31)),
            subsampling_factor=encoder["subsampling_factor"],
            subsampling_channels=d_model
            if channels == -1
            else self._positive("encoder.subsampling_conv_channels", channels),
            use_bias=self._flag("encoder.use_bias", encoder.get("use_bias", True)),
            xscaling=self._flag("encoder.xscaling", encoder.get("xscaling", True)),
            pred_hidden=self._positive("decoder.prednet.pred_hidden", prednet.get("pred_hidden")),
            pred_layers=self._positive("decoder.prednet.pred_rnn_layers", prednet.get("pred_rnn_layers")),
            joint_hidden=self._positive(
                "joint.jointnet.joint_hidden", self._section("joint.jointnet").get("joint_hidden")
            ),
            n_vocab=self._positive("decoder.vocab_size", self._section("decoder").get("vocab_size")),
            n_durations=n_durations,
        )
        self._check_dims(dims)
        return dims

    def _check_dims(self, dims: ParakeetDims) -> None:
        jointnet = self._section("joint.jointnet")
        if dims.d_model % dims.n_heads or dims.d_model % 2:
            raise self._refused("encoder.n_heads", dims.n_heads, f"a divisor of d_model {dims.d_model}, which is even")
        if dims.conv_kernel % 2 == 0:
            raise self._refused("encoder.conv_kernel_size", dims.conv_kernel, "an odd number")
        feat_out = self._section("encoder").get("feat_out", -1)
        if feat_out not in (None, -1, 0, dims.d_model):
            raise self._refused("encoder.feat_out", feat_out, "-1: no projection after the encoder")
        for key, value, expected, owner in (
            ("preprocessor.features", self.frontend.n_mels, dims.n_mels, "encoder.feat_in"),
            ("joint.num_classes", self._section("joint").get("num_classes"), dims.n_vocab, "decoder.vocab_size"),
            ("joint.jointnet.encoder_hidden", jointnet.get("encoder_hidden"), dims.d_model, "encoder.d_model"),
            ("joint.jointnet.pred_hidden", jointnet.get("pred_hidden"), dims.pred_hidden, "decoder.prednet"),
        ):
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
            f"{self._where}: {key}: found {_short(found)}, supported is {supported}; give another checkpoint"
        )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
