"""What a fleet agent asks of a box: versions, signatures, last self-tests, device, and one exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.box.requirements import check_requirements, default_device
from runtime.box.root import Box
from runtime.box.self_test import last
from runtime.box.state import STATE_NAME, BoxState
from runtime.box.versions import check_links, open_version
from runtime.bundle.manifest import BundleManifest
from runtime.doctor import Diagnosis, diagnose
from runtime.errors import AtlasportError, DamagedArtifactError, EnvironmentNotFitError, ExitCode


@dataclass(frozen=True)
class VersionStatus:
    """One installed version; `signed` says that its signature was checked, by the key `key_id`.

    `trusted` is False where that key was replaced since: it is then neither activated nor rolled back to.
    """

    version: str
    use: Literal["active", "previous", ""]
    profile: str | None
    variant: str | None
    size_bytes: int | None
    signed: bool
    key_id: str | None
    trusted: bool


@dataclass(frozen=True)
class ModelStatus:
    """One model. `self_test`, `signature`, `verification` and `waivers` are those of the active version.

    `problems` are lines on what is wrong with the active version, none where it is healthy.
    """

    model: str
    active: str | None
    previous: str | None
    highest: str
    installed: tuple[VersionStatus, ...]
    signature: dict[str, Any] | None
    self_test: dict[str, Any] | None
    verification: dict[str, Any] | None
    waivers: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class BoxStatus:
    """The whole box; `code` is what the command line leaves with.

    0: healthy; 1: the last self-test of an active version did not pass; 3: the device or the machine does not fit;
    4: an active version or the box itself is damaged. The highest counts. `damage` are lines on the box itself.
    """

    root: str
    code: int
    public_key: str | None
    damage: tuple[str, ...]
    models: tuple[ModelStatus, ...]
    devices: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the status as plain JSON types."""
        return asdict(self)

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, one line each."""
        lines = [*self.damage, *(f"{model.model}: {problem}" for model in self.models for problem in model.problems)]
        findings = [finding for finding in self.devices.get("findings", ()) if finding["level"] == "problem"]
        return lines + [f"{finding['about']}: {finding['found']}; {finding['advice']}" for finding in findings]


def box_status(root: Path, device: str | None = None, *, read_all: bool = False) -> BoxStatus:
    """Look at the box in `root` without changing anything: it may be read-only, and no lock is taken.

    Parameters
    ----------
    root : Path
        The box.
    device : str, optional
        The device to look at; by default those that the active versions' profiles are made for.
    read_all : bool
        Read every byte of the active versions and compare it with its hash, not sizes and links alone.

    Raises
    ------
    InputError
        There is no box.
    DamagedArtifactError
        Its state is not one.

    """
    box = Box(root)
    state, damage = _looked_at(box)
    judged = [_model(box, state, name, device, read_all=read_all) for name in sorted(state.models)]
    devices = sorted({device or chosen for _, chosen, _ in judged if chosen})
    diagnosis = diagnose(devices, []) if devices else None
    codes = [code for _, _, code in judged]
    if diagnosis is not None and not diagnosis.fit:
        codes.append(ExitCode.ENVIRONMENT)
    if damage:
        codes.append(ExitCode.DAMAGED)
    return BoxStatus(
        root=str(root),
        code=int(max(codes, default=ExitCode.OK)),
        public_key=state.public_key,
        damage=tuple(damage),
        models=tuple(model for model, _, _ in judged),
        devices=_devices(diagnosis),
    )


def installed_versions(root: Path) -> list[tuple[str, VersionStatus]]:
    """Return every installed version on the box in `root` with its model's name, by name and version.

    Raises
    ------
    InputError
        There is no box.
    DamagedArtifactError
        Its state is not one.

    """
    box = Box(root)
    state = box.state()
    return [
        (name, _version(state, name, version, _manifest(box, state, name, version)))
        for name in sorted(state.models)
        for version in state.models[name].versions
    ]


def _looked_at(box: Box) -> tuple[BoxState, list[str]]:
    """Return the state and what is wrong with the box itself; a command may change both meanwhile."""
    state, damaged = box.state_and_damage()
    while (strays := box.strays(state)) and (now := box.state()) != state:
        state = now
    lines = [f"{folder}: is not listed in {STATE_NAME}; install its bundle again, or move it away" for folder in strays]
    if damaged:
        what = str(damaged).rpartition(";")[0]
        lines.insert(0, f"{what}; its copy is used, and the next command that changes the box repairs it")
    return state, lines


def _devices(diagnosis: Diagnosis | None) -> dict[str, Any]:
    if diagnosis is None:
        return {}
    facts = diagnosis.to_json()
    return {name: facts[name] for name in ("devices", "fit", "simulated", "checks", "findings")}


def _model(
    box: Box, state: BoxState, name: str, device: str | None, *, read_all: bool
) -> tuple[ModelStatus, str | None, ExitCode]:
    """Return a model's status, the device of its active version, and the exit code that it asks for."""
    there = state.models[name]
    manifests = {version: _manifest(box, state, name, version) for version in there.versions}
    versions = tuple(_version(state, name, version, manifest) for version, manifest in manifests.items())
    problems: list[str] = []
    codes: list[ExitCode] = []
    tested = manifest = chosen = None
    if there.active is not None:
        manifest = manifests[there.active]
        chosen = default_device(manifest.profile) if manifest else None
        tested = last(box, name, there.active)
        if error := _error(box, state, name, there.active, device, read_all=read_all):
            problems.append(str(error))
            codes.append(error.exit_code)
        if not there.installed[there.active].trusted(state.public_key):
            problems.append(f"{there.active} is signed with a key that --repin has replaced; activate another version")
            codes.append(ExitCode.DAMAGED)
        if tested is None:
            problems.append(f"{there.active} has no self-test; `atlasport activate {name} {there.active}` runs it")
            codes.append(ExitCode.GATE_FAILED)
        elif tested.verdict != "pass":
            problems.append(f"self-test of {there.active}: {tested.verdict}, {tested.reason}")
            codes.append(ExitCode.GATE_FAILED if tested.verdict == "fail" else ExitCode.ENVIRONMENT)
    model = ModelStatus(
        model=name,
        active=there.active,
        previous=there.previous,
        highest=there.highest,
        installed=versions,
        signature=_signature(versions, there.active),
        self_test=tested.model_dump(mode="json") if tested else None,
        verification=manifest.verification.model_dump(mode="json") if manifest and manifest.verification else None,
        waivers=manifest.waivers if manifest else (),
        problems=tuple(problems),
    )
    return model, chosen, max(codes, default=ExitCode.OK)


def _error(
    box: Box, state: BoxState, name: str, version: str, device: str | None, *, read_all: bool
) -> AtlasportError | None:
    """Return what keeps the active version from running here, damage first."""
    try:
        manifest = box.manifest(state, name, version)
        if read_all:
            open_version(box, state, name, version)
        else:
            check_links(box, box.version_folder(name, version), manifest)
        check_requirements(manifest.requirements, device or default_device(manifest.profile), memory=False)
    except (DamagedArtifactError, EnvironmentNotFitError) as error:
        return error
    return None


def _manifest(box: Box, state: BoxState, name: str, version: str) -> BundleManifest | None:
    try:
        return box.manifest(state, name, version)
    except AtlasportError:
        return None


def _version(state: BoxState, name: str, version: str, manifest: BundleManifest | None) -> VersionStatus:
    there = state.models[name]
    key_id = there.installed[version].key_id
    sizes = {entry.sha256: entry.size for entry in manifest.files.values()} if manifest else {}
    return VersionStatus(
        version=version,
        use="active" if there.active == version else "previous" if there.previous == version else "",
        profile=manifest.profile if manifest else None,
        variant=manifest.variant if manifest else None,
        size_bytes=sum(sizes.values()) if manifest else None,
        signed=key_id is not None,
        key_id=key_id,
        trusted=there.installed[version].trusted(state.public_key),
    )


def _signature(versions: Sequence[VersionStatus], active: str | None) -> dict[str, Any] | None:
    found = next((v for v in versions if v.version == active), None)
    return {"key_id": found.key_id, "signed": found.signed, "trusted": found.trusted} if found else None
