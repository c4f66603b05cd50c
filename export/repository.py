"""What export downloads of a repository, wherever that is: side files, then a .nemo file or one layout of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from export.checkpoint import CHECKPOINT_LAYOUTS, shard_names
from export.files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    CTRANSLATE2_MODEL,
    CTRANSLATE2_VOCABULARIES,
    INDEXES,
    NEMO_SUFFIX,
    SIDE_FILES,
    TOKENIZER_FILES,
    TOKENIZERS,
    layout_of,
    nemo_files,
)
from export.foreign import kind_of
from runtime.errors import InputError


class Repository(Protocol):
    """A repository at one commit."""

    name: str
    commit: str

    def get(self, patterns: Sequence[str]) -> Path:
        """Download the files of its top level that match; return the folder of all that were downloaded."""

    def names(self) -> Sequence[str]:
        """Return the names of its files."""


def fetch_checkpoint(repository: Repository) -> Path:
    """Download a checkpoint; return its folder or .nemo file.

    NVIDIA's repositories have newer .nemo files beside a conversion to transformers' layout: the original is taken.

    Raises
    ------
    InputError
        There is none.

    """
    folder = repository.get([*SIDE_FILES, *INDEXES])
    repository.get([f"*{NEMO_SUFFIX}"])
    nemo = only_nemo(folder)
    if nemo is not None:
        return nemo
    if (folder / ADAPTER_CONFIG).exists():
        repository.get(ADAPTERS)
    _get_tensors(repository, folder)
    if layout_of(folder) is None and not any((folder / name).exists() for name in ADAPTERS):
        kind = kind_of(repository.names())
        if kind is not None:
            raise InputError(f"{repository.name}: is {kind.what}; {kind.advice}")
        layouts = " or ".join((*CHECKPOINT_LAYOUTS, f"*{NEMO_SUFFIX}"))
        raise InputError(f"{repository.name}: expected {layouts}, found none of them; give another repository")
    return folder


def fetch_tokenizer(repository: Repository) -> Path:
    """Download a tokenizer; return its folder.

    Raises
    ------
    InputError
        There is none.

    """
    folder = repository.get(TOKENIZER_FILES)
    check_tokenizer(folder, repository.name)
    return folder


def check_tokenizer(folder: Path, where: str) -> None:
    """Refuse a folder that has nothing to make a tokenizer of."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{where}: expected a tokenizer ({' or '.join(TOKENIZERS)}), found neither; give another")


def only_nemo(folder: Path) -> Path | None:
    """Return the .nemo file of a folder, None without one.

    Raises
    ------
    InputError
        There are several.

    """
    found = nemo_files(folder)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{folder}: expected one .nemo file, found {names}; give one of them")
    return found[0] if found else None


def _get_tensors(repository: Repository, folder: Path) -> None:
    """Download the first layout of tensors that a repository has."""
    for name, index in zip(CHECKPOINT_LAYOUTS, INDEXES, strict=True):
        repository.get([name])
        if not (folder / name).exists() and (folder / index).exists():
            repository.get(sorted(shard_names(folder / index)))
        if (folder / name).exists() or (folder / index).exists():
            return
    repository.get([CTRANSLATE2_MODEL, *CTRANSLATE2_VOCABULARIES])
