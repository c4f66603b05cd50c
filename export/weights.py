"""Finds the weights: a local folder, a repository on the hub, or the word `random`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoint import CHECKPOINT_LAYOUTS, read_json, shard_names
from export.registry import MODELS, REPOSITORY_ROOT, ModelEntry, find_model
from runtime.errors import EnvironmentNotFitError, InputError

RANDOM = "random"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What a checkpoint may have beside its tensors; the model card for its licence.
_SIDE_FILES = (
    "README.md",
    "classes.txt",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
)


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    `folder` is None for random weights, which `entry` then describes. `origin` names the source without this
    machine's paths; `revision` is the resolved commit on the hub.
    """

    model: str
    entry: ModelEntry | None
    folder: Path | None
    origin: str
    repo: str | None
    revision: str | None
    licence: str


def resolve_weights(model: str, weights: str | None) -> Weights:
    """Return where the weights of `model` are, downloading them if they are on the hub.

    Parameters
    ----------
    model : str
        A name of the registry, or any name where `weights` is a checkpoint: it becomes the artifact's name.
    weights : str or None
        A local folder, a hub id (`owner/repository`), `random`, or None for what the registry says.

    Raises
    ------
    InputError
        Unknown model, no such folder, or a repository without a checkpoint.
    EnvironmentNotFitError
        The hub cannot be reached.

    """
    if not _MODEL_NAME.fullmatch(model):
        raise InputError(f"model name {model!r}: expected letters, digits, '.', '_' and '-'; it names a folder")
    if weights is None or weights == RANDOM:
        entry = find_model(model)
        if weights == RANDOM:
            return Weights(model, entry, None, origin=RANDOM, repo=None, revision=None, licence=entry.licence)
        if entry.folder is not None:
            return _shipped(entry, entry.folder)
        assert entry.repo is not None
        return _from_hub(model, entry, entry.repo, entry.revision)
    known = MODELS.get(model)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        origin = folder.resolve().name
        return Weights(model, known, folder, origin=origin, repo=None, revision=None, licence=_licence(folder))
    if folder.exists():
        raise InputError(f"{weights}: expected a folder with a checkpoint, found a file; give its folder")
    if not _HUB_ID.fullmatch(weights):
        raise InputError(
            f"{weights}: no such folder; give a checkpoint's folder, a hub id (owner/repository) or random"
        )
    return _from_hub(model, known, weights, known.revision if known and known.repo == weights else None)


def _shipped(entry: ModelEntry, relative: str) -> Weights:
    folder = REPOSITORY_ROOT / relative
    if not folder.is_dir():
        raise EnvironmentNotFitError(
            f"{folder}: expected the weights of {entry.name}, found nothing; run from a clone of atlasport"
        )
    return Weights(entry.name, entry, folder, origin=relative, repo=None, revision=None, licence=entry.licence)


def _from_hub(model: str, entry: ModelEntry | None, repo: str, revision: str | None) -> Weights:
    """Download what export reads of a repository: side files, then the first layout of tensors that it has."""
    folder = _snapshot(repo, revision, [*_SIDE_FILES, *(f"{name}.index.json" for name in CHECKPOINT_LAYOUTS)])
    # The commit that the first call resolved: a push in between cannot mix two versions.
    commit = folder.name
    for name in CHECKPOINT_LAYOUTS:
        index = folder / f"{name}.index.json"
        _snapshot(repo, commit, [name])
        if not (folder / name).exists() and index.exists():
            _snapshot(repo, commit, sorted(shard_names(index)))
        if (folder / name).exists() or index.exists():
            break
    else:
        raise InputError(f"{repo}: expected {' or '.join(CHECKPOINT_LAYOUTS)}, found neither; give another repository")
    licence = entry.licence if entry is not None and entry.repo == repo else _licence(folder)
    return Weights(model, entry, folder, origin=repo, repo=repo, revision=commit, licence=licence)


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    """Download the files that match `patterns`; return the snapshot's folder, whose name is the commit."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo}@{revision}" if revision else repo
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
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
            f"{where}: cannot be fetched from {constants.ENDPOINT} ({reason}); give a local folder (WEIGHTS=folder), "
            "random weights (WEIGHTS=random), or a mirror of the hub (HF_ENDPOINT=https://...)"
        ) from error


def _licence(folder: Path) -> str:
    """Return the licence that the model card of a checkpoint states, or `unknown`."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    try:
        return str(ModelCard.load(card, ignore_metadata_errors=True).data.license or "unknown")
    except (OSError, ValueError):
        return "unknown"


def family_of(weights: Weights, families: dict[str, str]) -> str:
    """Return the family of a checkpoint.

    Parameters
    ----------
    weights : Weights
        The checkpoint.
    families : dict[str, str]
        `model_type` of a config.json, or one of its `architectures`, to family.

    Raises
    ------
    InputError
        No config.json, or one of a family that export does not know, or another than the model's.

    """
    expected = weights.entry.family if weights.entry else None
    if weights.folder is None:
        assert expected is not None
        return expected
    path = weights.folder / "config.json"
    if not path.is_file():
        raise InputError(f"{weights.folder}: expected a checkpoint with config.json, found none; give another folder")
    config: dict[str, Any] = read_json(path)
    model_type, architectures = config.get("model_type"), config.get("architectures")
    # A repository with code of its own may have any model_type.
    named = [model_type, *(architectures if isinstance(architectures, list) else [])]
    family = next((families[name] for name in named if isinstance(name, str) and name in families), None)
    if family is None or (expected is not None and family != expected):
        known = expected or " or ".join(sorted(set(families.values())))
        raise InputError(
            f"{path}: expected a checkpoint of {known}, found model_type {json.dumps(model_type)}, "
            f"architectures {json.dumps(architectures)}; give such a checkpoint's folder or hub id"
        )
    return family
