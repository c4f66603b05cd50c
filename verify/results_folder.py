"""The folder of results that verify writes into an artifact, read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from runtime.artifact import Artifact
from runtime.errors import InputError
from verify.results import AccuracyFile, EnvironmentFile, InferenceFile, Subject
from verify.timings import PerformanceFile

RESULTS = "results"
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
