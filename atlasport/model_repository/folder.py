"""Writes a model repository: everything is made beside its place first, so that bad input leaves nothing half done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlasport.model_repository.evidence import read_runs
from atlasport.model_repository.facts import Repository
from atlasport.model_repository.gather import repository_of
from atlasport.model_repository.kept import WRITTEN, kept_blocks
from atlasport.model_repository.render import repository_files
from export.freeze.licences import licence_of
from export.freeze.wheelhouse import build_own_wheel
from runtime.artifact import Artifact, open_artifact
from runtime.disk import disk_errors
from runtime.errors import InputError
from runtime.manifest import MANIFEST_NAME

MODEL = "model"
WHEELS = "wheels"
# What publish wrote into them earlier goes; all else in the repository is left alone.
OWN = (MODEL, WHEELS, "results", "logs", "assets")
_READMES = ("README.md", "README.en.md", "README.zh-CN.md")
_UNFINISHED = (
    "> **Unfinished: `atlasport publish` was ended while it wrote. Run it again; nothing below is to be trusted.**"
)


@dataclass(frozen=True)
class Published:
    """A written repository: its folder, what it says, and its size in files and bytes."""

    path: Path
    repository: Repository
    files: int
    size: int


def publish_repository(
    artifact_folder: Path,
    out: Path,
    *,
    archives: Sequence[Path] = (),
    chinese_first: bool = False,
    allow_simulated: bool = False,
    allow_random: bool = False,
    wheel: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Published:
    """Write the model repository of a verified artifact into folder `out`, or write it anew there.

    Parameters
    ----------
    artifact_folder : Path
        The artifact's.
    out : Path
        A new or empty folder, or one that publish wrote: what people wrote between the marks of its READMEs stays, and
        so do all other files.
    archives : sequence of Path
        Of `atlasport acceptance`, from other machines.
    chinese_first : bool
        README.md is the Chinese one.
    allow_simulated, allow_random : bool
        See `evidence.read_runs`.
    wheel : bool
        Build atlasport's wheel into it.
    progress : callable
        Is told each step.

    Raises
    ------
    InputError
        `out` holds something else, or there are no results of this artifact.
    GateError
        The results are no evidence.
    DamagedArtifactError
        The artifact is damaged.
    EnvironmentNotFitError
        `out` cannot be written, or the wheel cannot be built.

    """
    out = out.resolve()
    progress("checking the artifact")
    artifact = open_artifact(artifact_folder)
    _check_place(artifact, out)
    kept_blocks(out)
    progress("reading the results")
    runs = read_runs(artifact, archives, allow_simulated=allow_simulated, allow_random=allow_random)
    repository = repository_of(artifact, runs, licence_of(artifact.content))
    with disk_errors(out, "publish elsewhere (--out)"), _workspace(out) as temporary:
        new = temporary / "new"
        new.mkdir()
        name = _add_wheel(new, progress) if wheel else None
        progress("copying the graphs")
        _copy_artifact(artifact, new / MODEL)
        # What people write meanwhile stays, too.
        contents = repository_files(repository, kept_blocks(out), chinese_first=chinese_first, wheel=name)
        for path, data in contents.items():
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            (new / path).write_bytes(data)
        written = [path for path in new.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in written)
        progress(f"writing {out}")
        _put(new, out, temporary / "old")
    return Published(out, repository, len(written), size)


def _check_place(artifact: Artifact, out: Path) -> None:
    own, place = artifact.path.resolve(), out.resolve()
    if own == place or own in place.parents or place in own.parents:
        raise InputError(f"{out}: expected a folder apart from the artifact {artifact.path}; publish elsewhere (--out)")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: expected a folder, found a file; publish elsewhere (--out)")
    there = [path.name for path in out.iterdir() if path.name != ".git"]
    if there and "README.md" not in there:
        raise InputError(
            f"{out}: expected an empty folder or a repository that publish wrote, found {min(there)}; "
            "publish elsewhere (--out)"
        )


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`, which nobody else may write meanwhile; remove what killed ones left."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        # The kernel lets go of it with the process.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"{out}: another publish writes it; wait for it, or publish elsewhere (--out)") from error
    try:
        prefix = f".{out.name}@publish-"
        for left in out.parent.iterdir():
            if left.name.startswith(prefix) and "@" not in left.name.removeprefix(prefix):
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=prefix) as temporary:
            yield Path(temporary)
    finally:
        os.close(descriptor)
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _add_wheel(new: Path, progress: Callable[[str], None]) -> str:
    progress("building atlasport's wheel")
    folder = new / WHEELS
    folder.mkdir()
    return f"{WHEELS}/{build_own_wheel(folder).name}"


def _copy_artifact(artifact: Artifact, target: Path) -> None:
    for name in artifact.content.files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), target / name)
    (target / MANIFEST_NAME).write_bytes(artifact.manifest.to_bytes())


def _put(new: Path, out: Path, old: Path) -> None:
    """Move everything to its place; READMEs come last: they speak of what is there, and people's words are in them."""
    files = [path for path in new.rglob("*") if path.is_file()]
    _check_room(out, [out / path.relative_to(new) for path in files if path.relative_to(new).parts[0] not in OWN])
    _mark_unfinished(new, out)
    old.mkdir()
    for name in OWN:
        if (out / name).exists() or (out / name).is_symlink():
            (out / name).rename(old / name)
        if (new / name).exists():
            (new / name).rename(out / name)
    rest = sorted((path for path in new.rglob("*") if path.is_file()), key=lambda path: path.name in _READMES)
    for path in rest:
        place = out / path.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
    for name in _READMES:
        if not (new / name).exists() and name not in {path.name for path in rest} and (out / name).exists():
            (out / name).unlink()


def _check_room(out: Path, places: Sequence[Path]) -> None:
    """Refuse before anything is moved: a folder of people's where a file belongs, or a file where a folder does."""
    for place in places:
        if place.is_dir():
            raise InputError(f"{place}: expected no folder, publish writes a file there; move it away")
        for parent in place.parents:
            if parent == out:
                break
            if parent.exists() and not parent.is_dir():
                raise InputError(f"{parent}: expected a folder, found a file; move it away")


def _mark_unfinished(new: Path, out: Path) -> None:
    """Say in the READMEs, old or new, that they are not of what lies beside them, until they are written anew."""
    for name in _READMES:
        sources = [path for path in (out / name, new / name) if path.exists()]
        if sources:
            text = sources[0].read_text(encoding="utf-8")
            marked = new.parent / "unfinished"
            marked.write_text(
                WRITTEN.sub(lambda found: f"{_UNFINISHED}\n\n{found[0]}", text, count=1), encoding="utf-8"
            )
            marked.replace(out / name)
