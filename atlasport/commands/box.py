"""`atlasport install`, `activate`, `rollback`, `list`, `remove` and `gc`: what changes a box."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runtime.box.install import Installed
    from runtime.box.switch import Switched

BoxOption = Annotated[Path, typer.Option("--root", help="Folder of the box.")]
ModelArgument = Annotated[str, typer.Argument(help="An installed model's name.")]
VersionArgument = Annotated[str, typer.Argument(help="One of its versions, as in 1.2.0.")]
SelfTestDeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda:N or npu:N; default: what the bundle's profile is made for.")
]
DowngradeOption = Annotated[bool, typer.Option("--allow-downgrade", help="Take an older version, too.")]


def install(
    bundle: Annotated[Path, typer.Argument(help="A bundle, <model>-<variant>-<profile>-<version>.atlas.")],
    root: BoxOption,
    public_key: Annotated[
        Path | None, typer.Option(help="Public key (or root certificate) that the bundle must be signed with.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Self-test and switch to it, too.")] = False,
    device: SelfTestDeviceOption = None,
    allow_unsigned: Annotated[bool, typer.Option("--allow-unsigned", help="Do without a signature.")] = False,
    allow_downgrade: DowngradeOption = False,
    repin: Annotated[
        bool, typer.Option("--repin", help="Accept another key than that of the first install, from now on.")
    ] = False,
) -> None:
    """Install a signed bundle on this box: checks first, then what is not here yet; --activate switches to it."""
    from runtime.box import install as installing
    from runtime.box.switch import activate as switch_to

    trust = installing.Trust(public_key, allow_unsigned, allow_downgrade, repin)
    installed = installing.install(bundle, root, trust, device)
    manifest = installed.manifest
    _show_installed(installed)
    if activate:
        _show_switch(switch_to(root, manifest.model, manifest.version, device, allow_downgrade=allow_downgrade))
    else:
        typer.echo(f"next: atlasport activate {manifest.model} {manifest.version} --root {root}")


def activate(
    model: ModelArgument,
    version: VersionArgument,
    root: BoxOption,
    device: SelfTestDeviceOption = None,
    allow_downgrade: DowngradeOption = False,
) -> None:
    """Run the self-test of an installed version on its device, and switch to it if it passes."""
    from runtime.box.switch import activate as switch_to

    _show_switch(switch_to(root, model, version, device, allow_downgrade=allow_downgrade))


def rollback(
    model: ModelArgument,
    root: BoxOption,
    device: SelfTestDeviceOption = None,
    no_self_test: Annotated[bool, typer.Option("--no-self-test", help="Switch only.")] = False,
) -> None:
    """Switch back to the previous version at once, then run its self-test and say how it went."""
    from runtime.box.switch import rollback as back

    switched = back(root, model, device, test=not no_self_test)
    _show_switch(switched)
    tested = switched.self_test
    if tested is not None and tested.verdict != "pass":
        from runtime.errors import ExitCode

        typer.echo(f"atlasport: {model} {switched.now} is active, but its self-test: {tested.reason}", err=True)
        raise typer.Exit(ExitCode.GATE_FAILED if tested.verdict == "fail" else ExitCode.ENVIRONMENT)


def list_versions(
    root: BoxOption,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object a version.")] = False,
) -> None:
    """List the installed versions."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from runtime.box.status import installed_versions

    rows = installed_versions(root)
    if json_output:
        for model, row in rows:
            typer.echo(json.dumps({"model": model, **asdict(row)}))
        return
    table = Table(box=None, pad_edge=False)
    for header in ("model", "version", "", "profile", "variant", "MB", "signed with"):
        table.add_column(header, overflow="fold", justify="right" if header == "MB" else "left")
    for model, row in rows:
        megabytes = "damaged" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f}"
        key = row.key_id[:16] if row.key_id else "unsigned"
        key += "" if row.trusted else " (replaced)"
        table.add_row(model, row.version, row.use, row.profile, row.variant, megabytes, key)
    Console(highlight=False).print(table if rows else "no version is installed")


def remove(model: ModelArgument, version: VersionArgument, root: BoxOption) -> None:
    """Remove an installed version that is not active; `gc` then frees its space."""
    from runtime.box.keep import remove as take_away

    take_away(root, model, version)
    typer.echo(f"removed {model} {version}; `atlasport gc --root {root}` frees its space")


def gc(root: BoxOption) -> None:
    """Remove the blobs that no installed version uses."""
    from runtime.box.keep import gc as collect

    collected = collect(root)
    typer.echo(f"removed {collected.blobs} blobs, {collected.freed_bytes / 1e6:.1f} MB")


def _show_installed(installed: Installed) -> None:
    manifest = installed.manifest
    name = f"{manifest.model} {manifest.version} ({manifest.profile}, {manifest.variant})"
    if not installed.new:
        if installed.repaired or installed.written_bytes:
            done = f"repaired: {installed.repaired} files, {installed.written_bytes / 1e6:.1f} MB written"
        else:
            done = "nothing to write"
        typer.echo(f"{name} is installed already, {done}")
        return
    for waiver in manifest.waivers:
        typer.echo(f"  waived when it was frozen: {waiver}")
    key = f"signed with {installed.key_id[:16]}" if installed.key_id else "UNSIGNED"
    typer.echo(
        f"installed {name}, {key}: {installed.written_bytes / 1e6:.1f} MB written, {installed.reused_bytes / 1e6:.1f} "
        f"MB were here, {installed.seconds:.1f} s, peak RSS {_peak_rss() / 1e6:.0f} MB"
    )


def _peak_rss() -> int:
    """Return the peak resident memory of this process in bytes; getrusage counts what its parent had, too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024


def _show_switch(switched: Switched) -> None:
    before = f" (before: {switched.before})" if switched.before and switched.before != switched.now else ""
    typer.echo(f"{switched.model}: {switched.now} is active{before}")
    tested = switched.self_test
    if tested is None:
        typer.echo("  self-test: not run")
        return
    where = f"{tested.engine or 'no engine'} on {tested.device}{', SIMULATED' if tested.simulated else ''}"
    typer.echo(f"  self-test: {tested.verdict}, {where}, {tested.seconds:.1f} s: {tested.reason}")
    if tested.worst:
        worst = tested.worst
        typer.echo(f"  worst: {worst.case} {worst.output}, {worst.metric} {worst.value:.2g} (limit {worst.limit:.2g})")
