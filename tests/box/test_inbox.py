"""A served folder without a model: a kill at any point loses, halves or doubles nothing.

That is a matter of milliseconds, so it is tried exhaustively: a process is ended before each single operation of the
file system in turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from pathlib import Path

import pytest
from box_bundles import names

from runtime.box.inbox import Inbox
from runtime.errors import EnvironmentNotFitError, InputError

SUFFIXES = ("json", "srt")


def settled(inbox: Inbox) -> list[str]:
    inbox.look()
    return inbox.look()


def handle_all(inbox: Inbox) -> int:
    """Serve a folder with a stand-in for a model: one token in all results of a recording, another one each time."""
    handled = 0

    def pending() -> None:
        nonlocal handled
        for recording in inbox.pending():
            token = secrets.token_hex(8)

            def write(folder: Path, stem: str = recording.stem, token: str = token) -> None:
                for suffix in SUFFIXES:
                    (folder / f"{stem}.{suffix}").write_text(token * 1000)

            handled += inbox.finish(recording, write)

    pending()
    for name in settled(inbox):
        if inbox.claim(name):
            pending()
    return handled


# --- the folder -------------------------------------------------------------------------------------------------------
def test_only_whole_files_are_taken(folders: tuple[Path, Path]) -> None:
    source, out = folders
    inbox = Inbox(source, out, SUFFIXES)
    (source / "whole.wav").write_bytes(b"whole")
    (source / "growing.wav").write_bytes(b"a")
    (source / "upload.wav.part").write_bytes(b"half")
    (source / ".hidden.wav").write_bytes(b"hidden")
    (source / "folder.wav").mkdir()
    (source / "link.wav").symlink_to(__file__)
    os.mkfifo(source / "pipe.wav")
    assert inbox.look() == []
    (source / "growing.wav").write_bytes(b"ab")
    (source / "renamed.wav.part").write_bytes(b"renamed in")
    (source / "renamed.wav.part").rename(source / "renamed.wav")
    assert inbox.look() == ["whole.wav"]
    assert inbox.look() == ["whole.wav", "growing.wav", "renamed.wav"]


def test_a_file_replaced_after_the_look_waits(folders: tuple[Path, Path]) -> None:
    source, out = folders
    inbox = Inbox(source, out, SUFFIXES)
    (source / "a.wav").write_bytes(b"first")
    with inbox.open():
        assert settled(inbox) == ["a.wav"]
        (source / "new").write_bytes(b"other")
        (source / "new").rename(source / "a.wav")
        assert not inbox.claim("a.wav")


def test_a_name_used_again_gives_results_of_its_own(folders: tuple[Path, Path]) -> None:
    source, out = folders
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        for content in (b"first", b"second"):
            (source / "call.wav").write_bytes(content)
            assert handle_all(inbox) == 1
    assert len(names(out)) == 4
    assert len(names(source / "done")) == 2


@pytest.mark.parametrize("results_taken", [False, True])
def test_a_recording_that_comes_again_is_not_done_again(folders: tuple[Path, Path], results_taken: bool) -> None:  # noqa: FBT001
    source, out = folders
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        (source / "call.wav").write_bytes(b"same")
        assert handle_all(inbox) == 1
        if results_taken:
            for name in names(out):
                (out / name).unlink()
        (source / "call.wav").write_bytes(b"same")
        assert handle_all(inbox) == 0
    assert names(source / "done") == [f"call.{hashlib.sha256(b'same').hexdigest()[:16]}.wav"]


def test_moved_back_from_done_it_is_done_again_where_its_results_are_gone(folders: tuple[Path, Path]) -> None:
    source, out = folders
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        (source / "call.wav").write_bytes(b"same")
        handle_all(inbox)
        before = names(out)
        (name,) = names(source / "done")
        (source / "done" / name).rename(source / name)
        assert handle_all(inbox) == 0
        for result in before:
            (out / result).unlink()
        (source / "done" / name).rename(source / name)
        assert handle_all(inbox) == 1
    assert names(out) == before


def test_a_recording_written_to_meanwhile_gives_no_result(folders: tuple[Path, Path]) -> None:
    source, out = folders
    inbox = Inbox(source, out, ("txt",))
    (source / "a.wav").write_bytes(b"start")
    with inbox.open():
        settled(inbox)
        inbox.claim("a.wav")
        (recording,) = inbox.pending()

        def write(folder: Path) -> None:
            (folder / f"{recording.stem}.txt").write_text("of the start")
            with recording.path.open("ab") as file:
                file.write(b" and the rest")

        assert not inbox.finish(recording, write)
        assert names(out) == []
        (whole,) = inbox.pending()
        assert whole.sha256 == hashlib.sha256(b"start and the rest").hexdigest()


@pytest.mark.parametrize("name", ["ä ö.wav", "x" * 250 + ".wav", "a\nb.wav", "no_suffix", "\udcff.wav", "-rf.wav"])
def test_any_name_is_handled(folders: tuple[Path, Path], name: str) -> None:
    source, out = folders
    (source / name).write_bytes(b"content")
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        assert handle_all(inbox) == 1
        assert len(names(out)) == 2
        assert len(names(source / "done")) == 1
        (source / name).write_bytes(b"other content")
        settled(inbox)
        inbox.claim(name)
        (recording,) = inbox.pending()
        inbox.fail(recording, f"{recording.path}: not audio\nreally")
    (error,) = (path for path in (source / "failed").iterdir() if path.name.endswith(".error"))
    assert error.read_text().endswith(": not audio really\n")
    assert len(error.read_text().splitlines()) == 1


@pytest.mark.parametrize("out", ["in", "in/done", "in/failed", "in/.atlasport"])
def test_results_must_not_arrive_as_recordings(folders: tuple[Path, Path], out: str) -> None:
    source, _ = folders
    with pytest.raises(InputError, match="another folder for results"):
        Inbox(source, source.parent / out, SUFFIXES)


@pytest.mark.parametrize("name", ["done", "failed", ".atlasport"])
def test_own_folders_may_not_be_links(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    source, out = folders
    (tmp_path / "elsewhere").mkdir()
    (source / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EnvironmentNotFitError, match="found a link"), Inbox(source, out, SUFFIXES).open():
        pass


@pytest.mark.parametrize("name", ["done", "failed", ".atlasport"])
def test_a_recording_with_the_name_of_an_own_folder(folders: tuple[Path, Path], name: str) -> None:
    source, out = folders
    (source / name).write_bytes(b"a recording")
    with (
        pytest.raises(EnvironmentNotFitError, match=rf"{name}: expected a folder of serve-dir's, found a file"),
        Inbox(source, out, SUFFIXES).open(),
    ):
        pass
    assert (source / name).read_bytes() == b"a recording"


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_planted_in_failed_are_not_written_through(folders: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    """Under every name that `fail` writes."""
    source, out = folders
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        (source / "a.wav").write_bytes(b"noise")
        settled(inbox)
        inbox.claim("a.wav")
        (recording,) = inbox.pending()
        for name in (recording.key, f"{recording.key}.error", f".{recording.key}.error"):
            planted = source / "failed" / name
            planted.symlink_to(secret) if kind == "symbolic" else planted.hardlink_to(secret)
        inbox.fail(recording, "no audio")
    assert secret.read_text() == "not yours"
    assert (source / "failed" / recording.key).read_bytes() == b"noise"
    assert (source / "failed" / f"{recording.key}.error").read_text() == "no audio\n"
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in (source / "failed").iterdir())


def test_umask_077_keeps_all_of_it_to_the_user_who_serves(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (source / "a.wav").write_bytes(b"content")
    before = os.umask(0o077)
    try:
        inbox = Inbox(source, out, SUFFIXES)
        with inbox.open():
            assert handle_all(inbox) == 1
    finally:
        os.umask(before)
    assert len(names(out)) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out, *out.iterdir(), source / "done"))


def test_work_that_began_too_often_does_not_begin_again(folders: tuple[Path, Path]) -> None:
    source, out = folders
    (source / "a.wav").write_bytes(b"content")
    inbox = Inbox(source, out, SUFFIXES)
    with inbox.open():
        settled(inbox)
        inbox.claim("a.wav")
        (recording,) = inbox.pending()
        assert [inbox.begin(recording) for _ in range(4)] == [True, True, True, False]
        inbox.forget(recording)
        assert inbox.begin(recording)
        assert inbox.interruptions(recording) == 1
    with inbox.open():
        assert inbox.interruptions(recording) == 1
    recording.path.unlink()
    with inbox.open():
        assert inbox.interruptions(recording) == 0


def test_two_servers_on_one_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = folders
    (tmp_path / "other").mkdir()
    with Inbox(source, out, SUFFIXES).open():
        for first, second in ((source, tmp_path / "out2"), (tmp_path / "other", out)):
            with (
                pytest.raises(EnvironmentNotFitError, match="another serve-dir"),
                Inbox(first, second, SUFFIXES).open(),
            ):
                pass
    with Inbox(source, out, SUFFIXES).open():
        pass


# --- killed before each operation of the file system ------------------------------------------------------------------
EVENTS = {"open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.listdir", "os.scandir", "shutil.rmtree"}


def end_before(operation: int, inbox: Inbox) -> bool:
    """Serve in a process that ends, like a killed one, before its n-th operation; return whether it came that far."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        with contextlib.suppress(BaseException), inbox.open():
            handle_all(inbox)
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 9}
    return code == 9


@pytest.mark.parametrize(
    "consumer",
    [pytest.param(False, id="results stay"), pytest.param(True, id="results are taken away", marks=pytest.mark.slow)],
)
def test_a_kill_before_any_operation_loses_and_doubles_nothing(tmp_path: Path, consumer: bool) -> None:  # noqa: FBT001
    import filelock  # noqa: F401 - or the child would import it, and open files that are not ours

    points = 0
    while True:
        source, out, taken = (tmp_path / str(points) / name for name in ("in", "out", "taken"))
        for folder in (source, out, taken):
            folder.mkdir(parents=True)
        contents = {name: secrets.token_bytes(100) for name in "ab"}
        for name, content in contents.items():
            (source / f"{name}.wav").write_bytes(content)
        killed = end_before(points, Inbox(source, out, SUFFIXES))
        for name in names(out):
            whole = (out / name).read_text()
            assert whole == whole[:16] * 1000
            if consumer:
                (out / name).rename(taken / name)
        # Sometimes the next one is killed as well.
        if killed and points % 2:
            end_before(points // 2, Inbox(source, out, SUFFIXES))
        again = Inbox(source, out, SUFFIXES)
        with again.open():
            handle_all(again)
        assert_each_once(source, [out, taken], contents)
        assert [name for own in ("staging", "ready") for name in names(out / ".atlasport" / own)] == []
        if not killed:
            break
        points += 1
    assert points > 40


def assert_each_once(source: Path, results: list[Path], contents: dict[str, bytes]) -> None:
    """Compare what is found with the recordings: each in done/, and each result there once, of one recognition."""
    stems = {f"{name}.{hashlib.sha256(content).hexdigest()[:16]}": content for name, content in contents.items()}
    found = sorted(name for folder in results for name in names(folder))
    assert found == sorted(f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES)
    for stem in stems:
        tokens = {path.read_text() for folder in results for path in folder.glob(f"{stem}.*")}
        assert len(tokens) == 1, "the results of one recording come from two recognitions"
    done = {path.name: path.read_bytes() for path in (source / "done").iterdir()}
    assert done == {f"{stem}.wav": content for stem, content in stems.items()}
    assert names(source) == ["done", "failed"]
    assert [name for own in ("claimed", "interruptions") for name in names(source / ".atlasport" / own)] == []
