"""Runs of one artifact in a process of its own: settings as JSON on standard input, a line of JSON for each finished.

python one_process.py ARTIFACT SCRATCH < settings.json
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.artifact import Artifact, open_artifact
from self_test.catalogue import faults_of
from self_test.known_fault import KnownFault, Scale
from self_test.plan import BY_NAME, Setting
from verify.accuracy import verify_engine
from verify.golden import select
from verify.results import EngineAccuracy

STEPS = 24  # of a factor of two from the strength where a search begins


def nearest(accuracy: EngineAccuracy) -> dict[str, Any]:
    """Return the gate that uses most of its limit, and how much; one of limit 0 uses none of it or fails."""
    shares = [
        (gate.value / gate.limit if gate.limit else math.inf if gate.value else 0.0, gate.name, gate.where)
        for gate in accuracy.gates
        if gate.value is not None
    ]
    share, name, where = max(shares, default=(0.0, "", ""))
    return {"gate": name, "where": where, "share": share if math.isfinite(share) else "Infinity"}


def answer(accuracy: EngineAccuracy) -> dict[str, Any]:
    """Return what a line says of a verdict."""
    failed = [gate.name for gate in accuracy.gates if gate.passed is False]
    return {
        "answer": accuracy.verdict,
        "reason": accuracy.reason[:500],
        "failed": failed,
        "nearest": nearest(accuracy),
        "flags": accuracy.flags,
        "gates": len(accuracy.gates),
    }


def clean(artifact: Artifact, setting: Setting) -> dict[str, Any]:
    """Verify a correct build."""
    selected = select(artifact, tuple(setting.cases.split(",")) if setting.cases else None)
    accuracy, _ = verify_engine(artifact, setting.engine, setting.device, selected=selected, threads=setting.threads)
    return answer(accuracy)


def weakest(judge: Callable[[float], EngineAccuracy], scale: Scale) -> dict[str, Any]:
    """Search for the least strength that is caught, on the assumption that all stronger ones are.

    Doubled until it is caught, or halved until it is not, then bisected on a scale of ratios.
    """
    tried: dict[float, EngineAccuracy] = {}

    def caught(strength: float) -> bool:
        tried[strength] = judge(strength)
        return tried[strength].verdict == "fail"

    low, high = 0.0, math.inf
    strength = scale.start
    for _ in range(STEPS):
        if caught(strength):
            high, strength = strength, strength / 2
        else:
            low, strength = strength, strength * 2
        if low and high < math.inf:
            break
    while low and high < math.inf and high / low > max(scale.finest, 1.01):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if caught(middle) else (middle, high)
    found = answer(tried[high if high < math.inf else max(tried)])
    shares = {f"{strength:.4g}": nearest(tried[strength])["share"] for strength in sorted(tried)}
    return {**found, "first_caught": high if high < math.inf else None, "tried": shares}


def faulty(fault: KnownFault, subject_of: Callable[[], Any]) -> dict[str, Any]:
    """Put a fault in, at rising strength where it has one."""
    if fault.scale is not None:
        return weakest(lambda strength: fault.judge(subject_of(), strength), fault.scale)
    return answer(fault.judge(subject_of()))


def subjects(artifact: Artifact, device: str, scratch: Path) -> Callable[[], Any]:
    """Return what makes a subject with modules that no fault has touched; the engine is opened once."""
    from export.families import open_model
    from export.weights import resolve_weights
    from runtime.engines import load_engine
    from runtime.engines.base import DEFAULT_SETTINGS
    from self_test.subject import DTYPES, ENGINES, Subject

    content = artifact.content
    name = "torchscript" if device != "cpu" else ENGINES[content.variant]
    engine = load_engine(artifact, name, device, 1, DEFAULT_SETTINGS)
    model = None
    if content.family in {"parakeet_tdt", "granite_speech", "cnn8rnn"}:  # of the others none is put into modules
        _, model = open_model(resolve_weights(content.model, BY_NAME[content.model].weights))

    def made() -> Subject:
        graphs = model.graphs(DTYPES[content.variant], artifact.file("weights.safetensors")) if model else {}
        return Subject(artifact, engine, graphs, model, scratch)

    return made


def main() -> None:
    """Run what standard input says."""
    output, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    artifact, scratch = open_artifact(Path(sys.argv[1])), Path(sys.argv[2])
    asked = [Setting(**setting) for setting in json.load(sys.stdin)]
    faults = {fault.name: fault for fault in faults_of(artifact.content.model, artifact.content.variant).values()}
    subject_of, failed = None, False
    for setting in asked:
        began = time.perf_counter()
        try:
            if setting.fault:
                subject_of = subject_of or subjects(artifact, setting.device, scratch)
                found = faulty(faults[setting.fault], subject_of)
            else:
                found = clean(artifact, setting)
        except Exception:  # noqa: BLE001 - what did not run has no line; the others go on
            sys.stderr.write(f"{setting.label}: not run\n{traceback.format_exc()}")
            failed = True
            continue
        line = {"setting": vars(setting), **found, "seconds": round(time.perf_counter() - began, 2)}
        output.write(json.dumps(line) + "\n")
        output.flush()
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
