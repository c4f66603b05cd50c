"""`atlasport wheelhouse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def wheelhouse(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Processor and Python of the box: aarch64-cp311.")],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: dist/wheelhouse-TARGET.")] = None,
    profile: Annotated[str, typer.Option(help="cpu: with ONNX Runtime; npu: with torch and torch_npu.")] = "cpu",
    torch_npu: Annotated[
        str | None, typer.Option(help="Of the profile npu: the version that fits the box's CANN, such as 2.9.0.post2.")
    ] = None,
    torch: Annotated[str | None, typer.Option(help="Default: the version that torch_npu is made for.")] = None,
    torch_index: Annotated[
        str | None, typer.Option(metavar="URL", help="An index that has torch for the CPU; default: pip's own.")
    ] = None,
) -> None:
    """Gather the wheels that a box without internet needs, from a checkout: `pip install --no-index` does the rest."""
    from export.freeze.wheelhouse import SUMS_NAME, build_wheelhouse
    from export.freeze.wheelhouse_pins import Target, TorchPair
    from runtime.artifact import sha256_of

    parsed = Target.parse(target)
    folder = out or Path("dist") / f"wheelhouse-{target}"
    count = build_wheelhouse(parsed, folder, profile, TorchPair.parse(torch, torch_npu, torch_index))
    size = sum(path.stat().st_size for path in folder.iterdir())
    typer.echo(f"{folder}: {count} wheels, {size / 1e6:.0f} MB")
    typer.echo(f"SHA-256 of {SUMS_NAME}, which stands for all: {sha256_of(folder / SUMS_NAME)}")
    typer.echo(
        "on the box: python3 -m venv /opt/atlasport && /opt/atlasport/bin/pip install --no-index --require-hashes "
        f"--find-links {folder.name} -r {folder.name}/requirements.txt"
    )
