"""Finds the weights: a local folder or .nemo file, a repository on the hub, or the word `random`."""

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
NEMO_SUFFIX = ".nemo"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What a checkpoint may have beside its tensors; the model card for its licence.
_SIDE_FILES = (
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "classes.txt",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# A LoRA adapter's tensors, which may lie beside a checkpoint.
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    `path` is a folder or a file; None for random weights, which `entry` then describes. `origin` names the source
    without this machine's paths; `revision` is the resolved commit on the hub. `tokenizer` is the folder whose tokenizer
    files count, where those are not beside the weights; `adapter` the folder of a PEFT adapter to merge into them.
    """

    model: str
    entry: ModelEntry | None
    path: Path | None
    origin: str
    repo: str | None
    revision: str | None
    licence: str
    tokenizer: Path | None = None
    adapter: Path | None = None


def resolve_weights(
    model: str, weights: str | None, *, tokenizer: str | None = None, base: str | None = None
) -> Weights:
    """Return where the weights of `model` are, downloading them if they are on the hub.

    Parameters
    ----------
    model : str
        A name of the registry, or any name where `weights` is a checkpoint: it becomes the artifact's name.
    weights : str or None
        A local folder, a .nemo file, a hub id (`owner/repository`), `random`, or None for what the registry says.
    tokenizer : str or None
        Folder or hub id whose tokenizer is taken in place of the checkpoint's.
    base : str or None
        Folder or hub id of the model that an adapter belongs to; None for the one that its configuration names.

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
        if entry.path is not None:
            return _shipped(entry, entry.path)
        if entry.repo is None:
            raise InputError(f"{model}: has no trained weights; give WEIGHTS=random or a checkpoint's folder")
        return _from_hub(model, entry, entry.repo, entry.revision)
    known = MODELS.get(model)
    path = Path(weights).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == NEMO_SUFFIX):
        # Beside a single file any model card may lie.
        licence = _licence(path) if path.is_dir() else "unknown"
        origin = path.resolve().name
        return Weights(
            model,
            known,
            _checkpoint(path),
            origin=origin,
            repo=None,
            revision=None,
            licence=licence,
            adapter=_adapter_beside(path),
        )
    if path.exists():
        raise InputError(f"{weights}: expected a checkpoint's folder or a .nemo file, found a file; give its folder")
    if not _HUB_ID.fullmatch(weights) or path.suffix == NEMO_SUFFIX:
        raise InputError(
            f"{weights}: no such folder or file; give a checkpoint's folder, a .nemo file, a hub id (owner/repository) "
            "or random"
        )
    return _from_hub(model, known, weights, known.revision if known and known.repo == weights else None)


def _shipped(entry: ModelEntry, relative: str) -> Weights:
    path = REPOSITORY_ROOT / relative
    if not path.exists():
        raise EnvironmentNotFitError(
            f"{path}: expected the weights of {entry.name}, found nothing; run from a clone of atlasport"
        )
    return Weights(entry.name, entry, path, origin=relative, repo=None, revision=None, licence=entry.licence)


def _checkpoint(path: Path) -> Path:
    """Return the .nemo file of a folder that has one, otherwise what was given.

    NVIDIA's repositories have newer ones beside a conversion to transformers' layout: the original is taken.
    """
    found = sorted(path.glob(f"*{NEMO_SUFFIX}")) if path.is_dir() else []
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{path}: expected one .nemo file, found {names}; give one of them")
    return found[0] if found else path


def _from_hub(model: str, entry: ModelEntry | None, repo: str, revision: str | None) -> Weights:
    """Download what export reads of a repository: side files, then a .nemo file or the first layout that it has."""
    folder = _snapshot(repo, revision, [*_SIDE_FILES, *(f"{name}.index.json" for name in CHECKPOINT_LAYOUTS)])
    # The commit that the first call resolved: a push in between cannot mix two versions.
    commit = folder.name
    _snapshot(repo, commit, [f"*{NEMO_SUFFIX}"])
    path = _checkpoint(folder)
    if path == folder:
        _get_tensors(repo, commit, folder)
        if (folder / "adapter_config.json").exists():
            _snapshot(repo, commit, list(_ADAPTERS))
    licence = entry.licence if entry is not None and entry.repo == repo else _licence(folder)
    return Weights(
        model,
        entry,
        path,
        origin=repo,
        repo=repo,
        revision=commit,
        licence=licence,
        adapter=_adapter_beside(path),
    )


def _adapter_beside(path: Path) -> Path | None:
    return path if (path / "adapter_config.json").is_file() else None


def _get_tensors(repo: str, commit: str, folder: Path) -> None:
    """Download the first layout of tensors that a repository has."""
    for name in CHECKPOINT_LAYOUTS:
        index = folder / f"{name}.index.json"
        _snapshot(repo, commit, [name])
        if not (folder / name).exists() and index.exists():
            _snapshot(repo, commit, sorted(shard_names(index)))
        if (folder / name).exists() or index.exists():
            return
    layouts = " or ".join((*CHECKPOINT_LAYOUTS, f"*{NEMO_SUFFIX}"))
    raise InputError(f"{repo}: expected {layouts}, found none of them; give another repository")


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
        # A pattern's * matches slashes, too; export reads nothing below the top.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
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
        `model_type` of a config.json, one of its `architectures`, or the suffix `.nemo`, to family.

    Raises
    ------
    InputError
        No config.json, or one of a family that export does not know, or another than the model's.

    """
    expected = weights.entry.family if weights.entry else None
    if weights.path is None:
        assert expected is not None
        return expected
    if weights.path.suffix == NEMO_SUFFIX and weights.path.is_file():
        # Whether its model is one of this family, the family says by name.
        if expected not in (None, families[NEMO_SUFFIX]):
            raise InputError(f"{weights.path}: expected a checkpoint of {expected}, found a .nemo file; give another")
        return families[NEMO_SUFFIX]
    path = weights.path / "config.json"
    if not path.is_file():
        raise InputError(f"{weights.path}: expected a checkpoint with config.json, found none; give another folder")
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
