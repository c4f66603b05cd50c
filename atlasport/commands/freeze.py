"""`atlasport freeze`."""

from __future__ import annotations

import os
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, KEY_VARIABLE, Precision, PrecisionOption, RootOption

if TYPE_CHECKING:
    from export.freeze.pipeline import Frozen, SigningKey
    from runtime.bundle.manifest import Waiver


class ProfileName(str, Enum):
    """What a box runs the bundle on."""

    NPU = "npu"
    CPU = "cpu"
    OM = "om"


def freeze(
    artifact: Annotated[str, typer.Argument(help="Artifact folder or name of an exported model.")],
    version: Annotated[str, typer.Option(help="MAJOR.MINOR.PATCH; on a box versions only rise.")],
    profile: Annotated[
        ProfileName, typer.Option(help="npu keeps TorchScript and .pt2, cpu ONNX, om ONNX for ATC.")
    ] = ProfileName.NPU,
    key: Annotated[Path | None, typer.Option(help="Private key that signs (atlasport keygen); default: none.")] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(help="PEM file with the key's certificate and those up to the root, for boxes that trust a root."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File or folder; default: <model>-<variant>-<profile>-<version>.atlas.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Older bundle of the model that the boxes have: only new blobs are packed.")
    ] = None,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Although verify did not pass; the bundle says so.")
    ] = False,
    allow_other_device: Annotated[
        bool,
        typer.Option(
            "--allow-other-device", help="Although verify ran on another device than the profile's; the bundle says so."
        ),
    ] = False,
    allow_random: Annotated[
        bool, typer.Option("--allow-random", help="Although the weights are random; the bundle says so.")
    ] = False,
    allow_unknown_licence: Annotated[
        bool, typer.Option("--allow-unknown-licence", help="Although the licence is unknown; the bundle says so.")
    ] = False,
    precision: PrecisionOption = Precision.FP32,
    root: RootOption = ARTIFACTS,
) -> None:
    """Pack a verified artifact into one signed file that `atlasport install` puts onto a box."""
    from export.freeze.pipeline import freeze_artifact
    from runtime.artifact import find_artifact
    from runtime.progress import steps

    waivers: dict[Waiver, bool] = {
        "unverified": allow_unverified,
        "other-device": allow_other_device,
        "random-weights": allow_random,
        "unknown-licence": allow_unknown_licence,
    }
    began = time.perf_counter()
    with steps() as say:
        frozen = freeze_artifact(
            find_artifact(artifact, root, precision.value),
            profile.value,
            version,
            out=out,
            key=_signing_key(key, certificates),
            base=base,
            allowed=[waiver for waiver, allowed in waivers.items() if allowed],
            progress=say,
        )
    _print_summary(frozen, base, time.perf_counter() - began)


def _signing_key(key: Path | None, certificates: Path | None) -> SigningKey | None:
    from export.freeze.pipeline import SigningKey
    from runtime.bundle.signing import is_encrypted
    from runtime.errors import InputError

    if key is None:
        if certificates is not None:
            raise InputError("--certificates: expected --key beside it, found none; name the certificate's private key")
        return None
    passphrase = os.environ.get(KEY_VARIABLE) or None
    if passphrase is None and is_encrypted(key) and sys.stdin.isatty():
        passphrase = typer.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    return SigningKey(key, passphrase, certificates)


def _print_summary(frozen: Frozen, base: Path | None, wall_s: float) -> None:
    import resource

    manifest = frozen.manifest
    for waiver in manifest.waivers:
        typer.echo(f"note: frozen in spite of {waiver.replace('-', ' ')}; the bundle says so")
    found = manifest.verification
    if found is not None and found.simulated:
        typer.echo("note: verified on a simulated device; the bundle says so")
    if base is not None and manifest.base is not None:
        typer.echo(
            f"delta of {manifest.base.version}: {frozen.saved_bytes / 1e6:.1f} MB saved, "
            f"{len(manifest.base.blobs)} blobs left out, {len(manifest.base.patches)} sent in part"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    typer.echo(f"{len(manifest.files)} files, {len(manifest.members)} blobs; {wall_s:.1f} s, peak {peak / 1e6:.0f} MB")
    signed = (
        "signed" if frozen.signed else "not signed: a box takes it with --allow-unsigned only (see atlasport keygen)"
    )
    typer.echo(f"froze {frozen.path} ({frozen.size / 1e6:.1f} MB), {signed}")
