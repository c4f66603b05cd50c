"""What freeze and install cost beside a plain copy with SHA-256 of the same bytes.

`python -m bench.bundle whisper-tiny --weights random` prints a table and writes bench/results/<model>-bundle.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from atlasport.commands.freeze import ProfileName
from bench.measure import CLOCKS, Laps, Run, measure, medians
from bench.report import FOLDER, environment
from runtime.artifact import find_artifact, open_artifact
from runtime.bundle.manifest import Profile, Waiver
from runtime.errors import AtlasportError

COPY, FREEZE, INSTALL = "copy and SHA-256", "freeze", "install"
# Of an install's time over that of a copy with hash; of the peak memory of each archive step.
INSTALL_LIMIT, MEMORY_LIMIT = 1.5, 300e6
VERSION = "1.0.0"
PACKAGES = ("atlasport", "model-signing", "cryptography", "pydantic", "numpy")
ALLOWED: tuple[Waiver, ...] = get_args(Waiver)
_BLOCK = 2**20
# A small process of its own starts the command: a child's peak counts what its parent had when it was started.
_LAUNCHER = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of an exported model.")],
    *,
    weights: Annotated[
        str | None, typer.Option(help="Export from here, `random` for example, instead of taking what is exported.")
    ] = None,
    profile: Annotated[ProfileName, typer.Option(help="cpu (ONNX) or npu (TorchScript, .pt2).")] = ProfileName.CPU,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each that count.")] = 5,
    work: Annotated[Path | None, typer.Option(help="Folder on the disk to measure; default: /tmp.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = FOLDER / "results",
) -> None:
    """Measure freeze and install: seconds in one interleaved run, and peak memory of the real commands."""
    console = Console()
    try:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            if weights is not None:
                _export(model, weights, profile.value, Path(scratch))
            artifact = find_artifact(model, Path(scratch)) if weights is not None else find_artifact(model)
            results = bench(artifact, profile.value, runs, Path(scratch))
    except AtlasportError as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True)
        raise typer.Exit(error.exit_code) from error
    print_results(results, console)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{results['model']}-bundle.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(f"results: {file}", highlight=False, soft_wrap=True)
    if not (results["install"]["met"] and results["memory"]["met"]):
        raise typer.Exit(1)


def bench(artifact: Path, profile: Profile, runs: int, scratch: Path) -> dict[str, Any]:
    """Return the results of one benchmark.

    Parameters
    ----------
    artifact : Path
        What is frozen; random weights and missing verification are allowed by name.
    profile : {"npu", "cpu", "om"}
        Of the bundle.
    runs : int
        Runs that count.
    scratch : Path
        A folder on the disk that is measured, with room for four bundles.

    """
    from runtime.bundle.signing import generate_key

    private, public = generate_key(scratch / "keys")
    bundle = scratch / "model.atlas"
    pair: dict[str, Callable[[], Run]] = {
        COPY: partial(_copy, bundle, scratch / "copy"),
        INSTALL: partial(_install, bundle, public, scratch / "box"),
    }
    # Not in turns with freeze: on a virtual machine, whoever follows it pays for memory that the host has to give back.
    timed = measure({FREEZE: partial(_freeze, artifact, profile, private, bundle)}, runs)
    measure(pair, 1)
    timed |= measure(pair, runs)
    median = {name: {clock: medians(own, clock)["total"] for clock in CLOCKS} for name, own in timed.items()}
    peaks = _peaks(artifact, profile, private, public, scratch)
    content = open_artifact(artifact).content
    ratios = [timed[INSTALL][run]["all"].wall_s / timed[COPY][run]["all"].wall_s for run in range(runs)]
    ratio = median[INSTALL]["wall_s"] / median[COPY]["wall_s"]
    return {
        "model": content.model,
        "variant": content.variant,
        "weights": content.source.weights,
        "profile": profile,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(PACKAGES),
        "protocol": {
            "runs": runs,
            "order": "one process: freeze alone; then the pair, a round not counted, each in an order drawn for it",
            COPY: "the bundle is read once, hashed, written and put onto the disk (fsync)",
            FREEZE: "the artifact is checked, signed and written as a bundle (fsync)",
            INSTALL: "signature and requirements checked, blobs hashed and written (fsync), links, state",
            "peak memory": "of the commands, each in a process of its own, the interpreter and all imports included",
        },
        "bundle_bytes": bundle.stat().st_size,
        "contestants": {
            name: {"median": median[name], "runs": [asdict(run["all"]) for run in own]} for name, own in timed.items()
        },
        "install": {
            "ratio": {clock: median[INSTALL][clock] / median[COPY][clock] for clock in CLOCKS},
            "median_of_ratios": statistics.median(ratios),
            "limit": INSTALL_LIMIT,
            "met": ratio <= INSTALL_LIMIT,
        },
        "memory": {"peak_bytes": peaks, "limit": MEMORY_LIMIT, "met": max(peaks.values()) <= MEMORY_LIMIT},
    }


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print table and verdicts."""
    copied = results["contestants"][COPY]["median"]
    peaks = results["memory"]["peak_bytes"]
    console.print(
        f"{results['model']} {results['variant']}, {results['weights']} weights, profile {results['profile']}: a "
        f"bundle of {results['bundle_bytes'] / 1e6:,.0f} MB, medians of {results['protocol']['runs']} runs"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("s", "CPU s", "ratio", "CPU ratio", "peak MB"):
        table.add_column(column, justify="right")
    for name, entry in results["contestants"].items():
        median = entry["median"]
        cells = [f"{median[clock]:.2f}" for clock in CLOCKS]
        cells += [f"{median[clock] / copied[clock]:.2f}" for clock in CLOCKS]
        table.add_row(name, *cells, f"{peaks[name] / 1e6:.0f}" if name in peaks else "")
    console.print(table)
    for what in ("install", "memory"):
        console.print(f"{what}: limit {results[what]['limit']:g} {'met' if results[what]['met'] else 'missed'}")


def _export(model: str, weights: str, profile: str, out: Path) -> None:
    """In a process of its own: this one's memory stays small, since children start with what their parent has."""
    code = (
        "import sys; from pathlib import Path; from export.pipeline import export_model; "
        "export_model(sys.argv[1], weights=sys.argv[2], formats=(sys.argv[3],), out=Path(sys.argv[4]), recordings=())"
    )
    formats = "torchscript" if profile == "npu" else "onnx"
    command = [sys.executable, "-W", "ignore", "-c", code, model, weights, formats, str(out)]
    subprocess.run(command, check=True)  # noqa: S603 - what the user asked to be exported


def _freeze(artifact: Path, profile: Profile, key: Path, bundle: Path) -> Run:
    from export.freeze.pipeline import SigningKey, freeze_artifact

    bundle.unlink(missing_ok=True)
    os.sync()  # what was written before is not to be waited for
    laps = Laps()
    freeze_artifact(artifact, profile, VERSION, out=bundle, key=SigningKey(key), allowed=ALLOWED)
    laps.end("all")
    return laps.run


def _copy(bundle: Path, target: Path) -> Run:
    os.sync()
    laps = Laps()
    digest = hashlib.sha256()
    with bundle.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        while block := read.read(_BLOCK):
            digest.update(block)
            written.write(block)
        os.fsync(written.fileno())
    laps.end("all")
    target.unlink()
    return laps.run


def _install(bundle: Path, public: Path, root: Path) -> Run:
    from runtime.box.install import Trust, install

    os.sync()
    laps = Laps()
    install(bundle, root, Trust(public))
    laps.end("all")
    shutil.rmtree(root)
    return laps.run


def _peaks(artifact: Path, profile: str, private: Path, public: Path, scratch: Path) -> dict[str, int]:
    """Return the peak resident memory in bytes of the two commands."""
    waivers = ("--allow-random", "--allow-unverified", "--allow-unknown-licence")
    bundle, root = scratch / "peak.atlas", scratch / "peak-box"
    freeze = ("freeze", artifact, "--profile", profile, "--version", VERSION, "--key", private, "--out", bundle)
    install = ("install", bundle, "--root", root, "--public-key", public)
    return {FREEZE: _peak_of(*freeze, *waivers), INSTALL: _peak_of(*install)}


def _peak_of(*arguments: str | Path) -> int:
    command = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, "-m", "atlasport", *map(str, arguments)]
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    return int(done.stderr.splitlines()[-1]) * 1024


if __name__ == "__main__":
    typer.run(main)
