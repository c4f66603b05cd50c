"""Parakeet's .nemo checkpoints: configuration, strictness, folding."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parakeet_checkpoints import (
    POCKET_NEMO,
    assert_one_line,
    changed_nemo,
    pocket_config,
    pocket_members,
    pocket_state,
    set_key,
)
from torch import nn

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.nemo_config import NemoConfig
from export.registry import MODELS
from export.weights import resolve_weights
from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerFrontend

_LAYER = "encoder.layers.0."
_LSTM = "decoder.prediction.dec_rnn.lstm."


def test_the_pocket_model_is_what_its_entry_says():
    checkpoint, entry = ParakeetCheckpoint.open(resolve_weights("parakeet-pocket", None)), MODELS["parakeet-pocket"]
    assert checkpoint.dims.model_dump() == entry.dims
    assert checkpoint.frontend.model_dump() == FastConformerFrontend().model_dump()
    settings = checkpoint.settings
    assert (settings.durations, settings.max_symbols) == ((0, 1, 2, 3, 4), 10)
    assert settings.tokenizer_file == "tokenizer.model"
    assert checkpoint.tokenizer == next(data for name, data in pocket_members().items() if name.endswith(".model"))
    assert checkpoint.files == (POCKET_NEMO,)
    buffers = ("preprocessor.", "running_", "num_batches")
    trained = {name: tensor for name, tensor in pocket_state().items() if not any(part in name for part in buffers)}
    assert sum(tensor.numel() for tensor in trained.values()) == entry.parameters


def test_every_parameter_is_read_and_every_tensor_used():
    checkpoint, state = ParakeetCheckpoint.from_nemo(POCKET_NEMO), pocket_state()
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        assert (tuple(tensor.shape), tensor.dtype) == (info.shape, torch.float32)
        if name in state and "conv." not in name:
            assert torch.equal(tensor, state[name])
    assert torch.equal(checkpoint.window, state["preprocessor.featurizer.window"])
    assert torch.equal(checkpoint.filters, state["preprocessor.featurizer.fb"][0])
    pointwise = f"{_LAYER}conv.pointwise_conv1.weight"
    assert torch.equal(checkpoint.read(pointwise), state[pointwise][:, :, 0])


@pytest.mark.parametrize("use_bias", [0, 1])
def test_batch_normalisation_is_folded_as_torch_computes_it(tmp_path: Path, use_bias: int):
    torch.manual_seed(0)
    d = 112
    norm, conv = nn.BatchNorm1d(d).eval(), nn.Conv1d(d, d, 9, groups=d, bias=bool(use_bias))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    # As small as a trained model has had it.
    norm.running_var = torch.rand(d) ** 4 + 4e-10

    def config(changed: dict[str, Any]) -> None:
        changed["encoder"]["use_bias"] = bool(use_bias)

    def state(changed: dict[str, torch.Tensor]) -> None:
        for part, tensor in norm.state_dict().items():
            changed[f"{_LAYER}conv.batch_norm.{part}"] = tensor
        changed[f"{_LAYER}conv.depthwise_conv.weight"] = conv.weight.detach()
        if use_bias:
            _add_biases(changed)
            changed[f"{_LAYER}conv.depthwise_conv.bias"] = conv.bias.detach()

    checkpoint = ParakeetCheckpoint.from_nemo(changed_nemo(tmp_path / "model.nemo", config, state))
    assert checkpoint.dims.use_bias == use_bias
    x = torch.randn(2, d, 40)
    weight, bias = (checkpoint.read(f"{_LAYER}conv.depthwise_conv.{kind}") for kind in ("weight", "bias"))
    with torch.no_grad():
        expected = norm(conv(x))
        torch.testing.assert_close(nn.functional.conv1d(x, weight, bias, groups=d), expected, rtol=1e-5, atol=2e-4)


def _add_biases(state: dict[str, torch.Tensor]) -> None:
    """Give every linear and convolution of the encoder's layers a bias."""
    wanted = ("linear_q", "linear_k", "linear_v", "linear_out", "linear1", "linear2", "wise_conv")
    for name in list(state):
        if name.startswith("encoder.layers") and name.endswith(".weight") and any(part in name for part in wanted):
            state[name.removesuffix("weight") + "bias"] = torch.zeros(state[name].shape[0])


def test_lstm_layers_compute_what_torch_s_do():
    state, checkpoint = pocket_state(), ParakeetCheckpoint.from_nemo(POCKET_NEMO)
    dims = checkpoint.dims
    lstm = nn.LSTM(dims.pred_hidden, dims.pred_hidden, dims.pred_layers)
    lstm.load_state_dict({name: state[_LSTM + name] for name in lstm.state_dict()})
    with torch.device("meta"):
        ours = Parakeet(dims).decoder.prediction.dec_rnn.lstm
    ours.load_state_dict({name: checkpoint.read(_LSTM + name) for name in ours.state_dict()}, assign=True)
    x, h, c = torch.randn(3, dims.pred_hidden), torch.randn(2, 3, dims.pred_hidden), torch.randn(2, 3, dims.pred_hidden)
    with torch.no_grad():
        out, (h1, c1) = lstm(x[None], (h, c))
        for got, expected in zip(ours(x, h, c), (out[0], h1, c1), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_read_as_float32(tmp_path: Path, dtype: torch.dtype):
    def halve(state: dict[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor

    checkpoint = ParakeetCheckpoint.from_nemo(changed_nemo(tmp_path / "model.nemo", state=halve))
    assert checkpoint.read("joint.enc.weight").dtype == torch.float32
    assert torch.equal(checkpoint.read("joint.enc.weight"), pocket_state()["joint.enc.weight"].to(dtype).float())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("joint.enc.bias"), "joint.enc.bias missing"),
        (lambda s: s.pop("preprocessor.featurizer.window"), "preprocessor.featurizer.window missing"),
        (lambda s: s.pop(f"{_LAYER}conv.batch_norm.running_var"), "running_var missing"),
        (lambda s: s.pop(f"{_LSTM}bias_hh_l1"), "bias_hh_l1 missing"),
        (lambda s: s.update({"encoder.extra.weight": torch.ones(1)}), "encoder.extra.weight unexpected"),
        (lambda s: s.update({f"{_LAYER}self_attn.linear_q.bias": torch.ones(112)}), "linear_q.bias unexpected"),
        (lambda s: s.update({"joint.enc.bias": torch.ones(64)}), "joint.enc.bias: expected shape [128], found [64]"),
        (lambda s: s.update({"joint.enc.bias": torch.ones(128, dtype=torch.int64)}), "found torch.int64"),
        (lambda s: s["preprocessor.featurizer.fb"].fill_(0), "fb: expected finite values"),
        (lambda s: s["preprocessor.featurizer.window"].fill_(torch.nan), "window: expected finite values"),
    ],
)
def test_tensors_other_than_the_network_s_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], told: str
):
    path = changed_nemo(tmp_path / "model.nemo", state=change)
    with pytest.raises(InputError) as caught:
        ParakeetCheckpoint.from_nemo(path)
    assert_one_line(caught.value, str(path), told)


def test_a_negative_variance_is_refused(tmp_path: Path):
    path = changed_nemo(tmp_path / "model.nemo", state=lambda s: s[f"{_LAYER}conv.batch_norm.running_var"].fill_(-1.0))
    with pytest.raises(InputError, match="running_var: expected variances from 0 on"):
        ParakeetCheckpoint.from_nemo(path).read(f"{_LAYER}conv.depthwise_conv.weight")


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path: Path):
    path = changed_nemo(tmp_path / "model.nemo", lambda config: config["encoder"].update(n_layers=1 << 20))
    with pytest.raises(InputError, match="states more layers than it has tensors"):
        ParakeetCheckpoint.from_nemo(path)


@pytest.mark.parametrize(
    ("pieces", "told"), [(b"no model", "expected a SentencePiece model"), (b"", "expected"), (None, "found 192")]
)
def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path, pieces: bytes | None, told: str):
    def config(changed: dict[str, Any]) -> None:
        if pieces is None:
            changed["decoder"]["vocab_size"] = changed["joint"]["num_classes"] = 191
        else:
            changed["tokenizer"]["model_path"] = "nemo:other.model"

    path = changed_nemo(tmp_path / "model.nemo", config)
    if pieces is not None:
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo("other.model")
            info.size = len(pieces)
            archive.addfile(info, io.BytesIO(pieces))
    with pytest.raises(InputError) as caught:
        ParakeetCheckpoint.from_nemo(path)
    assert_one_line(caught.value, told)


_UNSUPPORTED: list[tuple[str, Any]] = [
    ("target", "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"),
    ("target", "nemo.collections.asr.models.rnnt_models.EncDecRNNTModel"),
    ("target", "nemo.collections.asr.models.aed_multitask_models.EncDecMultiTaskModel"),
    ("preprocessor._target_", "nemo.collections.asr.modules.AudioToMFCCPreprocessor"),
    ("preprocessor.normalize", "all_features"),
    ("preprocessor.normalize", None),
    ("preprocessor.log", False),
    ("preprocessor.log_zero_guard_type", "clamp"),
    ("preprocessor.log_zero_guard_value", 1e-10),
    ("preprocessor.frame_splicing", 2),
    ("preprocessor.exact_pad", True),
    ("preprocessor.mag_power", 1.0),
    ("preprocessor.use_torchaudio", True),
    ("preprocessor.features", 80),
    ("preprocessor.n_fft", 256),
    ("preprocessor.window_size", -1.0),
    ("preprocessor.window_stride", "0.01"),
    ("preprocessor.preemph", "0.97"),
    ("encoder._target_", "nemo.collections.asr.modules.SqueezeformerEncoder"),
    ("encoder.self_attention_model", "abs_pos"),
    ("encoder.att_context_size", [128, 128]),
    ("encoder.att_context_size", [[70, 13], [70, 6]]),
    ("encoder.att_context_style", "chunked_limited"),
    ("encoder.untie_biases", False),
    ("encoder.subsampling", "striding"),
    ("encoder.subsampling_factor", 4),
    ("encoder.causal_downsampling", True),
    ("encoder.reduction", "pooling"),
    ("encoder.conv_norm_type", "layer_norm"),
    ("encoder.conv_context_size", "causal"),
    ("encoder.global_tokens", 1),
    ("encoder.feat_out", 256),
    ("encoder.use_bias", 0),
    ("encoder.xscaling", "no"),
    ("encoder.d_model", 0),
    ("encoder.d_model", "${model_defaults.enc_hidden}"),
    ("encoder.n_heads", 3),
    ("encoder.conv_kernel_size", 8),
    ("encoder.n_layers", 1 << 40),
    ("decoder._target_", "nemo.collections.asr.modules.StatelessTransducerDecoder"),
    ("decoder.normalization_mode", "layer"),
    ("decoder.blank_as_pad", False),
    ("decoder.prednet.rnn_hidden_size", 640),
    ("decoder.vocab_size", None),
    ("joint._target_", "nemo.collections.asr.modules.HATJoint"),
    ("joint.jointnet.activation", "tanh"),
    ("joint.jointnet.encoder_hidden", 64),
    ("joint.num_classes", 1024),
    ("joint.num_extra_outputs", 4),
    ("decoding.durations", [0, 1, 2, 3, 8]),
    ("decoding.durations", "0 1 2"),
    ("decoding.greedy.max_symbols", 0),
    ("loss.tdt_kwargs.durations", [0, 1]),
    ("tokenizer.type", "wpe"),
    ("tokenizer.type", "agg"),
    ("tokenizer.model_path", "/etc/passwd"),
]


@pytest.mark.parametrize(("key", "value"), _UNSUPPORTED)
def test_an_unsupported_option_is_refused_by_name(key: str, value: object):
    config = pocket_config()
    set_key(config, key, value)
    with pytest.raises(InputError) as caught:
        NemoConfig(config, "x.nemo")
    # Durations stand in three places: another one than the first may be named.
    assert_one_line(
        caught.value, "x.nemo: ", "durations: " if key.endswith("durations") else f"{key}: ", "supported is"
    )


def test_a_ctc_model_and_a_plain_transducer_are_named():
    config = pocket_config()
    config["target"] = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
    with pytest.raises(InputError, match="found a CTC model, supported is a TDT model"):
        NemoConfig(config, "x.nemo")
    config = pocket_config()
    del config["joint"]["num_extra_outputs"], config["decoding"]["durations"], config["loss"]["loss_name"]
    config["decoding"]["model_type"] = "rnnt"
    with pytest.raises(InputError, match="found rnnt with 0 duration outputs"):
        NemoConfig(config, "x.nemo")


@pytest.mark.parametrize("section", ["preprocessor", "encoder", "decoder", "joint", "tokenizer", "decoder.prednet"])
@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_a_missing_section_is_named(section: str, value: object):
    config = pocket_config()
    set_key(config, section, value)
    with pytest.raises(InputError) as caught:
        NemoConfig(config, "x.nemo")
    assert_one_line(caught.value, section)


@pytest.mark.parametrize(
    ("key", "value", "ours", "expected"),
    [
        ("encoder.xscaling", True, "dims.xscaling", 1),
        ("encoder.use_bias", True, "dims.use_bias", 1),
        ("encoder.att_context_size", None, "dims.n_layers", 4),
        ("encoder.att_context_size", [[-1, -1]], "dims.n_layers", 4),
        ("encoder.feat_out", 112, "dims.d_model", 112),
        ("encoder.subsampling_conv_channels", -1, "dims.subsampling_channels", 112),
        ("encoder.ff_expansion_factor", 2, "dims.d_ff", 224),
        # Frames beyond the length, which the encoder masks.
        ("preprocessor.pad_to", 16, "frontend.n_mels", 128),
        ("preprocessor.pad_value", 1.0, "frontend.n_mels", 128),
        ("preprocessor.dither", 1.0, "frontend.n_mels", 128),
        ("preprocessor.preemph", None, "frontend.preemphasis", 0.0),
        ("preprocessor.n_window_size", 320, "frontend.win_length", 320),
        ("preprocessor.window_size", 0.02, "frontend.win_length", 320),
        ("preprocessor.n_fft", None, "frontend.n_fft", 512),
        ("decoding.greedy.max_symbols", 5, "settings.max_symbols", 5),
        ("decoder.prednet.t_max", 100, "dims.pred_hidden", 96),
    ],
)
def test_what_is_supported_or_irrelevant_is_read(key: str, value: object, ours: str, expected: float):
    config = pocket_config()
    set_key(config, key, value)
    part, _, name = ours.partition(".")
    assert getattr(getattr(NemoConfig(config, "x.nemo"), part), name) == expected
