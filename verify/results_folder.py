"""The folder of results that verify writes into an artifact, read back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from runtime.artifact import Artifact
from runtime.errors import EnvironmentNotFitError, InputError
from verify.inference import InferenceFile
from verify.results import AccuracyFile, EnvironmentFile, Subject
from verify.timings import PerformanceFile

RESULTS = "results"
LOGS = "logs"
_File = TypeVar("_File", bound=Subject)


@dataclass(frozen=True)
class Results:
    """The four results files of one verify run."""

    accuracy: AccuracyFile
    performance: PerformanceFile
    inference: InferenceFile
    environment: EnvironmentFile

    @classmethod
    def read_folder(cls, folder: Path) -> Results:
        """Read the files of a folder of results.

        Raises
        ------
        InputError
            A file is missing, or is not a results file.

        """
        return cls(
            accuracy=_read(folder / "accuracy.json", AccuracyFile),
            performance=_read(folder / "performance.json", PerformanceFile),
            inference=_read(folder / "inference.json", InferenceFile),
            environment=_read(folder / "env_info.json", EnvironmentFile),
        )

    @classmethod
    def read(cls, artifact: Artifact) -> Results:
        """Read an artifact's own results.

        Raises
        ------
        InputError
            A file is missing, is not a results file, or was made from another export of the artifact.

        """
        found = cls.read_folder(artifact.path / RESULTS)
        expected = artifact.manifest.content_sha256
        for file in (found.accuracy, found.performance, found.inference, found.environment):
            if file.content_sha256 != expected:
                raise InputError(
                    f"{artifact.path / RESULTS}: made from the export {file.content_sha256[:12]}, this artifact is "
                    f"{expected[:12]}; run `atlasport verify` again"
                )
        return found


def _read(path: Path, kind: type[_File]) -> _File:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: expected a results file, found none; run `atlasport verify`") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place}: {first['msg']}; run `atlasport verify` again") from error


def check_writable(path: Path) -> None:
    """Fail before the work, not after it.

    Raises
    ------
    EnvironmentNotFitError
        Nothing can be written into the artifact's folder `path`.

    """
    try:
        (path / RESULTS).mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path / RESULTS):
            (path / LOGS).mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts into an artifact's folder: every file beside its place first, so that a full disk leaves the old.

    Raises
    ------
    EnvironmentNotFitError
        There is no room, or no permission.

    """
    try:
        with tempfile.TemporaryDirectory(dir=folder / RESULTS, prefix=".new-") as new:
            for number, text in enumerate(files.values()):
                Path(new, str(number)).write_text(text, encoding="utf-8")
            for number, place in enumerate(files):
                Path(new, str(number)).replace(folder / place)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(path: Path, error: OSError) -> EnvironmentNotFitError:
    reason = error.strerror or str(error)
    return EnvironmentNotFitError(f"{path}: expected room and permission for results, found {reason}; make some")
