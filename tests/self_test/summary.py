"""docs/verdict.json from the lines of finished runs, and its table in docs/verdict.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from self_test.campaign import Line, commit
from self_test.catalogue import catalogue
from self_test.known_fault import KnownFault
from self_test.plan import Setting, settings
from verify import environment

NOT_RUN = "not run"
WEAKER = 2.0  # than the verdict before: by so much no fault may be caught later
START, END = "<!-- verdict: written by `make verify-self-test` -->", "<!-- end of verdict -->"
Lines = Callable[[Setting], Line | None]


def results(lines: Lines) -> dict[str, Any]:
    """Return what docs/verdict.json says: of a run without a line that it was not run."""
    faults = {(fault.model, fault.variant, fault.name): fault for fault in catalogue()}
    asked = settings()
    clean = [_clean(setting, lines(setting)) for setting in asked if not setting.fault]
    faulty = [
        _faulty(faults[setting.model, setting.variant, setting.fault], lines(setting))
        for setting in asked
        if setting.fault
    ]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "make verify-self-test",
        "commit": commit(),
        "machine": {
            **environment.system(),
            "cpu_model": environment.cpu_model(),
            "instruction_sets": environment.instruction_sets(),
            "cores": environment.cpu_count(),
        },
        "versions": environment.versions(),
        "counts": _counts(clean, faulty),
        "clean": clean,
        "faults": faulty,
    }


def _ran(line: Line) -> dict[str, Any]:
    return {
        "answer": line["answer"],
        "nearest": line["nearest"],
        "failed": line["failed"],
        "seconds": line["seconds"],
        "commit": line["commit"],
        "content_sha256": line["content_sha256"],
    }


def _clean(setting: Setting, line: Line | None) -> dict[str, Any]:
    said = {name: value for name, value in vars(setting).items() if name not in {"fault", "device"}}
    if line is None:
        return {**said, "answer": NOT_RUN}
    return {**said, **_ran(line), "reason": line["reason"], "gates": line["gates"], "flags": line["flags"]}


def _faulty(fault: KnownFault, line: Line | None) -> dict[str, Any]:
    names = ("name", "kind", "family", "model", "variant", "where")
    said = {name: getattr(fault, name) for name in names}
    if line is None:
        return {**said, "answer": NOT_RUN}
    ran = _ran(line)
    found = {**said, "answer": ran.pop("answer"), "caught_by": ran.pop("failed"), **ran}
    return {**found, **_strength(fault, line)} if fault.scale else found


def _strength(fault: KnownFault, line: Line) -> dict[str, Any]:
    """Return the strength that is caught first, and the references beside it."""
    assert fault.scale is not None
    first: float | None = line["first_caught"]
    before, prototype = fault.scale.before, fault.scale.prototype
    found: dict[str, Any] = {"first_caught": first, "tried": line["tried"]}
    if prototype:
        found["prototype"] = {"strength": prototype.strength, "share": prototype.share, "first": prototype.first}
    if before:
        found["before"] = {"strength": before.strength, "share": before.share, "first": before.first}
        found["ratio_to_before"] = first and round(first / before.first, 3)
    return found


def _counts(clean: Sequence[Mapping[str, Any]], faulty: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    ran = [run for run in clean if run["answer"] != NOT_RUN]
    tried = [fault for fault in faulty if fault["answer"] != NOT_RUN]
    weaker = [f for f in tried if f["variant"] == "fp32" and (f.get("ratio_to_before") or 0) > WEAKER]
    return {
        "clean_runs": len(ran),
        "clean_runs_not_run": len(clean) - len(ran),
        "false_alarms": sum(run["answer"] == "fail" for run in ran),
        "clean_runs_blocked": sum(run["answer"] == "blocked" for run in ran),
        "faults": len(tried),
        "faults_not_run": len(faulty) - len(tried),
        "misses": sum(fault["answer"] != "fail" for fault in tried),
        "later_than_before_by_over_2": len(weaker),
    }


def table(found: Mapping[str, Any]) -> str:
    """Return the results as Markdown: correct builds and faults by model and precision, strengths, what went wrong."""
    lines = [
        "| model | correct builds | false alarms | nearest to a limit | faults | misses |",
        "| --- |" + " --- |" * 5,
    ]
    pairs = dict.fromkeys((run["model"], run["variant"]) for run in (*found["clean"], *found["faults"]))
    for model, variant in pairs:
        clean, faults = (
            [run for run in found[kind] if (run["model"], run["variant"]) == (model, variant)]
            for kind in ("clean", "faults")
        )
        ran, tried = ([run for run in runs if run["answer"] != NOT_RUN] for runs in (clean, faults))
        alarms, misses = sum(r["answer"] == "fail" for r in ran), sum(r["answer"] != "fail" for r in tried)
        near = max((float(run["nearest"]["share"]) for run in ran), default=None)
        said = NOT_RUN if near is None else f"{100 * near:.0f} %"
        lines.append(f"| {model} {variant} | {_of(ran, clean)} | {alarms} | {said} | {_of(tried, faults)} | {misses} |")
    compared = [f for f in found["faults"] if f.get("ratio_to_before") and f["variant"] == "fp32"]
    if compared:
        lines += ["", "| fault of fp32, by strength | caught from | before | ratio |", "| --- | --- | --- | --- |"]
    for fault in compared:
        before = fault["before"]["first"]
        lines.append(
            f"| {fault['model']}, {fault['name']} | {fault['first_caught']:.2g} | {before:.2g} "
            f"| {fault['ratio_to_before']:.2g} |"
        )
    lines += ["", *_wrong(found)]
    machine, versions = found["machine"], found["versions"]
    lines.append(
        f"{found['date']}, commit {found['commit']}, {machine['cpu_model']}, {machine['cores']} cores, "
        f"torch {versions.get('torch')}, onnxruntime {versions.get('onnxruntime')}: `{found['command']}`"
    )
    return "\n".join(lines)


def _of(ran: Sequence[Any], asked: Sequence[Any]) -> str:
    return f"{len(ran)}" if len(ran) == len(asked) else f"{len(ran)} of {len(asked)}"


def _wrong(found: Mapping[str, Any]) -> list[str]:
    alarms = [run for run in found["clean"] if run["answer"] == "fail"]
    misses = [fault for fault in found["faults"] if fault["answer"] in {"pass", "blocked"}]
    lines = [
        f"- False alarm: {run['model']} {run['variant']}, {run['engine']}, {run['threads']} threads, {run['kernels']}: "
        f"{run['reason']}"
        for run in alarms
    ]
    lines += [f"- Miss: {fault['model']} {fault['variant']}, {fault['name']}" for fault in misses]
    return [*lines, ""] if lines else []


def write(found: Mapping[str, Any], out: Path, page: Path) -> None:
    """Write the JSON, and the table between the marks of a page."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        message = f"{page}: expected the marks {START!r} and {END!r}, found none; add them where the table goes"
        raise SystemExit(message)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page.write_text(f"{before}{START}\n{table(found)}\n{END}{after}", encoding="utf-8")
