"""Whether a verdict that lies on the disk follows from the values beside it; nothing is run.

Whoever ships trusts no written word: `pass` may have been `fail`, gates may be missing, a run of some cases may call
itself whole. What was measured is judged anew, by the limits of the manifest, and has to be all that there is.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.artifact import Artifact
from runtime.families import family_of as runtime_family
from runtime.golden import Golden
from runtime.limits import forced_pool, judge
from runtime.manifest import Case, Content
from verify.devices import overall_of_devices
from verify.families import family_of
from verify.gates import controls_gate, gates_of, real_relative_l2, verdict_of
from verify.golden import in_one_batch, select
from verify.results import (
    AccuracyFile,
    CaseAccuracy,
    EngineAccuracy,
    ForcedAccuracy,
    FrameDecisions,
    Gate,
    OutputAccuracy,
)


def unfounded(artifact: Artifact, accuracy: AccuracyFile) -> str | None:
    """Return what in a verdict does not follow from its values, None where all does.

    Parameters
    ----------
    artifact : Artifact
        The one that was verified.
    accuracy : AccuracyFile
        Its results/accuracy.json.

    """
    if overall_of_devices(accuracy.engines) != accuracy.verdict:
        return f"the verdict {accuracy.verdict} is not that of its engines"
    judged = [engine for engine in accuracy.engines if engine.gates or engine.verdict == "pass"]
    return next((problem for engine in judged if (problem := _problem(artifact, engine))), None)


def _problem(artifact: Artifact, engine: EngineAccuracy) -> str | None:
    content, golden = artifact.content, Golden(artifact)
    family = family_of(artifact)
    everything = select(artifact, None)
    stages = family.host_stages(artifact, golden, everything)
    measured = [case for case in engine.cases if case.graph in content.graphs]
    decided: list[ForcedAccuracy | FrameDecisions] = [*engine.teacher_forced, *engine.frame_decisions]
    expected = {
        "case": [f"{case.graph}/{case.name}" for case in content.cases],
        "decision": [decision.name for decision in family.decide(artifact, golden, everything)],
        "recording": [recording.name for recording in content.recordings],
    }
    found = {
        "case": [f"{case.graph}/{case.case}" for case in measured if case.case != "none"],
        "decision": [decision.name for decision in decided],
        "recording": [recording.name for recording in engine.recordings],
    }
    for kind, names in expected.items():
        if sorted(names) != sorted(found[kind]):
            return f"{engine.label}: {kind} {_first_difference(names, found[kind])}"
    if runtime_family(artifact).in_batches:
        heard = {recording.name: recording for recording in engine.recordings}
        for one in in_one_batch(content.recordings, engine.recordings):
            if getattr(heard[one.name], "in_batch", None) is None:
                return f"{engine.label}: the recording {one.name} was not heard in a batch"
    known = {(case.graph, case.name): case for case in content.cases}
    for case in measured:
        outputs = known[case.graph, case.case].outputs if case.case in everything else {}
        if not case.blocked and sorted(outputs) != sorted(output.name for output in case.outputs):
            return f"{engine.label}: the outputs of {case.graph}/{case.case} are not those of the artifact's case"
    whole = [*stages, *(_case_anew(content, known.get((case.graph, case.case)), case) for case in measured)]
    decisions = [
        _forced_anew(content, run)
        if isinstance(run, ForcedAccuracy)
        else run.model_copy(update={"real": any(case.real for case in content.cases if case.name == run.name)})
        for run in decided
    ]
    gates = gates_of(whole, decisions, engine.recordings, content.variant, content.tolerances)
    if gate := controls_gate(engine.controls):
        gates = (*gates, gate)
    if problem := _other_gate(gates, engine.gates):
        return f"{engine.label}: {problem}"
    verdict, _ = verdict_of(gates, content.variant, real_relative_l2(whole, decisions))
    return None if verdict == engine.verdict else f"{engine.label}: its gates make {verdict}, found {engine.verdict}"


def _first_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    missing = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected or found.count(name) > 1]
    return f"{missing[0]} is missing" if missing else f"{more[0]} is there though the artifact has none, or twice"


def _case_anew(content: Content, case: Case | None, found: CaseAccuracy) -> CaseAccuracy:
    """Return a case with the limits of the manifest."""
    if case is None or found.blocked:
        return found
    precision = content.graphs[case.graph].precision
    stored = case.outputs

    def anew(output: OutputAccuracy) -> OutputAccuracy:
        of = stored[output.name]
        judged = judge(output.difference, content.tolerances, precision, of.pool, logits=of.logits)
        return output.model_copy(update={"judged": judged})

    outputs = tuple(map(anew, found.outputs))
    return found.model_copy(update={"outputs": outputs, "precision": precision != "fp32", "real": case.real})


def _forced_anew(content: Content, run: ForcedAccuracy) -> ForcedAccuracy:
    if run.difference is None:
        return run
    forced = next((f for f in content.teacher_forced if run.name in {f.name, f"{f.name} {run.head}"}), None)
    pool = "logits" if forced is None else forced_pool(forced.heads, run.head)
    judged = judge(run.difference, content.tolerances, content.variant, pool, logits=True)
    return run.model_copy(update={"judged": judged})


def _other_gate(expected: Sequence[Gate], found: Sequence[Gate]) -> str | None:
    """Return the first gate that is not as its values make it."""
    written = {gate.name: gate for gate in found}
    for gate in expected:
        other = written.pop(gate.name, None)
        if other is None:
            return f"the gate {gate.name} is missing"
        if (gate.value, gate.limit, gate.passed) != (other.value, other.limit, other.passed):
            return f"the gate {gate.name} says {other.value} of {other.limit}, its values {gate.value} of {gate.limit}"
    return f"there is no gate {next(iter(written))}" if written else None
