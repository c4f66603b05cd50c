"""Granite Speech's prompts: the instructions of FACTS, the chat template against transformers, options that clash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from granite_nets import Original, samples_of

from runtime.artifact import open_artifact
from runtime.errors import InputError
from runtime.families.granite_speech.features import n_frames
from runtime.families.granite_speech.languages import LANGUAGES, language_code
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction, prompt_text
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings
from runtime.families.granite_speech.tokenizer import GraniteTokenizer

KINDS: list[tuple[dict[str, Any], str]] = [
    ({}, "can you transcribe the speech into a written format?"),
    ({"task": "punctuate"}, "transcribe the speech with proper punctuation and capitalization."),
    ({"keywords": ("Atlas", "Köln")}, "transcribe the speech to text. Keywords: Atlas, Köln"),
    ({"keywords": " Atlas , New   York,,"}, "transcribe the speech to text. Keywords: Atlas, New York"),
    ({"task": "translate", "to": "de"}, "translate the speech to German."),
    ({"task": "translate", "to": " german "}, "translate the speech to German."),
    ({"task": "translate", "to": "Chinese"}, "translate the speech to Mandarin."),
    (
        {"task": "translate", "to": "it", "punctuation": True},
        "translate the speech to Italian with proper punctuation and capitalization.",
    ),
    ({"prompt": " What is the mood?\n"}, "What is the mood?"),
]


@pytest.mark.parametrize(("options", "expected"), KINDS)
def test_instructions_are_those_of_the_models_card(options: dict[str, Any], expected: str) -> None:
    assert instruction(GraniteOptions.parse(options)) == expected


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_language_goes_by_code_and_name(code: str) -> None:
    assert language_code(code.upper()) == language_code(LANGUAGES[code]) == code


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "sing"}, "option task: Input should be 'transcribe', 'punctuate' or 'translate', found 'sing'"),
        ({"task": "translate"}, "option to: Value error, expected a language to translate to, German or de say"),
        ({"to": "de"}, "option to: Value error, expected the task translate"),
        ({"task": "translate", "to": "Klingon"}, "--to 'Klingon': expected one that the model translates to; it"),
        ({"task": "translate", "to": "Frensh"}, "did you mean french or"),
        ({"punctuation": True}, "option punctuation: Value error, expected the task translate"),
        ({"task": "punctuate", "keywords": "a"}, "option keywords: Value error, expected the task transcribe"),
        ({"prompt": "  "}, "option prompt: Value error, expected an instruction"),
        ({"prompt": "sing", "keywords": "a"}, "option prompt: Value error, expected a prompt without keywords"),
        ({"task": "punctuate", "prompt": "sing"}, "option prompt: Value error, expected a prompt without task"),
        ({"max_new_tokens": 0}, "option max_new_tokens: Input should be greater than or equal to 1, found 0"),
        ({"beams": 4}, "option beams: this model's family has no such option"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        GraniteOptions.parse(options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def original(granite_checkpoint: Path) -> Original:
    return Original(granite_checkpoint)


@pytest.mark.parametrize("count", [257, 16000, 15 * 320, 15 * 320 - 1, 41 * 320])
@pytest.mark.parametrize("kind", [0, 2, 7])
def test_ids_are_those_of_transformers_template_and_processor(
    granite_artifact: Path, original: Original, kind: int, count: int
) -> None:
    options, text = KINDS[kind]
    artifact = open_artifact(granite_artifact)
    dims, settings = artifact.part("dims", GraniteDims), artifact.part("settings", GraniteSettings)
    frontend = artifact.part("frontend", GraniteFrontend)
    tokenizer = GraniteTokenizer(artifact.file("tokenizer.json"), dims.n_vocab, settings.audio_token)
    samples = samples_of("short_en.wav", count)
    n_embeds = dims.n_embeds(n_frames(count, frontend))
    found = tokenizer.encode_prompt(prompt_text(instruction(GraniteOptions.parse(options)), n_embeds, settings))
    assert list(found) == original.inputs(text, samples)["input_ids"][0].tolist()
