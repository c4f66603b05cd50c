"""The tokenizer of a Granite Speech checkpoint, and its chat template rendered to the text around a prompt."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from export.json_files import read_json
from runtime.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
# What transformers makes a tokenizer.json of, where there is none.
_PIECES = ("vocab.json", "merges.txt")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json")
# 3.3's template states today's date. An artifact states the same one every day: that of the model card's examples.
TEMPLATE_DATE = date(2025, 4, 9)
_DATE = re.compile(r"""strftime_now\(\s*(['"])(?P<format>[^'"]*)\1\s*\)""")
# Two instructions that a template cannot know.
_PROBES = ("transcribe the first recording", "Second:\tTranslate it, with accents: \u00e9!")


def read_tokenizer(folder: Path) -> tuple[tuple[Path, ...], bytes, Tokenizer]:
    """Return a tokenizer with the tokens that only other files add: the files read, its tokenizer.json, itself.

    Where only vocab.json and merges.txt are there, it is the one that transformers makes of them.

    Raises
    ------
    InputError
        There is none, or none of the tokenizers library.

    """
    path = folder / "tokenizer.json"
    try:
        data = path.read_bytes() if path.is_file() else _built(folder)
        tokenizer = Tokenizer.from_str(data.decode())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{path}: expected a tokenizer of the tokenizers library ({error}); get it again") from error
    missing = [(token, text) for token, text in _added(folder) if tokenizer.token_to_id(text) is None]
    for token, text in sorted(missing):
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        if tokenizer.token_to_id(text) != token:
            raise InputError(
                f"{path}: expected {text!r:.80} to become token {token}, found {tokenizer.token_to_id(text)}; "
                "the tokenizer's files are of different models"
            )
    names = TOKENIZER_FILES if path.is_file() else (*_PIECES, *TOKENIZER_FILES)
    files = tuple(folder / name for name in names if (folder / name).is_file())
    return files, tokenizer.to_str().encode() if missing else data, tokenizer


def template_text(*folders: Path) -> tuple[Path, str]:
    """Return a chat template and the file that holds it: of the first folder that has one, in transformers' order.

    Raises
    ------
    InputError
        There is none.

    """
    for folder in folders:
        path = folder / "chat_template.jinja"
        if path.is_file():
            try:
                return path, path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: expected a chat template in UTF-8 ({error}); get it again") from error
        for name in (*TEMPLATE_FILES[1:], "tokenizer_config.json"):
            path = folder / name
            template = _default(path, read_json(path).get("chat_template")) if path.is_file() else None
            if template is not None:
                return path, template
    raise InputError(
        f"{folders[-1]}: expected a chat template in chat_template.jinja or tokenizer_config.json, found none; "
        "get the whole repository"
    )


def _default(path: Path, templates: object) -> str | None:
    """Return the chat template that a file states: the only one, or of several by name the default, as transformers."""
    if isinstance(templates, list) and all(isinstance(template, dict) for template in templates):
        templates = {template.get("name"): template.get("template") for template in templates}
    if isinstance(templates, dict):
        if "default" not in templates:
            found = ", ".join(map(str, templates)) or "none"
            raise InputError(f"{path}: expected a chat_template named default, found {found}; name one so")
        templates = templates["default"]
    if templates is not None and not isinstance(templates, str):
        raise InputError(f"{path}: expected chat_template to be text, found {templates!r:.80}; get the file again")
    return templates


def _built(folder: Path) -> bytes:
    """Return the tokenizer.json that transformers makes of the pieces and the merges of a byte-level BPE."""
    from transformers import AutoTokenizer

    missing = [name for name in _PIECES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder / 'tokenizer.json'}: not found, and no {' and '.join(missing)} to make it of; get the whole "
            "repository"
        )
    text: str = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    return text.encode()


def prompt_frame(folder: Path, tokenizer: Path, audio_text: str) -> tuple[Path, str, str]:
    """Return the template's file and the text that it puts before and behind `<|audio|>` and an instruction.

    The template is that of the folder with the tokenizer, else that of the checkpoint's. It is rendered by
    transformers for one message of the user, with a generation prompt.

    Raises
    ------
    InputError
        No template, one that fails, or one whose text around a message depends on the message.

    """
    path, template = template_text(tokenizer, folder)
    frames = []
    for instruction in _PROBES:
        message = audio_text + instruction
        text = _rendered(path, template, message, _special_tokens(tokenizer))
        before, found, behind = text.partition(message)
        if not found or audio_text in before + behind:
            raise InputError(
                f"{path}: expected the chat template to render {message!r} once and as it is, found {text!r:.200}; "
                "the template is of another model"
            )
        frames.append((before, behind))
    if frames[0] != frames[1]:
        raise InputError(
            f"{path}: expected a chat template with the same text around every message, found {frames[0]!r:.120} and "
            f"{frames[1]!r:.120}; not supported"
        )
    return path, *frames[0]


def _rendered(path: Path, template: str, message: str, special: dict[str, str]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    # transformers lets nobody pass a function to a template.
    dated = _DATE.sub(lambda call: repr(TEMPLATE_DATE.strftime(call["format"])), template)
    if "strftime_now(" in dated:
        raise InputError(
            f"{path}: expected strftime_now with a format in the chat template, found another; not supported"
        )
    try:
        rendered, _ = render_jinja_template(
            [[{"role": "user", "content": message}]], chat_template=dated, add_generation_prompt=True, **special
        )
    except Exception as error:  # a template may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: expected a chat template that renders a message, found an error ({reason})"
        ) from error
    text: str = rendered[0]
    return text


def _special_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that a template may name (`bos_token`, ...), by name."""
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    found = {name: config[name] for name in names if config.get(name) is not None}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _added(folder: Path) -> list[tuple[int, str]]:
    """Return the tokens that tokenizer_config.json and added_tokens.json name: id, text."""
    tokens: list[tuple[int, str]] = []
    path = folder / "added_tokens.json"
    if path.is_file():
        tokens += [(token, text) for text, token in read_json(path).items() if type(token) is int]
    path = folder / "tokenizer_config.json"
    decoder = read_json(path).get("added_tokens_decoder") if path.is_file() else None
    if isinstance(decoder, dict):
        tokens += [
            (int(token), value["content"])
            for token, value in decoder.items()
            if token.isdecimal() and isinstance(value, dict) and isinstance(value.get("content"), str)
        ]
    return list(dict.fromkeys(tokens))
