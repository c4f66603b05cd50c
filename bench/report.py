"""What a benchmark found: ratios and verdict, as JSON, table and chart.

Results hold one entry for each workload (30 s of speech, 60 s of sounds), and in it one for each contestant.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Console
from rich.table import Table

from bench.measure import CLOCKS, Clock, Run, medians
from runtime.artifact import Artifact

FOLDER = Path(__file__).resolve().parent
# One thread alone on its core takes as long by the clock as by CPU time.
BUSY = 1.1

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A limit for the time of our best engine over that of the fastest peer.

    `part` is one of a run, or the `total`; `peers` are those that count, all where it is empty.
    """

    limit: float
    part: str = "total"
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Design:
    """What the benchmarks of a family have in common.

    `peers` are the contestants that are not ours. `packages` are those whose versions are told, `parts` those of a
    run, with their names in the chart. `columns` of the table show an entry of `contestants`.
    """

    peers: tuple[str, ...]
    targets: tuple[Target, ...]
    packages: tuple[str, ...]
    parts: Mapping[str, str]
    columns: Mapping[str, Callable[[Entry], str]]


@dataclass(frozen=True)
class Workload:
    """One amount of work, by contestant: the runs that count, and what else is told: how equal the outputs are."""

    runs: Mapping[str, Sequence[Run]]
    facts: Mapping[str, Mapping[str, float]]


def results_of(
    artifact: Artifact, design: Design, workloads: Mapping[str, Workload], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON object of a benchmark; `workloads` by a name that tells how much work it is."""
    content = artifact.content
    described = {name: _workload(workload, design) for name, workload in workloads.items()}
    entries = [entry for workload in described.values() for entry in workload["contestants"].values()]
    waiting = max(entry["median"]["wall_s"]["total"] / entry["median"]["cpu_s"]["total"] for entry in entries)
    return {
        "model": content.model,
        "variant": content.variant,
        "weights": content.source.weights,
        "content_sha256": artifact.manifest.content_sha256,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(design.packages),
        "protocol": dict(protocol),
        "parts": dict(design.parts),
        "busy": waiting > BUSY,
        "workloads": described,
    }


def _workload(workload: Workload, design: Design) -> dict[str, Any]:
    median = {name: {clock: medians(runs, clock) for clock in CLOCKS} for name, runs in workload.runs.items()}
    peer = min(median.keys() & design.peers, key=lambda name: median[name]["wall_s"]["total"])
    ratios = {
        name: {clock: seconds[clock]["total"] / median[peer][clock]["total"] for clock in CLOCKS}
        for name, seconds in median.items()
    }
    return {
        "fastest_peer": peer,
        "contestants": {
            name: {
                "median": median[name],
                "ratio": ratios[name],
                **workload.facts[name],
                "runs": [{part: asdict(cost) for part, cost in run.items()} for run in runs],
            }
            for name, runs in workload.runs.items()
        },
        "targets": [_verdict(target, median, design) for target in design.targets],
    }


def _verdict(
    target: Target, median: Mapping[str, Mapping[Clock, Mapping[str, float]]], design: Design
) -> dict[str, Any]:
    def fastest(names: Iterable[str]) -> str:
        return min(names, key=lambda name: median[name]["wall_s"][target.part])

    own = fastest(median.keys() - design.peers)
    peer = fastest(median.keys() & (target.peers or design.peers))
    ratio = {clock: median[own][clock][target.part] / median[peer][clock][target.part] for clock in CLOCKS}
    return {
        "part": target.part,
        "engine": own,
        "peer": peer,
        "limit": target.limit,
        "ratio": ratio,
        "met": ratio["wall_s"] <= target.limit,
    }


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Return processor, cores, load, system and the versions of what was compared."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def print_results(results: Mapping[str, Any], design: Design, console: Console) -> None:
    """Print table and verdict of every workload."""
    protocol = results["protocol"]
    console.print(
        f"{results['model']} {results['variant']}, {results['weights']} weights: {protocol['threads']} thread(s), "
        f"median of {protocol['runs']} interleaved runs"
    )
    for name, workload in results["workloads"].items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in design.columns:
            table.add_column(column, justify="right")
        for contestant, entry in workload["contestants"].items():
            table.add_row(contestant, *(cell(entry) for cell in design.columns.values()))
        console.print(table)
        for target in workload["targets"]:
            part = "" if target["part"] == "total" else f"{results['parts'][target['part']]}: "
            console.print(
                f"{part}{target['engine']} takes {target['ratio']['wall_s']:.2f} of the time of {target['peer']} "
                f"({target['ratio']['cpu_s']:.2f} of its CPU time); the target of {target['limit']} is "
                f"{'met' if target['met'] else 'missed'}"
            )
    if results["busy"]:
        console.print("the machine was busy with something else: the times by the clock are worth little, run it again")


def milliseconds(part: str, digits: int = 0) -> Callable[[Entry], str]:
    """Return what shows the median time of a part, or of the `total`."""
    return lambda entry: f"{1e3 * entry['median']['wall_s'][part]:.{digits}f}"


# Columns of every table.
RATIOS: dict[str, Callable[[Entry], str]] = {
    "ratio": lambda entry: f"{entry['ratio']['wall_s']:.2f}",
    "CPU\nratio": lambda entry: f"{entry['ratio']['cpu_s']:.2f}",
}


def write_results(results: Mapping[str, Any], folder: Path) -> Path:
    """Write <model>.json and <model>.svg into `folder`; returns the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{results['model']}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    chart = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    file.with_suffix(".svg").write_text(chart.get_template("chart.svg.j2").render(results), encoding="utf-8")
    return file
