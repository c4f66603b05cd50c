"""Activates versions and goes back: the self-test is run, then one rename of the state is the switch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.artifact import Artifact
from runtime.box.requirements import check_requirements, default_device
from runtime.box.root import Box
from runtime.box.self_test import SelfTestResult, not_passed, self_test, store
from runtime.box.state import BoxState, version_key
from runtime.box.versions import open_version
from runtime.bundle.manifest import BundleManifest
from runtime.engines import check_device_name
from runtime.errors import AtlasportError, DamagedArtifactError, GateError, InputError


@dataclass(frozen=True)
class Switched:
    """A switch of one model from version `before` (None: none was active) to `now`, with its self-test."""

    model: str
    before: str | None
    now: str
    self_test: SelfTestResult | None


def activate(
    root: Path, model: str, version: str, device: str | None = None, *, allow_downgrade: bool = False
) -> Switched:
    """Run the self-test of an installed version and make it the active one.

    Parameters
    ----------
    root : Path
        The box.
    model, version : str
        What to activate.
    device : str, optional
        What the self-test runs on; by default what the version's profile is made for.
    allow_downgrade : bool
        Take a version below the active one, too.

    Raises
    ------
    InputError
        It is not installed, or is below the active version.
    GateError
        The self-test failed. The active version is the one before.
    EnvironmentNotFitError, DamagedArtifactError
        The self-test could not run, or the version is signed with a key that is no longer the box's. The active version
        is the one before.

    """
    box = Box(root)
    check_device_name(device or "cpu")
    with box.locked() as state:
        there = state.model(model)
        state.installed(model, version)
        active = there.active
        if active is not None and version_key(version) < version_key(active) and not allow_downgrade:
            raise InputError(
                f"{model}: expected a version from {active} on, found {version}; `atlasport rollback {model}` goes "
                "back one step, --allow-downgrade takes any"
            )
        _check_key(state, model, version)
        artifact, manifest = open_version(box, state, model, version)
        result = _tested(box, artifact, manifest, device)
        if result.verdict == "fail":
            kept = f"{active} stays active" if active else "no version is active"
            raise GateError(f"{model} {version}: self-test failed on {result.device}: {result.reason}; {kept}")
        if active != version:
            box.switch(_active(state, model, version, previous=active))
    return Switched(model, active, version, result)


def rollback(root: Path, model: str, device: str | None = None, *, test: bool = True) -> Switched:
    """Make the previous version the active one, then run its self-test.

    The switch comes first: whoever rolls back has a version that does not work, and a device that cannot run a test
    must not keep him from it. Only a previous version whose files are damaged, or whose key was replaced, is refused.
    What was active can be activated again; a second rollback has nowhere to go.

    Raises
    ------
    InputError
        There is no previous version.
    DamagedArtifactError
        The previous version is damaged, or signed with a key that is no longer the box's. Nothing was switched.

    """
    box = Box(root)
    check_device_name(device or "cpu")
    with box.locked() as state:
        there = state.model(model)
        if there.previous is None:
            raise InputError(
                f"{model}: expected a previous version, found none; installed: {', '.join(there.versions) or 'none'}, "
                f"active: {there.active or 'none'}; `atlasport activate {model} VERSION --allow-downgrade` takes one"
            )
        _check_key(state, model, there.previous)
        artifact, manifest = open_version(box, state, model, there.previous)
        box.switch(_active(state, model, there.previous, previous=None))
        result = None
        if test:
            try:
                result = _tested(box, artifact, manifest, device)
            except (AtlasportError, OSError) as error:
                result = not_passed(manifest, device or default_device(manifest.profile), "blocked", str(error))
    return Switched(model, there.active, manifest.version, result)


def _check_key(state: BoxState, model: str, version: str) -> None:
    entry = state.installed(model, version)
    if entry.key_id is not None and not entry.trusted(state.public_key):
        raise DamagedArtifactError(
            f"{model} {version}: expected a version signed with this box's key {state.public_key}, found the key "
            f"{entry.key_id} that --repin has replaced; sign its bundle with the new key and install it again"
        )


def _tested(box: Box, artifact: Artifact, manifest: BundleManifest, device: str | None) -> SelfTestResult:
    """Check the requirements, run the self-test and keep its result, that of a test that could not run, too."""
    chosen = device or default_device(manifest.profile)
    try:
        check_requirements(manifest.requirements, chosen)
        result = self_test(artifact, manifest, chosen)
    except AtlasportError as error:
        store(box, not_passed(manifest, chosen, "blocked", str(error)))
        raise
    except Exception as error:  # noqa: BLE001 - engines refuse graphs with errors of their own
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        result = not_passed(manifest, chosen, "fail", said)
    store(box, result)
    return result


def _active(state: BoxState, model: str, version: str, previous: str | None) -> BoxState:
    changed = state.models[model].model_copy(update={"active": version, "previous": previous})
    return state.with_model(model, changed)
