"""Freezes an artifact: checks that it may be shipped, and packs it into one signed file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from export.freeze.bom import bill_of_materials
from export.freeze.card import model_card
from export.freeze.delta import delta_of
from export.freeze.evidence import Evidence, read_evidence
from export.freeze.golden import entry_of, with_golden_of
from export.freeze.licences import SPDX, licence_of, licence_text
from export.freeze.profiles import profile_engines, reduced_content, requirements, self_test
from export.om import check_onnx, om_files
from runtime.artifact import Artifact, open_artifact
from runtime.bundle.archive import BlobSource, archive_size, write_bundle
from runtime.bundle.manifest import (
    ARTIFACT_FOLDER,
    BOM_NAME,
    BUNDLE_FORMAT_VERSION,
    CARD_NAME,
    LICENCE_NAME,
    RESULTS_FOLDER,
    BundleManifest,
    Profile,
    Version,
    Waiver,
)
from runtime.bundle.signing import sign
from runtime.errors import GateError, InputError
from runtime.manifest import MANIFEST_NAME

FLAGS: dict[Waiver, str] = {
    "other-device": "--allow-other-device",
    "random-weights": "--allow-random",
    "unknown-licence": "--allow-unknown-licence",
    "unverified": "--allow-unverified",
}


@dataclass(frozen=True)
class SigningKey:
    """Who signs: a private key, its passphrase where it has one, and certificates for boxes that trust a root."""

    private_key: Path
    passphrase: str | None = None
    certificates: Path | None = None


@dataclass(frozen=True)
class Frozen:
    """A written bundle. `saved_bytes` is what the archive would hold more without its base."""

    path: Path
    manifest: BundleManifest
    size: int
    signed: bool
    saved_bytes: int


@dataclass(frozen=True)
class _Plan:
    """What becomes a bundle: its manifest, and where each file's bytes are: in memory, or in the artifact's folder."""

    manifest: BundleManifest
    made: Mapping[str, bytes]
    artifact: Path


def freeze_artifact(
    folder: Path,
    profile: Profile,
    version: str,
    *,
    out: Path | None = None,
    key: SigningKey | None = None,
    base: Path | None = None,
    allowed: Collection[Waiver] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Frozen:
    """Write an artifact as a bundle; the same arguments give the same bytes.

    Parameters
    ----------
    folder : Path
        The artifact's.
    profile : {"npu", "cpu", "om"}
        Which formats are kept, and what the box must have.
    version : str
        MAJOR.MINOR.PATCH.
    out : Path, optional
        The file, or a folder for it; default `<model>-<variant>-<profile>-<version>.atlas` in the current folder. What
        is there is replaced, by a whole bundle only.
    key : SigningKey, optional
        None writes an unsigned bundle.
    base : Path, optional
        An older bundle of the model: blobs that a box has with it are left out.
    allowed : Collection of {"unverified", "other-device", "random-weights", "unknown-licence"}
        What to overlook; the bundle says which of them it needed.
    progress : Callable[[str], None]
        Is told each step.

    Raises
    ------
    GateError
        Not verified, or on another device than the profile's, random weights or an unknown licence, and that is not
        allowed; or graphs that ATC will refuse, in the profile om.
    InputError
        A wrong version, base, key, or an artifact without the profile's formats.
    DamagedArtifactError
        The artifact or the base is damaged.
    EnvironmentNotFitError
        The bundle cannot be written.

    """
    _check_version(version)
    progress("checking the artifact")
    artifact = open_artifact(folder)
    plan = _plan(artifact, profile, version, allowed)
    manifest = plan.manifest
    path = _target(out, manifest)
    whole = _blobs(plan)
    blobs: dict[str, BlobSource] = {**whole}
    if base is not None:
        progress(f"comparing with {base}")
        delta = delta_of(manifest, base, whole)
        manifest = delta.manifest
        blobs |= delta.patches
    progress("signing")
    data = manifest.to_bytes()
    signature = sign(data, key.private_key, key.passphrase, key.certificates) if key else None
    progress(f"writing {path}")
    write_bundle(path, manifest, signature, blobs)
    saved = sum(plan.manifest.members.values()) - sum(manifest.members.values())
    return Frozen(path, manifest, archive_size(manifest, signature), signed=key is not None, saved_bytes=saved)


def _plan(artifact: Artifact, profile: Profile, version: str, allowed: Collection[Waiver]) -> _Plan:
    """Return everything that is packed; only the base is open."""
    of_profile = reduced_content(artifact, profile)
    artifact.check_whole()
    engines = profile_engines(profile, of_profile)
    evidence = read_evidence(artifact, profile, engines)
    test = self_test(of_profile, evidence.differing)
    reduced, files_of_golden = with_golden_of(test.cases, artifact, of_profile)
    content = reduced.content
    licence = licence_of(content)
    waivers = _waivers(artifact, evidence, licence.identifier, allowed)
    needs = requirements(artifact.path, content, profile)
    made = {
        f"{ARTIFACT_FOLDER}/{MANIFEST_NAME}": reduced.to_bytes(),
        **{f"{ARTIFACT_FOLDER}/{name}": data for name, data in files_of_golden.items()},
        LICENCE_NAME: licence_text(content, licence).encode(),
        **{f"{RESULTS_FOLDER}/{name}": data for name, data in evidence.files.items()},
        **(_om_files(artifact) if profile == "om" else {}),
    }
    name = f"{content.model}-{content.variant}-{profile}-{version}.atlas"
    card = model_card(
        content,
        version,
        profile,
        engines=engines,
        licence=licence,
        needs=needs,
        evidence=evidence,
        waivers=waivers,
        file_name=name,
    )
    made[CARD_NAME] = card.encode()
    files = {f"{ARTIFACT_FOLDER}/{name}": entry for name, entry in content.files.items()}
    files |= {path: entry_of(data) for path, data in made.items()}
    bom = bill_of_materials(
        content, version, profile, files=files, licence=licence, needs=needs, evidence=evidence
    ).encode()
    made[BOM_NAME] = bom
    files[BOM_NAME] = entry_of(bom)
    manifest = _manifest(
        format_version=BUNDLE_FORMAT_VERSION,
        model=content.model,
        family=content.family,
        variant=content.variant,
        profile=profile,
        version=version,
        content_sha256=reduced.content_sha256,
        files=files,
        requirements=needs,
        licence=licence,
        verification=evidence.verification,
        waivers=waivers,
        self_test=test,
        base=None,
    )
    return _Plan(manifest, made, artifact.path)


def _om_files(artifact: Artifact) -> dict[str, bytes]:
    """Return the files for ATC; graphs that it will refuse are not shipped."""
    names = sorted({graph.files["onnx"] for graph in artifact.content.graphs.values()})
    found = [finding for name in names for finding in check_onnx(artifact.file(name)) if finding.level == "refused"]
    if found:
        raise GateError(
            f"{artifact.path}: ATC will refuse {len(found)} things, the first: {found[0]}; "
            "`atlasport check-om` lists them, `--profile cpu` or npu does without ATC"
        )
    return om_files(artifact)


def _waivers(artifact: Artifact, evidence: Evidence, licence: str, allowed: Collection[Waiver]) -> tuple[Waiver, ...]:
    """Return what speaks against shipping, sorted; all of it must be allowed."""
    found: dict[Waiver, str] = {}
    if evidence.elsewhere:
        found["other-device"] = evidence.elsewhere
    if artifact.content.source.weights == "random":
        found["random-weights"] = "its weights are random"
    if licence not in SPDX:
        found["unknown-licence"] = f"its licence is {licence!r}, expected one of {', '.join(SPDX)}"
    if evidence.problem:
        found["unverified"] = evidence.problem
    refused = [waiver for waiver in found if waiver not in allowed]
    if refused:
        reasons = "; ".join(found[waiver] for waiver in refused)
        flags = " ".join(FLAGS[waiver] for waiver in refused)
        raise GateError(f"{artifact.path}: not frozen: {reasons}; {flags} freezes it all the same, and says so in it")
    return tuple(found)


def _blobs(plan: _Plan) -> dict[str, Path | bytes]:
    """Return where the bytes of each blob are."""
    return {
        entry.sha256: plan.made.get(name) or plan.artifact / name.removeprefix(f"{ARTIFACT_FOLDER}/")
        for name, entry in plan.manifest.files.items()
    }


def _target(out: Path | None, manifest: BundleManifest) -> Path:
    name = f"{manifest.model}-{manifest.variant}-{manifest.profile}-{manifest.version}.atlas"
    if out is None:
        return Path(name)
    return out / name if out.is_dir() else out


def _check_version(version: str) -> None:
    try:
        TypeAdapter(Version).validate_python(version)
    except ValidationError as error:
        raise InputError(f"--version: expected MAJOR.MINOR.PATCH such as 1.4.0, found {version!r}") from error


def _manifest(**parts: object) -> BundleManifest:
    try:
        return BundleManifest.model_validate(parts)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{place or 'files'}: {first['msg']}; export the model under another name") from error
