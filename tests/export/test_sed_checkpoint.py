"""Cnn8Rnn checkpoints in the hub's layout, and everything that can be wrong with them."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors.torch import load_file
from sed_checkpoints import CHANNELS, N_CLASSES, N_FC, N_HIDDEN, sed_state, write_sed_checkpoint
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families import open_model
from export.families.cnn8rnn.checkpoint import Cnn8RnnCheckpoint, constants, folded, tensor_shapes
from export.families.cnn8rnn.source import SourceCnn8Rnn
from export.families.cnn8rnn.standin import RandomCnn8Rnn, mel_filters
from export.registry import MODELS, REPOSITORY_ROOT
from export.weights import resolve_weights
from runtime.errors import InputError
from runtime.families.cnn8rnn.settings import Cnn8RnnDims, Cnn8RnnFrontend

POCKET = REPOSITORY_ROOT / "pocket" / "sed-pocket"
State = dict[str, torch.Tensor]


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_both_kinds_of_file_are_read_and_left_alone(kind: str, tmp_path: Path):
    state = sed_state()
    folder = write_sed_checkpoint(tmp_path / "checkpoint", state, kind)
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    family, model = open_model(resolve_weights("any-name", str(folder)))
    assert family == "cnn8rnn"
    assert model.dims == {
        "n_mels": 64,
        **{f"n_channels_{index}": count for index, count in enumerate(CHANNELS, 1)},
        "n_fc": N_FC,
        "n_hidden": N_HIDDEN,
        "n_classes": N_CLASSES,
    }
    checkpoint = Cnn8RnnCheckpoint(folder)
    assert checkpoint.tensors.keys() == {name for name in state if "num_batches" not in name}
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in checkpoint.tensors)
    assert model.side_files == {"classes.txt": (folder / "classes.txt").read_bytes()}
    assert {path.name for path in model.source_files} == {"config.json", "classes.txt", kind}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} == before


def test_a_checkpoint_without_counters_is_read(tmp_path: Path):
    state = {name: tensor for name, tensor in sed_state().items() if "num_batches" not in name}
    assert Cnn8RnnCheckpoint(write_sed_checkpoint(tmp_path, state)).tensors.keys() == state.keys()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state(), "pytorch_model.bin")
    witness = tmp_path / "ran"
    torch.save({"fc1.weight": _Touch(str(witness))}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors"):
        Cnn8RnnCheckpoint(folder)
    assert not witness.exists()


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("model_type", [None, "cnn8rnn", "what the remote code calls itself", 7])
def test_the_architecture_tells_the_family(model_type: object, tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state())
    _config(folder, model_type=model_type)
    assert open_model(resolve_weights("any", str(folder)))[0] == "cnn8rnn"


def test_another_architecture_is_refused(tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state())
    _config(folder, architectures=["Cnn14"])
    known = "cnn8rnn or granite_speech or parakeet_ctc or parakeet_tdt or whisper"
    with pytest.raises(InputError, match=rf'expected a checkpoint of {known}, found .*\["Cnn14"\]'):
        open_model(resolve_weights("any", str(folder)))
    with pytest.raises(InputError, match="expected a checkpoint of whisper"):
        open_model(resolve_weights("whisper-tiny", str(write_sed_checkpoint(tmp_path / "sed", sed_state()))))


@pytest.mark.parametrize("layer", ["conv_block1.conv1", "conv_block2.conv2", "conv_block4.conv1"])
def test_normalisations_are_folded(layer: str, tmp_path: Path):
    """A convolution with the folded weight and bias is the convolution and torch's batch_norm after it."""
    state = sed_state()
    norm = layer.replace(".conv", ".bn")
    state[f"{norm}.running_var"][0] = 4e-10  # as trained checkpoints have it
    checkpoint = Cnn8RnnCheckpoint(write_sed_checkpoint(tmp_path, state))
    x = torch.randn(1, state[f"{layer}.weight"].shape[1], 9, 8, dtype=torch.float64)
    plain = F.conv2d(x, state[f"{layer}.weight"].double(), padding=1)
    kinds = ("running_mean", "running_var", "weight", "bias")
    expected = F.batch_norm(plain, *(state[f"{norm}.{kind}"].double() for kind in kinds), eps=1e-5)
    weight, bias = (folded(checkpoint, f"{layer}.{kind}").double() for kind in ("weight", "bias"))
    found = F.conv2d(x, weight, bias, padding=1)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    without = F.conv2d(x, state[f"{layer}.weight"].double(), bias, padding=1)
    assert float((without - expected).norm() / expected.norm()) > 1e-2


def test_the_graphs_constants_are_the_checkpoint_s_own(tmp_path: Path):
    state = sed_state()
    found = constants(Cnn8RnnCheckpoint(write_sed_checkpoint(tmp_path, state)))
    assert torch.equal(found.window, state["melspec_extractor.spectrogram.window"])
    assert torch.equal(found.filters, state["melspec_extractor.mel_scale.fb"])
    logmel = -30 + 20 * torch.randn(5, 64)
    kinds = ("running_mean", "running_var", "weight", "bias")
    expected = F.batch_norm(logmel, *(state[f"bn0.{kind}"] for kind in kinds), eps=1e-5)
    torch.testing.assert_close(logmel * found.scale + found.shift, expected, rtol=1e-5, atol=1e-5)


def test_config_json_may_describe_the_front_end():
    checkpoint = Cnn8RnnCheckpoint(POCKET)
    assert checkpoint.frontend == Cnn8RnnFrontend()
    assert checkpoint.labels[:2] == ("Sine tone", "Chirp up")


# --- what can be wrong ------------------------------------------------------------------------------------------------


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def _without(*names: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        for name in names:
            del state[name]

    return change


def _with(name: str, tensor: torch.Tensor) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = tensor

    return change


def _value(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name][0] = value

    return change


def _foreign(state: State) -> None:
    state.clear()
    state["fc_audioset.bias"] = torch.zeros(11)
    state["model.encoder.conv1.weight"] = torch.zeros(4, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_foreign, r"expected a tensor bn0.weight of a Cnn8Rnn, found none; the checkpoint is partial or of another"),
        (_without("rnn.weight_hh_l0"), r"expected a tensor rnn.weight_hh_l0 of a Cnn8Rnn, found none"),
        (_without("rnn.bias_hh_l0_reverse", "conv_block3.bn1.bias"), r"rnn.bias_hh_l0_reverse\b.* missing"),
        (_without("melspec_extractor.spectrogram.window"), r"melspec_extractor.spectrogram.window missing"),
        (_with("conv_block5.conv1.weight", torch.zeros(3)), r"conv_block5.conv1.weight unexpected"),
        (_with("fc1.weight", torch.zeros(24)), r"fc1.weight: expected shape \[24, 20\], found \[24\]"),
        (_with("fc1.weight", torch.zeros(24, 19)), r"fc1.weight: expected shape \[24, 20\], found \[24, 19\]"),
        (_with("fc1.weight", torch.zeros(0, 20)), r"expected a tensor fc1.weight of a Cnn8Rnn, found shape \[0, 20\]"),
        (_with("rnn.weight_hh_l0", torch.zeros(27)), r"expected a tensor rnn.weight_hh_l0 .* found shape \[27\]"),
        (_with("bn0.weight", torch.zeros(8)), r"expected at least 16 mels, found 8"),
        (_with("melspec_extractor.mel_scale.fb", torch.ones(257, 64)), r"fb: expected shape \[513, 64\], found \[257"),
        (_with("fc1.bias", torch.zeros(24, dtype=torch.int64)), r"fc1.bias: expected a floating point tensor"),
        (_value("bn0.weight", float("nan")), r"bn0.weight is not finite"),
        (_value("melspec_extractor.spectrogram.window", float("inf")), r"window is not finite"),
        (_value("conv_block2.bn1.running_var", -0.5), r"running_var: expected values from 0 on, found -0.5 to"),
        (_with("melspec_extractor.mel_scale.fb", torch.zeros(513, 64)), r"fb: expected values from 0 on, found 0 to 0"),
    ],
)
def test_a_wrong_tensor_is_named(change: Callable[[State], None], message: str, tmp_path: Path):
    state = sed_state()
    change(state)
    folder = write_sed_checkpoint(tmp_path, state)
    with pytest.raises(InputError, match=message) as caught:
        Cnn8RnnCheckpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


LINES = [f"Sound {index}" for index in range(N_CLASSES)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "classes.txt: .*no such file"),
        (LINES[:-1], f"expected {N_CLASSES} class labels.*found {N_CLASSES - 1}"),
        ([*LINES, "One more"], f"expected {N_CLASSES} class labels.*found {N_CLASSES + 1}"),
        ([*LINES[:-1], LINES[2]], "different class labels, found 'Sound 2' on lines 3 and 11"),
        ([*LINES[:4], "  ", *LINES[5:]], "found line 5 empty"),
        ([], "found 0"),
    ],
    ids=["missing", "short", "long", "twice", "blank", "empty"],
)
def test_a_wrong_classes_txt_is_named(lines: list[str] | None, message: str, tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state())
    if lines is None:
        (folder / "classes.txt").unlink()
    else:
        (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        Cnn8RnnCheckpoint(folder)
    assert "\n" not in str(caught.value)


def test_line_ends_and_accents_of_classes_txt(tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state())
    (folder / "classes.txt").write_bytes("\r\n".join([*LINES[:-1], "Câlin"]).encode() + b"\r\n\r\n")
    _, model = open_model(resolve_weights("any", str(folder)))
    assert model.side_files["classes.txt"].decode().splitlines() == [*LINES[:-1], "Câlin"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_num": 447}, "expected classes_num 11, as fc_audioset has, found 447"),
        ({"n_mels": 128}, "expected n_mels 64, as the tensors have, found 128"),
        ({"n_fft": 512}, "expected n_fft 1024, as the tensors have, found 512"),
        ({"hop_length": 0}, "hop_length: .*found 0"),
        ({"hop_length": 160}, "expected n_fft below 960 for a hop_length of 160, found 1024"),
        ({"sample_rate": "much"}, "sample_rate: .*found 'much'"),
    ],
)
def test_a_config_json_of_another_model_is_named(changes: dict[str, object], message: str, tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state())
    _config(folder, **changes)
    with pytest.raises(InputError, match=message):
        Cnn8RnnCheckpoint(folder)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda _data: b"", lambda _data: b"x" * 4000])
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_a_damaged_file_is_named(kind: str, damage: Callable[[bytes], bytes], tmp_path: Path):
    folder = write_sed_checkpoint(tmp_path, sed_state(), kind)
    (folder / kind).write_bytes(damage((folder / kind).read_bytes()))
    with pytest.raises(InputError, match=kind):
        Cnn8RnnCheckpoint(folder)


# --- random weights ---------------------------------------------------------------------------------------------------


def test_random_weights_have_the_full_size_and_repeat():
    entry = MODELS["cnn8rnn-audioset-sed"]
    first, again = (RandomCnn8Rnn(Cnn8RnnDims(**entry.dims)) for _ in range(2))
    assert len(first.labels) == len(set(first.labels)) == 447
    buffers = ("running", "melspec")
    sizes = [np.prod(info.shape) for name, info in first.tensors.items() if not any(word in name for word in buffers)]
    assert sum(sizes) == entry.parameters == 6_360_959
    for name in ("conv_block4.conv2.weight", "rnn.weight_hh_l0_reverse", "melspec_extractor.mel_scale.fb"):
        assert torch.equal(first.read(name), again.read(name))


def test_random_weights_keep_activations_near_unit_size_and_hear_differences():
    random = RandomCnn8Rnn(Cnn8RnnDims(**MODELS["cnn8rnn-audioset-sed"].dims))
    source = SourceCnn8Rnn(random)
    sizes: dict[str, float] = {}
    for name, module in source.network.named_children():
        module.register_forward_hook(lambda _m, _i, output, name=name: sizes.update({name: rms(output)}))
    speech, rate = soundfile.read(REPOSITORY_ROOT / "samples" / "jfk.flac", dtype="float32", frames=3 * 44100)
    samples = torch.from_numpy(soxr.resample(speech.mean(axis=1), rate, 32000))[None]
    with torch.inference_mode():
        logits = source.network(source.logmel(samples))[0]
    assert sizes.keys() == dict(source.network.named_children()).keys()
    assert all(0.3 < size < 3 for name, size in sizes.items() if name != "fc_audioset"), sizes
    # In time, and between classes.
    assert 0.5 < logits.std(dim=0).mean() < 4
    assert 0.5 < logits.mean(dim=0).std() < 4


def rms(output: torch.Tensor | tuple[torch.Tensor, ...]) -> float:
    tensor = output[0] if isinstance(output, tuple) else output
    return float(tensor.square().mean().sqrt())


def test_the_registry_s_sizes_are_the_shipped_checkpoint_s():
    entry = MODELS["sed-pocket"]
    assert Cnn8RnnCheckpoint(POCKET).dims.model_dump() == entry.dims
    state = load_file(POCKET / "model.safetensors")
    names = [name for name in state if not any(word in name for word in ("running", "melspec", "num_batches"))]
    assert sum(state[name].numel() for name in names) == entry.parameters
    dims, frontend = Cnn8RnnDims(**entry.dims), Cnn8RnnFrontend()
    assert {name: tuple(tensor.shape) for name, tensor in state.items() if "num_batches" not in name} == tensor_shapes(
        dims, frontend
    )


def test_the_stand_in_filters_are_those_of_a_trained_checkpoint():
    expected = load_file(POCKET / "model.safetensors")["melspec_extractor.mel_scale.fb"]
    torch.testing.assert_close(mel_filters(Cnn8RnnFrontend()), expected, rtol=1e-5, atol=1e-7)
