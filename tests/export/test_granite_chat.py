"""The chat template and the tokenizer of Granite Speech checkpoints, against transformers' own rendering."""

from __future__ import annotations

import json
import re
import time
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
