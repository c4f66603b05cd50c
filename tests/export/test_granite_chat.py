"""The chat template and the tokenizer of Granite Speech checkpoints, against transformers' own rendering."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from granite_checkpoints import (
    AUDIO,
    CHAT_TEMPLATE,
    INSTRUCTIONS,
    ROLE_TEMPLATE,
    TemplatePlace,
    write_granite_checkpoint,
)
from parakeet_checkpoints import assert_one_line
from tokenizers import Tokenizer

from export.families.granite_speech.checkpoint import GraniteCheckpoint
from export.families.granite_speech.model import GraniteModel
from export.weights import resolve_weights
from runtime.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_granite_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "place", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json", "processor_config.json"]
)
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, ROLE_TEMPLATE], ids=["granite 4", "granite 3.3"])
def test_the_prompt_is_what_transformers_renders(template: str, place: TemplatePlace, tmp_path: Path):
    write_granite_checkpoint(tmp_path, template=template, template_place=place)
    checkpoint = GraniteCheckpoint(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    today = time.strftime("%B %d, %Y")
    for instruction in INSTRUCTIONS:
        message = f"<|audio|>{instruction}"
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
        ours = checkpoint.settings.prompt_prefix + message + checkpoint.settings.prompt_suffix
        # An artifact says the same date every day.
        assert ours == expected.replace(today, "April 09, 2025")
    assert any(file.name == place for file in checkpoint.files)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}USER: {{ m.content | upper }}{% endfor %}", "once and as it is"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "once and as it is"),
        ("{% for m in messages %}{{ m.content | length }} {{ m.content }}{% endfor %}", "the same text around every"),
        ("{% for m in messages %}{{ raise_exception('no') }}{% endfor %}", "found an error (no)"),
        ("{% for m in messages %}{{ m.content }}", "found an error"),
        ("{{ strftime_now(messages[0].role) }}{{ messages[0].content }}", "strftime_now with a format"),
        ("nothing", "once and as it is, found 'nothing'"),
    ],
)
def test_a_template_that_cannot_be_split_is_refused(template: str, told: str, folder: Path):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "chat_template.jinja", told)


def test_a_checkpoint_without_a_template_is_refused(folder: Path):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="expected a chat template in chat_template") as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value)


def test_tokens_that_only_other_files_add_are_in_the_tokenizer(folder: Path):
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "<|audio|>"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=f"expected tokenizer.json to have token {AUDIO}"):
        GraniteCheckpoint(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|audio|>": AUDIO}))
    checkpoint = GraniteCheckpoint(folder)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    assert tokenizer.encode("a<|audio|>").ids[-1] == AUDIO
    assert any(file.name == "added_tokens.json" for file in checkpoint.files)
    (folder / "added_tokens.json").write_text(json.dumps({"<|audio|>": AUDIO + 1}))
    with pytest.raises(InputError, match=re.escape(f"to become token {AUDIO + 1}, found {AUDIO}")) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    "templates",
    [
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": ROLE_TEMPLATE}],
        {"rag": "no", "default": ROLE_TEMPLATE},
    ],
    ids=["list", "dict"],
)
def test_of_several_templates_the_default_is_taken_as_by_transformers(templates: object, folder: Path):
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    message = f"<|audio|>{INSTRUCTIONS[0]}"
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    settings = GraniteCheckpoint(folder).settings
    dated = expected.replace(time.strftime("%B %d, %Y"), "April 09, 2025")
    assert settings.prompt_prefix + message + settings.prompt_suffix == dated
    # Templates for other ends in a folder of their own change nothing.
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("no")
    (folder / "chat_template.jinja").write_text(ROLE_TEMPLATE)
    assert GraniteCheckpoint(folder).settings == settings


@pytest.mark.parametrize(
    ("templates", "told"),
    [
        ([{"name": "tool_use", "template": "x"}], "expected a chat_template named default, found tool_use"),
        ([], "expected a chat_template named default, found none"),
        ({"rag": "x"}, "expected a chat_template named default, found rag"),
        ([{"name": "default", "template": 3}], "expected chat_template to be text, found 3"),
        (["x"], "expected chat_template to be text, found ['x']"),
        (7, "expected chat_template to be text, found 7"),
    ],
)
def test_templates_without_a_default_are_refused(templates: object, told: str, folder: Path):
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "tokenizer_config.json", told)


def _take_apart(folder: Path) -> None:
    """Leave of tokenizer.json what transformers 4 wrote beside it."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer.json").unlink()


def test_pieces_and_merges_become_the_tokenizer_that_transformers_makes_of_them(folder: Path):
    whole = Tokenizer.from_file(str(folder / "tokenizer.json"))
    _take_apart(folder)
    checkpoint = GraniteCheckpoint(folder)
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {file.name for file in checkpoint.files}
    ours = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (
        "<|audio|>can you transcribe K\u00f6ln 123?",
        "USER: <|audio|> a\n ASSISTANT:<|end_of_text|>",
        "\u4f60 x",
    ):
        assert ours.encode(text).ids == whole.encode(text).ids == theirs(text).input_ids
        assert ours.decode(whole.encode(text).ids) == whole.decode(whole.encode(text).ids)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_a_tokenizer_is_refused(missing: str, folder: Path):
    _take_apart(folder)
    (folder / missing).unlink()
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, f"tokenizer.json: not found, and no {missing} to make it of")


def test_damaged_pieces_are_refused(folder: Path):
    _take_apart(folder)
    (folder / "vocab.json").write_text("[")
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "expected a tokenizer")


def test_another_folder_s_tokenizer_is_taken_with_its_template(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    other = tmp_path_factory.mktemp("tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.move(folder / name, other / name)
    with pytest.raises(InputError, match="not found"):
        GraniteCheckpoint(folder)
    model = GraniteModel(replace(resolve_weights("granite", str(folder)), tokenizer=other))
    assert model.side_files["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    assert {other / "tokenizer.json", other / "chat_template.jinja"} <= {*model.source_files}
    assert model.settings["prompt_prefix"] == "USER: "
    # One without a template: the checkpoint's own counts.
    shutil.move(other / "chat_template.jinja", folder / "chat_template.jinja")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("USER: ", "User: "))
    model = GraniteModel(replace(resolve_weights("granite", str(folder)), tokenizer=other))
    assert model.settings["prompt_prefix"] == "User: "


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(folder: Path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["one_too_many"])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError) as caught:
        GraniteCheckpoint(folder)
    assert_one_line(caught.value, "expected token ids below the network's 384, found 384; the tokenizer is of another")
