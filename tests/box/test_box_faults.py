"""Boxes that are killed, starved, locked or read-only: the old state or the new one, one line, nothing half-made."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from box_bundles import MODEL, tree
from filelock import FileLock

import runtime.box.root as root_module
from runtime.box.install import Trust, install
from runtime.box.keep import gc, remove
from runtime.box.root import Box
from runtime.box.status import box_status, installed_versions
from runtime.box.switch import activate, rollback
from runtime.box.versions import open_version
from runtime.errors import EnvironmentNotFitError, ExitCode

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
ANY = Trust(allow_unsigned=True)


@pytest.fixture
def box(tmp_path: Path, bundle: Path) -> Box:
    """A box with 1.0.0 active."""
    install(bundle, tmp_path / "box", ANY)
    activate(tmp_path / "box", MODEL, "1.0.0")
    return Box(tmp_path / "box")


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Start the real command."""
    command = [sys.executable, "-m", "atlasport", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=ENVIRONMENT
    )


def one_line(process: subprocess.Popen[str], code: int, *parts: str) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert len(errors.strip().splitlines()) == 1, errors
    for part in parts:
        assert part in errors


class TestKills:
    @pytest.mark.parametrize(
        ("name", "least"), [("install", 40), ("activate", 8), ("rollback", 8), ("remove", 10), ("gc", 8)]
    )
    def test_at_every_change_a_kill_leaves_the_old_or_the_new_state(
        self, box: Box, newer: Path, name: str, least: int, bundle: Path
    ) -> None:
        arguments: list[Path] = []
        if name == "install":  # of all blobs, onto an empty box
            shutil.rmtree(box.path)
            box.path.mkdir()
            with box.locked(create=True) as state:
                box.switch(state)
            arguments = [bundle]
        else:
            install(newer, box.path, ANY)
        if name in {"rollback", "remove"}:
            activate(box.path, MODEL, "1.1.0")
        if name == "gc":
            for number in range(6):
                (box.blobs / f"{number:064x}").write_bytes(b"left over")
        script = Path(__file__).with_name("kill_points.py")
        process = subprocess.run(
            [sys.executable, script, box.path, name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
            cwd=REPOSITORY,
        )
        assert process.returncode == 0, process.stderr
        assert int(process.stdout) >= least

    @pytest.mark.slow
    def test_at_random_times_too(self, box: Box, newer: Path, bundle: Path) -> None:
        """The real command, from the start of its process to its end, however long this machine takes for it."""
        began = time.perf_counter()
        whole = start("install", newer, "--root", box.path, "--allow-unsigned", "--activate")
        whole.communicate(timeout=120)
        assert whole.returncode == 0
        whole_s = time.perf_counter() - began
        moments = random.Random(0)
        killed = 0
        for number in range(60):
            if killed == 15:
                break
            shutil.rmtree(box.path, ignore_errors=True)
            install(bundle, box.path, ANY)
            activate(box.path, MODEL, "1.0.0")
            process = start("install", newer, "--root", box.path, "--allow-unsigned", "--activate")
            time.sleep(moments.uniform(0, whole_s))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == -signal.SIGKILL:
                killed += 1
            else:  # the first one was slow
                whole_s *= 0.8
            state = box.state()
            active = state.models[MODEL].active
            assert active in {"1.0.0", "1.1.0"}, number
            for version in state.models[MODEL].installed:
                open_version(box, state, MODEL, version)
            assert box_status(box.path).code == 0
            gc(box.path)
            assert not box.staging.exists()
        assert killed == 15


class TestLock:
    def test_a_second_installer_waits_and_gives_up(
        self, box: Box, newer: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(root_module, "LOCK_WAIT_S", 0.2)
        before = tree(box.path)
        with FileLock(box.path / "lock"):
            for act in (lambda: install(newer, box.path, ANY), lambda: gc(box.path), lambda: rollback(box.path, MODEL)):
                with pytest.raises(EnvironmentNotFitError, match="another command changes this box now"):
                    act()
            # Whoever only looks is not kept waiting.
            assert box_status(box.path).code == ExitCode.OK
        assert tree(box.path) == before

    def test_two_at_once_both_end_well(self, newer: Path, tmp_path: Path) -> None:
        processes = [start("install", newer, "--root", tmp_path / "box", "--allow-unsigned") for _ in range(2)]
        said = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        assert sum("nothing to write" in out for out, _ in said) == 1
        box = Box(tmp_path / "box")
        open_version(box, box.state(), MODEL, "1.1.0")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class TestDisk:
    def test_full_before_it_begins(self, small_disk: Path, bundle: Path) -> None:
        (small_disk / "other").write_bytes(bytes(40 * 2**20))
        process = start("install", bundle, "--root", small_disk / "box", "--allow-unsigned")
        one_line(process, ExitCode.ENVIRONMENT, "disk: found", "needed")
        assert list(tree(small_disk / "box")) == ["atlasport-box"]

    @pytest.mark.parametrize("share", [0, 0.2, 0.6, 0.9])
    def test_full_in_the_middle(
        self, small_disk: Path, bundle: Path, share: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Something else fills the disk after the check; the version that is active stays whole."""
        room = int(share * bundle.stat().st_size)
        box = Box(small_disk / "box")
        box.path.mkdir()
        with box.locked(create=True) as state:
            box.switch(state)
        usage = shutil.disk_usage(small_disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        before = tree(box.path)
        with pytest.raises(EnvironmentNotFitError, match="No space left on device") as caught:
            install(bundle, box.path, ANY)
        assert "\n" not in str(caught.value)
        assert tree(box.path) == before

    def test_read_only(self, small_disk: Path, bundle: Path, newer: Path) -> None:
        root = small_disk / "box"
        install(bundle, root, ANY)
        activate(root, MODEL, "1.0.0")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        before = tree(root)
        acts = (
            lambda: install(newer, root, ANY),
            lambda: activate(root, MODEL, "1.0.0"),
            lambda: remove(root, MODEL, "1.0.0"),
            lambda: gc(root),
        )
        for act in acts:
            with pytest.raises(EnvironmentNotFitError, match="Read-only file system"):
                act()
        assert box_status(root, read_all=True).code == ExitCode.OK
        assert [version.use for _, version in installed_versions(root)] == ["active"]
        assert tree(root) == before


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A context in which this process has the rights of another user."""
    if os.geteuid():
        pytest.skip("only root can become another user")

    @contextmanager
    def nobody() -> Iterator[None]:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    with nobody():
        readable = os.access(sys.prefix, os.X_OK, effective_ids=True)
    if not readable:
        pytest.skip(f"{sys.prefix} is closed to other users: they would not find its packages")
    return nobody


def test_without_permission(bundle: Path, newer: Path, as_nobody: Callable[[], AbstractContextManager[None]]) -> None:
    """Another user may look, and changes nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for path in (bundle, newer):
            Path(shutil.copy(path, folder / path.name)).chmod(0o644)
        install(folder / bundle.name, folder / "box", ANY)
        activate(folder / "box", MODEL, "1.0.0")
        before = tree(folder)
        acts = (
            lambda: install(folder / newer.name, folder / "box", ANY),
            lambda: install(folder / newer.name, folder / "new", ANY),
            lambda: rollback(folder / "box", MODEL),
            lambda: gc(folder / "box"),
        )
        with as_nobody():
            for act in acts:
                with pytest.raises(EnvironmentNotFitError, match="Permission denied") as caught:
                    act()
                assert "\n" not in str(caught.value)
            assert box_status(folder / "box", read_all=True).code == ExitCode.OK
        assert tree(folder) == before
        (folder / "box" / "state.json").chmod(0o600)
        with as_nobody(), pytest.raises(EnvironmentNotFitError, match=r"state\.json: cannot be read"):
            box_status(folder / "box")


@pytest.mark.parametrize("seconds", [0, 4_102_444_800])
def test_the_clock_decides_nothing(box: Box, newer: Path, seconds: int) -> None:
    """Every file is of 1970, or of 2100, after the clock went backwards."""
    for path in (box.path, *box.path.rglob("*")):
        os.utime(path, (seconds, seconds))
    install(newer, box.path, ANY)
    activate(box.path, MODEL, "1.1.0")
    for path in (box.path, *box.path.rglob("*")):
        os.utime(path, (seconds, seconds))
    assert box_status(box.path).code == ExitCode.OK
    rollback(box.path, MODEL)
    remove(box.path, MODEL, "1.1.0")
    gc(box.path)
    assert box_status(box.path, read_all=True).code == ExitCode.OK
