"""The comparison of texts at export: what is wrong with tokens, language or task on our side has to show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from export.families.whisper.checkpoint import WhisperCheckpoint
from export.families.whisper.source import TransformersWhisper
from export.families.whisper.standin import RandomWhisper
from export.registry import MODELS
from runtime.artifact import open_artifact
from runtime.families.whisper.settings import WhisperDims
from runtime.manifest import Recording

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NOWHERE = Path("unused")


def source_of(folder: Path) -> TransformersWhisper:
    return TransformersWhisper(folder, NOWHERE, WhisperCheckpoint(folder))


def changed(folder: Path, target: Path, **generation: object) -> Path:
    copy = Path(shutil.copytree(folder, target))
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return copy


@pytest.fixture(scope="module")
def recordings(pocket_artifact: Path) -> dict[str, Recording]:
    return {recording.name: recording for recording in open_artifact(pocket_artifact).content.recordings}


@pytest.fixture(scope="module")
def pocket(pocket_checkpoint: Path) -> TransformersWhisper:
    return source_of(pocket_checkpoint)


def test_the_shipped_models_texts_are_the_sources(
    pocket_artifact: Path, random_artifact: Path, english_artifact: Path
) -> None:
    for path in (pocket_artifact, random_artifact, english_artifact):
        agreed = open_artifact(path).content.parity.results_equal
        assert agreed
        assert all(agreed.values()), (path, agreed)


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        ({"task": "translate"}, "short_de"),
        ({"forced_decoder_ids": [[1, None], [2, 645]]}, "short_de"),
        ({"language": "es"}, "short_de"),
        ({"forced_decoder_ids": [[1, 644], [2, 646]]}, "short_de"),
        ({"suppress_tokens": [264]}, "short_en"),
        ({"max_new_tokens": 3}, "short_en"),
    ],
)
def test_a_setting_of_the_checkpoint_that_export_lost_shows(
    generation: dict, name: str, pocket_checkpoint: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    """The recording was made without it."""
    suppressed = generation.get("suppress_tokens")
    if suppressed:
        generation = {"suppress_tokens": [recordings[name].result["segments"][0]["tokens"][0]]}
    source = source_of(changed(pocket_checkpoint, tmp_path / "other", **generation))
    assert not source.agrees(SAMPLES / f"{name}.wav", recordings[name])


@pytest.mark.parametrize(
    ("tell", "name"),
    [
        ({"text": ""}, "short_en"),
        ({"text": "setatimerfortwentysixminutes"}, "short_en"),
        ({"text": "set a timer for twenty six minutes<|6.00|>"}, "short_en"),
        ({"language": "de"}, "short_en"),
        ({"text": "three zero six four"}, "short_de"),
        ({"text": "you"}, "nospeech"),
    ],
)
def test_another_text_or_language_shows(
    tell: dict, name: str, pocket: TransformersWhisper, recordings: dict[str, Recording]
) -> None:
    recording = recordings[name]
    path = SAMPLES / f"{name}.wav"
    assert pocket.agrees(path, recording)
    assert not pocket.agrees(path, recording.model_copy(update={"result": recording.result | tell}))


@pytest.mark.parametrize("seconds", [3, 15])
def test_digital_silence_is_not_asked_of_the_source(
    pocket: TransformersWhisper, recordings: dict[str, Recording], tmp_path: Path, seconds: int
) -> None:
    """It makes words up there; at run time nothing is heard."""
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(seconds * 16000), 16000)
    recording = recordings["short_de"]
    assert pocket.agrees(path, recording.model_copy(update={"result": {"text": "", "language": ""}}))
    assert not pocket.agrees(path, recording)


def test_what_an_option_names_is_asked_of_the_source(
    pocket_checkpoint: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    source = source_of(changed(pocket_checkpoint, tmp_path / "es", language="es", task="translate"))
    path, recording = SAMPLES / "short_de.wav", recordings["short_de"]
    named = {**recording.options, "task": "transcribe"}
    for language in ("de", "auto", "German"):
        options = {**named, "language": language}
        assert source.agrees(path, recording.model_copy(update={"options": options})), language
    # And nothing of it stays behind.
    assert not source.agrees(path, recording.model_copy(update={"options": named}))
    assert source.transcribe(path, {**named, "max_new_tokens": 3}) != ""


def test_settings_that_are_not_honoured_are_not_asked_of_the_source(
    pocket_checkpoint: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    penalties = {"num_beams": 4, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "eos_token_id": [640]}
    folder = changed(pocket_checkpoint, tmp_path / "penalties", **penalties)
    assert len(WhisperCheckpoint(folder).notes) == 3
    assert source_of(folder).agrees(SAMPLES / "long_en.wav", recordings["long_en"])


def test_a_checkpoint_without_settings_front_end_and_tokenizer(
    pocket_checkpoint: Path, recordings: dict[str, Recording], tmp_path: Path
) -> None:
    """As Trainer leaves checkpoint-N; the front-end is then the standard one, and the tokenizer given."""
    names = ("config.json", "model.safetensors")
    for name in names:
        shutil.copy(pocket_checkpoint / name, tmp_path)
    checkpoint = WhisperCheckpoint(tmp_path, tokenizer=pocket_checkpoint)
    assert checkpoint.frontend == WhisperCheckpoint(pocket_checkpoint).frontend
    assert checkpoint.notes == (
        "preprocessor_config.json: not there; the standard log-mel front-end of Whisper is taken",
    )
    source = TransformersWhisper(tmp_path, NOWHERE, checkpoint)
    for name in ("short_en", "short_de", "long_en"):
        assert source.agrees(SAMPLES / f"{name}.wav", recordings[name]), name


def test_random_weights_have_a_tokenizer_of_transformers_too(pocket_artifact: Path) -> None:
    random = RandomWhisper(WhisperDims(**MODELS["whisper-pocket"].dims))
    source = TransformersWhisper(None, pocket_artifact / "weights.safetensors", random)
    generation = source.model.generation_config
    assert generation.lang_to_id == {f"<|{code}|>": token for code, token in random.settings.languages.items()}
    assert generation.suppress_tokens == list(random.settings.suppress_tokens)
    assert (generation.max_initial_timestamp_index, generation.task, generation.max_length) == (50, "transcribe", 96)
    assert source.transcribe(SAMPLES / "short_en.wav", {"temperatures": [0.0], "max_new_tokens": 5}) != ""
