"""Options of recognition: what flags set, and how errors name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.families import FAMILIES, family_named
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.parakeet_tdt.hotwords import Hotword
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.whisper.options import WhisperOptions
from runtime.options import RecognitionOptions


@pytest.mark.parametrize("name", FAMILIES)
def test_every_flag_sets_a_field_and_explains_itself(name: str) -> None:
    flags = family_named(name).options.flags()
    assert {flag.field for flag in flags.values()} <= set(family_named(name).options.model_fields)
    for typed, flag in flags.items():
        assert typed.startswith("--")
        assert "_" not in typed
        assert flag.help.endswith(".")
        assert flag.metavar


def test_what_is_typed() -> None:
    found = WhisperOptions.from_flags(
        {"--temperatures": "0,0.5", "--condition": True, "--clip": "1.5,", "--prompt": "x"}
    )
    assert found == WhisperOptions(
        temperatures=(0.0, 0.5), condition_on_previous_text=True, clip=(1.5, None), initial_prompt="x"
    )
    assert WhisperOptions.from_flags({}, {"timestamps": True}).timestamps
    assert not WhisperOptions.from_flags({"--timestamps": False}, {"timestamps": True}).timestamps
    assert Cnn8RnnOptions.from_flags({"--labels": "Speech;Dog, bark", "--gap": "0.2"}) == Cnn8RnnOptions(
        labels=("Speech", "Dog, bark"), gap_s=0.2
    )


def test_two_flags_of_one_field_add_up(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bird\t2\n")
    typed = {"--hotwords": str(tmp_path / "words.txt"), "--hotword": ("gate", "fan:3")}
    assert ParakeetOptions.from_flags(typed).hotwords == (Hotword("bird", 2), Hotword("gate"), Hotword("fan", 3))


@pytest.mark.parametrize(
    ("model", "typed", "said"),
    [
        (ParakeetOptions, {"--hotword-weight": "-1"}, "--hotword-weight: "),
        (ParakeetOptions, {"--chunk": "long"}, "--chunk: "),
        (ParakeetOptions, {"--hotword": ("a",), "--decode": "device"}, "--hotword: "),
        (
            ParakeetOptions,
            {"--to": "de"},
            "--to: this model's family has no such option; it has --clip, --max-line-width",
        ),
        (WhisperOptions, {"--temperatures": "0,x"}, "--temperatures.1: "),
        (WhisperOptions, {"--clip": "x"}, "--clip: Value error, expected START,END in seconds"),
        (GraniteOptions, {"--task": "translate"}, "--to: "),  # the flag that is missing
        (RecognitionOptions, {"--clip": "3,2"}, "--clip: "),
    ],
)
def test_errors_name_the_flag(model: type[RecognitionOptions], typed: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as error:
        model.from_flags(typed)
    assert str(error.value).startswith(said)


def test_errors_in_python_name_the_field() -> None:
    with pytest.raises(InputError, match=r"^option hotword_weight: "):
        ParakeetOptions.parse({"hotword_weight": -1})
