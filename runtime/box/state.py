"""`state.json` of a box: which versions are installed, which one is active. Replacing it is the only switch.

Its bytes are canonical and hold their own SHA-256: a file in which any bit has changed is no state.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, ValidationError

from runtime.bundle.manifest import Version
from runtime.errors import DamagedArtifactError, InputError
from runtime.manifest import Part, Sha256

STATE_NAME = "state.json"
# The same again, never older: what is read where state.json is damaged.
COPY_NAME = "state.json.copy"
STATE_FORMAT_VERSION = 2
_CHECKSUM = "sha256"
# As in a bundle's manifest: it names a folder.
_ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class InstalledVersion(Part):
    """One installed version: the SHA-256 of its atlas.json, and the key it was signed with (None: not checked)."""

    manifest_sha256: Sha256
    key_id: Sha256 | None

    def trusted(self, public_key: str | None) -> bool:
        """Return whether it may be activated: not where it was signed with a key that `--repin` has replaced."""
        return self.key_id in (None, public_key)


class ModelState(Part):
    """The versions of one model.

    `previous` is what a rollback returns to. `highest` is the highest version that was ever installed: an older
    bundle that comes again is refused, also after the newer one was removed.
    """

    active: Version | None = None
    previous: Version | None = None
    highest: Version
    installed: dict[Version, InstalledVersion]

    @property
    def versions(self) -> list[str]:
        """The installed versions, lowest first."""
        return sorted(self.installed, key=version_key)


class BoxState(Part):
    """`state.json`. `public_key` is the id of the key that this box accepts, None before the first signed install."""

    format_version: int = STATE_FORMAT_VERSION
    public_key: Sha256 | None = None
    models: dict[_ModelName, ModelState] = Field(default_factory=dict)

    def model(self, name: str) -> ModelState:
        """Return the state of a model.

        Raises
        ------
        InputError
            It is not installed; the message lists what is.

        """
        if name not in self.models:
            there = ", ".join(sorted(self.models)) or "none"
            raise InputError(f"model {name!r}: expected an installed one, found {there}; install its bundle first")
        return self.models[name]

    def installed(self, name: str, version: str) -> InstalledVersion:
        """Return what is known of an installed version.

        Raises
        ------
        InputError
            It is not installed; the message lists the versions that are.

        """
        model = self.model(name)
        if version not in model.installed:
            there = ", ".join(model.versions) or "none"
            raise InputError(f"{name} {version}: expected an installed version, found {there}; install its bundle")
        return model.installed[version]

    def listed(self) -> Iterator[tuple[str, str]]:
        """Yield model and version of everything that is installed."""
        for name, model in self.models.items():
            for version in model.installed:
                yield name, version

    def lists(self, name: str, version: str) -> bool:
        """Return whether a version is installed."""
        return name in self.models and version in self.models[name].installed

    def with_model(self, name: str, model: ModelState) -> BoxState:
        """Return the state with another state of one model; a model without versions stays, for its `highest`."""
        return self.model_copy(update={"models": {**self.models, name: model}})

    def to_bytes(self) -> bytes:
        """Return the canonical file: sorted keys, two spaces, one line feed at the end, and the SHA-256 of all that."""
        values = self.model_dump(mode="json")
        return _canonical({**values, _CHECKSUM: hashlib.sha256(_canonical(values)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> BoxState:
        """Parse and check the file.

        Raises
        ------
        DamagedArtifactError
            It is not a state of this format version, a bit of it has changed, or it contradicts itself.

        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _damaged(where, "expected JSON, found something else") from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != STATE_FORMAT_VERSION:
            raise _damaged(where, f"expected format {STATE_FORMAT_VERSION}, found {str(found)[:20]!r}")
        values.pop(_CHECKSUM, None)
        try:
            state = cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _damaged(where, f"{place}: {first['msg']}" if place else first["msg"]) from error
        if state.to_bytes() != data:
            raise _damaged(where, "its SHA-256 does not fit")
        for name, model in state.models.items():
            for version in (model.active, model.previous):
                if version is not None and version not in model.installed:
                    raise _damaged(where, f"{name} {version} is in use but not installed")
        return state


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=2) + "\n").encode()


def is_sha256(name: str) -> bool:
    """Return whether a name can be that of a blob."""
    return re.fullmatch("[0-9a-f]{64}", name) is not None


def version_key(version: str) -> tuple[int, ...]:
    """Return MAJOR.MINOR.PATCH as numbers, to compare by."""
    return tuple(int(part) for part in version.split("."))


def _damaged(where: str, what: str) -> DamagedArtifactError:
    return DamagedArtifactError(
        f"{where}: {what}; the box's state is damaged, restore the file or install into another --root"
    )
