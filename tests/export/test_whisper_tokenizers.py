"""Tokenizers in every layout that transformers wrote, and those of other models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.generation import whisper_settings
from export.families.whisper.standin import standin_tokenizer
from export.families.whisper.tokenizer import read_tokenizer
from export.pipeline import export_model
from export.registry import MODELS
from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.settings import WhisperDims
from runtime.families.whisper.tokenizer import WhisperTokenizer

ROOT = Path(__file__).resolve().parents[2]
POCKET, SAMPLES = ROOT / "pocket" / "whisper-pocket", ROOT / "samples"
TINY = WhisperDims(**MODELS["whisper-tiny"].dims)
ENGLISH, V2, V3 = 51864, 51865, 51866
TEXTS = [
    "",
    " ",
    "   two  spaces ",
    " naïve café",
    "日本語テキスト",
    "🙂👍🏽 ok",
    " Straße — übel",
    "a\nb\tc",
    " it's 1,234.50 €!",
]


def _write(folder: Path, **files: object) -> None:
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))


def _parts(tokenizer_json: Path, folder: Path) -> tuple[dict[str, int], list[str]]:
    """Write vocab.json and merges.txt; return the added tokens with their ids, and those of them that are special."""
    content = json.loads(tokenizer_json.read_text())
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    # OpenAI's vocab.json holds the end token, too.
    vocabulary = {token: number for token, number in content["model"]["vocab"].items() if token not in added}
    vocabulary["<|endoftext|>"] = added.pop("<|endoftext|>")
    folder.mkdir(parents=True)
    _write(folder, vocab=vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return added, [token["content"] for token in content["added_tokens"] if token["special"]]


def _ends() -> dict[str, str]:
    return dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")


def transformers_4_first(tokenizer_json: Path, folder: Path) -> None:
    """Write it as the first versions with Whisper did: added_tokens.json has the special tokens and no timestamps."""
    added, special = _parts(tokenizer_json, folder)
    _write(
        folder,
        added_tokens={token: number for token, number in added.items() if token in special},
        normalizer={"colour": "color"},
        special_tokens_map={**_ends(), "additional_special_tokens": special},
        tokenizer_config={**_ends(), "tokenizer_class": "WhisperTokenizer", "errors": "replace"},
    )


def transformers_4_later(tokenizer_json: Path, folder: Path) -> None:
    """Write it as versions from 4.34 on did: tokenizer_config.json has all tokens that were added."""
    added, special = _parts(tokenizer_json, folder)
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {number: {"content": token, "special": token in special, **plain} for token, number in added.items()}
    _write(
        folder,
        added_tokens=added,
        special_tokens_map={
            **{name: {"content": token, **plain} for name, token in _ends().items()},
            "additional_special_tokens": special,
        },
        tokenizer_config={
            **_ends(),
            "added_tokens_decoder": decoder,
            "additional_special_tokens": special,
            "clean_up_tokenization_spaces": True,
            "tokenizer_class": "WhisperTokenizer",
        },
    )


LAYOUTS = (transformers_4_first, transformers_4_later)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout.__name__)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json as export makes it of whisper-pocket's tokenizer in an older layout."""
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param(POCKET / "tokenizer.json", folder / "parts")
    read_tokenizer(folder / "parts").save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


ORIGINAL = Tokenizer.from_file(str(POCKET / "tokenizer.json"))


def test_ids_and_texts_are_those_of_the_tokenizer_json(built: Path):
    found = Tokenizer.from_file(str(built))
    vocabulary = ORIGINAL.get_vocab(with_added_tokens=True)
    unlisted = vocabulary.keys() - found.get_vocab(with_added_tokens=True).keys()
    assert found.get_vocab(with_added_tokens=True) == {t: n for t, n in vocabulary.items() if t not in unlisted}
    assert unlisted in (set(), {t for t, n in vocabulary.items() if n >= 651})
    for text in TEXTS:
        ids = ORIGINAL.encode(text, add_special_tokens=False).ids
        assert found.encode(text, add_special_tokens=False).ids == ids
        assert found.decode(ids) == text


@settings(max_examples=60)
@given(tokens=st.lists(st.integers(0, 951), max_size=30))
@example(tokens=list(range(952)))
def test_texts_of_any_tokens(tokens: list[int], built: Path):
    """Although transformers 5.23 forgets which tokens of the first layout are special."""
    text = [token for token in tokens if token < 651]
    assert WhisperTokenizer(built, range(640, 952)).decode(tokens) == ORIGINAL.decode(text, skip_special_tokens=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_in_an_older_layout_is_read_alike(
    layout: Callable[[Path, Path], None], random_checkpoint: Path, tmp_path: Path
):
    folder = tmp_path / "older"
    layout(random_checkpoint / "tokenizer.json", folder)
    for file in random_checkpoint.iterdir():
        if file.name != "tokenizer.json":
            (folder / file.name).symlink_to(file)
    checkpoint = WhisperCheckpoint(folder)
    assert checkpoint.settings == WhisperCheckpoint(random_checkpoint).settings
    read = {file.name for file in checkpoint.files}
    assert {"vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "model.safetensors"} <= read


def test_another_folders_tokenizer_is_taken_in_place_of_the_checkpoints(tmp_path: Path):
    folder = Path(shutil.copytree(POCKET, tmp_path / "checkpoint-500"))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="found no tokenizer; give one by --tokenizer FOLDER or hub id, such as"):
        WhisperCheckpoint(folder)
    checkpoint = WhisperCheckpoint(folder, tokenizer=POCKET)
    assert checkpoint.settings == WhisperCheckpoint(POCKET).settings
    assert POCKET / "tokenizer.json" in checkpoint.files


@pytest.mark.parametrize(
    ("changes", "base"),
    [
        ({"_name_or_path": "openai/whisper-small"}, "openai/whisper-small"),
        ({"_name_or_path": "/root/output/checkpoint-500"}, "openai/whisper-tiny"),
        ({}, "openai/whisper-tiny"),
        ({"eos_token_id": 50256}, "openai/whisper-tiny.en"),
        ({"num_mel_bins": 128}, "openai/whisper-large-v3"),
    ],
)
def test_a_checkpoint_without_tokenizer_names_a_model_that_has_it(changes: dict, base: str, tmp_path: Path):
    config = json.loads((POCKET / "config.json").read_text())
    _write(tmp_path, config=config | changes)
    with pytest.raises(InputError) as caught:
        WhisperCheckpoint(tmp_path)
    assert str(caught.value).endswith(f"such as --tokenizer {base}")


def _of(vocabulary: int) -> Tokenizer:
    """Return a tokenizer with ids as OpenAI's of that size has them."""
    return standin_tokenizer(TINY.model_copy(update={"n_vocab": vocabulary}))


def _without_timestamps(tokenizer: Tokenizer) -> Tokenizer:
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    return Tokenizer.from_str(json.dumps(content))


def _ids(vocabulary: int) -> dict[str, int]:
    """Return config.json's ids as transformers writes them for a network of that vocabulary."""
    first = 50256 if vocabulary == ENGLISH else 50257
    return {"eos_token_id": first, "decoder_start_token_id": first + 1}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("tokenizer", [ENGLISH, V2, V3])
@pytest.mark.parametrize("network", [ENGLISH, V2, V3])
def test_a_tokenizer_fits_the_networks_of_its_kind_alone(tokenizer: int, network: int, *, listed: bool):
    """Also without a generation_config.json, and with the ids of config.json, which are the same from v2 to v3."""
    theirs = _of(tokenizer) if listed else _without_timestamps(_of(tokenizer))
    dims = TINY.model_copy(update={"n_vocab": network})

    def read() -> tuple[int, int, int]:
        found = whisper_settings(_ids(network), dims, theirs, "here")
        return found.no_timestamps, found.n_timestamps, len(found.languages)

    if tokenizer == network:
        assert read() == (network - 1502, 1501, {ENGLISH: 0, V2: 99, V3: 100}[network])
        return
    with pytest.raises(InputError, match=r"^here: .*another model's; give the right one by --tokenizer") as caught:
        read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("padded", [51872, 51968])
def test_a_padded_or_resized_network_is_told_by_its_tokens(padded: int):
    dims = TINY.model_copy(update={"n_vocab": padded})
    for vocabulary, languages in ((ENGLISH, 0), (V2, 99), (V3, 100)):
        theirs = _of(vocabulary)
        found = whisper_settings(_ids(vocabulary), dims, theirs, "here")
        assert (len(found.languages), found.timestamps.stop) == (languages, vocabulary)
        other = {"no_timestamps_token_id": theirs.token_to_id("<|notimestamps|>") - 1}
        with pytest.raises(InputError, match="another model's"):
            whisper_settings(other, dims, theirs, "here")


def _one_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    transformers.WhisperTokenizer().save_pretrained(folder)


def _tokenizer_json(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _shifted(folder: Path) -> None:
    """Leave out Spanish: all tokens behind it stand one id lower."""

    def change(content: dict) -> None:
        kept = [token for token in content["added_tokens"] if token["content"] != "<|es|>"]
        content["added_tokens"] = [token | {"id": 640 + index} for index, token in enumerate(kept)]

    _tokenizer_json(folder, change)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"].remove("<|es|>")
    _write(folder, tokenizer_config=config)


def _without_text(folder: Path) -> None:
    def change(content: dict) -> None:
        content["model"]["merges"] = []
        content["model"]["vocab"] = {t: n for t, n in content["model"]["vocab"].items() if n < 256 or n == 640}

    _tokenizer_json(folder, change)


def _larger(folder: Path) -> None:
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<laugh>"])
    tokenizer.save_pretrained(folder)


def _another_languages_number(folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    generation["lang_to_id"]["<|fr|>"] = 647
    _write(folder, generation_config=generation)


def _another_start(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    _write(folder, config=config | {"decoder_start_token_id": 640})


def _no_merges(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()


def _broken_added_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    _write(folder, added_tokens={"<|startoftranscript|>": 700})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_one_token, "another model's"),
        (_shifted, "token <|startofprev|> is number 648 there, 647 in the tokenizer"),
        (_without_text, "token <|startoftranscript|> is number 641 there, 257 in the tokenizer"),
        (_larger, "expected token ids below the network's vocab_size 952, found 952"),
        (_another_languages_number, "token <|fr|> is number 647 there, None in the tokenizer"),
        (_another_start, "config.json: token <|startoftranscript|> is number 640 there, 641 in the tokenizer"),
        (_no_merges, "expected tokenizer.json, or vocab.json and merges.txt, found no tokenizer"),
        (_broken_added_tokens, "the tokenizer's files are of different models"),
    ],
)
@pytest.mark.parametrize("generation", [True, False])
def test_a_tokenizer_of_another_model_is_refused(
    damage: Callable[[Path], None], told: str, tmp_path: Path, *, generation: bool
):
    folder = Path(shutil.copytree(POCKET, tmp_path / "checkpoint"))
    damage(folder)
    if not generation:
        (folder / "generation_config.json").unlink()
        if damage is _another_languages_number:
            return
    with pytest.raises(InputError) as caught:
        WhisperCheckpoint(folder)
    assert "\n" not in str(caught.value)
    if generation:
        assert told in str(caught.value)


@pytest.mark.slow
def test_tokens_behind_the_timestamps_are_in_the_text(tmp_path: Path):
    folder = tmp_path / "extended"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(POCKET)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(POCKET)
    tokenizer.add_tokens(["<minutes>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|twenty|>"]}, replace_extra_special_tokens=False)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=8)
    with torch.no_grad():
        embedding = model.model.decoder.embed_tokens.weight
        for added, usual in (("<minutes>", " minutes"), ("<|twenty|>", " twenty")):
            (number,) = tokenizer(usual, add_special_tokens=False).input_ids
            embedding[tokenizer.convert_tokens_to_ids(added)] = 1.2 * embedding[number]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(POCKET / "preprocessor_config.json", folder)
    artifact = open_artifact(
        export_model(
            "extended", weights=str(folder), formats=("onnx",), out=tmp_path, recordings=[SAMPLES / "short_en.wav"]
        )
    )
    assert artifact.content.parity.results_equal == {"short_en": True}
    assert artifact.content.dims["n_vocab"] == 960
    recognizer = open_recognizer(artifact, threads=1)
    found = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), WhisperOptions(temperatures=(0.0,)))
    assert found.text == "set a timer for six<minutes>"
    timed = recognizer.recognize(open_audio(SAMPLES / "long_en.wav"), WhisperOptions(temperatures=(0.0,)))
    assert "<minutes>" in timed.text
    assert "<|twenty|>" not in timed.text
    assert all(0 <= segment.start < segment.end <= 29.25 for segment in timed.segments)
