"""`atlasport inspect`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from runtime.bundle.manifest import BundleManifest


def inspect(
    bundle: Annotated[Path, typer.Argument(help="An .atlas file.")],
    public_key: Annotated[
        Path | None, typer.Option(help="key.pub, or a root certificate: the signature must be by its owner.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every byte of a bundle and say what is in it."""
    from runtime.bundle.archive import open_bundle
    from runtime.bundle.signing import key_id, signer
    from runtime.errors import DamagedArtifactError

    with open_bundle(bundle, public_key) as reader:
        if public_key is not None and reader.signature is None:
            raise DamagedArtifactError(f"{bundle}: expected a signature, found none; get a signed bundle")
        reader.check()
    signature: dict[str, Any] = {
        "signed": reader.signature is not None,
        "verified": public_key is not None,
        "key_id": None if public_key is None else key_id(public_key),
        "signer": None if reader.signature is None else asdict(signer(reader.signature)),
    }
    manifest = reader.manifest
    if json_output:
        whole = {
            "path": str(bundle),
            "size": reader.size,
            "manifest_sha256": hashlib.sha256(reader.manifest_bytes).hexdigest(),
            "signature": signature,
            "manifest": manifest.model_dump(mode="json"),
        }
        typer.echo(json.dumps(whole))
    else:
        _print(bundle, reader.size, signature, manifest)


def _print(bundle: Path, size: int, signature: dict[str, Any], manifest: BundleManifest) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in _facts(size, signature, manifest).items():
        table.add_row(name, text)
    console.print(table)
    files = Table(box=None, pad_edge=False)
    files.add_column("file", overflow="fold")
    files.add_column("bytes", justify="right")
    files.add_column("SHA-256")
    whose = dict.fromkeys(manifest.base.blobs, " in the base") if manifest.base else {}
    whose |= dict.fromkeys(manifest.base.patches, " in part") if manifest.base else {}
    for path, entry in sorted(manifest.files.items()):
        files.add_row(path, str(entry.size), entry.sha256[:12] + whose.get(entry.sha256, ""))
    console.print(files)
    console.print(f"{bundle}: whole, every hash fits", markup=False)


def _signer(found: dict[str, Any]) -> str:
    if found["hint"]:
        return f"the key whose PEM has SHA-256 {found['hint']}"
    chain = "".join(f", issued by {name}" for name in (found["chain"] or (found["issuer"],)))
    return (
        f"{found['subject']}{chain}; valid {found['not_before'][:10]} to {found['not_after'][:10]}, "
        f"SHA-256 {found['sha256']}"
    )


def _facts(size: int, signature: dict[str, Any], manifest: BundleManifest) -> dict[str, str]:
    """Return what a person wants to know, by its name."""
    needs, found = manifest.requirements, manifest.verification
    versions = {"Python": needs.python, **needs.packages, "torch_npu": needs.torch_npu, "CANN": needs.cann}
    signed = {
        (False, False): "none",
        (True, False): "there, not verified: name the key (--public-key)",
        (True, True): f"verified, key {signature['key_id']}",
    }
    by = signature["signer"]
    verified = "none"
    if found is not None:
        engines = f", passed: {', '.join(found.engines) or 'none of the profile'}"
        verified = f"{found.verdict} on {found.device}{' (SIMULATED)' if found.simulated else ''}{engines}"
    facts = {
        "model": f"{manifest.model} ({manifest.family}, {manifest.variant})",
        "version": manifest.version,
        "profile": manifest.profile,
        "signature": signed[signature["signed"], signature["verified"]],
        **({} if by is None else {"signer" if signature["verified"] else "says it is by": _signer(by)}),
        "verification": verified,
        "waivers": ", ".join(manifest.waivers) or "none",
        "licence": f"{manifest.licence.identifier}. {manifest.licence.attribution}",
        "needs": ", ".join(f"{name} {text}" for name, text in versions.items() if text)
        + f", about {needs.memory_bytes / 2**20:.0f} MiB of memory",
        "SoCs": ", ".join(needs.socs) or "any",
        "self-test": ", ".join([*manifest.self_test.cases, *filter(None, [manifest.self_test.recording])]),
        "size": f"{size / 1e6:.1f} MB, {len(manifest.files)} files in {len(manifest.members)} blobs",
    }
    if manifest.base:
        facts["delta of"] = (
            f"{manifest.base.version}: needs {len(manifest.base.blobs)} blobs of it, "
            f"has {len(manifest.base.patches)} files in part"
        )
    return facts
