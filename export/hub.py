"""Repositories on the hub of Hugging Face, through its client: HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.errors import EnvironmentNotFitError, InputError


class HubRepository:
    """A repository on the hub.

    Parameters
    ----------
    name : str
        `owner/repository`.
    revision : str or None
        Branch, tag or commit; None for the main branch.
    alternatives : str
        What a user may give in its place, where the hub cannot be reached.

    """

    def __init__(self, name: str, revision: str | None, alternatives: str) -> None:
        self.name = name
        # The commit once it is known: a push in between cannot mix two versions.
        self.commit = revision or ""
        self._alternatives = alternatives

    def get(self, patterns: Sequence[str]) -> Path:
        """Download the files of its top level that match; return the folder of all that were downloaded.

        Raises
        ------
        InputError
            No such repository or revision, or one whose terms were not accepted.
        EnvironmentNotFitError
            The hub cannot be reached.

        """
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"{self.name}@{self.commit}" if self.commit else self.name
        try:
            # A pattern's * matches slashes, too; export reads nothing below the top.
            found = snapshot_download(
                self.name, revision=self.commit or None, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        except GatedRepoError as error:
            raise InputError(
                f"{where}: the hub asks to accept its terms; do that, then log in with `hf auth login`"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise InputError(
                f"{where}: not on the hub at {constants.ENDPOINT}; check the name, or log in if private"
            ) from error
        except Exception as error:  # the client's and its HTTP library's exceptions share no base class
            reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
            raise EnvironmentNotFitError(
                f"{where}: cannot be fetched from {constants.ENDPOINT} ({reason}); give {self._alternatives}, or a "
                "mirror of the hub (HF_ENDPOINT=https://...)"
            ) from error
        # The snapshot's folder is named by the commit.
        self.commit = Path(found).name
        return Path(found)

    def names(self) -> Sequence[str]:
        """Return the names of its files; none where the hub does not tell them now."""
        from huggingface_hub import list_repo_files

        try:
            return list_repo_files(self.name, revision=self.commit)
        except Exception:  # noqa: BLE001 - offline; the names only make an error's message better
            return []
