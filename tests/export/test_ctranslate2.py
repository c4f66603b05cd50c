"""Whisper folders of CTranslate2 against the checkpoints that they are made of, and everything that can be wrong."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from ctranslate2_checkpoints import model_bin, variables_of, write_ctranslate2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from whisper_checkpoints import ENGLISH_ONLY, write_random_checkpoint

from export.families import open_model
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.ctranslate2 import CTranslate2Whisper, read_variables
from export.pipeline import export_model
from export.registry import REPOSITORY_ROOT
from export.weights import resolve_weights
from runtime.artifact import open_artifact
from runtime.errors import InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def pocket(pocket_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whisper-pocket as CTranslate2 writes it. Read only."""
    return write_ctranslate2(pocket_checkpoint, tmp_path_factory.mktemp("ctranslate2") / "pocket")


@pytest.fixture
def folder(pocket: Path, tmp_path: Path) -> Path:
    """A copy of `pocket`, to be damaged."""
    return Path(shutil.copytree(pocket, tmp_path / "pocket"))


def _assert_reads(checkpoint: CTranslate2Whisper, source: Path, dtype: torch.dtype) -> None:
    expected = transformers.WhisperModel.from_pretrained(source, dtype=torch.float32).state_dict()
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        read = checkpoint.read(name)
        assert torch.equal(read, tensor.to(dtype)), name
        assert (read.dtype, tuple(read.shape)) == (checkpoint.tensors[name].dtype, checkpoint.tensors[name].shape)
    theirs = WhisperCheckpoint(source)
    assert checkpoint.dims == theirs.dims
    assert checkpoint.frontend == theirs.frontend
    assert checkpoint.settings.model_copy(update={"max_initial_timestamp_index": None}) == theirs.settings.model_copy(
        update={"max_initial_timestamp_index": None}
    )
    assert checkpoint.settings.max_initial_timestamp_index == 50


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_checkpoint_that_it_was_made_of(dtype: str, random_checkpoint: Path, tmp_path: Path):
    write_ctranslate2(random_checkpoint, tmp_path, DTYPES[dtype])
    checkpoint = CTranslate2Whisper(tmp_path)
    _assert_reads(checkpoint, random_checkpoint, DTYPES[dtype])
    assert {file.name for file in checkpoint.files} == {
        "config.json",
        "model.bin",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocabulary.json",
    }


def test_an_english_only_model_has_no_languages_whatever_lang_ids_say(tmp_path: Path):
    source = write_random_checkpoint(tmp_path / "source", ENGLISH_ONLY)
    write_ctranslate2(source, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # As OpenAI's tiny.en was converted.
    (tmp_path / "config.json").write_text(json.dumps(config | {"lang_ids": list(range(50259, 50357))}))
    (tmp_path / "preprocessor_config.json").unlink()
    checkpoint = CTranslate2Whisper(tmp_path)
    assert (checkpoint.settings.languages, checkpoint.settings.tasks) == ({}, {})
    assert (checkpoint.settings.eot, checkpoint.settings.no_timestamps) == (50256, 50362)
    assert checkpoint.frontend == WhisperCheckpoint(source).frontend


def test_the_languages_are_those_of_lang_ids(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    english, german, _ = config["lang_ids"]
    # Older conversions name special tokens as languages, too.
    (folder / "config.json").write_text(json.dumps(config | {"lang_ids": [english, german, german + 6]}))
    assert CTranslate2Whisper(folder).settings.languages == {"en": english, "de": german}


def test_large_v3s_layout_with_a_decoder_of_other_depth(tmp_path: Path):
    source = write_random_checkpoint(tmp_path / "source", 51866, window_s=6, n_mels=128, decoder_layers=1)
    write_ctranslate2(source, tmp_path / "ct2", torch.float16)
    checkpoint = CTranslate2Whisper(tmp_path / "ct2")
    _assert_reads(checkpoint, source, torch.float16)
    assert (checkpoint.dims.n_mels, checkpoint.dims.n_audio_layer, checkpoint.dims.n_text_layer) == (128, 2, 1)
    assert len(checkpoint.settings.languages) == 100


@pytest.mark.slow  # ctranslate2 comes with the bench's packages, which make test-slow installs
@pytest.mark.parametrize("quantization", [*DTYPES, "int8", "int8_float16", "int8_float32", "int16"])
def test_what_ctranslate2s_own_converter_writes(quantization: str, pocket_checkpoint: Path, tmp_path: Path):
    converters = pytest.importorskip("ctranslate2.converters")
    converter = converters.TransformersConverter(
        str(pocket_checkpoint), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    out = tmp_path / "out"
    converter.convert(str(out), quantization=quantization)
    if quantization in DTYPES:
        _assert_reads(CTranslate2Whisper(out), pocket_checkpoint, DTYPES[quantization])
        ours = write_ctranslate2(pocket_checkpoint, tmp_path / "ours", DTYPES[quantization])
        assert (ours / "model.bin").read_bytes() == (out / "model.bin").read_bytes()
    else:
        with pytest.raises(InputError, match=f"in {quantization.partition('_')[0]}; quantised weights are not"):
            CTranslate2Whisper(out)


@pytest.mark.slow
def test_export_makes_the_same_artifact_as_of_the_checkpoint(pocket: Path, pocket_artifact: Path, tmp_path: Path):
    clip = REPOSITORY_ROOT / "samples" / "short_en.wav"
    out = export_model("my-pocket", weights=str(pocket), formats=("onnx",), out=tmp_path, recordings=[clip])
    assert (out / "weights.safetensors").read_bytes() == (pocket_artifact / "weights.safetensors").read_bytes()
    ours, theirs = open_artifact(out).content, open_artifact(pocket_artifact).content
    assert ours.dims == theirs.dims
    assert ours.parity.results_equal == {"short_en": True}
    recordings = {recording.name: recording.result for recording in theirs.recordings}
    assert ours.recordings[0].result["text"] == recordings["short_en"]["text"]


def test_the_tokenizer_may_be_elsewhere(folder: Path, pocket_checkpoint: Path):
    expected = CTranslate2Whisper(folder).settings
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"--tokenizer FOLDER or hub id"):
        CTranslate2Whisper(folder)
    _, model = open_model(resolve_weights("my-pocket", str(folder), tokenizer=str(pocket_checkpoint)))
    assert model.settings == expected.model_dump(mode="json")


def test_the_heads_of_a_file_that_does_not_count_them_are_64_wide(pocket_checkpoint: Path, folder: Path):
    variables, aliases = variables_of(_model(pocket_checkpoint), torch.float32)
    for side in ("encoder", "decoder"):
        del variables[f"{side}/num_heads"]
    (folder / "model.bin").write_bytes(model_bin(variables, aliases, version=5, revision=2))
    with pytest.raises(InputError, match="expected decoder/activation 1, found 3"):
        CTranslate2Whisper(folder)
    variables["decoder/activation"] = torch.tensor(1, dtype=torch.int8)  # GELU before revision 3
    (folder / "model.bin").write_bytes(model_bin(variables, aliases, version=5, revision=2))
    dims = CTranslate2Whisper(folder).dims
    assert (dims.n_audio_state, dims.n_audio_head, dims.n_text_head) == (128, 2, 2)


def _model(source: Path) -> transformers.WhisperForConditionalGeneration:
    return transformers.WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)


Variables = dict[str, torch.Tensor]


def _key_bias(variables: Variables) -> None:
    bias = variables["encoder/layer_1/self_attention/linear_0/bias"].clone()
    bias[128] = 0.5
    variables["encoder/layer_1/self_attention/linear_0/bias"] = bias


def _untied(variables: Variables) -> None:
    variables["decoder/projection/weight"] = variables["decoder/embeddings/weight"] * 1.001


def _no_layer(variables: Variables) -> None:
    del variables["decoder/layer_1/ffn/linear_1/bias"]


def _far_layer(variables: Variables) -> None:
    variables["encoder/layer_4000000000/ffn/linear_1/bias"] = torch.zeros(128)


def _unknown(variables: Variables) -> None:
    variables["decoder/layer_0/self_attention/q_norm/gamma"] = torch.ones(32)


def _scalar(variables: Variables) -> None:
    variables["decoder/num_heads_kv"] = torch.tensor(1, dtype=torch.int16)


def _alibi(variables: Variables) -> None:
    variables["decoder/alibi"] = torch.tensor(1, dtype=torch.int8)


def _heads(variables: Variables) -> None:
    variables["encoder/num_heads"] = torch.tensor(-3, dtype=torch.int16)


def _no_number(variables: Variables) -> None:
    variables["encoder/num_heads"] = torch.tensor(float("nan"))


def _parts(variables: Variables) -> None:
    variables["encoder/layer_0/self_attention/linear_0/bias"] = torch.zeros(385)


def _no_positions(variables: Variables) -> None:
    del variables["encoder/position_encodings/encodings"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_key_bias, "expected keys without a bias, found encoder.layers.1.self_attn.k_proj.bias"),
        (_untied, "expected decoder/projection/weight to be tied"),
        (_no_layer, "decoder.layers.1.fc2.bias missing"),
        (_far_layer, "encoder.layers.3."),
        (_unknown, "decoder/layer_0/self_attention/q_norm/gamma unexpected"),
        (_scalar, "decoder/num_heads_kv"),
        (_alibi, "expected decoder/alibi 0, found 1"),
        (_heads, "expected encoder/num_heads to divide the width 128, found -3"),
        (_no_number, "expected encoder/num_heads to be a whole number"),
        (_parts, "expected 3 equal parts, found [385]"),
        (_no_positions, "expected a tensor encoder.embed_positions.weight of 2 dimensions"),
    ],
)
def test_another_network_is_refused(
    damage: Callable[[Variables], None], told: str, pocket_checkpoint: Path, folder: Path
):
    variables, aliases = variables_of(_model(pocket_checkpoint), torch.float32)
    if damage is _untied:
        aliases = {}
    damage(variables)
    (folder / "model.bin").write_bytes(model_bin(variables, aliases))
    _assert_refused(folder, told)


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _foreign_vocabulary(folder: Path) -> None:
    tokens = json.loads((folder / "vocabulary.json").read_text())
    (folder / "vocabulary.json").write_text(json.dumps(tokens[1:]))


def _no_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.json").write_text("{]")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_config(suppress_ids="all"), "expected suppress_ids to be token ids, found 'all'"),
        (_config(lang_ids=[[1]]), "expected lang_ids to be token ids"),
        (_config(suppress_ids=[952]), "expected token ids to suppress below vocab_size 952, found 952"),
        (_foreign_vocabulary, "vocabulary.json: expected <|endoftext|> at"),
        (_no_vocabulary, "vocabulary.json: expected a list of tokens"),
    ],
)
def test_files_of_another_model_are_refused(damage: Callable[[Path], None], told: str, folder: Path):
    damage(folder)
    _assert_refused(folder, told)


def _assert_refused(folder: Path, told: str) -> None:
    with pytest.raises(InputError) as caught:
        CTranslate2Whisper(folder)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def _header(*, version: int = 6, name: bytes = b"WhisperSpec\0", revision: int = 3, count: int = 1) -> bytes:
    return struct.pack("<IH", version, len(name)) + name + struct.pack("<II", revision, count)


def _variable(shape: tuple[int, ...], length: int, code: int = 0, name: bytes = b"a\0") -> bytes:
    return struct.pack(f"<H{len(name)}sB{len(shape)}IBI", len(name), name, len(shape), *shape, code, length)


_HUGE = (0xFFFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "ends within"),
        (b"<html>not found</html>", "expected version 5 or 6"),
        (_header(version=4), "expected version 5 or 6 of CTranslate2's format, found 4"),
        (_header(version=7), "found 7"),
        (_header(name=b"TransformerSpec\0"), "expected WhisperSpec of revision 1 to 3, found 'TransformerSpec'"),
        (_header(revision=4), "of revision 4"),
        (_header(name=b"\xff\xfe\0"), "a name that is no text"),
        (_header(name=b"Whisper\nSpec\0"), "a name that is no text"),
        (_header(count=0xFFFFFFFF), "4294967295 variables"),
        (_header() + _variable((2, 2), 16), "16 bytes for a tensor of shape [2, 2]"),
        (_header() + _variable(_HUGE, 0xFFFFFFFF), "4294967295 bytes for a tensor"),
        (_header() + _variable(_HUGE * 127, 4), "4 bytes for a tensor"),
        (_header() + _variable((0, 3), 0), "0 bytes for a tensor of shape [0, 3]"),
        (_header() + _variable((1,), 4, code=6) + bytes(4), "a dtype of number 6"),
        (_header(count=2) + 2 * (_variable((1,), 4) + bytes(4)), "'a' twice"),
        (_header(count=0) + struct.pack("<I", 1) + 2 * b"\2\0b\0", "an alias of 'b', which is not there"),
        (_header(count=0) + struct.pack("<I", 0) + b"more", "4 bytes after the end"),
    ],
)
def test_a_hostile_file_is_refused(data: bytes, told: str, tmp_path: Path):
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_variables(path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def damaged(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(pocket, tmp_path_factory.mktemp("damaged") / "pocket"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_file_is_refused(data: st.DataObject, pocket: Path, damaged: Path):
    whole = (pocket / "model.bin").read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    (damaged / "model.bin").write_bytes(whole[:cut])
    with pytest.raises(InputError) as caught:
        CTranslate2Whisper(damaged)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_of_the_lists_are_refused_or_change_a_name_only(data: st.DataObject, pocket: Path, damaged: Path):
    whole = bytearray((pocket / "model.bin").read_bytes())
    # Bytes before the first tensor's data, those between two of them, and the aliases.
    places = [place.offset for place in read_variables(pocket / "model.bin")[0].values()]
    near = data.draw(st.sampled_from([0, *places, len(whole)]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = min(max(near + data.draw(st.integers(-40, 0)), 0), len(whole) - 1)
        whole[place] ^= data.draw(st.integers(1, 255))
    (damaged / "model.bin").write_bytes(whole)
    try:
        CTranslate2Whisper(damaged)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a flipped weight is no error
