"""`atlasport serve-dir` with real models: results, failures, signals, and kills at random."""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from box_bundles import names
from vad_weights import with_vad

from runtime.artifact import open_artifact
from runtime.box.inbox import MAX_INTERRUPTIONS, Inbox
from runtime.box.serve import ServedModel, Version, serve
from runtime.errors import DeviceFailedError
from runtime.families import open_recognizer
from runtime.results import Transcript

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "samples"
SHORT = SAMPLES / "short_en.wav"
TEXT = "set a timer for twenty six minutes"
UNIT = REPOSITORY / "docs" / "atlasport-serve@.service"
SUFFIXES = ("json", "srt")


def mark(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


# --- with a model -----------------------------------------------------------------------------------------------------
def served(artifact: Path, *, formats: tuple[str, ...] = ("json", "srt"), wrap: type | None = None) -> ServedModel:
    def open_(opened: object) -> object:
        recognizer = open_recognizer(opened, threads=1)
        return wrap(recognizer) if wrap else recognizer

    return ServedModel(
        lambda: Version(artifact, "1.0.0"), lambda version: open_artifact(version.folder), open_, formats, {}
    )


def serve_once(inbox: Inbox, model: ServedModel) -> list[str]:
    lines: list[str] = []
    with inbox.open():
        serve(inbox, model, interval_s=0.01, once=True, stop=threading.Event(), report=lines.append)
    return lines


def test_results_name_their_recording_and_version(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    shutil.copy(SHORT, source / "call.wav")
    shutil.copy(SAMPLES / "short_de.wav", source / "anruf.wav")
    model = served(pocket_artifact)
    serve_once(Inbox(source, out, model.suffixes), model)
    stem = f"call.{mark(SHORT)}"
    assert names(out) == sorted(
        f"{name}.{suffix}" for name in (stem, f"anruf.{mark(SAMPLES / 'short_de.wav')}") for suffix in ("json", "srt")
    )
    result = json.loads((out / f"{stem}.json").read_text())
    assert result["text"] == TEXT
    assert result["audio"]["path"] == "call.wav"
    assert result["input"] == {"name": "call.wav", "sha256": hashlib.sha256(SHORT.read_bytes()).hexdigest()}
    assert result["version"] == "1.0.0"
    assert TEXT in (out / f"{stem}.srt").read_text()


def test_sounds_are_served_too(sed_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    shutil.copy(SAMPLES / "sed_1.flac", source)
    model = served(sed_artifact, formats=("audacity", "json"))
    serve_once(Inbox(source, out, model.suffixes), model)
    stem = f"sed_1.{mark(SAMPLES / 'sed_1.flac')}"
    assert names(out) == [f"{stem}.json", f"{stem}.labels.txt"]
    assert json.loads((out / f"{stem}.json").read_text())["events"]


def test_bad_audio_goes_aside(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    whole = SHORT.read_bytes()
    (source / "text.wav").write_bytes(b"this is no audio")
    (source / "empty.wav").write_bytes(b"")
    (source / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    shutil.copy(SHORT, source / "good.wav")
    model = served(pocket_artifact)
    lines = serve_once(Inbox(source, out, model.suffixes), model)
    assert len(names(out)) == 2
    failed = names(source / "failed")
    assert [name.split(".")[0] for name in failed] == ["empty", "empty", "text", "text", "truncated", "truncated"]
    for name in failed:
        if name.endswith(".error"):
            assert (source / "failed" / name.removesuffix(".error")).exists()
            (line,) = (source / "failed" / name).read_text().splitlines()
            assert line.startswith(f"{name.split('.')[0]}.wav: expected a recording")
            assert any(line in reported for reported in lines)


class Recording:
    """A recogniser that keeps what it was asked and what it said."""

    calls: list[tuple[bool | None, Transcript]]

    def __init__(self, recognizer: object) -> None:
        self._recognizer = recognizer
        Recording.calls = []

    def recognize(self, audio: object, options: object, on_progress: object) -> Transcript:
        result = self._recognizer.recognize(audio, options, on_progress)
        Recording.calls.append((options.vad, result))
        return result


def test_with_a_vad_the_graphs_are_warm_and_silence_has_no_text(
    pocket_artifact: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = folders
    speech, rate = soundfile.read(SHORT, dtype="float32")
    soundfile.write(source / "a.wav", np.concatenate([np.zeros(40 * rate, np.float32), speech]), rate)
    soundfile.write(source / "b.wav", np.zeros(rate, np.float32), rate)
    model = served(with_vad(pocket_artifact, tmp_path / "artifact"), formats=("json",), wrap=Recording)
    serve_once(Inbox(source, out, model.suffixes), model)
    # Where the warm-up's noise is no speech, it is recognised once more as it is.
    assert ["encoder_s" in result.timings for _, result in Recording.calls[:-2]][-1]
    found, nothing = (json.loads(path.read_text()) for path in sorted(out.glob("*.json")))
    assert (found["text"], nothing["text"]) == (TEXT, "")
    assert found["segments"][0]["start"] >= 39
    assert found["speech"][0]["end"] <= found["audio"]["duration_s"]
    assert (nothing["segments"], nothing["speech"]) == ([], [])


class FailsOn:
    """A device that fails at one recording, and works at all others."""

    def __init__(self, recognizer: object) -> None:
        self._recognizer = recognizer

    def recognize(self, audio: object, *arguments: object) -> object:
        if "poison" in audio.path.name:
            raise DeviceFailedError("npu:0", "aicore exception")
        return self._recognizer.recognize(audio, *arguments)


def test_a_recording_that_fails_the_device_each_time_is_given_up(
    pocket_artifact: Path, folders: tuple[Path, Path]
) -> None:
    source, out = folders
    shutil.copy(SHORT, source / "a_poison.wav")
    shutil.copy(SAMPLES / "short_de.wav", source / "b.wav")
    for attempt in range(MAX_INTERRUPTIONS):
        assert names(source / "failed") == [] if attempt else True
        model = served(pocket_artifact, wrap=FailsOn)
        with pytest.raises(DeviceFailedError, match="aicore exception"):
            serve_once(Inbox(source, out, model.suffixes), model)
    assert len(names(source / "failed")) == 2
    model = served(pocket_artifact, wrap=FailsOn)
    serve_once(Inbox(source, out, model.suffixes), model)
    assert len(names(source / "done")) == 1
    assert len(names(out)) == 2


def test_another_active_version_is_opened_between_recordings(
    pocket_artifact: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = folders
    shutil.copytree(pocket_artifact, tmp_path / "new")
    versions = {"1.0.0": pocket_artifact, "1.1.0": tmp_path / "new"}
    active, opened = "1.0.0", []

    def open_(version: Version) -> object:
        opened.append(version.version)
        return open_artifact(version.folder)

    model = ServedModel(lambda: Version(versions[active], active), open_, open_recognizer, ["json"], {})
    inbox = Inbox(source, out, model.suffixes)
    for active in ("1.0.0", "1.0.0", "1.1.0"):
        (source / "call.wav").write_bytes(SHORT.read_bytes())
        (out / f"call.{mark(SHORT)}.json").unlink(missing_ok=True)
        for done in (source / "done").glob("*"):
            done.unlink()
        serve_once(inbox, model)
        (result,) = out.glob("*.json")
        assert json.loads(result.read_text())["version"] == active
    assert opened == ["1.0.0", "1.1.0"]


# --- the command ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def command(artifact: Path, source: Path, out: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    options = ("--format", "json,srt", "--threads", "1", "--interval", "0.05", *arguments)
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasport", "serve-dir", str(source), str(out), str(artifact), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(condition: object, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_finishes_the_recording_at_hand_and_leaves_0(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    shutil.copy(SAMPLES / "long_en.wav", source)
    with command(pocket_artifact, source, out) as process:
        wait_for(lambda: out.exists() and any((out / ".atlasport" / "staging").glob("*")))
        shutil.copy(SHORT, source / "later.wav")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert [name.split(".")[0] for name in names(out)] == ["long_en", "long_en"]
    assert "later.wav" in names(source)


def test_names_that_are_no_text(sed_artifact: Path, folders: tuple[Path, Path]) -> None:
    """Bytes that are no UTF-8, a line feed and an escape sequence, of recordings that are good and bad."""
    source, out = folders
    for name in (b"caf\xe9.flac", b"\xff\n\x1b[31m.flac"):
        (source / os.fsdecode(name)).write_bytes((SAMPLES / "sed_1.flac").read_bytes())
        (source / os.fsdecode(b"bad" + name)).write_bytes(b"no audio")
    options = ("--once", "--interval", "0.05", "--format", "json")
    process = subprocess.run(
        [sys.executable, "-m", "atlasport", "serve-dir", source, out, sed_artifact, *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count(b"failed: ") == 2
    assert b"\x1b" not in process.stderr
    assert len(list((source / "done").iterdir())) == 2
    assert len(list((source / "failed").iterdir())) == 4
    results = [json.loads(path.read_bytes()) for path in out.glob("*.json")]
    assert sorted(result["input"]["name"] for result in results) == ["caf\ufffd.flac", "\ufffd\n\x1b[31m.flac"]


def test_usage_errors_are_one_line(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    for arguments, part in (
        (("--format", "docx"), "docx"),
        (("--language", "klingon"), "klingon"),
        (("--device", "npu:0"), "npu:0"),
    ):
        with command(pocket_artifact, source, out, "--once", *arguments) as process:
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == (3 if "--device" in arguments else 2), stderr
            assert part in stderr
            assert len(stderr.strip().splitlines()) == 1, stderr
    with command(pocket_artifact, source / "nowhere", out, "--once") as process:
        assert process.wait(60) == 3


@pytest.mark.slow
def test_an_installed_model_is_served_and_its_switch_followed(
    pocket_artifact: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = folders

    def atlasport(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "atlasport", *map(str, arguments)], cwd=REPOSITORY, check=True)

    atlasport("keygen", tmp_path / "keys")
    box, key = tmp_path / "box", tmp_path / "keys" / "key.pem"
    for version in ("1.0.0", "1.1.0"):
        named = ("--version", version, "--out", tmp_path / f"{version}.atlas", "--key", key)
        atlasport("freeze", pocket_artifact, "--profile", "cpu", *named, "--allow-unverified")
    trusted = ("--root", box, "--public-key", tmp_path / "keys" / "key.pub", "--activate")
    atlasport("install", tmp_path / "1.0.0.atlas", *trusted)
    with command(Path("whisper-pocket"), source, out, "--root", str(box)) as process:
        shutil.copy(SHORT, source / "first.wav")
        wait_for(lambda: list(out.glob("first.*.json")))
        atlasport("install", tmp_path / "1.1.0.atlas", *trusted)
        shutil.copy(SHORT, source / "second.wav")
        wait_for(lambda: list(out.glob("second.*.json")))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    versions = {path.name.split(".")[0]: json.loads(path.read_text())["version"] for path in out.glob("*.json")}
    assert versions == {"first": "1.0.0", "second": "1.1.0"}


# --- the unit ---------------------------------------------------------------------------------------------------------
def test_the_unit_restarts_a_failed_device_and_nothing_else() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == ["2", "4"]
    assert service["ExecStart"].split()[1] == "serve-dir"
    assert service["ReadWritePaths"] == "/srv/atlasport/%i"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # The program and its user are those of a box.
    text = UNIT.read_text().replace("/opt/atlasport/bin/atlasport", sys.executable)
    unit.write_text(text)
    process = subprocess.run(
        ["systemd-analyze", "verify", str(unit).replace("@", "@whisper-tiny")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    unit.write_text(text.replace("KillMode=mixed", "KillMode=most"))
    process = subprocess.run(
        ["systemd-analyze", "verify", str(unit).replace("@", "@whisper-tiny")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "most" in process.stderr


# --- killed at random -------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_random_kills_of_the_command(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    out.mkdir()
    chance = random.Random(6)
    recordings = [path for path in sorted(SAMPLES.glob("*.wav")) if path.name != "long_en.wav"]
    arrived: dict[str, bytes] = {}
    kills = 0
    while kills < 20:
        for path in chance.sample(recordings, 3):
            # A trailing chunk that players skip: the same audio, another file.
            content = path.read_bytes() + b"note" + (8).to_bytes(4, "little") + secrets.token_bytes(8)
            name = f"{path.stem}_{kills}.wav"
            arrived[f"{path.stem}_{kills}.{hashlib.sha256(content).hexdigest()[:16]}"] = content
            (source / f"{name}.part").write_bytes(content)
            (source / f"{name}.part").rename(source / name)
        with command(pocket_artifact, source, out) as process:
            done = len(names(source / "done")) if (source / "done").exists() else 0
            wait_for(lambda count=done: (source / "done").exists() and len(names(source / "done")) > count)
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
            kills += 1
        for path in out.glob("*.json"):
            spoken = [segment for segment in json.loads(path.read_text())["segments"] if segment["text"].strip()]
            assert path.with_suffix(".srt").read_text().count(" --> ") == len(spoken)
    with command(pocket_artifact, source, out, "--once") as process:
        assert process.wait(240) == 0
    assert names(out) == sorted(f"{stem}.{suffix}" for stem in arrived for suffix in SUFFIXES)
    assert {path.name: path.read_bytes() for path in (source / "done").iterdir()} == {
        f"{stem}.wav": content for stem, content in arrived.items()
    }
    assert names(source / "failed") == []
