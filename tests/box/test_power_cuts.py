"""No power cut is tried here; what one could leave is: the recorded operations, replayed in every legal order."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from power_cuts import Recorded, contents, cuts, without_syncs
from recorded import COMMANDS, BoxCut, Cut, ServeCut, violations

REPOSITORY = Path(__file__).resolve().parents[2]
# Of each command so many disks are tried here; the campaign (`make faults`) and the slow test try all.
SAMPLE = 40


@pytest.fixture
def bundles(bundle: Path, newer: Path) -> tuple[Path, Path]:
    return bundle, newer


def cut_of(name: str, folder: Path, bundles: tuple[Path, Path]) -> Cut:
    return ServeCut(folder) if name == "serve-dir" else BoxCut(name, folder, bundles)


@pytest.mark.parametrize("name", [*COMMANDS, "serve-dir"])
def test_a_power_cut_leaves_the_old_or_the_new(name: str, tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    """And from every sixth disk the command, given again, comes to its end."""
    cut = cut_of(name, tmp_path, bundles)
    disks = list(cuts(cut.recorded, every=3))
    last = [disk for disk in disks if disk[0]]
    sample = random.Random(0).sample(disks, min(SAMPLE, len(disks))) + last[:5]
    found = violations(cut, sample, again_every=6)
    assert found == [], found[:3]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, "serve-dir"])
def test_every_power_cut(name: str, tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    cut = cut_of(name, tmp_path, bundles)
    found = violations(cut, cuts(cut.recorded), again_every=20)
    assert found == [], found[:3]


@pytest.mark.parametrize("name", ["install", "activate", "remove", "serve-dir"])
def test_without_fsync_the_same_replay_finds_damage(name: str, tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    """The control: the replay sees what a missing fsync costs."""
    cut = cut_of(name, tmp_path, bundles)
    bare = without_syncs(cut.recorded)
    disks = list(cuts(bare, every=len(bare.operations)))
    assert violations(cut, random.Random(0).sample(disks, min(SAMPLE, len(disks))), again_every=0)


def test_that_work_begins_is_on_the_disk_before_it_does(tmp_path: Path) -> None:
    """In every cut at the moment at which results of the good recording are begun."""
    recorded = ServeCut(tmp_path).recorded
    (begun,) = (
        number
        for number, operation in enumerate(recorded.operations)
        if operation.kind == "mkdir" and operation.name.startswith("good.")
    )
    last = [disk for ended, disk in cuts(Recorded(recorded.before, recorded.operations[:begun])) if ended]
    assert last
    for disk in last:
        notes = [data for path, data in contents(disk).items() if path.startswith("in/.atlasport/interruptions/good.")]
        assert notes == [b"1\n"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_saw_the_same_operations(tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    """What is replayed is what strace lists of the same command, sync for sync and rename for rename."""
    cut = cut_of("install", tmp_path, bundles)
    shutil.rmtree(tmp_path / "watched")
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from recorded import scene\n"
        "act = scene('install', Path(sys.argv[3]), (Path(sys.argv[4]), Path(sys.argv[5])))\n"
        "Path(sys.argv[3], 'now').mkdir()\n"
        "act()\n"
    )
    (tmp_path / "watched").mkdir()
    calls = "fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat"
    command = [sys.executable, "-c", script, REPOSITORY, Path(__file__).parent, tmp_path / "watched", *bundles]
    traced = subprocess.run(
        ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", tmp_path / "trace", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if traced.returncode:
        pytest.skip(f"strace does not run here: {traced.stderr[-200:]}")
    _, _, lines = (tmp_path / "trace").read_text().partition("/now")
    said = [line.split(None, 1)[1] for line in lines.splitlines()[1:] if str(tmp_path / "watched") in line]
    good = [line.partition("(")[0] for line in said if line.rstrip().endswith("= 0")]
    kinds = {"fsync": "sync", "rename": "rename", "link": "link", "linkat": "link", "mkdir": "mkdir"}
    kinds |= {"unlink": "remove", "unlinkat": "remove", "rmdir": "remove"}
    recorded = [operation.kind for operation in cut.recorded.operations if operation.kind not in {"create", "write"}]
    assert [kinds[name] for name in good] == recorded
