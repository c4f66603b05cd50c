"""Checkpoints in every layout of the hub, and everything that can be wrong with them."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from whisper_checkpoints import ENGLISH_ONLY, write_random_checkpoint

from export.checkpoint import open_checkpoint
from export.families import open_model
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.json_files import without_byte_order_marks
from export.weights import resolve_weights
from runtime.errors import InputError


def _rewrite_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values |= changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.fixture
def folder(pocket_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of whisper-pocket's checkpoint, to be damaged."""
    return Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def model(pocket_checkpoint: Path) -> transformers.WhisperForConditionalGeneration:
    return transformers.WhisperForConditionalGeneration.from_pretrained(pocket_checkpoint)


def _single(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def _sharded(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def _half(model: transformers.PreTrainedModel, folder: Path) -> None:
    copy.deepcopy(model).half().save_pretrained(folder)


def _bin(model: transformers.PreTrainedModel, folder: Path) -> None:
    # As transformers wrote it before safetensors: with the tied projection.
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _bin_sharded(model: transformers.PreTrainedModel, folder: Path) -> None:
    state = dict(model.state_dict())
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def _without_head(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.model.save_pretrained(folder)


@pytest.mark.parametrize("save", [_single, _sharded, _half, _bin, _bin_sharded, _without_head])
def test_every_layout_reads_as_transformers_reads_it(
    save: Callable[[transformers.PreTrainedModel, Path], None],
    model: transformers.WhisperForConditionalGeneration,
    folder: Path,
):
    if save is _sharded:
        (folder / "model.safetensors").unlink()
    save(model, folder)
    expected = transformers.WhisperModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    checkpoint = WhisperCheckpoint(folder)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.read(name).float(), tensor), name


def test_reading_safetensors_maps_nothing(folder: Path):
    checkpoint = open_checkpoint(folder)
    tensors = [checkpoint.read(name) for name in checkpoint.tensors]
    assert len(tensors) > 100
    assert str(folder) not in Path("/proc/self/maps").read_text()


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.1.fc2.bias"]
    save_file(tensors, folder / "model.safetensors")


def _extra_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.layers.2.fc2.bias"] = torch.zeros(128)
    save_file(tensors, folder / "model.safetensors")


def _wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.weight"] = torch.zeros(128, 128, 3)
    save_file(tensors, folder / "model.safetensors")


def _integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.conv1.bias"] = torch.zeros(128, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")


def _untied(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"] * 1.001
    save_file(tensors, folder / "model.safetensors")


def _no_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _missing_shard(folder: Path) -> None:
    transformers.WhisperForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _shard_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"model.encoder.conv1.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/atlasport-was-here"),))


def _pickle_with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.encoder.conv1.weight": _Payload()}, folder / "pytorch_model.bin")


def _plain_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Payload()}))


def _truncated_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def _another_family(folder: Path) -> None:
    transformers.Wav2Vec2Config().save_pretrained(folder)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("<html>not found</html>")


def _other_activation(folder: Path) -> None:
    _rewrite_json(folder / "config.json", activation_function="relu")


def _no_width(folder: Path) -> None:
    _rewrite_json(folder / "config.json", d_model=None)


def _more_layers(folder: Path) -> None:
    _rewrite_json(folder / "config.json", decoder_layers=3)


def _other_mels(folder: Path) -> None:
    _rewrite_json(folder / "preprocessor_config.json", feature_size=128)


def _foreign_tokens(folder: Path) -> None:
    _rewrite_json(folder / "generation_config.json", no_timestamps_token_id=50363)


def _languages_in_a_list(folder: Path) -> None:
    _rewrite_json(folder / "generation_config.json", lang_to_id=["<|en|>"])


def _task_without_number(folder: Path) -> None:
    _rewrite_json(folder / "generation_config.json", task_to_id={"transcribe": "x"})


def _countless_layers(folder: Path) -> None:
    _rewrite_json(folder / "config.json", encoder_layers=10**6)


def _no_hop(folder: Path) -> None:
    _rewrite_json(folder / "preprocessor_config.json", hop_length=0)


def _window_in_words(folder: Path) -> None:
    _rewrite_json(folder / "preprocessor_config.json", chunk_length="six")


def _no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()


def _bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_drop_tensor, "decoder.layers.1.fc2.bias missing"),
        (_extra_tensor, "decoder.layers.2.fc2.bias unexpected"),
        (_wrong_shape, "encoder.conv1.weight: expected shape [128, 80, 3], found [128, 128, 3]"),
        (_integers, "encoder.conv1.bias: expected a floating point tensor"),
        (_untied, "to be tied"),
        (_no_tensors, "expected model.safetensors or pytorch_model.bin"),
        (_truncated, "model.safetensors"),
        (_garbage, "model.safetensors"),
        (_empty, "model.safetensors"),
        (_missing_shard, "missing of"),
        (_shard_outside, "'../model.safetensors'; refused"),
        (_pickle_with_code, "code is refused"),
        (_plain_pickle, "pytorch_model.bin"),
        (_truncated_bin, "pytorch_model.bin"),
        (
            _another_family,
            'cnn8rnn or granite_speech or parakeet_ctc or parakeet_tdt or whisper, found model_type "wav2vec2"',
        ),
        (_no_config, "expected a checkpoint with config.json"),
        (_config_not_json, "config.json: expected a JSON file"),
        (_other_activation, "expected activation_function 'gelu', found 'relu'"),
        (_no_width, "expected d_model to be a number from 1 to 1048576, found None"),
        (_more_layers, "decoder.layers.2"),
        (_other_mels, "found 128 x 600"),
        (_foreign_tokens, "token <|notimestamps|> is number 50363 there, 650 in the tokenizer"),
        (_languages_in_a_list, "generation_config.json: expected lang_to_id to be an object, found list"),
        (
            _task_without_number,
            "token <|transcribe|> is number 'x' there, 646 in the tokenizer",
        ),
        (_countless_layers, "config.json states more layers"),
        (_no_hop, "expected positive sampling_rate, hop_length and n_fft"),
        (_window_in_words, "preprocessor_config.json: expected a Whisper feature extractor"),
        (
            _no_tokenizer,
            "found no tokenizer; give one by --tokenizer FOLDER or hub id, such as --tokenizer openai/whisper-",
        ),
        (_bad_tokenizer, "tokenizer.json: expected a tokenizer"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_line(damage: Callable[[Path], None], told: str, folder: Path):
    damage(folder)
    with pytest.raises(InputError) as caught:
        open_model(resolve_weights("my-whisper", str(folder)))
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert not Path("/tmp/atlasport-was-here").exists()


# Real special tokens, from the hub's generation_config.json files; ids as transformers' own tokenizers have them.
@pytest.mark.parametrize("absent", [(), ("lang_to_id", "task_to_id", "is_multilingual", "prev_sot_token_id")])
def test_settings_are_those_of_the_generation_config_and_else_of_the_tokenizer(
    absent: tuple[str, ...], random_checkpoint: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(random_checkpoint, tmp_path / "older"))
    _rewrite_json(folder / "generation_config.json", **dict.fromkeys(absent))
    checkpoint = WhisperCheckpoint(folder)
    settings = checkpoint.settings
    assert (settings.sot, settings.eot, settings.sot_prev) == (50258, 50257, 50361)
    assert (settings.no_speech, settings.no_timestamps, settings.timestamp_begin) == (50362, 50363, 50364)
    assert settings.tasks == {"transcribe": 50359, "translate": 50358}
    order = list(transformers.models.whisper.tokenization_whisper.LANGUAGES)
    assert settings.languages == {code: 50259 + index for index, code in enumerate(order[:99])}
    assert settings.max_initial_timestamp_index == 50
    assert settings.max_length == 448


def test_an_english_only_checkpoint_has_no_languages_and_no_tasks(tmp_path: Path):
    folder = write_random_checkpoint(tmp_path, ENGLISH_ONLY)
    _rewrite_json(folder / "generation_config.json", is_multilingual=None)
    settings = WhisperCheckpoint(folder).settings
    assert (settings.languages, settings.tasks) == ({}, {})
    assert (settings.sot, settings.eot, settings.timestamp_begin) == (50257, 50256, 50363)


def test_without_a_generation_config_rules_come_from_config_and_tokenizer(folder: Path):
    complete = WhisperCheckpoint(folder).settings
    (folder / "generation_config.json").unlink()
    settings = WhisperCheckpoint(folder).settings
    # The only rule that is nowhere else.
    assert complete.max_initial_timestamp_index == 300
    assert settings == complete.model_copy(update={"max_initial_timestamp_index": None})


@pytest.mark.parametrize("key", ["d_model", "encoder_ffn_dim", "vocab_size", "max_target_positions", "encoder_layers"])
@pytest.mark.parametrize("size", [10**9, 10**18, 10**30, -1, 1.5, float("inf")])
def test_absurd_sizes_are_refused(pocket_checkpoint: Path, tmp_path: Path, key: str, size: float) -> None:
    """Torch says of some that they overflow, of others that they are no size, and begins with the rest."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in pocket_checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = json.loads((pocket_checkpoint / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {key: size}))
    with pytest.raises(InputError) as caught:
        open_model(resolve_weights("whisper-pocket", str(folder)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_byte_order_mark_is_read_over(pocket_checkpoint: Path, tmp_path: Path) -> None:
    """As Windows' editors write it; transformers, the source, does not take it by itself."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(pocket_checkpoint, folder)
    names = ("config.json", "generation_config.json", "preprocessor_config.json")
    for name in names:
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    _, marked = open_model(resolve_weights("whisper-pocket", str(folder)))
    _, plain = open_model(resolve_weights("whisper-pocket", str(pocket_checkpoint)))
    assert (marked.dims, marked.frontend, marked.settings) == (plain.dims, plain.frontend, plain.settings)
    with pytest.raises(OSError, match="not a valid"):
        transformers.WhisperConfig.from_pretrained(folder)
    with without_byte_order_marks(folder) as view:
        found = transformers.WhisperForConditionalGeneration.from_pretrained(view)
        assert transformers.WhisperFeatureExtractor.from_pretrained(view).feature_size == 80
        assert {path.name for path in view.iterdir()} == {path.name for path in folder.iterdir()}
    assert not view.exists()
    expected = transformers.WhisperForConditionalGeneration.from_pretrained(pocket_checkpoint)
    assert found.config.to_dict() | {"_name_or_path": ""} == expected.config.to_dict() | {"_name_or_path": ""}
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    with without_byte_order_marks(pocket_checkpoint) as view:
        assert view == pocket_checkpoint
