"""The JSON of results against its published schema, by jsonschema."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import jsonschema
import pytest

from runtime.results import (
    AudioInfo,
    Draft,
    Event,
    Result,
    Segment,
    SoundEvents,
    Tag,
    Token,
    Transcript,
    Word,
    json_schema,
)

COMMON = {
    "model": "m",
    "variant": "fp32",
    "device": "cpu",
    "engine": "onnxruntime",
    "audio": AudioInfo("a.wav", 2.0, 16000),
    "timings": {"total_s": 1.0, "rtf": 0.5},
    "remark": "for people",
}
SEGMENTS = (
    Segment(0.0, 1.0, "a", (1,), -0.5, 0.1, 1.2, 0.0),
    Segment(1.0, 2.0, "b", (2,), finish="silence", draft=Draft("", None)),
    Segment(
        1.0,
        2.0,
        "c",
        (3,),
        confidence=1.0,
        words=(Word("c", 1.0, 2.0, 1.0),),
        token_times=(Token(3, "c", 1, 2, -0.1, 1),),
    ),
)
RESULTS: list[Result] = [
    Transcript(**COMMON, text="a b", segments=SEGMENTS, language="en", task="transcribe"),
    Transcript(**COMMON, text="", segments=(), counts={"calls": 1.0, "audio_s": 2.0}, steps=3, tokens_per_s=2.0),
    SoundEvents(**COMMON, tags=(Tag("Siren", 0.9),), events=(Event(0.0, 1.0, "Siren", 0.9),), resolution_s=0.04),
]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("result", RESULTS)
def test_results_are_what_the_schema_says(result: Result) -> None:
    read = json.loads(json.dumps(result.to_json(), allow_nan=False))
    VALIDATOR.validate(read)
    assert next(iter(read)) == "schema_version"
    assert not {"remark", "scores"} & read.keys()


def test_every_speech_family_has_one_shape() -> None:
    segments = RESULTS[0].to_json()["segments"]
    assert [list(segment) for segment in segments] == [[part.name for part in fields(Segment)]] * 3


@pytest.mark.parametrize(
    "spoilt",
    [
        {"text": None},
        {"segments": [{"start": 0.0, "end": 1.0, "text": "a", "tokens": [{"id": 1}]}]},
        {"schema_version": "two"},
        {"audio": {"path": "a.wav"}},
    ],
)
def test_the_schema_refuses(spoilt: dict[str, object]) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(RESULTS[1].to_json() | spoilt)


def test_a_replaced_path_is_in_the_json() -> None:
    moved = replace(RESULTS[0], audio=replace(RESULTS[0].audio, path="b.wav"))
    assert moved.to_json()["audio"]["path"] == "b.wav"
