"""Accuracy of an artifact on its engines: run first, compare afterwards, then judge.

The `run_*` functions call the engine and know no golden output; the `judge_*` functions compare arrays and texts and
never call an engine; `verify.gates` turns their results into a verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from runtime.artifact import Artifact
from runtime.differences import compare_output
from runtime.engines import open_engine
from runtime.engines.base import DEFAULT_SETTINGS, Array, Engine, EngineSettings
from runtime.errors import AtlasportError, DamagedArtifactError, DeviceFailedError, InputError, NoDeviceError
from runtime.golden import Golden, kept, run_case
from runtime.limits import judge
from runtime.manifest import Case, Content, Recording
from runtime.memory import release_memory
from verify.devices import failed_section, with_facts
from verify.diverged import Divergence
from verify.families import Decided, Decision, Family, Hearing, family_of
from verify.faults import Fault, FaultyEngine
from verify.gates import controls_gate, gates_of, real_relative_l2, verdict_of
from verify.golden import in_one_batch
from verify.inference import EngineInference, InferenceRecording
from verify.results import (
    CaseAccuracy,
    Control,
    EngineAccuracy,
    EventAccuracy,
    ForcedAccuracy,
    FrameDecisions,
    OutputAccuracy,
    RecordingAccuracy,
)

log = logging.getLogger("verify.accuracy")


def verify_engine(
    artifact: Artifact,
    engine_name: str,
    device: str,
    *,
    selected: set[str],
    threads: int | None = None,
    controls: bool = False,
    settings: EngineSettings = DEFAULT_SETTINGS,
    reference: Artifact | None = None,
) -> tuple[EngineAccuracy, EngineInference]:
    """Run the selected cases and recordings on one engine and judge them.

    With a `reference`, whose ONNX graphs are right, where the engine leaves it is searched for afterwards.

    Returns
    -------
    tuple
        The section of accuracy.json and that of inference.json. An engine that does not open, and a case that does
        not run, is `blocked` with the reason. Where the device fails, nothing but the failure is in them.

    Raises
    ------
    InputError
        The device's name is not one.
    NoDeviceError
        There is no such device.
    DamagedArtifactError
        A golden array is missing.

    """
    silent = EngineInference(engine=engine_name, device=device, recordings=())
    try:
        engine = open_engine(artifact, engine_name, device, threads, settings=settings)
    except (InputError, DamagedArtifactError, NoDeviceError):
        raise
    except DeviceFailedError as error:
        return failed_section(engine_name, device, error, None), silent
    except Exception as error:
        log.exception("%s: blocked", engine_name)
        return EngineAccuracy(engine=engine_name, device=device, verdict="blocked", reason=_reason(error)), silent
    try:
        accuracy, heard = judge_engine(artifact, engine, selected=selected, controls=controls)
        accuracy = with_facts(accuracy, engine)
    except DeviceFailedError as error:
        return failed_section(engine_name, device, error, engine.probe.facts), silent
    finally:
        engine.close()
        release_memory()  # the next engine's, or that of the process that takes the times
    if reference is not None:
        again = partial(open_engine, name=engine_name, device=device, threads=threads, settings=settings)
        accuracy = accuracy.model_copy(update={"divergences": _located(artifact, accuracy, again, reference)})
    return accuracy, heard


def _located(
    artifact: Artifact, accuracy: EngineAccuracy, again: Callable[[Artifact], Engine], reference: Artifact
) -> tuple[Divergence, ...]:
    """Return where an engine leaves the reference; what cannot be searched is said in the log."""
    from verify.divergence.locate import find_divergences  # needs onnx, which a box has not

    found = []
    try:
        for divergence in find_divergences(artifact, accuracy.engine, again, accuracy.cases, reference):
            log.info("%s: %s", accuracy.label, divergence.summary)
            found.append(divergence)
    except AtlasportError as error:
        log.warning("%s: %s", accuracy.label, error)
    return tuple(found)


def judge_engine(
    artifact: Artifact, engine: Engine, *, selected: set[str], controls: bool = False
) -> tuple[EngineAccuracy, EngineInference]:
    """Run the selected cases and recordings on an open engine and judge them; see `verify_engine`."""
    return _Run(artifact, engine, Golden(artifact), selected).judge(controls=controls)


class _Run:
    """One artifact on one open engine."""

    def __init__(self, artifact: Artifact, engine: Engine, golden: Golden, selected: set[str]) -> None:
        self.artifact = artifact
        self.content = artifact.content
        self.engine = engine
        self.golden = golden
        self.family: Family = family_of(artifact)
        self.selected = selected
        self.cases = [case for case in self.content.cases if case.name in selected]
        self.decisions = self.family.decide(artifact, golden, selected)
        self.recordings = [recording for recording in self.content.recordings if recording.name in selected]

    @cached_property
    def hearing(self) -> Hearing:
        """The family's recogniser."""
        return Hearing(self.artifact, self.engine)

    def judge(self, *, controls: bool) -> tuple[EngineAccuracy, EngineInference]:
        """Run everything, then judge."""
        stages = self.family.host_stages(self.artifact, self.golden, self.selected)
        first = [self._case(self.engine, case) for case in self.cases]
        decided = [self._decision(self.engine, decision) for decision in self.decisions]
        pairs = [self._recording(recording) for recording in self.recordings]
        # Once more behind all others: what a call leaves behind, or does now and then, shows.
        again = [self._case(self.engine, case) for case in self.cases]
        cases = stages + list(map(_worse, first, again)) + self._graphs_without_case()
        recordings = [self._again(recording, *pair) for recording, pair in zip(self.recordings, pairs, strict=True)]
        recordings = self._batched(recordings)
        controlled = self._controls() if controls else []
        gates = gates_of(cases, decided, recordings, self.content.variant, self.content.tolerances)
        if gate := controls_gate(controlled):
            gates = (*gates, gate)
        real = real_relative_l2(cases, decided)
        verdict, reason = verdict_of(gates, self.content.variant, real)
        log.info("%s on %s: %s, %s", self.engine.name, self.engine.device, verdict, reason)
        accuracy = EngineAccuracy(
            engine=self.engine.name,
            device=self.engine.device,
            verdict=verdict,
            reason=reason,
            gates=gates,
            cases=tuple(cases),
            teacher_forced=tuple(run for run in decided if isinstance(run, ForcedAccuracy)),
            frame_decisions=tuple(scores for scores in decided if isinstance(scores, FrameDecisions)),
            recordings=tuple(recordings),
            controls=tuple(controlled),
            real_relative_l2=real,
        )
        heard = tuple(result for _, result in pairs if result is not None)
        return accuracy, EngineInference(engine=self.engine.name, device=self.engine.device, recordings=heard)

    def _graphs_without_case(self) -> list[CaseAccuracy]:
        covered = {case.graph for case in self.content.cases}
        return [
            CaseAccuracy(graph=name, case="none", precision=graph.is_below_fp32, blocked="the artifact has no case")
            for name, graph in self.content.graphs.items()
            if name not in covered
        ]

    def _case(self, engine: Engine, case: Case) -> CaseAccuracy:
        graph = self.content.graphs[case.graph]
        label = f"{engine.name} {case.graph}/{case.name}"
        below = graph.is_below_fp32
        try:
            outputs = run_case(engine, graph, self.golden, case)
        except DamagedArtifactError:
            raise
        except DeviceFailedError as error:
            raise error.in_case(case.name) from error
        except Exception as error:
            log.exception("%s: blocked", label)
            return CaseAccuracy(
                graph=case.graph, case=case.name, precision=below, real=case.real, blocked=_reason(error)
            )
        judged = tuple(judge_case(self.content, self.golden, case, outputs))
        worst = max(judged, key=lambda output: output.difference.relative_l2)
        log.info("%s: relative L2 %.3g (%s)", label, worst.difference.relative_l2, worst.name)
        return CaseAccuracy(graph=case.graph, case=case.name, precision=below, real=case.real, outputs=judged)

    def _decision(self, engine: Engine, decision: Decision) -> Decided:
        label = f"{engine.name} decisions {decision.name}"
        try:
            judged = decision.judge(engine)
        except DamagedArtifactError:
            raise
        except DeviceFailedError as error:
            raise error.in_case(decision.name) from error
        except Exception as error:
            log.exception("%s: blocked", label)
            return decision.kind(name=decision.name, blocked=_reason(error))
        log.info("%s: %s", label, judged.remark)
        return judged

    def _recording(self, recording: Recording) -> tuple[RecordingAccuracy | EventAccuracy, InferenceRecording | None]:
        label = f"{self.engine.name} recording {recording.name}"
        try:
            result = self.hearing.one(recording)
            judged = self.family.judge(self.artifact, self.engine, recording, result)
        except DamagedArtifactError:
            raise
        except DeviceFailedError as error:
            raise error.in_case(recording.name) from error
        except Exception as error:
            log.exception("%s: blocked", label)
            return self.family.recording(name=recording.name, blocked=_reason(error)), None
        log.info("%s: %s; %r", label, judged.remark, result.summary)
        return judged, InferenceRecording(name=recording.name, result=result.to_json())

    def _again(
        self, recording: Recording, judged: RecordingAccuracy | EventAccuracy, heard: InferenceRecording | None
    ) -> RecordingAccuracy | EventAccuracy:
        """Return a recording's accuracy with whether the same is heard in it once more."""
        if heard is None:
            return judged
        _, once_more = self._recording(recording)
        repeats = once_more is not None and _lasting(once_more.result) == _lasting(heard.result)
        return judged.model_copy(update={"repeats": repeats})

    def _batched(self, judged: Sequence[RecordingAccuracy | EventAccuracy]) -> list[RecordingAccuracy | EventAccuracy]:
        """Return recordings with whether those of the same options are heard as alone in a batch, in its order."""
        batch = in_one_batch(self.recordings, judged)
        try:
            results = self.hearing.together(batch) if batch else None
            if results is None:
                return list(judged)
            pairs = zip(batch, results, strict=True)
            heard = [self.family.judge(self.artifact, self.engine, recording, result) for recording, result in pairs]
        except DamagedArtifactError:
            raise
        except DeviceFailedError as error:
            raise error.in_case("a batch of recordings") from error
        except Exception:
            log.exception("%s a batch of recordings: failed", self.engine.name)
            heard = []
        alike = {one.name for one in heard if isinstance(one, RecordingAccuracy) and (one.as_golden or one.near_tie)}
        names = {recording.name for recording in batch}
        return [one.model_copy(update={"in_batch": one.name in alike}) if one.name in names else one for one in judged]

    def _controls(self) -> list[Control]:
        return [self._control(fault) for fault in self.family.faults(self.artifact)]

    def _control(self, fault: Fault) -> Control:
        """Judge the faulty engine by the cases of the faulty graphs and by its decisions."""
        engine = FaultyEngine(self.engine, self.artifact, fault)
        cases = [self._case(engine, case) for case in self.cases if case.graph.startswith(fault.graph)]
        decided = [self._decision(engine, decision) for decision in self.decisions]
        gates = gates_of(cases, decided, [], self.content.variant, self.content.tolerances)
        failed = tuple(gate.name for gate in gates if gate.passed is False)
        blocked = [case.blocked for case in cases if case.blocked] + [run.blocked for run in decided if run.blocked]
        caught = any(name.startswith(fault.gate) for name in failed)
        log.info("%s: %s by %s", engine.name, "caught" if caught else "MISSED", ", ".join(failed) or "no gate")
        return Control(
            name=fault.name,
            gate=fault.gate,
            caught=None if blocked else caught,
            failed_gates=failed,
            blocked=blocked[0] if blocked else None,
        )


def _worse(first: CaseAccuracy, again: CaseAccuracy) -> CaseAccuracy:
    """Return a case with each output as it was further from golden; a run that was blocked blocks."""
    if first.blocked or again.blocked:
        return first if first.blocked else again

    def distance(output: OutputAccuracy) -> tuple[bool, float, int]:
        share = max((judged.share for judged in output.judged), default=0.0)
        return output.problem is not None, share, output.difference.at_limit

    outputs = tuple(max(pair, key=distance) for pair in zip(first.outputs, again.outputs, strict=True))
    return first.model_copy(update={"outputs": outputs})


def _lasting(result: dict[str, Any]) -> dict[str, Any]:
    """Return what of a result's JSON is the same each time."""
    return {name: value for name, value in result.items() if name not in {"timings", "tokens_per_s", "counts"}}


def judge_case(content: Content, golden: Golden, case: Case, outputs: dict[str, Array]) -> Iterator[OutputAccuracy]:
    """Compare a case's outputs with its golden ones, and with their limits."""
    graph = content.graphs[case.graph]
    precision = graph.precision
    # In the graph's order: the manifest sorts the case's outputs by name.
    for name, dtype in ((spec.name, spec.dtype) for spec in graph.outputs if spec.name in case.outputs):
        stored = case.outputs[name]
        expected, found = golden.output(stored), kept(outputs[name], stored)
        difference, problem = compare_output(found, expected, dtype, logits=stored.logits)
        judged = judge(difference, content.tolerances, precision, stored.pool, logits=stored.logits)
        yield OutputAccuracy(
            name=name,
            dtype=dtype,
            shape=found.shape,
            difference=difference,
            judged=tuple(sorted(judged, key=lambda one: -one.share)),
            problem=problem,
        )


def _reason(error: Exception) -> str:
    """Return one line for a results file; the log has the traceback."""
    text = " ".join(str(error).split())
    return text if isinstance(error, AtlasportError) else f"{type(error).__name__}: {text}"
