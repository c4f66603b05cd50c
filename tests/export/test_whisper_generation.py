"""Language, task and limits of a checkpoint's settings: texts against transformers on the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from export.families.whisper.checkpoint import WhisperCheckpoint
from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import open_engine
from runtime.engines.base import Engine
from runtime.errors import InputError
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.results import Transcript

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
GENERATION, CONFIG = "generation_config.json", "config.json"
# whisper-pocket's tokens.
EN, DE, ES, TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS = 642, 643, 644, 645, 646, 650
# Nothing but the checkpoint decides: no thresholds, one temperature.
PLAIN = {
    "temperatures": [0.0],
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


def rewrite(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.fixture
def folder(pocket_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of whisper-pocket's checkpoint whose settings state no forced tokens."""
    copy = Path(shutil.copytree(pocket_checkpoint, tmp_path / "checkpoint"))
    rewrite(copy / GENERATION, forced_decoder_ids=None)
    return copy


@pytest.fixture(scope="module")
def pocket(pocket_artifact: Path) -> tuple[Artifact, Engine]:
    opened = open_artifact(pocket_artifact)
    return opened, open_engine(opened, threads=1)


def transcribed(folder: Path, pocket: tuple[Artifact, Engine], name: str, **options: object) -> Transcript:
    """Transcribe with the graphs of whisper-pocket, and tokens and settings that export reads from `folder`."""
    checkpoint = WhisperCheckpoint(folder)
    written = folder.parent / "artifact"
    written.mkdir(exist_ok=True)
    (written / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
    opened, engine = pocket
    content = opened.content.model_copy(update={"settings": checkpoint.settings.model_dump(mode="json")})
    recognizer = WhisperRecognizer(Artifact(written, opened.manifest.model_copy(update={"content": content})), engine)
    return recognizer.recognize(open_audio(SAMPLES / name), WhisperOptions.parse({**PLAIN, **options}))


def generated(folder: Path, name: str, **arguments: object) -> tuple[str, list[int]]:
    """Return what transformers says of a recording by a folder's own settings, and the prompt that it gave."""
    transformers.logging.set_verbosity_error()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    audio = np.concatenate(list(open_audio(SAMPLES / name).blocks(16000)))
    features = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
    # Zero features behind the recording's end, as in openai-whisper.
    features[:, :, len(audio) // 160 :] = 0.0
    with torch.inference_mode():
        (segment,) = model.generate(features, return_segments=True, **arguments)["segments"][0]
    text = tokenizer.decode(segment["tokens"], skip_special_tokens=True)
    return text.strip(), segment["result"][: segment["idxs"][0]].tolist()


@pytest.mark.parametrize(
    ("generation", "config", "language"),
    [
        ({"language": "es", "task": "transcribe"}, {}, "es"),
        ({"language": "<|de|>"}, {}, "de"),
        ({"language": "German", "task": "translate"}, {}, "de"),
        ({"task": "translate"}, {}, "de"),
        ({"forced_decoder_ids": [[1, ES], [2, TRANSCRIBE]]}, {}, "es"),
        ({"forced_decoder_ids": [[1, None], [2, TRANSLATE]]}, {}, "de"),
        ({"forced_decoder_ids": [[1, DE], [2, TRANSLATE], [3, NO_TIMESTAMPS]]}, {}, "de"),
        # Not at the first position: they do not count; the task is then given so that the prompts are alike.
        ({"forced_decoder_ids": [[2, TRANSLATE]], "task": "transcribe"}, {}, "de"),
        # Language and task beat forced tokens, even one of them alone.
        ({"forced_decoder_ids": [[1, ES], [2, TRANSLATE]], "language": "de"}, {}, "de"),
        ({"forced_decoder_ids": [[1, ES], [2, TRANSLATE]], "task": "transcribe"}, {}, "de"),
        # config.json's forced tokens count where the generation settings have none, its language and task never.
        ({}, {"forced_decoder_ids": [[1, ES], [2, TRANSLATE]]}, "es"),
        ({"task": "transcribe"}, {"forced_decoder_ids": [[1, ES], [2, TRANSLATE]]}, "de"),
        ({"forced_decoder_ids": [[1, DE], [2, TRANSCRIBE]]}, {"forced_decoder_ids": [[1, ES], [2, TRANSLATE]]}, "de"),
        ({"task": "transcribe"}, {"language": "es", "task": "translate"}, "de"),
        (None, {"forced_decoder_ids": [[1, ES], [2, TRANSCRIBE], [3, NO_TIMESTAMPS]]}, "es"),
    ],
)
def test_language_and_task_are_those_that_transformers_takes(
    generation: dict | None, config: dict, language: str, folder: Path, pocket: tuple[Artifact, Engine]
) -> None:
    rewrite(folder / CONFIG, **config)
    if generation is None:
        (folder / GENERATION).unlink()
    else:
        rewrite(folder / GENERATION, **generation)
    text, prompt = generated(folder, "short_de.wav")
    found = transcribed(folder, pocket, "short_de.wav")
    assert (found.text, found.language) == (text, language)
    settings = WhisperCheckpoint(folder).settings
    task = settings.tasks[settings.task]
    assert prompt == [settings.sot, settings.languages[language], task, settings.no_timestamps]


def test_options_override_the_checkpoints_language_and_task(folder: Path, pocket: tuple[Artifact, Engine]) -> None:
    rewrite(folder / GENERATION, language="es", task="translate")
    for options in ({"language": "de"}, {"task": "transcribe"}, {"language": "de", "task": "transcribe"}):
        found = transcribed(folder, pocket, "short_de.wav", **options)
        assert found.text == generated(folder, "short_de.wav", **options)[0], options
    found = transcribed(folder, pocket, "short_de.wav", language="auto", task="transcribe")
    assert (found.language, found.text) == ("de", "drei null sechs vier")


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"suppress_tokens": None}, {"suppress_tokens": "the first word"}),
        ({"suppress_tokens": "the first word"}, {"suppress_tokens": []}),
        (None, {"suppress_tokens": "the first word", "max_length": 96}),
        ({"begin_suppress_tokens": "the first word"}, {}),
        ({"max_length": 5}, {"max_length": 96}),
        ({"max_new_tokens": 3}, {}),
        ({"max_new_tokens": 90, "max_length": 5}, {}),
        (None, {"max_length": 5}),
        ({"eos_token_id": [640]}, {"eos_token_id": [640]}),
    ],
)
def test_what_is_said_and_how_much_of_it(
    generation: dict | None, config: dict, folder: Path, pocket: tuple[Artifact, Engine]
) -> None:
    tokens = transcribed(folder, pocket, "short_en.wav").segments[0].tokens
    settings = (("", config), (GENERATION, generation or {}))
    for name, changes in settings:
        given = {key: list(tokens[:1]) if value == "the first word" else value for key, value in changes.items()}
        rewrite(folder / (name or CONFIG), **given)
    rewrite(folder / CONFIG, forced_decoder_ids=[[1, EN], [2, TRANSCRIBE], [3, NO_TIMESTAMPS]])
    if generation is None:
        (folder / GENERATION).unlink()
    assert transcribed(folder, pocket, "short_en.wav").text == generated(folder, "short_en.wav")[0]


def test_known_difference_12_without_a_max_length_the_text_goes_on(
    folder: Path, pocket: tuple[Artifact, Engine]
) -> None:
    rewrite(folder / GENERATION, max_length=None, language="en", eos_token_id=640, suppress_tokens=[640])
    assert len(transcribed(folder, pocket, "short_en.wav").segments[0].tokens) == 92
    assert len(generated(folder, "short_en.wav")[0].split()) < 25


def test_an_option_beats_the_checkpoints_limit(folder: Path, pocket: tuple[Artifact, Engine]) -> None:
    for limit in ({"max_new_tokens": 2}, {"max_new_tokens": None, "max_length": 2}):
        rewrite(folder / GENERATION, language="en", **limit)
        found = transcribed(folder, pocket, "short_en.wav", max_new_tokens=20)
        assert found.text == generated(folder, "short_en.wav", max_new_tokens=20)[0] != ""
        assert len(found.segments[0].tokens) > 6


@pytest.mark.parametrize(
    ("generation", "told"),
    [
        ({"num_beams": 5}, "generation_config.json: num_beams 5 is not honoured: the search is greedy"),
        ({"repetition_penalty": 1.2}, "generation_config.json: repetition_penalty 1.2 is not honoured"),
        ({"no_repeat_ngram_size": 3}, "generation_config.json: no_repeat_ngram_size 3 is not honoured"),
        ({"length_penalty": 0.8}, "generation_config.json: length_penalty 0.8 is not honoured"),
        ({"return_timestamps": True}, "return_timestamps True is not honoured: give --timestamps"),
        ({"eos_token_id": [640, 647]}, "of eos_token_id [640, 647] only 640 (<|endoftext|>) ends a text"),
        ({"forced_decoder_ids": [[1, 700]]}, "forced_decoder_ids: token 700 is not honoured"),
        ({"is_multilingual": False, "language": ["de"]}, "language de is not honoured: the model is English-only"),
        ({"is_multilingual": False, "language": "<|en|>"}, None),
        ({"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "do_sample": True}, None),
    ],
)
def test_what_is_not_honoured_is_said(generation: dict, told: str | None, folder: Path) -> None:
    rewrite(folder / GENERATION, **generation)
    notes = WhisperCheckpoint(folder).notes
    assert not any("\n" in note for note in notes)
    assert [told in note for note in notes] == [True] if told else notes == ()


def test_of_config_json_what_transformers_takes_or_leaves(folder: Path) -> None:
    rewrite(folder / CONFIG, num_beams=5, language="de")
    assert WhisperCheckpoint(folder).notes == (
        "config.json: language 'de' is not honoured, as in transformers; it belongs into generation_config.json",
    )
    (folder / GENERATION).unlink()
    assert "config.json: num_beams 5 is not honoured: the search is greedy" in WhisperCheckpoint(folder).notes


@pytest.mark.parametrize(
    ("generation", "told"),
    [
        ({"language": "klingon"}, "generation_config.json: language 'klingon': expected one that the model knows"),
        ({"language": "fr"}, "language 'fr'"),
        ({"language": 3}, "expected language to be a name, found 3"),
        ({"task": "summarise"}, "expected task to be transcribe or translate, found 'summarise'"),
        ({"forced_decoder_ids": 5}, "expected forced_decoder_ids"),
        ({"forced_decoder_ids": [[1, [DE]]]}, "expected forced_decoder_ids"),
        ({"forced_decoder_ids": [[1, DE], [3, TRANSCRIBE]]}, "expected forced_decoder_ids at positions 1, 2 and so on"),
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1, found 0"),
        ({"max_length": -1}, "max_length: Input should be greater than or equal to 1, found -1"),
        ({"eos_token_id": "640"}, "token <|endoftext|> is number '640' there, 640 in the tokenizer"),
        ({"suppress_tokens": [952]}, "expected token ids to suppress below vocab_size 952, found 952"),
        ({"suppress_tokens": "x"}, "expected Whisper's generation settings"),
        ({"max_length": "long"}, "expected Whisper's generation settings"),
    ],
)
def test_settings_that_transformers_could_not_use_are_refused(generation: dict, told: str, folder: Path) -> None:
    rewrite(folder / GENERATION, **generation)
    with pytest.raises(InputError) as caught:
        WhisperCheckpoint(folder)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
