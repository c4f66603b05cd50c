"""Recordings that kill who reads them: the process that reads, or the one that serves, really killed."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from box_bundles import names

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.box.inbox import MAX_INTERRUPTIONS, Inbox
from runtime.box.reading import ReaderDiedError, RecordingReader
from runtime.box.serve import ServedModel, Version, serve
from runtime.errors import InputError
from runtime.families import open_recognizer

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "samples"
MIB = 2**20


def reader_of(process: int) -> int:
    """The child that reads recordings, by the system's list of processes."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in children:
        if b"runtime.box.reading" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise LookupError(children)


def tag_of(size: int) -> bytes:
    """The begin of an mp3 whose ID3 tag has one title of `size` bytes."""
    length = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + length + b"TIT2" + struct.pack(">I", size - 10) + b"\0\0\1\xff\xfe"


def peak(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024


# --- the process that reads -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["short_en.wav", "sed_1.flac"])
@pytest.mark.parametrize("part", [(0.0, None), (0.5, 1.25)])
def test_it_reads_what_open_audio_reads(name: str, part: tuple[float, float | None]) -> None:
    reader = RecordingReader()
    theirs, ours = reader.open(SAMPLES / name), open_audio(SAMPLES / name)
    assert (theirs.info, theirs.frames, theirs.path) == (ours.info, ours.frames, ours.path)
    abandoned = theirs.blocks(16_000)
    next(abandoned)
    for rate in (16_000, 32_000):
        blocks = [list(audio.blocks(rate, *part)) for audio in (theirs, ours)]
        assert [len(block) for block in blocks[0]] == [len(block) for block in blocks[1]]
        assert np.array_equal(np.concatenate(blocks[0]), np.concatenate(blocks[1]))
    reader.close()


@pytest.mark.parametrize("content", [b"", b"this is no audio", None])
def test_it_refuses_what_open_audio_refuses(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "\udcff.wav"
    if content is not None:
        path.write_bytes(content)
    reader = RecordingReader()
    said = []
    for open_ in (reader.open, open_audio):
        with pytest.raises(InputError) as caught:
            open_(path)
        said.append(str(caught.value).replace("\udcff", "?"))
    assert said[0] == said[1]
    assert len(list(reader.open(SAMPLES / "short_en.wav").blocks(16_000))) > 0
    reader.close()


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    samples = np.zeros(400_000, np.float32)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    reader = RecordingReader()
    with pytest.raises(InputError, match="not finite"):
        list(reader.open(tmp_path / "nan.wav").blocks(16_000))
    reader.close()


def test_a_killed_reader_is_told_and_started_again() -> None:
    reader = RecordingReader()
    audio = reader.open(SAMPLES / "long_en.wav")
    blocks = audio.blocks(16_000)
    next(blocks)
    os.kill(reader_of(os.getpid()), signal.SIGKILL)
    with pytest.raises(ReaderDiedError, match="killed by signal 9"):
        list(blocks)
    assert len(list(reader.open(SAMPLES / "short_en.wav").blocks(16_000))) > 0
    reader.close()


def test_a_tag_of_200_mb_takes_no_memory(tmp_path: Path) -> None:
    """libmpg123 would keep it twice, which took 330 MB: it is not shown the tag."""
    whole, bomb = tmp_path / "whole.mp3", tmp_path / "bomb.mp3"
    soundfile.write(whole, np.random.default_rng(0).normal(0, 0.1, 32_000), 16_000, format="MP3")
    with bomb.open("wb") as file:
        file.write(tag_of(200_000_000))
        file.write(b"a\0" * 99_999_990)
        file.truncate(200_000_010)
        file.seek(0, 2)
        file.write(whole.read_bytes())
    reader = RecordingReader(64 * MIB)
    assert reader.open(bomb).frames == open_audio(whole).frames
    assert len(np.concatenate(list(reader.open(bomb).blocks(16_000)))) == open_audio(whole).frames
    assert peak(reader_of(os.getpid())) < 150 * MIB
    reader.close()


def test_what_does_not_fit_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    """16 channels at 192 kHz: a block of 10 s has 16 MiB."""
    soundfile.write(tmp_path / "wide.wav", np.zeros((2_000_000, 16), np.int16), 192_000)
    reader = RecordingReader(10 * MIB)
    with pytest.raises(InputError, match="read in 10 MiB"):
        list(reader.open(tmp_path / "wide.wav").blocks(16_000))
    assert len(list(reader.open(SAMPLES / "short_en.wav").blocks(16_000))) > 0
    reader.close()


# --- serving ----------------------------------------------------------------------------------------------------------
class Deadly:
    """Kills a process while it is at a recording with "deadly" in its name; works at all others."""

    def __init__(self, recognizer: object, victim: Callable[[], int]) -> None:
        self._recognizer, self._victim = recognizer, victim

    def recognize(self, audio: object, *arguments: object) -> object:
        if "deadly" in audio.path.name:
            os.kill(self._victim(), signal.SIGKILL)
        return self._recognizer.recognize(audio, *arguments)


def serve_once(artifact: Path, source: Path, out: Path, victim: Callable[[], int]) -> list[str]:
    model = ServedModel(
        lambda: Version(artifact, "1.0.0"),
        lambda version: open_artifact(version.folder),
        lambda opened: Deadly(open_recognizer(opened, threads=1), victim),
        ["json"],
        {},
    )
    lines: list[str] = []
    inbox = Inbox(source, out, model.suffixes)
    with inbox.open():
        serve(inbox, model, interval_s=0.01, once=True, stop=threading.Event(), report=lines.append)
    return lines


def fill(source: Path) -> None:
    shutil.copy(SAMPLES / "sed_1.flac", source / "a_deadly.flac")
    shutil.copy(SAMPLES / "sed_2.flac", source / "b.flac")


def assert_given_up(source: Path, out: Path, reason: str) -> None:
    failed = names(source / "failed")
    assert [name.split(".")[0] for name in failed] == ["a_deadly", "a_deadly"]
    (line,) = (source / "failed" / failed[1]).read_text().splitlines()
    assert f"given up after {MAX_INTERRUPTIONS} times" in line
    assert reason in line
    assert (source / "failed" / failed[0]).read_bytes() == (SAMPLES / "sed_1.flac").read_bytes()
    assert [name.split(".")[0] for name in names(source / "done")] == ["b"]
    assert len(names(out)) == 1
    assert list((source / ".atlasport" / "interruptions").iterdir()) == []


def test_a_recording_that_kills_its_reader_is_given_up_and_the_rest_is_handled(
    sed_artifact: Path, folders: tuple[Path, Path]
) -> None:
    source, out = folders
    fill(source)
    lines = serve_once(sed_artifact, source, out, lambda: reader_of(os.getpid()))
    assert sum("killed by signal 9; it is tried again" in line for line in lines) == MAX_INTERRUPTIONS - 1
    assert_given_up(source, out, "killed by signal 9")


def test_a_recording_that_kills_the_server_is_given_up_and_the_rest_is_handled(
    sed_artifact: Path, folders: tuple[Path, Path]
) -> None:
    """As the OOM killer would: the count is on the disk before the work begins."""
    source, out = folders
    fill(source)
    for attempt in range(1, MAX_INTERRUPTIONS + 2):
        child = os.fork()
        if child == 0:
            try:
                serve_once(sed_artifact, source, out, os.getpid)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = attempt <= MAX_INTERRUPTIONS
        assert os.WIFSIGNALED(status) is killed
        if killed:
            (note,) = (source / ".atlasport" / "interruptions").iterdir()
            assert note.read_text() == f"{attempt}\n"
            assert not (source / "failed").exists() or names(source / "failed") == []
    assert_given_up(source, out, "each time the process ended before it had a result")


def test_a_disk_without_room_is_not_the_recordings_fault(sed_artifact: Path, folders: tuple[Path, Path]) -> None:
    """More often than a recording may end the process."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    source, out = folders
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        fill(source)
        (source / "a_deadly.flac").unlink()
        serve_once(sed_artifact, source, out, os.getpid)  # makes its folders
        shutil.copy(SAMPLES / "sed_3.flac", source / "c.flac")
        filler = (out / "filler").open("wb")
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(out).free)
        for _ in range(MAX_INTERRUPTIONS + 1):
            with pytest.raises(OSError, match="No space"):
                serve_once(sed_artifact, source, out, os.getpid)
        assert names(source / "failed") == []
        os.ftruncate(filler.fileno(), 0)
        serve_once(sed_artifact, source, out, os.getpid)
        assert len(names(source / "done")) == 2
    finally:
        filler.close()
        subprocess.run(["umount", "-l", str(out)], check=True)


def run(*command: object) -> str:
    """Run a program of the system and return what it prints."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def ending_disk(tmp_path: Path, folders: tuple[Path, Path]) -> Iterator[None]:
    """IN on a real file system whose last block, where a_bad.flac begins, the device has lost: reading it gives EIO.

    The block counts as taken, so no write can bring it back.
    """
    source, image, content = folders[0], tmp_path / "image", tmp_path / "content"
    content.mkdir()
    shutil.copy(SAMPLES / "sed_1.flac", content / "a_bad.flac")
    shutil.copy(SAMPLES / "sed_2.flac", content / "b.flac")
    blocks = 16384
    try:
        run("mkfs.ext2", "-q", "-b", "4096", "-d", content, image, blocks)
        first = run("debugfs", "-R", "bmap a_bad.flac 0", image).strip()
        for request in (f"freeb {first}", f"setb {blocks - 1}", f"set_inode_field a_bad.flac block[0] {blocks - 1}"):
            run("debugfs", "-w", "-R", request, image)
        run("mount", "-o", "loop", image, source)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, e2fsprogs and a loop device")
    try:
        shutil.rmtree(source / "lost+found")
        os.truncate(image, (blocks - 1) * 4096)
        yield
    finally:
        subprocess.run(["umount", "-l", source], check=True)


@pytest.mark.usefixtures("ending_disk")
def test_a_recording_that_the_disk_does_not_give_back(sed_artifact: Path, folders: tuple[Path, Path]) -> None:
    source, out = folders
    with pytest.raises(OSError, match="Input/output error"):
        (source / "a_bad.flac").read_bytes()
    serve_once(sed_artifact, source, out, os.getpid)
    assert names(source / "failed") == ["a_bad.flac", "a_bad.flac.error"]
    assert "Input/output error" in (source / "failed" / "a_bad.flac.error").read_text()
    assert [name.split(".")[0] for name in names(source / "done")] == ["b"]


@pytest.mark.slow
def test_kill_minus_nine_in_the_decoder_of_the_real_command(pocket_artifact: Path, folders: tuple[Path, Path]) -> None:
    """An operator's kill, and the command goes on: all recordings that live are handled, and exit is 0."""
    source, out = folders
    shutil.copy(SAMPLES / "long_en.wav", source / "a.wav")
    shutil.copy(SAMPLES / "short_en.wav", source / "b.wav")
    process = subprocess.Popen(
        [sys.executable, "-m", "atlasport", "serve-dir", source, out, pocket_artifact, "--once", "--interval", "0.05"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    killed: set[int] = set()
    end = time.monotonic() + 120
    while process.poll() is None and len(killed) < MAX_INTERRUPTIONS and time.monotonic() < end:
        at_work = list((out / ".atlasport" / "staging").glob("a.*")) if out.exists() else []
        try:
            reader = reader_of(process.pid)
        except (LookupError, OSError):
            continue
        if at_work and reader not in killed:
            os.kill(reader, signal.SIGKILL)
            killed.add(reader)
        time.sleep(0.005)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert len(killed) == MAX_INTERRUPTIONS, said
    assert [name.split(".")[0] for name in names(source / "failed")] == ["a", "a"]
    assert [name.split(".")[0] for name in names(source / "done")] == ["b"]
