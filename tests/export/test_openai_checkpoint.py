"""OpenAI's own files: names, buffers, rules and vocabulary, and everything that can be wrong with them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from export.families import open_model
from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.openai import OpenAIWhisper
from export.families.whisper.openai_vocabulary import openai_rules, tokenizer_of_ranks
from export.weights import resolve_weights
from runtime.errors import InputError

Saved = dict[str, Any]
# transformers' names to those of openai/whisper's model.py.
_NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
)


def _openai_name(name: str) -> str:
    for theirs, openai in _NAMES:
        name = re.sub(theirs, openai, name)
    return name


def openai_file(source: Path, dtype: torch.dtype = torch.float16) -> Saved:
    """Return a checkpoint of transformers as openai/whisper saves it."""
    model = transformers.WhisperModel.from_pretrained(source, dtype=torch.float32)
    config = model.config
    dims = {"n_mels": config.num_mel_bins, "n_vocab": config.vocab_size}
    for side, kind, positions in (("audio", "encoder", "source"), ("text", "decoder", "target")):
        dims |= {
            f"n_{side}_ctx": getattr(config, f"max_{positions}_positions"),
            f"n_{side}_state": config.d_model,
            f"n_{side}_head": getattr(config, f"{kind}_attention_heads"),
            f"n_{side}_layer": getattr(config, f"{kind}_layers"),
        }
    state = {_openai_name(name): tensor.to(dtype) for name, tensor in model.state_dict().items()}
    return {"dims": dims, "model_state_dict": state}


@pytest.fixture(scope="module")
def source(shared_folder: Path) -> Path:
    """A random checkpoint whose feed-forward layers are four times as wide as the others, as OpenAI's are."""
    from export.families.whisper.standin import standin_tokenizer
    from runtime.families.whisper.settings import WhisperDims

    folder = shared_folder / "openai-source"
    config = transformers.WhisperConfig(
        vocab_size=51865,
        bos_token_id=50257,
        eos_token_id=50257,
        pad_token_id=50257,
        decoder_start_token_id=50258,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
    )
    torch.manual_seed(0)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    dims = {f"n_{side}_{size}": 1 for side in ("audio", "text") for size in ("state", "head", "layer", "ffn")}
    layout = WhisperDims(**dims | {"n_mels": 80, "n_vocab": 51865, "n_audio_ctx": 1500, "n_text_ctx": 448})
    standin_tokenizer(layout).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def saved(source: Path) -> Saved:
    return openai_file(source)


def _write(saved: Saved, path: Path, **options: Any) -> Path:
    torch.save(saved, path, **options)
    return path


def _as_it_is(saved: Saved) -> Saved:
    return saved


def _buffers(saved: Saved) -> Saved:
    """Add what versions of openai/whisper saved, too: the mask, and the heads for alignment as a sparse tensor."""
    heads = torch.eye(3, 1, dtype=torch.bool).to_sparse()
    more = {"decoder.mask": torch.full((448, 448), -torch.inf).triu_(1), "alignment_heads": heads}
    return saved | {"model_state_dict": saved["model_state_dict"] | more}


def _trained_in_parallel(saved: Saved) -> Saved:
    state = {f"module.{name}": tensor for name, tensor in saved["model_state_dict"].items()}
    return {"model_state_dict": state, "dims": saved["dims"], "epoch": 3}


@pytest.mark.parametrize("change", [_as_it_is, _buffers, _trained_in_parallel])
@pytest.mark.parametrize("zipped", [1, 0])
def test_it_is_the_checkpoint_that_it_was_made_of(
    change: Callable[[Saved], Saved], zipped: int, saved: Saved, source: Path, tmp_path: Path
):
    path = _write(change(saved), tmp_path / "tiny.pt", _use_new_zipfile_serialization=bool(zipped))
    checkpoint = OpenAIWhisper(path, source)
    expected = transformers.WhisperModel.from_pretrained(source, dtype=torch.float16).state_dict()
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor), name
    theirs = WhisperCheckpoint(source)
    assert (checkpoint.dims, checkpoint.frontend) == (theirs.dims, theirs.frontend)
    rules = ("suppress_tokens", "begin_suppress_tokens", "max_initial_timestamp_index")
    assert checkpoint.settings.model_dump(exclude=set(rules)) == theirs.settings.model_dump(exclude=set(rules))
    assert checkpoint.settings.max_initial_timestamp_index == 50


def test_a_file_is_opened_by_its_suffix(saved: Saved, source: Path, tmp_path: Path):
    path = _write(saved, tmp_path / "tiny.pt")
    family, model = open_model(resolve_weights("my-whisper", str(path), tokenizer=str(source)))
    assert family == "whisper"
    assert set(model.source_files) == {path, source / "tokenizer.json"}


def _no_dims(saved: Saved) -> None:
    del saved["dims"]


def _no_heads(saved: Saved) -> None:
    del saved["dims"]["n_text_head"]


def _huge(saved: Saved) -> None:
    saved["dims"]["n_vocab"] = 10**18


def _layers(saved: Saved) -> None:
    saved["dims"]["n_text_layer"] = 1 << 20


def _odd_heads(saved: Saved) -> None:
    saved["dims"]["n_audio_head"] = 3


def _one_less(saved: Saved) -> None:
    del saved["model_state_dict"]["decoder.blocks.2.mlp.2.bias"]


def _one_more(saved: Saved) -> None:
    saved["model_state_dict"]["decoder.blocks.3.mlp.2.bias"] = torch.zeros(64)


def _shape(saved: Saved) -> None:
    saved["model_state_dict"]["encoder.positional_embedding"] = torch.zeros(1, 1500, 64)


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("/tmp/atlasport-openai-was-here"),))


def _code(saved: Saved) -> None:
    saved["args"] = _Payload()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_dims, "expected dims and model_state_dict, as openai/whisper saves them, found 'model_state_dict'"),
        (_no_heads, "expected n_text_head in dims to be a number from 1 to 1048576, found None"),
        (_huge, "expected n_vocab in dims to be a number from 1 to 1048576, found 1000000000000000000"),
        (_layers, "dims states more layers"),
        (_odd_heads, "expected n_audio_state 64 to be a multiple of 3 heads"),
        (_one_less, "decoder.layers.2.fc2.bias missing"),
        (_one_more, "decoder.layers.3.fc2.bias unexpected"),
        (_shape, "encoder.embed_positions.weight: expected shape [1500, 64], found [1, 1500, 64]"),
        (_code, "code is refused"),
    ],
)
def test_a_bad_file_is_refused(damage: Callable[[Saved], None], told: str, saved: Saved, source: Path, tmp_path: Path):
    copy = {key: dict(value) for key, value in saved.items()}
    damage(copy)
    with pytest.raises(InputError) as caught:
        OpenAIWhisper(_write(copy, tmp_path / "tiny.pt"), source)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/atlasport-openai-was-here").exists()


def test_the_tokenizer_of_another_model_is_refused(saved: Saved, english_checkpoint: Path, tmp_path: Path):
    with pytest.raises(InputError, match="tokenizer is another model's"):
        OpenAIWhisper(_write(saved, tmp_path / "tiny.pt"), english_checkpoint)


@pytest.fixture(scope="module")
def pocket_tokenizer(pocket_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(pocket_checkpoint / "tokenizer.json"))


def test_a_tokenizer_of_ranks_merges_as_the_one_that_the_ranks_are_of(pocket_tokenizer: Tokenizer):
    end = pocket_tokenizer.token_to_id("<|endoftext|>")
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    lines = []
    for number in range(end):
        token = bytes(letters[letter] for letter in pocket_tokenizer.id_to_token(number))
        lines.append(base64.b64encode(token) + b" " + str(number).encode() + b"\n")
    found = tokenizer_of_ranks(b"".join(lines), 3)
    texts = [
        "And so my fellow Americans",
        " ask  not; what?",
        "\u00fcber den Flu\u00df 3.14",
        "\u266a\u266a \U0001f3b5 aaaa",
    ]
    for text in texts:
        ids = pocket_tokenizer.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.decode(ids) == text
    names = ["endoftext", "startoftranscript", "en", "zh", "de", "translate", "transcribe", "startoflm"]
    names += ["startofprev", "nospeech", "notimestamps", "0.00", "0.02"]
    assert [found.id_to_token(end + place) for place in range(len(names))] == [f"<|{name}|>" for name in names]
    assert found.get_vocab_size() == end + len(names) - 2 + 1501


def test_symbols_are_never_said_and_punctuation_is(pocket_tokenizer: Tokenizer):
    """By hand, of the tokens that a byte-level vocabulary always has: a symbol of one byte is one token."""
    rules = openai_rules(pocket_tokenizer)
    never = set(rules["suppress_tokens"])
    assert {pocket_tokenizer.token_to_id(symbol) for symbol in '"#()*+/:;<=>@[\\]^_`{|}~'} <= never
    assert not {pocket_tokenizer.token_to_id(symbol) for symbol in ".,?!'-a0"} & never
    # A note is several tokens here; the first is that of all characters from U+2640 to U+267F.
    assert pocket_tokenizer.encode("\u266a", add_special_tokens=False).ids[0] in never
    special = ("startoftranscript", "translate", "transcribe", "startoflm", "startofprev", "nospeech")
    assert {pocket_tokenizer.token_to_id(f"<|{name}|>") for name in special} <= never
    assert pocket_tokenizer.token_to_id("<|notimestamps|>") not in never
    assert rules["begin_suppress_tokens"] == [
        pocket_tokenizer.token_to_id("\u0120"),
        pocket_tokenizer.token_to_id("<|endoftext|>"),
    ]
