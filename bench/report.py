"""What a benchmark found: ratios and verdict, as JSON, table, Markdown and chart.

Results hold one entry for each workload (30 s of speech, 60 s of sounds), and in it one for each contestant.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
# Of a processor's flags those that decide how fast it multiplies.
_FLAGS = ("avx", "amx", "f16c", "fma", "sve", "asimd", "bf16", "i8mm")
# One thread alone on its core takes as long by the clock as by CPU time.
BUSY = 1.1

Entry = Mapping[str, Any]
Medians = Mapping[str, Mapping[Clock, Mapping[str, float]]]


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
    run, with their names in the chart. `columns` of the table show an entry of `contestants`. `clock` judges: who is
    the fastest, and whether a target is met.
    """

    peers: tuple[str, ...]
    targets: tuple[Target, ...]
    packages: tuple[str, ...]
    parts: Mapping[str, str]
    columns: Mapping[str, Callable[[Entry], str]]
    clock: Clock = "wall_s"


@dataclass(frozen=True)
class Workload:
    """One amount of work, by contestant: the runs that count, and what else is told: how equal the outputs are.

    `failures` says why others have no runs.
    """

    runs: Mapping[str, Sequence[Run]]
    facts: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str] = field(default_factory=dict)


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
        "clock": design.clock,
        "busy": waiting > BUSY,
        "workloads": described,
    }


def _workload(workload: Workload, design: Design) -> dict[str, Any]:
    median = {name: {clock: medians(runs, clock) for clock in CLOCKS} for name, runs in workload.runs.items()}
    peer = _fastest(median.keys() & design.peers, "total", median, design)
    return {
        "fastest_peer": peer,
        "contestants": {
            name: {
                "median": median[name],
                "ratio": {
                    clock: median[name][clock]["total"] / median[peer][clock]["total"] if peer else None
                    for clock in CLOCKS
                },
                **workload.facts[name],
                "runs": [{part: asdict(cost) for part, cost in run.items()} for run in runs],
            }
            for name, runs in workload.runs.items()
        },
        "failures": dict(workload.failures),
        "targets": [_verdict(target, median, design) for target in design.targets],
    }


def _fastest(names: Iterable[str], part: str, median: Medians, design: Design) -> str | None:
    return min(sorted(names), key=lambda name: median[name][design.clock][part], default=None)


def _verdict(target: Target, median: Medians, design: Design) -> dict[str, Any]:
    """Return how our best engine does; nothing is met where either side did not run."""
    own = _fastest(median.keys() - design.peers, target.part, median, design)
    peer = _fastest(median.keys() & (target.peers or design.peers), target.part, median, design)
    verdict = {"part": target.part, "engine": own, "peer": peer, "limit": target.limit}
    if own is None or peer is None:
        return {**verdict, "ratio": None, "met": None}
    ratio = {clock: median[own][clock][target.part] / median[peer][clock][target.part] for clock in CLOCKS}
    return {**verdict, "ratio": ratio, "met": ratio[design.clock] <= target.limit}


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Return processor, cores, load, system, commit of this checkout and the versions of what was compared."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cpu_flags": [flag for flag in flags if flag.startswith(_FLAGS)],
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: version(name) for name in packages},
    }


def _commit() -> str | None:
    """Return the checkout's commit, with -dirty where files differ from it; None where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def print_results(results: Mapping[str, Any], design: Design, console: Console) -> None:
    """Print table and verdict of every workload."""
    console.print(title_of(results))
    for name, workload in results["workloads"].items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in design.columns:
            table.add_column(column, justify="right")
        for row in rows_of(workload, design):
            table.add_row(*row)
        console.print(table)
        for line in remarks_of(workload, results):
            console.print(line, highlight=False, soft_wrap=True)
    if results["busy"]:
        console.print("the machine was busy with something else: the times by the clock are worth little, run it again")


def title_of(results: Mapping[str, Any]) -> str:
    """Return what was compared."""
    protocol = results["protocol"]
    return (
        f"{results['model']} {results['variant']}, {results['weights']} weights: {protocol['threads']} thread(s), "
        f"median of {protocol['runs']} interleaved runs"
    )


def rows_of(workload: Mapping[str, Any], design: Design) -> list[list[str]]:
    """Return a row of cells for each contestant, those that did not run behind the others."""
    ran = [
        [name, *(cell(entry) for cell in design.columns.values())] for name, entry in workload["contestants"].items()
    ]
    return ran + [[name, "not run", *[""] * (len(design.columns) - 1)] for name in workload["failures"]]


def remarks_of(workload: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """Return why contestants did not run, and a line for each target."""
    lines = [f"{name} did not run: {reason}" for name, reason in workload["failures"].items()]
    for target in workload["targets"]:
        part = "" if target["part"] == "total" else f"{results['parts'][target['part']]}: "
        if target["ratio"] is None:
            lines.append(f"{part}the target of {target['limit']}: not run")
            continue
        wall, cpu = target["ratio"]["wall_s"], target["ratio"]["cpu_s"]
        lines.append(
            f"{part}{target['engine']} takes {wall:.2f} of the time of {target['peer']} ({cpu:.2f} of its CPU time); "
            f"the target of {target['limit']} {'of the CPU time ' if results['clock'] == 'cpu_s' else ''}is "
            f"{'met' if target['met'] else 'missed'}"
        )
    return lines


def markdown_of(results: Mapping[str, Any], design: Design) -> str:
    """Return title, machine, versions, and table and verdict of every workload as Markdown."""
    machine = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    load = results["protocol"].get("load_1min_before", machine["load_1min"])
    where = f"{machine['cpu']}, {machine['cores']} cores, load average {load:.1f} before"
    what = f"commit {machine['commit'] or 'unknown'}; Python {machine['python']}, {versions}"
    lines = [f"## {title_of(results)}", "", f"{results['created'][:10]}; {where}; {what}."]
    for name, workload in results["workloads"].items():
        heads = [name, *(column.replace("\n", " ") for column in design.columns)]
        rows = [heads, ["---", *["---:"] * len(design.columns)], *rows_of(workload, design)]
        lines += ["", *(f"| {' | '.join(row)} |" for row in rows), ""]
        lines += [f"- {line}" for line in remarks_of(workload, results)]
        lines += [
            f"- {contestant}: {', '.join(f'{package} {number}' for package, number in entry['versions'].items())}"
            for contestant, entry in workload["contestants"].items()
            if "versions" in entry
        ]
    return "\n".join(lines) + "\n"


def milliseconds(part: str, digits: int = 0) -> Callable[[Entry], str]:
    """Return what shows the median time of a part, or of the `total`."""
    return lambda entry: f"{1e3 * entry['median']['wall_s'][part]:.{digits}f}"


# Columns of every table.
RATIOS: dict[str, Callable[[Entry], str]] = {
    "ratio": lambda entry: _ratio(entry["ratio"]["wall_s"]),
    "CPU\nratio": lambda entry: _ratio(entry["ratio"]["cpu_s"]),
}


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_results(results: Mapping[str, Any], design: Design, folder: Path) -> Path:
    """Write <model>.json (returned), .md and .svg into `folder`; -<n>-threads in the names where there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = results["protocol"]["threads"]
    name = results["model"] + (f"-{threads}-threads" if threads > 1 else "")
    file: Path = folder / f"{name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown_of(results, design), encoding="utf-8")
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    chart = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    drawn = chart.get_template("chart.svg.j2").render(results)
    (folder / f"{name}.svg").write_text(drawn, encoding="utf-8")
    return file
