"""`atlasport publish` against whoever means harm, and against ends in the middle."""

from __future__ import annotations

import gzip
import io
import json
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from repositories import ROOT, edit, publish

from atlasport.model_repository.archive import MAX_FILE_BYTES, archive_reader
from atlasport.model_repository.kept import kept_blocks
from runtime.errors import AtlasportError, InputError

EVIL = '<script>alert(1)</script>|`x`\n# H\n---\n<!-- end of yours -->\x1b[31m\u202e"><img src=x onerror=y>'

# --- results that were changed by hand --------------------------------------------------------------------------------


def _latency(found: dict[str, Any]) -> dict[str, Any]:
    latency: dict[str, Any] = found["engines"][0]["end_to_end"]["latency"]
    return latency


CHANGED: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "a faster median": ("performance", lambda f: _latency(f)["latency_s"].update(p50=1e-6), "not those of its runs"),
    "faster runs": ("performance", lambda f: _latency(f).update(runs_s=[1e-6]), "not those of its runs"),
    "no runs": ("performance", lambda f: _latency(f).update(runs_s=[]), "not those of its runs"),
    "a better RTF": ("performance", lambda f: f["engines"][0]["end_to_end"].update(rtf=1e-6), "RTF of sed_1 are not"),
    "endless times": (
        "performance",
        lambda f: next(iter(f["engines"][0]["graphs"].values())).update(cold_s="Infinity"),
        "are not those of its runs",
    ),
    "negative memory": ("performance", lambda f: f["engines"][0]["memory"].update(peak=-1), "its memory or load time"),
    "power of no reading": (
        "performance",
        lambda f: f["engines"][0].update(power={"idle_w": 9.0, "busy_w": [20.0, 30.0], "mean_w": 10.0, "max_w": 30.0}),
        "its power is not that of its readings",
    ),
    "another reference": (
        "inference",
        lambda f: f["golden"][0]["result"]["events"].clear(),
        "the golden results are not those of the artifact",
    ),
    "a result that nobody judged": (
        "inference",
        lambda f: f["engines"][0]["recordings"][0].update(name=EVIL),
        "was judged nowhere",
    ),
    "not a number": ("inference", lambda f: f.update({EVIL: float("nan")}), "Extra inputs are not permitted"),
    "a machine without a system": ("env_info", lambda f: f["system"].clear(), "no attribute 'system'"),
}


@pytest.mark.parametrize("kind", list(CHANGED))
def test_results_that_contradict_themselves_are_refused(kind: str, own: Path, tmp_path: Path) -> None:
    name, change, said = CHANGED[kind]
    edit(own / "results" / f"{name}.json", change)
    with pytest.raises(AtlasportError, match=re.escape(said)) as refusal:
        publish(own, tmp_path / "out")
    assert not {"\n", "\x1b"} & set(str(refusal.value))
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.slow
def test_a_text_that_is_not_the_judged_one_is_refused(whisper: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(whisper, tmp_path / "own"))
    edit(
        own / "results" / "inference.json", lambda f: f["engines"][0]["recordings"][0]["result"].update(text="Better.")
    )
    with pytest.raises(AtlasportError, match=r"the text of \w+ is not the one that was judged"):
        publish(own, tmp_path / "out")


# --- names and words --------------------------------------------------------------------------------------------------


def test_no_name_reaches_the_page_as_markup(own: Path, tmp_path: Path) -> None:
    """Names in every place that publish does not check by itself; the page is still one card with its tables."""

    def rename(found: dict[str, Any]) -> None:
        found["cpu_model"] = found["system"]["system"] = EVIL
        found["versions"] = {**found["versions"], EVIL: EVIL}
        found["flags"] = {**found["flags"], EVIL: EVIL}

    edit(own / "results" / "env_info.json", rename)
    for name in ("accuracy", "performance", "inference"):
        edit(own / "results" / f"{name}.json", lambda found: found["flags"].update({EVIL: EVIL}))
    edit(
        own / "results" / "inference.json",
        lambda found: [r["result"]["events"][0].update(label=EVIL) for r in found["engines"][0]["recordings"][:2]],
    )
    out = publish(own, tmp_path / "out")
    for name in ("README.md", "README.zh-CN.md"):
        text = (out / name).read_text(encoding="utf-8")
        # Within backticks it is text for whoever renders Markdown.
        outside = re.sub(r"`[^`\n]*`", "", text)
        assert "alert(1)" in outside
        assert not re.search(r"<(?:script|img)", outside)
        assert not {"\x1b", "\u202e"} & set(text)
        assert "\n# H" not in text
        assert text.count("\n---\n") == 1
        assert text.splitlines().count("<!-- end of yours -->") == 3
        ModelCard(text, ignore_metadata_errors=False)
        for line in text.splitlines():
            if line.startswith("|"):
                columns = {len(re.findall(r"(?<!\\)\|", line))}
            assert not line.startswith("|") or columns == {len(re.findall(r"(?<!\\)\|", line))}
    assert kept_blocks(out) == {
        language: dict.fromkeys(("introduction", "results", "end"), "") for language in ("en", "zh")
    }
    for name in ("env_check", "inference"):
        log = (out / "logs" / f"{name}.log").read_text(encoding="utf-8")
        assert "alert(1)" in log
        assert "\n# H" not in log
        assert "\x1b" not in log


# --- archives ---------------------------------------------------------------------------------------------------------


def _member(name: str, data: bytes, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"acceptance/{name}")
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    return member, data


def _packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def _header(size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo("acceptance/summary.json")
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


STEPS = json.dumps({"steps": [{"name": "v", "command": "atlasport 'verify", "results": "results/v"}]}).encode()
LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": lambda path: _packed(path, _member("summary.json", b"", **LINK)),
    "a hard link": lambda path: _packed(path, _member("summary.json", b"", **(LINK | {"type": tarfile.LNKTYPE}))),
    "a device": lambda path: _packed(path, _member("summary.json", b"", type=tarfile.CHRTYPE)),
    "a path outside": lambda path: _packed(path, _member("../../summary.json", STEPS)),
    "a command that is no shell's": lambda path: _packed(
        path, _member("summary.json", STEPS), _member("results/v/results/accuracy.json", b"{}")
    ),
    # tarfile before Python 3.11.14 comes back to a member of negative size for ever (CVE-2025-8194).
    "a negative size": lambda path: path.write_bytes(gzip.compress(_header(-512) + b"\0" * 2048)),
    "a header of a gigabyte": lambda path: path.write_bytes(gzip.compress(_header(2**30, b"x") + b"\0" * 2048)),
    "headers without end": lambda path: path.write_bytes(
        gzip.compress((_header(20, b"x") + b"20 comment=xxxxxxxx\n".ljust(512, b"\0")) * 4000)
    ),
    "two gigabytes": lambda path: path.write_bytes(gzip.compress(_header(2**31) + b"\0" * 2048)),
    "an offset without end": lambda path: path.write_bytes(gzip.compress(_header(2**60) + b"\0" * 2048)),
    "a summary of nested lists": lambda path: _packed(path, _member("summary.json", b"[" * 200_000)),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
@pytest.mark.timeout(60)
def test_a_hostile_archive_is_one_line(kind: str, verified: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    HOSTILE[kind](path)
    with pytest.raises(InputError, match=re.escape(str(path))) as refusal:
        publish(verified, tmp_path / "out", archives=[path])
    assert "\n" not in str(refusal.value)
    assert [left.name for left in tmp_path.iterdir()] == ["a.tar.gz"]


def test_results_without_end_are_refused_within_bounds(tmp_path: Path) -> None:
    """Some hundred kilobytes that unpack to results of hundreds of megabytes."""
    path = tmp_path / "bomb.tar.gz"
    zeros = b"\0" * (MAX_FILE_BYTES - 512)
    with gzip.open(path, "wb", compresslevel=1) as file:
        for index in range(12):
            file.write(_member(f"{index}.json", zeros)[0].tobuf() + zeros)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="that is no archive of results"):
        archive_reader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


# --- a folder in the middle of it -------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import atlasport.model_repository.folder as folder
from atlasport.model_repository.folder import publish_repository
artifact, out, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def pause(*_):
    Path(sys.argv[4]).touch()
    sys.stdin.readline()
replace, moved = Path.replace, []
def counted(self, target):
    moved.append(target)
    if Path(target).name == stop:
        pause()
    return replace(self, target)
Path.replace = counted
publish_repository(artifact, out, wheel=False)
"""


def _stopped_at(stop: str, artifact: Path, out: Path, sign: Path) -> subprocess.Popen[bytes]:
    """A publish that waits before it moves file `stop` to its place, in a process of its own."""
    command = [sys.executable, "-c", WRITER, str(artifact), str(out), stop, str(sign)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
    while not sign.exists():
        assert process.poll() is None, "it ended before it was there"
        time.sleep(0.02)
    return process


def test_a_killed_publish_says_so_and_the_next_one_heals_it(verified: Path, tmp_path: Path) -> None:
    out = publish(verified, tmp_path / "all" / "out")
    readme = out / "README.md"
    whole = readme.read_bytes()
    mine = readme.read_text(encoding="utf-8").replace("introduction -->\n", "introduction -->\nOur words.\n", 1)
    readme.write_text(mine, encoding="utf-8")
    process = _stopped_at("inference.py", verified, out, tmp_path / "sign")
    try:
        # Meanwhile nobody else may write there.
        with pytest.raises(InputError, match="another publish writes it"):
            publish(verified, out)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    text = readme.read_text(encoding="utf-8")
    assert "**Unfinished: `atlasport publish` was ended while it wrote." in "\n".join(text.splitlines()[:35])
    assert len(list(out.parent.iterdir())) == 2, "what it had made beside the repository"
    publish(verified, out)
    assert readme.read_bytes() == mine.replace("Our words.\n\n", "Our words.\n").encode()
    assert readme.read_bytes().replace(b"Our words.\n", b"\n") == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_new_folder_heals_too(verified: Path, tmp_path: Path) -> None:
    out = tmp_path / "all" / "out"
    process = _stopped_at("inference.py", verified, out, tmp_path / "sign")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "**Unfinished: " in (out / "README.md").read_text(encoding="utf-8")
    publish(verified, out)
    assert "Unfinished" not in (out / "README.md").read_text(encoding="utf-8")
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_is_there_stays_the_same_one(verified: Path, tmp_path: Path) -> None:
    """It may be a shell's working directory, or where a disk is mounted; and links in it are not followed."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    (elsewhere / "theirs").mkdir(parents=True)
    before = out.stat().st_ino
    publish(verified, out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "assets")
    (out / "model").symlink_to(elsewhere)
    (out / "assets").symlink_to("nowhere")
    publish(verified, out)
    assert out.stat().st_ino == before
    assert not (out / "model").is_symlink()
    assert not (out / "assets").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["theirs"]


def test_a_place_that_is_taken_is_refused_before_anything_moves(
    verified: Path, published: Path, tmp_path: Path
) -> None:
    for name, make in (("inference.py", Path.mkdir), ("eval", Path.touch)):
        out = Path(shutil.copytree(published, tmp_path / name))
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        make(out / name)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        with pytest.raises(InputError, match=re.escape(f"{out / name}: expected")):
            publish(verified, out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_a_place_that_cannot_be_written_is_one_line(verified: Path) -> None:
    """Whoever the user is: nobody makes folders in /proc."""
    with pytest.raises(AtlasportError, match=r"/proc/\S+: cannot be written") as refusal:
        publish(verified, Path("/proc/atlasport/out"))
    assert "\n" not in str(refusal.value)


def test_folders_that_were_made_for_nothing_go(verified: Path, tmp_path: Path) -> None:
    """A disk that is full while the graphs are copied; a limit of this process stands in for one."""
    (tmp_path / "there").mkdir()
    out = tmp_path / "there" / "new" / "out"
    command = [sys.executable, "-m", "atlasport", "publish", str(verified), "--out", str(out), "--no-wheel"]
    script = f"ulimit -f 1; exec {shlex.join(command)}"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "cannot be written (File too large)" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "there").iterdir()) == []
