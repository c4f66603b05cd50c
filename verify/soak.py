"""Runs an artifact on a device again and again on one open engine: what drifts, leaks or fails after an hour shows.

`python -m verify.soak JOB` is a process for one soak; the job and the result are JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from runtime.artifact import open_artifact
from runtime.engines import open_engine
from runtime.engines.base import Engine
from runtime.errors import AtlasportError, ExitCode
from verify.accuracy import judge_engine
from verify.environment import resident_bytes
from verify.golden import select
from verify.results import EngineAccuracy, Result, Verdict

LEAST_ROUNDS = 3
# The second round's memory counts as the baseline: the first one fills caches.
BASELINE_ROUND = 1
# Python's allocator keeps what it once got; a leak of one round's arrays passes this within minutes.
HOST_GROWTH_LIMIT = 64 * 2**20
DEVICE_GROWTH_LIMIT = 2**20


class SoakJob(Result):
    """What to run and for how long; `engine` None takes the first that runs on the device."""

    artifact: Path
    device: str
    engine: str | None
    seconds: float


class Round(Result):
    """One round of all cases and recordings; memory in bytes after it, the device's None where it is the host's."""

    seconds: float
    verdict: Verdict
    differs: str | None
    host_bytes: int
    device_bytes: int | None


class SoakResult(Result):
    """What a soak found.

    It fails if a round's verdict, gates or recordings differ from the first round's, or if memory grows from the
    second round on. Whether the results are right is verify's question: a round that fails each time alike is steady.
    """

    model: str
    variant: str
    device: str
    engine: str
    simulated: bool
    verdict: Verdict
    reason: str
    asked_s: float
    rounds: tuple[Round, ...]


def soak(job: SoakJob, progress: Callable[[str], None] | None = None) -> SoakResult:
    """Run rounds until `job.seconds` have passed, three at least; a device that fails ends it as `blocked`.

    Raises
    ------
    AtlasportError
        The artifact cannot be opened, or the device is not there.

    """
    artifact = open_artifact(job.artifact)
    engine = open_engine(artifact, job.engine, job.device)
    rounds: list[Round] = []
    failure = None
    try:
        selected = select(artifact, None)
        first: EngineAccuracy | None = None
        started = time.monotonic()
        while len(rounds) < LEAST_ROUNDS or time.monotonic() - started < job.seconds:
            begun = time.perf_counter()
            accuracy, _ = judge_engine(artifact, engine, selected=selected)
            first = first or accuracy
            rounds.append(_round(engine, accuracy, first, time.perf_counter() - begun))
            if progress is not None:
                progress(f"soak {artifact.path}: round {len(rounds)}, {rounds[-1].verdict}")
    except AtlasportError as error:
        failure = f"round {len(rounds) + 1}: {error}"
    finally:
        engine.close()
    verdict, reason = judge_rounds(rounds) if failure is None else ("blocked", failure)
    return SoakResult(
        model=artifact.content.model,
        variant=artifact.content.variant,
        device=job.device,
        engine=engine.name,
        simulated=engine.probe.facts.simulated,
        verdict=verdict,
        reason=reason,
        asked_s=job.seconds,
        rounds=tuple(rounds),
    )


def _round(engine: Engine, accuracy: EngineAccuracy, first: EngineAccuracy, seconds: float) -> Round:
    memory = engine.probe.memory()
    return Round(
        seconds=seconds,
        verdict=accuracy.verdict,
        differs=_difference(accuracy, first),
        host_bytes=resident_bytes(),
        device_bytes=None if memory is None else memory.allocated,
    )


def _difference(accuracy: EngineAccuracy, first: EngineAccuracy) -> str | None:
    """Return the first thing by which a round differs from the first one, None if by nothing that counts."""
    for gate, before in zip(accuracy.gates, first.gates, strict=True):
        if gate.passed != before.passed:
            return f"gate {gate.name}: {gate.value} at {gate.where}, in the first round {before.value}"
    for recording, earlier in zip(accuracy.recordings, first.recordings, strict=True):
        if recording != earlier:
            return f"recording {recording.name}: another result than in the first round"
    return None


def judge_rounds(rounds: list[Round]) -> tuple[Verdict, str]:
    """Return verdict and reason of a soak's rounds, at least three."""
    for number, one in enumerate(rounds, 1):
        if one.differs is not None:
            return "fail", f"round {number} of {len(rounds)}: {one.differs}"
    base, last = rounds[BASELINE_ROUND], rounds[-1]
    growth = {"host": last.host_bytes - base.host_bytes, "device": (last.device_bytes or 0) - (base.device_bytes or 0)}
    for kind, limit in (("host", HOST_GROWTH_LIMIT), ("device", DEVICE_GROWTH_LIMIT)):
        if growth[kind] > limit:
            return "fail", f"{kind} memory grew by {growth[kind]} bytes over {len(rounds)} rounds, limit {limit}"
    grown = f"memory grew by {growth['host']} bytes on the host, {growth['device']} on the device"
    return "pass", f"{len(rounds)} rounds alike, {grown}"


def _main() -> None:
    try:
        result = soak(SoakJob.model_validate_json(sys.argv[1]))
    except AtlasportError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    sys.stderr.write(f"{result.reason}\n")
    sys.stdout.write(result.model_dump_json() + "\n")
    codes = {"pass": ExitCode.OK, "fail": ExitCode.GATE_FAILED, "blocked": ExitCode.ENVIRONMENT}
    sys.exit(codes[result.verdict])


if __name__ == "__main__":
    _main()
