"""The Python API as a developer uses it; the blocks of docs/python.md and of the README are run as they stand."""

from __future__ import annotations

import inspect
import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import jiwer
import pytest
import soundfile

import atlasport
from atlasport.model import Model, _as_they_come
from runtime.audio import open_audio
from runtime.families import FAMILIES, family_named
from runtime.family import Recognizer
from runtime.results import Segment

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = REPOSITORY / "samples" / "short_en.wav"
SAID = "set a timer for twenty six minutes"
PAGES = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in ("docs/python.md", "README.md")}


@pytest.fixture(scope="module")
def speech(pocket_artifact: Path) -> Iterator[Model]:
    with atlasport.open(pocket_artifact, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def sounds(sed_artifact: Path) -> Iterator[Model]:
    with atlasport.open(sed_artifact, threads=1) as model:
        yield model


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_run(name: str, pocket_artifact: Path, sed_artifact: Path, tmp_path: Path) -> None:
    for own in ("samples", "README.md"):
        (tmp_path / own).symlink_to(REPOSITORY / own)
    for artifact in (pocket_artifact, sed_artifact):
        (tmp_path / "artifacts" / artifact.parent.name).mkdir(parents=True)
        (tmp_path / "artifacts" / artifact.parent.name / "fp32").symlink_to(artifact)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES[name], re.MULTILINE | re.DOTALL)
    assert blocks
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == SAID


def test_every_kind_of_recording_gives_the_same_text(speech: Model) -> None:
    samples, rate = soundfile.read(SHORT, dtype="int16")
    data = SHORT.read_bytes()
    for recording in (str(SHORT), SHORT, data, io.BytesIO(data), open_audio(SHORT)):
        assert speech.transcribe(recording, language="en").text == SAID
    assert speech.transcribe(samples, rate=rate, language="en").text == SAID
    assert jiwer.wer(SAID, speech.transcribe(samples / 2**15, rate=rate).text) == 0


def test_segments_come_before_the_end(speech: Model) -> None:
    """The first one is there while the rest has still to be heard; together they are the transcript's."""
    long = REPOSITORY / "samples" / "joined_en.wav"
    expected = speech.transcribe(long).segments
    assert len(expected) > 1
    assert tuple(speech.segments(long)) == expected
    first = speech.segments(long)
    assert next(first) == expected[0]
    first.close()
    assert speech.transcribe(SHORT).text == SAID


def test_segments_are_there_while_the_rest_is_heard(speech: Model) -> None:
    """A recognition that waits until its first segment is taken, and Whisper's, which tells of it before the end."""
    taken = threading.Event()

    def recognize(on_segment: Callable[[Segment], None]) -> None:
        on_segment(Segment(0, 1, "first", ()))
        assert taken.wait(60)
        on_segment(Segment(1, 2, "second", ()))

    segments = _as_they_come(recognize)
    assert next(segments).text == "first"
    taken.set()
    assert [segment.text for segment in segments] == ["second"]

    told: list[str] = []
    long, recognizer = open_audio(REPOSITORY / "samples" / "joined_en.wav"), speech.recognizer
    options = recognizer.options(timestamps=True)
    recognizer.recognize(long, options, lambda *_: told.append("progress"), on_segment=lambda _: told.append("segment"))
    assert told[0] == "segment"
    assert told.index("progress") < max(place for place, name in enumerate(told) if name == "segment")


def test_segments_raise_what_transcribe_raises(speech: Model, tmp_path: Path) -> None:
    (tmp_path / "no.wav").write_text("no sound")
    for wrong in (lambda: speech.segments(SHORT, langage="en"), lambda: speech.segments(tmp_path / "no.wav")):
        with pytest.raises(atlasport.InputError):
            wrong()
    with pytest.raises(atlasport.InputError, match=r"within its 3\.06 s"):
        list(speech.segments(SHORT, clip="9,12"))


@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_language(speech: Model, language: str) -> None:
    found, probability = speech.detect_language(REPOSITORY / "samples" / f"short_{language}.wav")
    assert found == language
    assert 1 / 3 < probability <= 1
    assert speech.transcribe(REPOSITORY / "samples" / f"short_{language}.wav").language == language


def test_every_family_of_speech_gives_segments_away() -> None:
    for family in map(family_named, FAMILIES):
        if family.kind == "Speech":
            module = import_module(family.options.__module__.removesuffix(".options") + ".recognizer")
            (recognizer,) = (
                kind
                for kind in vars(module).values()
                if isinstance(kind, type) and issubclass(kind, Recognizer) and kind.__module__ == module.__name__
            )
            assert "on_segment" in inspect.signature(recognizer.recognize).parameters


def test_languages_are_not_told_by_every_family(parakeet_artifact: Path) -> None:
    with atlasport.open(parakeet_artifact, threads=1) as model:
        with pytest.raises(atlasport.InputError, match="parakeet-pocket: expected a model that tells languages apart"):
            model.detect_language(SHORT)
        assert tuple(model.segments(SHORT)) == model.transcribe(SHORT).segments


def test_what_a_model_says_of_itself(speech: Model, sounds: Model) -> None:
    assert atlasport.__version__ == version("atlasport")
    assert (speech.name, speech.variant, speech.kind, speech.device) == ("whisper-pocket", "fp32", "Speech", "cpu")
    assert (sounds.name, sounds.kind) == ("sed-pocket", "Sound events")
    assert "whisper-pocket" in repr(speech)


def test_help_lists_the_options_of_the_family(speech: Model, sounds: Model) -> None:
    parameters = inspect.signature(speech.transcribe).parameters
    assert parameters["language"].default is None
    assert parameters["no_speech_threshold"].default == 0.6
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    assert "no_speech_threshold : float or None" in inspect.getdoc(speech.transcribe)
    assert "clip : " in inspect.getdoc(speech.transcribe)
    assert "gap_s" in inspect.signature(sounds.detect_events).parameters
    assert "gap_s" not in parameters


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"langage": "en"}, r"option langage: .* language"),
        ({"language": "xx"}, "'xx'"),
        ({"temperatures": ()}, "option temperatures: "),
        ({"on_text": print}, "on_text: whisper-pocket gives its text at the end only"),
        ({"clip": "9,12"}, r"within its 3\.06 s"),
    ],
)
def test_wrong_options_are_errors_of_one_line(speech: Model, options: dict, said: str) -> None:
    with pytest.raises(atlasport.InputError, match=said) as found:
        speech.transcribe(SHORT, **options)
    assert isinstance(found.value, atlasport.AtlasportError)
    assert "\n" not in str(found.value)


def test_the_other_kind_of_model_is_named(speech: Model, sounds: Model) -> None:
    with pytest.raises(atlasport.InputError, match="sed-pocket; use detect_events"):
        sounds.transcribe(SHORT)
    with pytest.raises(atlasport.InputError, match="whisper-pocket; use transcribe"):
        speech.detect_events(SHORT)


def test_a_closed_model_says_so(pocket_artifact: Path) -> None:
    with atlasport.open(pocket_artifact, threads=1) as model:
        assert model.transcribe(SHORT).text == SAID
    model.close()
    with pytest.raises(atlasport.InputError, match="found whisper-pocket closed"):
        model.transcribe(SHORT)


def test_progress(speech: Model) -> None:
    told: list[tuple[float, float]] = []
    speech.transcribe(REPOSITORY / "samples" / "long_en.wav", on_progress=lambda *both: told.append(both))
    seconds = soundfile.info(REPOSITORY / "samples" / "long_en.wav").duration
    assert told[-1] == pytest.approx((seconds, seconds), abs=0.01)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_nobody_there() -> None:
    with pytest.raises(atlasport.AtlasportError, match="nowhere"):
        atlasport.open("nowhere")
