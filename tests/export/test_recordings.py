"""A user's recordings and their transcripts; golden texts against what people say was spoken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.golden import Clip
from export.pipeline import export_model
from export.recordings import SAMPLES, check_texts, not_judged, read_clips
from runtime.artifact import open_artifact
from runtime.errors import ExitCode, GateError, InputError
from runtime.manifest import Recording

SPOKEN = "set a timer for twenty six minutes"


def _copy(folder: Path, name: str, beside: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(SAMPLES / "short_en.wav", folder / name)
    for suffix, text in (beside or {}).items():
        (folder / name).with_suffix(suffix).write_text(text, encoding="utf-8")
    return folder / name


def _heard(text: str, reference: dict[str, Any] | None, **changes: Any) -> Recording:
    values = {"name": "mine", "file": "audio/mine.wav", "options": {}, "reference": reference, "result": {"text": text}}
    return Recording.model_validate({**values, **changes})


@pytest.mark.parametrize(
    ("beside", "reference"),
    [
        ({".txt": f"{SPOKEN}\n"}, {"text": SPOKEN}),
        ({".json": json.dumps({"text": SPOKEN, "language": "en", "speaker": 7})}, {"text": SPOKEN, "language": "en"}),
        ({".json": json.dumps({"text": SPOKEN}), ".txt": "something else"}, {"text": SPOKEN}),
        ({}, None),
    ],
)
def test_the_transcript_lies_beside_the_recording(
    beside: dict[str, str], reference: dict[str, str] | None, tmp_path: Path
):
    assert read_clips([_copy(tmp_path, "a.wav", beside)]) == (Clip(tmp_path / "a.wav", reference, is_own=True),)


def test_a_sample_s_text_is_not_taken_for_that_of_another_file_of_its_name(tmp_path: Path):
    assert read_clips([_copy(tmp_path, "short_en.wav")])[0].reference is None
    (sample,) = read_clips([SAMPLES / "short_en.wav"])
    assert (sample.is_own, sample.reference and sample.reference["text"]) == (False, SPOKEN)


def test_a_folder_gives_all_its_recordings_by_name(tmp_path: Path):
    for name in ("b.wav", "a.wav", ".hidden.wav"):
        _copy(tmp_path, name, {".txt": name})
    assert [clip.path.name for clip in read_clips([tmp_path])] == ["a.wav", "b.wav"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "expected recordings, found none"),
        ({"a.wav": {".json": "[]"}}, "expected a JSON object"),
        ({"a.wav": {".json": '{"texts": "x"}'}}, "expected an object with text and language"),
        ({"a.wav": {".json": '{"text": 3}'}}, "expected an object with text and language"),
        ({"a.wav": {}, "a.WAV": {}}, r"different names, found a\.WAV and a\.wav"),
        ({"a\n.wav": {}}, "can be printed"),
    ],
)
def test_what_is_no_recording_or_transcript_is_refused(files: dict[str, dict[str, str]], told: str, tmp_path: Path):
    for name, beside in files.items():
        _copy(tmp_path, name, beside)
    with pytest.raises(InputError, match=told) as caught:
        read_clips([tmp_path])
    assert "\n" not in str(caught.value)


def test_a_transcript_in_another_encoding_is_refused(tmp_path: Path):
    path = _copy(tmp_path, "a.wav")
    path.with_suffix(".txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(InputError, match="expected a transcript in UTF-8"):
        read_clips([path])


@pytest.mark.parametrize(
    ("text", "reference", "holds"),
    [
        (SPOKEN, {"text": SPOKEN, "language": "en"}, True),
        ("Set a timer for twenty-six minutes.", {"text": SPOKEN}, True),
        ("", {"text": SPOKEN}, False),
        ("Dietro la porta non c'era nessuno.", {"text": SPOKEN}, False),
        # 3 of 7 words, 4 of 7 words.
        ("set a timer for two six hours now", {"text": SPOKEN}, True),
        ("set the timer of sixty seven minutes", {"text": SPOKEN}, False),
        # One word in all, but for one character as it was spoken.
        ("人間にちがいない", {"text": "人間に違いない", "language": "ja"}, True),
        ("Thank you for watching.", {"text": "人間に違いない", "language": "ja"}, False),
        ("you", {"text": "", "language": None}, True),
        ("you", None, True),
    ],
)
def test_a_golden_text_is_judged_against_what_is_spoken(text: str, reference: dict[str, Any] | None, holds: bool):  # noqa: FBT001
    if holds:
        check_texts([_heard(text, reference)], "mine fp32")
        return
    with pytest.raises(GateError, match=r"mine fp32: mine: (WER|CER) \d\.\d\d against what is spoken") as caught:
        check_texts([_heard(text, reference)], "mine fp32")
    assert caught.value.exit_code == ExitCode.GATE_FAILED
    assert repr(text)[:20] in str(caught.value)
    check_texts([_heard(text, reference, not_judged="the weights are random")], "mine fp32")


@pytest.mark.parametrize(
    ("language", "languages", "own", "reason"),
    [
        ("en", {"en", "de"}, False, None),
        ("en", {"ja"}, False, "it is in 'en', and the model writes ja"),
        ("en", {"ja"}, True, "it is in 'en', and the model writes ja"),
        ("en", set(), False, "no language as it is spoken"),
        ("en", None, False, "the model's languages are not known"),
        ("en", None, True, None),
        (None, {"ja"}, True, None),
    ],
)
def test_a_recording_is_judged_in_a_language_that_the_model_has(
    language: str | None,
    languages: set[str] | None,
    own: bool,  # noqa: FBT001
    reason: str | None,
):
    known = None if languages is None else frozenset(languages)
    clip = Clip(Path("a.wav"), {"text": SPOKEN, "language": language}, is_own=own)
    found = not_judged(clip, _heard(SPOKEN, clip.reference), known, trained=True)
    assert found == reason if reason is None else reason in str(found)
    assert not_judged(clip, _heard(SPOKEN, clip.reference), known, trained=False) == "the weights are random"
    translated = _heard(SPOKEN, clip.reference, options={"task": "translate"})
    assert not_judged(clip, translated, known, trained=True) == "it is translated"


@pytest.mark.parametrize(
    ("name", "own", "judged"), [("jfk", False, True), ("fast_en", False, False), ("a", True, True)]
)
def test_of_samples_a_strange_checkpoint_is_judged_by_the_plainest(name: str, own: bool, judged: bool):  # noqa: FBT001
    clip = Clip(Path(f"{name}.flac"), {"text": SPOKEN, "language": "en"}, is_own=own)
    found = not_judged(clip, _heard(SPOKEN, clip.reference), frozenset({"en"}), trained=True, in_registry=False)
    assert found == (None if judged else "the checkpoint is none of the registry's")


@pytest.mark.slow
def test_a_wrong_transcript_leaves_nothing_behind(tmp_path: Path):
    """The same failure as that of a tokenizer that is not the model's: what is heard is not what is spoken."""
    mine = _copy(tmp_path / "mine", "mine.wav", {".txt": "ask not what your country can do for you"})
    with pytest.raises(GateError, match=f"heard '{SPOKEN}', spoken 'ask not what"):
        export_model("whisper-pocket", formats=("onnx",), out=tmp_path / "out", recordings=[mine])
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_a_user_s_recording_becomes_part_of_the_artifact(tmp_path: Path):
    mine = _copy(tmp_path / "mine", "mine.wav", {".json": json.dumps({"text": SPOKEN, "language": "en"})})
    folder = export_model("whisper-pocket", formats=("onnx",), out=tmp_path / "out", recordings=[mine.parent])
    (recording,) = open_artifact(folder).content.recordings
    assert (recording.name, recording.reference) == ("mine", {"text": SPOKEN, "language": "en"})
    assert (recording.result["text"], recording.not_judged) == (SPOKEN, None)
    assert (folder / recording.file).read_bytes() == mine.read_bytes()
