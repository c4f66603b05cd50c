"""Accuracy of an artifact on its engines: run first, compare afterwards, then judge.

The `run_*` functions call the engine and know no golden output; the `judge_*` functions compare arrays and texts and
never call an engine; `verify.gates` turns their results into a verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Array, Engine
from runtime.errors import AtlasportError, DamagedArtifactError, InputError
from runtime.manifest import Case, Dtype, Graph, Recording, TeacherForced
from runtime.results import Segment, Transcript
from verify.families import Family, family_of
from verify.faults import Fault, FaultyEngine
from verify.gates import controls_gate, gates_of, is_below_fp32, judge_forced, verdict_of
from verify.golden import Golden, kept
from verify.metrics import compare, error_rates, unlike
from verify.results import (
    CaseAccuracy,
    Control,
    EngineAccuracy,
    EngineInference,
    ForcedAccuracy,
    InferenceRecording,
    OutputAccuracy,
    RecordingAccuracy,
)

log = logging.getLogger("verify.accuracy")

# What Engine.get returns for each dtype of a graph.
_ON_HOST: dict[Dtype, str] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "float32",
    "int64": "int64",
}
_SAME_TIME_S = 1e-3


def verify_engine(
    artifact: Artifact,
    engine_name: str,
    device: str,
    *,
    selected: set[str],
    threads: int | None = None,
    controls: bool = False,
) -> tuple[EngineAccuracy, EngineInference]:
    """Run the selected cases and recordings on one engine and judge them.

    Returns
    -------
    tuple
        The section of accuracy.json and that of inference.json. An engine that does not open, and a case that does
        not run, is `blocked` with the reason.

    Raises
    ------
    InputError
        The device's name is not one.
    DamagedArtifactError
        A golden array is missing.

    """
    silent = EngineInference(engine=engine_name, device=device, recordings=())
    try:
        engine = open_engine(artifact, engine_name, device, threads)
    except (InputError, DamagedArtifactError):
        raise
    except Exception as error:
        log.exception("%s: blocked", engine_name)
        return EngineAccuracy(engine=engine_name, device=device, verdict="blocked", reason=_reason(error)), silent
    try:
        return judge_engine(artifact, engine, selected=selected, controls=controls)
    finally:
        engine.close()


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
        self.cases = [case for case in self.content.cases if case.name in selected]
        self.forced = [forced for forced in self.content.teacher_forced if forced.name in selected]
        self.recordings = [recording for recording in self.content.recordings if recording.name in selected]

    def judge(self, *, controls: bool) -> tuple[EngineAccuracy, EngineInference]:
        """Run everything, then judge."""
        cases = [self._case(self.engine, case) for case in self.cases] + self._graphs_without_case()
        forced = [self._forced(self.engine, forced) for forced in self.forced]
        pairs = [self._recording(recording) for recording in self.recordings]
        recordings = [accuracy for accuracy, _ in pairs]
        controlled = self._controls() if controls else []
        gates = gates_of(cases, forced, recordings, self.content.variant, self.content.tolerances)
        if gate := controls_gate(controlled):
            gates = (*gates, gate)
        verdict, reason = verdict_of(gates)
        log.info("%s on %s: %s, %s", self.engine.name, self.engine.device, verdict, reason)
        accuracy = EngineAccuracy(
            engine=self.engine.name,
            device=self.engine.device,
            verdict=verdict,
            reason=reason,
            gates=gates,
            cases=tuple(cases),
            teacher_forced=tuple(forced),
            recordings=tuple(recordings),
            controls=tuple(controlled),
        )
        texts = tuple(text for _, text in pairs if text is not None)
        return accuracy, EngineInference(engine=self.engine.name, device=self.engine.device, recordings=texts)

    def _graphs_without_case(self) -> list[CaseAccuracy]:
        covered = {case.graph for case in self.content.cases}
        return [
            CaseAccuracy(graph=name, case="none", precision=is_below_fp32(graph), blocked="the artifact has no case")
            for name, graph in self.content.graphs.items()
            if name not in covered
        ]

    def _case(self, engine: Engine, case: Case) -> CaseAccuracy:
        graph = self.content.graphs[case.graph]
        label = f"{engine.name} {case.graph}/{case.name}"
        below = is_below_fp32(graph)
        try:
            outputs = run_case(engine, graph, self.golden, case)
        except DamagedArtifactError:
            raise
        except Exception as error:
            log.exception("%s: blocked", label)
            return CaseAccuracy(graph=case.graph, case=case.name, precision=below, blocked=_reason(error))
        judged = tuple(judge_case(graph, self.golden, case, outputs))
        worst = max(judged, key=lambda output: output.difference.relative_l2)
        log.info("%s: relative L2 %.3g (%s)", label, worst.difference.relative_l2, worst.name)
        return CaseAccuracy(graph=case.graph, case=case.name, precision=below, outputs=judged)

    def _forced(self, engine: Engine, forced: TeacherForced) -> ForcedAccuracy:
        label = f"{engine.name} teacher-forced {forced.name}"
        try:
            logits = self.family.forced_logits(self.artifact, engine, self.golden, forced)
        except DamagedArtifactError:
            raise
        except Exception as error:
            log.exception("%s: blocked", label)
            return ForcedAccuracy(name=forced.name, blocked=_reason(error))
        judged = judge_forced(forced.name, self.golden.array(forced.logits), logits, self.content.tolerances)
        log.info("%s: %d of %d tokens agree, KL at most %.3g", label, judged.agreed, judged.positions, judged.kl_max)
        return judged

    def _recording(self, recording: Recording) -> tuple[RecordingAccuracy, InferenceRecording | None]:
        label = f"{self.engine.name} recording {recording.name}"
        try:
            transcript = self.family.transcribe(self.artifact, self.engine, recording)
        except DamagedArtifactError:
            raise
        except Exception as error:
            log.exception("%s: blocked", label)
            return RecordingAccuracy(name=recording.name, blocked=_reason(error)), None
        golden_tokens = [token for segment in recording.segments for token in segment["tokens"]]
        found_tokens = [token for segment in transcript.segments for token in segment.tokens]
        text_tokens = self.family.text_tokens
        first = first_difference(text_tokens(self.artifact, golden_tokens), text_tokens(self.artifact, found_tokens))
        judged = judge_recording(recording, transcript, first)
        log.info("%s: %s %r", label, "as golden" if judged.tokens_equal else "DIFFERS", transcript.text)
        return judged, _inference(recording, transcript)

    def _controls(self) -> list[Control]:
        return [self._control(fault) for fault in self.family.faults(self.artifact)]

    def _control(self, fault: Fault) -> Control:
        """Judge the faulty engine by the cases of the faulty graphs and by teacher forcing."""
        engine = FaultyEngine(self.engine, self.artifact, fault)
        cases = [self._case(engine, case) for case in self.cases if case.graph.startswith(fault.graph)]
        forced = [self._forced(engine, forced) for forced in self.forced]
        gates = gates_of(cases, forced, [], self.content.variant, self.content.tolerances)
        failed = tuple(gate.name for gate in gates if gate.passed is False)
        blocked = [case.blocked for case in cases if case.blocked] + [run.blocked for run in forced if run.blocked]
        caught = any(name.startswith(fault.gate) for name in failed)
        log.info("%s: %s by %s", engine.name, "caught" if caught else "MISSED", ", ".join(failed) or "no gate")
        return Control(
            name=fault.name,
            gate=fault.gate,
            caught=None if blocked else caught,
            failed_gates=failed,
            blocked=blocked[0] if blocked else None,
        )


def run_case(engine: Engine, graph: Graph, golden: Golden, case: Case) -> dict[str, Array]:
    """Return the outputs of a case that have a golden counterpart, on the host."""
    dtypes = {spec.name: spec.dtype for spec in graph.inputs}
    inputs = {name: engine.put(array, dtypes[name]) for name, array in golden.inputs(case).items()}
    outputs = engine.run(case.graph, inputs)
    return {name: engine.get(outputs[name]) for name in case.outputs}


def judge_case(graph: Graph, golden: Golden, case: Case, outputs: dict[str, Array]) -> Iterator[OutputAccuracy]:
    """Compare a case's outputs with its golden ones."""
    # In the graph's order: the manifest sorts the case's outputs by name.
    for name, dtype in ((spec.name, spec.dtype) for spec in graph.outputs if spec.name in case.outputs):
        stored = case.outputs[name]
        expected, found = golden.output(stored), kept(outputs[name], stored)
        problem = None
        if found.shape != expected.shape:
            problem = f"shape {list(found.shape)}, golden {list(expected.shape)}"
        elif found.dtype.name != _ON_HOST[dtype]:
            problem = f"dtype {found.dtype.name}, manifest {dtype}"
        difference = unlike(found, dtype) if problem else compare(found, expected, dtype)
        yield OutputAccuracy(name=name, dtype=dtype, shape=found.shape, difference=difference, problem=problem)


def first_difference(golden: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the index of the first token that differs or that one side lacks, None where all are equal."""
    shorter = min(len(golden), len(found))
    first = next((i for i in range(shorter) if golden[i] != found[i]), shorter)
    return None if first == len(golden) == len(found) else first


def judge_recording(recording: Recording, transcript: Transcript, first: int | None) -> RecordingAccuracy:
    """Compare a transcript with the golden run's and with the human transcript.

    Equal means equal: no allowance is made for lower precision. A variant whose text differs from the fp32 model's on
    its own recordings is not a drop-in for it, and saying so is what gate 4 is for.

    Parameters
    ----------
    recording, transcript
        The golden run and the engine's.
    first : int or None
        Index of the first text token that differs.

    """
    said = recording.transcript
    rates = error_rates(said, transcript.text) if said is not None else None
    golden_rates = error_rates(said, recording.text) if said is not None else None
    wer, cer = rates or (None, None)
    golden_wer, golden_cer = golden_rates or (None, None)
    return RecordingAccuracy(
        name=recording.name,
        text_equal=transcript.text == recording.text,
        times_equal=_same_times(recording.segments, transcript.segments),
        tokens_equal=first is None,
        first_difference=first,
        wer=wer,
        cer=cer,
        golden_wer=golden_wer,
        golden_cer=golden_cer,
    )


def _same_times(golden: Sequence[dict[str, Any]], found: Sequence[Segment]) -> bool:
    return len(golden) == len(found) and all(
        abs(a["start"] - b.start) < _SAME_TIME_S and abs(a["end"] - b.end) < _SAME_TIME_S
        for a, b in zip(golden, found, strict=True)
    )


def _inference(recording: Recording, transcript: Transcript) -> InferenceRecording:
    return InferenceRecording(
        name=recording.name,
        file=recording.file,
        duration_s=transcript.audio.duration_s,
        language=transcript.language,
        text=transcript.text,
        segments=tuple(transcript.to_json()["segments"]),
        timings=transcript.timings,
    )


def _reason(error: Exception) -> str:
    """Return one line for a results file; the log has the traceback."""
    text = " ".join(str(error).split())
    return text if isinstance(error, AtlasportError) else f"{type(error).__name__}: {text}"
