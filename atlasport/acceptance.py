"""The acceptance run of a machine: doctor, verify of every artifact, soak, and one archive to send back.

Every step is a process of its own, so that a crash or a hang ends that step and not the run; what it printed, its exit
code and its results go into the archive, whatever they are.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from runtime.errors import ExitCode

FORMAT_VERSION = 1
SUMMARY_NAME = "summary.json"
Outcome = Literal["pass", "fail", "refused", "blocked", "timeout", "error"]
TIMED_OUT = 124  # as coreutils' timeout
_OUTCOMES: dict[int, Outcome] = {0: "pass", 1: "fail", 2: "refused", 3: "blocked", TIMED_OUT: "timeout"}


@dataclass(frozen=True)
class Step:
    """One command. `kind` says where its results lie; a step that does not count cannot fail the run.

    `refusable`: where the command refuses it (capture on a 310P before CANN 9), that is no failure.
    """

    name: str
    kind: Literal["doctor", "verify", "soak"]
    command: tuple[str, ...]
    artifact: Path | None = None
    counts: bool = True
    refusable: bool = False


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    `simulated` is None where no result says it; `results` is a folder of the archive. `gates` holds by engine and gate
    the value that verify compared with its limit: what the default precision flags cost stands side by side there.
    """

    name: str
    command: str
    exit_code: int
    outcome: Outcome
    counts: bool
    simulated: bool | None
    wall_s: float
    reason: str
    log: str
    results: str | None
    gates: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Summary:
    """`summary.json` of the archive."""

    format_version: int
    created: str
    host: str
    device: str
    minutes: float
    steps: tuple[StepResult, ...] = ()

    @property
    def simulated(self) -> bool | None:
        """Whether any step's results say that a stand-in was used; None where no step's do."""
        told = [step.simulated for step in self.steps if step.simulated is not None]
        return any(told) if told else None

    @property
    def exit_code(self) -> ExitCode:
        """The worst of the steps that count; a step that crashed or hung counts as an environment that does not fit."""
        codes = [step.exit_code if step.exit_code in set(ExitCode) else 3 for step in self.steps if step.counts]
        return ExitCode(max(codes, default=0))

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON types."""
        return {**asdict(self), "simulated": self.simulated, "exit_code": int(self.exit_code)}


def plan(device: str, artifacts: Sequence[Path], *, minutes: float, runs: int) -> list[Step]:
    """Return the steps of a run: the default precision flags first, so that the flags as set have the last word.

    Parameters
    ----------
    device : str
        One device, or several with commas between them.
    artifacts : sequence of Path
        Folders, one per model and variant.
    minutes : float
        Length of all soaks together.
    runs : int
        Timed runs of verify.

    """
    atlasport = (sys.executable, "-m", "atlasport")
    steps = [Step("doctor", "doctor", (*atlasport, "doctor", *map(str, artifacts), "--device", device, "--json"))]
    accelerated = device != "cpu"
    for artifact in artifacts:
        name = _name(artifact)
        verify = (*atlasport, "verify", str(artifact), "--device", device, "--runs", str(runs))
        if accelerated:
            default = (*verify, "--default-precision")
            steps.append(Step(f"verify {name} default precision", "verify", default, artifact, counts=False))
            steps.append(Step(f"verify {name} capture", "verify", (*verify, "--capture"), artifact, refusable=True))
        steps.append(Step(f"verify {name}", "verify", verify, artifact))
    seconds = 60 * minutes / max(1, len(artifacts) * len(device.split(",")))
    for artifact in artifacts:
        for one in device.split(","):
            job = json.dumps({"artifact": str(artifact.resolve()), "device": one, "engine": None, "seconds": seconds})
            soak = (sys.executable, "-m", "verify.soak", job)
            steps.append(Step(f"soak {_name(artifact)} {one}", "soak", soak, artifact))
    return steps


def accept(
    device: str,
    artifacts: Sequence[Path],
    out: Path,
    *,
    minutes: float,
    runs: int,
    step_timeout_s: float,
    progress: Callable[[StepResult], None],
) -> tuple[Summary, Path]:
    """Run every step, go on after a failed one, and return the summary and the archive's path.

    Parameters
    ----------
    device, artifacts, minutes, runs
        See `plan`.
    out : Path
        Folder of the archive; what goes into it is collected in a folder beside it of the same name.
    step_timeout_s : float
        Seconds that a step may take beyond the length of its soak; then its processes are killed.
    progress : callable
        Called with each step's result.

    """
    created = datetime.now(timezone.utc)
    name = f"acceptance-{platform.node()}-{device.replace(':', '').replace(',', '-')}-{created:%Y%m%dT%H%M%SZ}"
    folder = out / name
    folder.mkdir(parents=True)
    summary = Summary(
        format_version=FORMAT_VERSION,
        created=created.isoformat(timespec="seconds"),
        host=platform.platform(),
        device=device,
        minutes=minutes,
    )
    for step in plan(device, artifacts, minutes=minutes, runs=runs):
        result = _run(step, folder, step_timeout_s + (60 * minutes if step.kind == "soak" else 0))
        summary = replace(summary, steps=(*summary.steps, result))
        # After every step: a machine that goes down leaves what was known until then.
        text = json.dumps(summary.to_json(), indent=1, ensure_ascii=False)
        (folder / SUMMARY_NAME).write_text(text + "\n", encoding="utf-8")
        progress(result)
    archive = out / f"{name}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=name)
    return summary, archive


def _run(step: Step, folder: Path, timeout_s: float) -> StepResult:
    """Run one step, its output straight into files, and collect its results."""
    slug = step.name.replace("/", "-").replace(":", "").replace(" ", "_")
    log, errors = folder / "logs" / f"{slug}.out", folder / "logs" / f"{slug}.err"
    log.parent.mkdir(exist_ok=True)
    before = _stamp(step)
    started = time.monotonic()
    code = _execute(step.command, timeout_s, log, errors)
    wall_s = time.monotonic() - started
    results = folder / "results" / slug
    _collect(step, log, results, fresh=_stamp(step) != before)
    return StepResult(
        name=step.name,
        command=shlex.join(step.command),
        exit_code=code,
        outcome=_OUTCOMES.get(code, "error"),
        counts=step.counts and not (step.refusable and code == ExitCode.BAD_INPUT),
        simulated=_simulated(results),
        wall_s=round(wall_s, 3),
        reason=_reason(log, errors) if code in {ExitCode.OK, ExitCode.GATE_FAILED} else _reason(errors, log),
        log=log.relative_to(folder).as_posix(),
        results=results.relative_to(folder).as_posix() if results.exists() else None,
        gates=_gates(results),
    )


def _execute(command: Sequence[str], timeout_s: float, log: Path, errors: Path) -> int:
    """Return the exit code; a process that does not end is killed with all that it started."""
    with log.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)  # noqa: S603
        try:
            return process.wait(timeout_s)
        except BaseException as error:
            # Ctrl-C does not reach another session.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            # Inside a driver's call it may not die; do not wait for it.
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            return TIMED_OUT


def _stamp(step: Step) -> tuple[int, int] | None:
    """Return what tells whether the artifact's results were written anew."""
    if step.kind != "verify" or step.artifact is None:
        return None
    with suppress(OSError):
        status = (step.artifact / "results" / "accuracy.json").stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _collect(step: Step, log: Path, target: Path, *, fresh: bool) -> None:
    """Copy a step's results into `target`; what an earlier run left in the artifact's folder is not copied."""
    if step.kind == "verify":
        if step.artifact is not None and fresh:
            for name in ("results", "logs"):
                shutil.copytree(step.artifact / name, target / name)
            shutil.copy(step.artifact / "report.html", target)
        return
    last = _last_line(log)
    if last.startswith("{"):
        target.mkdir(parents=True)
        (target / f"{step.kind}.json").write_text(last + "\n", encoding="utf-8")


def _simulated(results: Path) -> bool | None:
    """Return what the step's results say of the device."""
    for name in ("doctor.json", "soak.json", "results/accuracy.json"):
        with suppress(OSError, ValueError, KeyError):
            return bool(json.loads((results / name).read_bytes())["simulated"])
    return None


def _gates(results: Path) -> dict[str, dict[str, float | None]]:
    with suppress(OSError, ValueError, KeyError):
        accuracy = json.loads((results / "results" / "accuracy.json").read_bytes())
        return {
            f"{engine['engine']} on {engine['device']}": {gate["name"]: gate["value"] for gate in engine["gates"]}
            for engine in accuracy["engines"]
        }
    return {}


def _reason(*outputs: Path) -> str:
    """Return the last line for people of the first output that has one."""
    lines = map(_last_line, outputs)
    return next((line for line in lines if line and not line.startswith("{")), "")


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def _name(artifact: Path) -> str:
    return f"{artifact.parent.name}/{artifact.name}"
