"""Recognition of files with Granite Speech: results, every kind of prompt against transformers, formats."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from granite_checkpoints import END_OF_TEXT
from granite_nets import SAMPLES, Original, samples_of

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import family_named, open_recognizer
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.recognizer import GraniteRecognizer

RATE = 16000


@pytest.fixture(scope="module")
def recognizer(granite_artifact: Path) -> GraniteRecognizer:
    opened = open_recognizer(open_artifact(granite_artifact), threads=1)
    assert isinstance(opened, GraniteRecognizer)
    return opened


@pytest.fixture(scope="module")
def original(granite_checkpoint: Path) -> Original:
    return Original(granite_checkpoint)


def write(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize("name", ["short_en.wav", "short_de.wav", "short_es.wav"])
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, "can you transcribe the speech into a written format?"),
        ({"task": "punctuate"}, "transcribe the speech with proper punctuation and capitalization."),
        ({"keywords": ["Atlas"]}, "transcribe the speech to text. Keywords: Atlas"),
        ({"task": "translate", "to": "ja"}, "translate the speech to Japanese."),
        ({"prompt": "who is it?"}, "who is it?"),
    ],
)
def test_a_recording_gives_transformers_tokens_for_every_kind_of_prompt(
    recognizer: GraniteRecognizer, original: Original, name: str, given: dict[str, Any], asked: str
) -> None:
    options = GraniteOptions.parse({**given, "max_new_tokens": 12, "repetition_guard": False})
    found = recognizer.recognize(open_audio(SAMPLES / name), options)
    expected = original.generate(asked, samples_of(name), 12)
    (segment,) = found.segments
    assert [*segment.tokens, *([END_OF_TEXT] if segment.finish == "end" else [])] == expected
    decoded = original.processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert found.text == segment.text == decoded.strip()
    assert (found.prompt, found.language) == (asked, given.get("to", ""))
    assert found.task == ("prompt" if "prompt" in given else given.get("task", "transcribe"))


def test_a_result_says_what_ran_and_how_long(recognizer: GraniteRecognizer) -> None:
    done: list[tuple[float, float]] = []
    options = GraniteOptions(max_new_tokens=8)
    found = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), options, lambda *now: done.append(now))
    stages = {"frontend_s", "encoder_s", "prefill_s", "decode_s"}
    assert found.timings.keys() == stages | {"load_s", "total_s", "rtf"}
    assert sum(found.timings[stage] for stage in stages) <= found.timings["total_s"]
    duration = found.audio.duration_s
    assert done == [(pytest.approx(duration, abs=1e-4), duration)]
    (segment,) = found.segments
    assert (segment.start, segment.end) == (0.0, pytest.approx(duration, abs=1e-4))
    assert found.steps == len(segment.tokens) - (segment.finish == "length")
    assert found.tokens_per_s == found.steps / found.timings["decode_s"]
    assert f"{len(segment.tokens)} tokens, {found.tokens_per_s:.1f} a second" in found.remark
    line = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert line["segments"][0]["avg_logprob"] == segment.avg_logprob < 0
    assert line["tokens_per_s"] == found.tokens_per_s
    assert (line["engine"], line["device"], line["variant"]) == ("onnxruntime", "cpu", "fp32")


def test_a_clip_is_that_part_of_the_recording(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    options = GraniteOptions(max_new_tokens=12)
    part = write(tmp_path / "part.wav", samples_of("jfk.flac")[2 * RATE : 5 * RATE])
    alone = recognizer.recognize(open_audio(part), options)
    found = recognizer.recognize(open_audio(SAMPLES / "jfk.flac"), options.model_copy(update={"clip": (2.0, 5.0)}))
    assert (found.segments[0].start, found.segments[0].end) == (2.0, 5.0)
    assert found.segments[0].tokens == alone.segments[0].tokens


@pytest.mark.parametrize("count", [1, 160, 256, 257, 4000])
def test_the_shortest_recordings_are_heard(recognizer: GraniteRecognizer, tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "short.wav", samples_of("short_en.wav")[4000 : 4000 + count])
    found = recognizer.recognize(open_audio(path), GraniteOptions(max_new_tokens=4))
    assert len(found.segments) == 1
    assert found.segments[0].finish in {"end", "length"}


def test_the_text_comes_in_pieces(recognizer: GraniteRecognizer) -> None:
    pieces: list[str] = []
    options = GraniteOptions(max_new_tokens=20)
    found = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), options, on_text=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == found.text


def test_the_most_tokens_follow_the_recordings_length(recognizer: GraniteRecognizer, tmp_path: Path) -> None:
    path = write(tmp_path / "noise.wav", np.resize(samples_of("short_en.wav"), 20 * RATE))
    found = recognizer.recognize(open_audio(path), GraniteOptions(repetition_guard=False))
    (segment,) = found.segments
    assert len(segment.tokens) <= 240
    if segment.finish == "length":
        assert len(segment.tokens) == 240
        assert found.remark.endswith("1 of 1 chunks ended at the most tokens allowed")


def test_a_special_token_in_a_keyword_is_refused(recognizer: GraniteRecognizer) -> None:
    with pytest.raises(InputError, match=r"found the special token <\|end_of_text\|>"):
        recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), GraniteOptions(keywords=("a<|end_of_text|>",)))


def test_a_prompt_that_leaves_no_room_is_refused(recognizer: GraniteRecognizer) -> None:
    with pytest.raises(InputError, match="use a smaller --chunk, fewer keywords or a shorter prompt"):
        recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), GraniteOptions(prompt="why? " * 400))


@pytest.mark.parametrize("kind", ["txt", "srt", "vtt", "tsv", "json"])
def test_every_format_is_written(recognizer: GraniteRecognizer, tmp_path: Path, kind: str) -> None:
    family = family_named("granite_speech")
    form = family.formats[kind]
    options = family.options.parse({"max_new_tokens": 12, **form.options})
    found = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), options)
    form.write(found, tmp_path / "out")
    written = (tmp_path / "out").read_text()
    if kind == "json":
        assert json.loads(written) == json.loads(json.dumps(found.to_json()))
    else:
        assert " ".join(found.text.split()).replace("\t", " ")[-4:] in written


def test_the_box_needs_neither_transformers_nor_torch_nor_jinja(granite_artifact: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from runtime.artifact import open_artifact\n"
        "from runtime.audio import open_audio\n"
        "from runtime.families import open_recognizer\n"
        "recognizer = open_recognizer(open_artifact(Path(sys.argv[1])), 'onnxruntime', threads=1)\n"
        "options = recognizer.options(max_new_tokens=2)\n"
        "recognizer.recognize(open_audio(sys.argv[2]), options)\n"
        "loaded = {'torch', 'transformers', 'jinja2', 'torchaudio', 'export', 'verify'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    command = [sys.executable, "-c", code, str(granite_artifact), str(SAMPLES / "short_en.wav")]
    subprocess.run(command, check=True, cwd=SAMPLES.parent)
