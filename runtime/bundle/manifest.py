"""The bundle's manifest, `atlas.json`: what is installed under which version, and what a box needs for it.

Two freezes of the same artifact give the same bytes: there is no time and no host in it.
"""

from __future__ import annotations

import json
import unicodedata
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from runtime.bounded_json import load_json
from runtime.errors import DamagedArtifactError
from runtime.manifest import MANIFEST_NAME, FileEntry, Part, RelativePath, Sha256, Variant

BUNDLE_FORMAT_VERSION = 1
BUNDLE_MANIFEST_NAME = "atlas.json"
SIGNATURE_NAME = "atlas.json.sig"

ARTIFACT_FOLDER = "artifact"
LICENCE_NAME = "LICENSE.txt"
CARD_NAME = "README.md"
BOM_NAME = "bom.cdx.json"
RESULTS_FOLDER = "results"
OM_FOLDER = "om"
# What may lie at the top of an installed version.
_FOLDERS = frozenset({ARTIFACT_FOLDER, RESULTS_FOLDER, OM_FOLDER})
_FILES = frozenset({LICENCE_NAME, CARD_NAME, BOM_NAME})

# A bundle of granite has 60 files. Bounded, as anybody can write a manifest: a box makes a link for each file, and
# pydantic keeps 2 kB for each value that it refuses.
MAX_FILES = 2000
MAX_PIECES = 4000
_MAX_VALUES = 36_000
MAX_PATH_BYTES = 1000
_MAX_NAME_BYTES = 255
_MAX_DEPTH = 16
# What files and offsets have room for.
_SIZE_LIMIT = 2**63

Profile = Literal["npu", "cpu", "om"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
# What a freeze was told to overlook; the bundle says it of itself.
Waiver = Literal["other-device", "random-weights", "unknown-licence", "unverified"]
# MAJOR.MINOR.PATCH without leading zeros: ordered as three numbers.
Version = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){2}$")]


class Requirements(Part):
    """What the box must have. Ranges are PEP 440 specifiers; `cann` and `torch_npu` are None where no NPU is used.

    `memory_bytes` is an estimate of what loading takes, `socs` the beginnings of the names of the SoCs that the graphs
    were made for (`Ascend910B` takes an Ascend910B4); empty: any.
    """

    python: str
    packages: dict[str, str]
    torch_npu: str | None
    cann: str | None
    socs: tuple[str, ...]
    memory_bytes: int = Field(ge=0, lt=_SIZE_LIMIT)


class Licence(Part):
    """Of the weights: its identifier, and whom to credit. Its text is the bundle's file LICENSE.txt."""

    identifier: str
    attribution: str


class Verification(Part):
    """What verify had found when the bundle was made, from results/accuracy.json."""

    verdict: Literal["pass", "fail", "blocked"]
    device: str
    engines: tuple[str, ...]
    simulated: bool


class SelfTest(Part):
    """What the box runs before the switch: golden cases, then one recording of the artifact (None: it has none)."""

    cases: tuple[str, ...]
    recording: str | None


class Piece(Part):
    """`size` bytes at `offset` of the blob `source`; source None: the patch's own bytes, one after the other."""

    source: Sha256 | None
    offset: int = Field(ge=0, lt=_SIZE_LIMIT)
    size: int = Field(ge=1, lt=_SIZE_LIMIT)


class Patch(Part):
    """How a blob is put together on the box; `sha256` and `size` are those of the patch's own bytes in the archive."""

    sha256: Sha256
    size: int = Field(ge=0, lt=_SIZE_LIMIT)
    pieces: tuple[Piece, ...]


class Base(Part):
    """The bundle that this one is a delta of.

    `blobs` are those of the base that the box must have: they are not in this archive. `patches` maps a blob that is
    new in part, such as weights with a changed decoder, to how it is made of them.
    """

    version: Version
    manifest_sha256: Sha256
    blobs: tuple[Sha256, ...]
    patches: dict[Sha256, Patch]


class BundleManifest(Part):
    """`atlas.json`.

    `files` maps each path of the installed version's folder to its blob: `artifact/...` is the artifact's folder,
    beside it lie LICENSE.txt, README.md (the model card), bom.cdx.json, results/ and, of the profile om, om/.
    `content_sha256` is that of the artifact in the bundle, which lacks the formats that the profile leaves out.
    """

    format_version: int
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    family: str
    variant: Variant
    profile: Profile
    version: Version
    content_sha256: Sha256
    files: dict[RelativePath, FileEntry]
    requirements: Requirements
    licence: Licence
    verification: Verification | None
    waivers: tuple[Waiver, ...]
    self_test: SelfTest
    base: Base | None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Refuse what could not be installed as written: see the messages."""
        _check_paths(self.files)
        sizes: dict[str, int] = {}
        for path, entry in self.files.items():
            if sizes.setdefault(entry.sha256, entry.size) != entry.size:
                raise ValueError(f"{path!r}: its blob has another size elsewhere in the manifest")
            if entry.size >= _SIZE_LIMIT:
                raise ValueError(f"{path!r}: no file is that large")
        if self.base:
            _check_base(self.base, sizes)
        if not _rising(self.waivers):
            raise ValueError("waivers: not sorted, or not distinct")
        return self

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> BundleManifest:
        """Parse and check `atlas.json`.

        Parameters
        ----------
        data : bytes
            The file.
        where : str
            The bundle's path, for messages.

        Raises
        ------
        DamagedArtifactError
            The bytes are not a manifest of this format version in canonical form, or it contradicts itself.

        """
        try:
            raw = load_json(data, _MAX_VALUES)
        except ValueError as error:
            raise _damaged(where, f"expected JSON, found something else ({_short(error)})") from error
        found = raw.get("format_version") if isinstance(raw, dict) else None
        if found != BUNDLE_FORMAT_VERSION:
            raise DamagedArtifactError(
                f"{where}: {BUNDLE_MANIFEST_NAME}: expected bundle format {BUNDLE_FORMAT_VERSION}, found "
                f"{_short(found)}; update atlasport on this machine, or freeze the model again"
            )
        try:
            manifest = cls.model_validate_json(data)
            canonical = manifest.to_bytes()
        except ValidationError as error:
            first = error.errors()[0]
            place = _short(".".join(str(part) for part in first["loc"]))
            raise _damaged(where, f"{place}: {_short(first['msg'])}" if place else _short(first["msg"])) from error
        except ValueError as error:  # half a surrogate pair has no UTF-8
            raise _damaged(where, _short(error)) from error
        if canonical != data:
            raise _damaged(where, "not in the form that freeze writes")
        return manifest

    def to_bytes(self) -> bytes:
        """Return the canonical file: sorted keys, two spaces, one line feed at the end."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()

    @property
    def blobs(self) -> dict[str, int]:
        """Sizes in bytes of the blobs that a box gets from the archive, by SHA-256: those not among the base's."""
        elsewhere = set(self.base.blobs) if self.base else set()
        return dict(sorted({f.sha256: f.size for f in self.files.values() if f.sha256 not in elsewhere}.items()))

    @property
    def members(self) -> dict[str, int]:
        """Sizes in bytes of the archive's members `blobs/<sha256>`, in their order: a patch in place of its blob."""
        patches = self.base.patches if self.base else {}
        found = (
            (patches[blob].sha256, patches[blob].size) if blob in patches else (blob, size)
            for blob, size in self.blobs.items()
        )
        return dict(sorted(found))


def _check_paths(files: dict[str, FileEntry]) -> None:
    """Refuse paths that cannot all be files of one folder on every file system."""
    if len(files) > MAX_FILES:
        raise ValueError(f"expected at most {MAX_FILES} files, found {len(files)}")
    needed = (f"{ARTIFACT_FOLDER}/{MANIFEST_NAME}", LICENCE_NAME, CARD_NAME, BOM_NAME)
    if missing := [path for path in needed if path not in files]:
        raise ValueError(f"expected the file {missing[0]!r}, found none")
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in files:
        _check_path(path)
        if (other := seen.setdefault(_folded(path), path)) != path:
            raise ValueError(f"paths {other!r} and {path!r} differ in case only")
        for folder in PurePosixPath(path).parents[:-1]:
            if (other := folders.setdefault(_folded(str(folder)), str(folder))) != str(folder):
                raise ValueError(f"folders {other!r} and {str(folder)!r} differ in case only")
    if both := seen.keys() & folders.keys():
        raise ValueError(f"path {min(both)!r} is a file and a folder")


def _check_path(path: str) -> None:
    top, slash, _ = path.partition("/")
    if top not in (_FOLDERS if slash else _FILES):
        raise ValueError(f"path {path!r} belongs to no part of a bundle")
    if len(path.encode()) > MAX_PATH_BYTES or max(len(p.encode()) for p in path.split("/")) > _MAX_NAME_BYTES:
        raise ValueError(f"path {path[:50]!r}... is too long")
    if path.count("/") >= _MAX_DEPTH:
        raise ValueError(f"path {path[:50]!r}... is too deep")


def _check_base(base: Base, sizes: dict[str, int]) -> None:
    """Refuse a delta that could not be put together; `sizes` are those of the files' blobs."""
    if not _rising(base.blobs):
        raise ValueError("base: its blobs are not sorted, or not distinct")
    there = set(base.blobs)
    used = {piece.source for patch in base.patches.values() for piece in patch.pieces if piece.source}
    if strange := there - set(sizes) - used:
        raise ValueError(f"base: blob {min(strange)[:12]} belongs to no file")
    if strange := (used - there) | (set(base.patches) - set(sizes)) | (set(base.patches) & there):
        raise ValueError(f"base: blob {min(strange)[:12]} is patched, or part of a patch, against the rules")
    own = [patch.sha256 for patch in base.patches.values()]
    if len(set(own)) < len(own) or set(own) & set(sizes):
        raise ValueError("base: two members of the archive have the same name")
    _check_patches(base.patches, sizes)


def _check_patches(patches: dict[str, Patch], sizes: dict[str, int]) -> None:
    if (found := sum(len(patch.pieces) for patch in patches.values())) > MAX_PIECES:
        raise ValueError(f"base: expected at most {MAX_PIECES} pieces, found {found}")
    for blob, patch in patches.items():
        at = 0
        for piece in patch.pieces:
            if piece.source is None:
                if piece.offset != at:
                    raise ValueError(f"base: the patch of {blob[:12]} does not take its own bytes one after the other")
                at += piece.size
        if at != patch.size or sum(piece.size for piece in patch.pieces) != sizes[blob]:
            raise ValueError(f"base: the patch of {blob[:12]} gives another number of bytes")


def _folded(path: str) -> str:
    """Return what two paths have in common that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _rising(values: tuple[str, ...]) -> bool:
    return all(first < second for first, second in pairwise(values))


def _damaged(where: str, what: str) -> DamagedArtifactError:
    return DamagedArtifactError(f"{where}: {BUNDLE_MANIFEST_NAME}: {what}; the bundle is damaged, get it again")


def _short(found: object) -> str:
    """Return what was found in a damaged file as part of one line."""
    return repr(str(found)[:100])[1:-1][:150]
