"""What a family adds to verify: its decisions, its task on a recording, its known bugs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from runtime.artifact import Artifact
from runtime.audio import Audio, open_audio
from runtime.engines.base import Engine, Floats
from runtime.errors import InputError
from runtime.families import family_of as runtime_family
from runtime.family import BatchRecognizer
from runtime.golden import Golden
from runtime.manifest import Recording, TeacherForced
from runtime.results import Result
from verify.decisions import judge_forced
from verify.faults import Fault
from verify.results import CaseAccuracy, EventAccuracy, ForcedAccuracy, FrameDecisions, RecordingAccuracy

# Each module's FAMILY; loaded when it is asked for.
FAMILIES = {
    "whisper": "verify.families.whisper",
    "cnn8rnn": "verify.families.cnn8rnn",
    "parakeet_tdt": "verify.families.parakeet_tdt",
    "parakeet_ctc": "verify.families.parakeet_ctc",
    "granite_speech": "verify.families.granite_speech",
}


Decided: TypeAlias = ForcedAccuracy | FrameDecisions


@dataclass(frozen=True)
class Decision:
    """Decisions that one engine takes: `judge` runs and compares them, `kind` is what it returns."""

    name: str
    kind: type[ForcedAccuracy | FrameDecisions]
    judge: Callable[[Engine], Decided]


def forced_decisions(
    artifact: Artifact,
    golden: Golden,
    selected: set[str],
    logits_of: Callable[[Artifact, Engine, Golden, TeacherForced], Floats],
) -> list[Decision]:
    """Return the selected teacher-forced runs of the artifact, each along one softmax.

    `logits_of` runs an engine along a run's tokens and returns its logits [n, V] f32.
    """

    def judge(engine: Engine, forced: TeacherForced) -> ForcedAccuracy:
        logits = logits_of(artifact, engine, golden, forced)
        return judge_forced(forced.name, golden.array(forced.logits), logits, artifact.content)

    return [
        Decision(forced.name, ForcedAccuracy, partial(judge, forced=forced))
        for forced in artifact.content.teacher_forced
        if forced.name in selected
    ]


def _no_stages(_artifact: Artifact, _golden: Golden, _selected: set[str]) -> list[CaseAccuracy]:
    return []


def _no_searches(_artifact: Artifact) -> Mapping[str, dict[str, Any]]:
    return {}


@dataclass(frozen=True)
class Family:
    """What verify knows of a family: one such object in its module.

    Attributes
    ----------
    recording : type
        What `judge` returns.
    decide : callable
        Returns what decisions are to be compared: teacher-forced runs, or scores at their thresholds. Given the
        artifact, its golden arrays, and the names of the cases and runs that are selected.
    judge : callable
        Compares a recording's result with the golden run's and with the person's; the engine helps to say why.
    faults : callable
        Returns the known bugs that verify injects on request.
    host_stages : callable
        Returns what the host computes ahead of the graphs, compared with golden arrays; none where a graph does.
    searches : callable
        Returns by name the options of each kind of search whose work on the device is counted; none where there is
        one way only.
    window_graph : str
        The graph that is called once a window (or recording, or batch, where these go through it whole).
    step_graph : str
        The graph that is called once a token; empty where there is none, or where it may run on the host.

    """

    recording: type[RecordingAccuracy | EventAccuracy]
    decide: Callable[[Artifact, Golden, set[str]], list[Decision]]
    judge: Callable[[Artifact, Engine, Recording, Any], RecordingAccuracy | EventAccuracy]
    faults: Callable[[Artifact], tuple[Fault, ...]]
    window_graph: str
    step_graph: str = ""
    host_stages: Callable[[Artifact, Golden, set[str]], list[CaseAccuracy]] = _no_stages
    searches: Callable[[Artifact], Mapping[str, dict[str, Any]]] = _no_searches


def family_of(artifact: Artifact) -> Family:
    """Return how to verify the artifact's family.

    Raises
    ------
    InputError
        This version cannot verify that family.

    """
    family = artifact.content.family
    if family not in FAMILIES:
        msg = f"{artifact.path}: family {family!r}, expected one of {', '.join(FAMILIES)}; update atlasport"
        raise InputError(msg)
    found: Family = import_module(FAMILIES[family]).FAMILY
    return found


class Hearing:
    """Hears the artifact's recordings from their files, each with its options, by the recogniser of users."""

    def __init__(self, artifact: Artifact, engine: Engine) -> None:
        self._artifact = artifact
        self._family = runtime_family(artifact)
        self._recognizer = self._family.open(artifact, engine, None)

    def one(self, recording: Recording) -> Result:
        """Return what is heard in a recording."""
        result: Result = self._recognizer.recognize(
            self._audio(recording), self._family.options.parse(recording.options)
        )
        return result

    def together(self, recordings: Sequence[Recording]) -> Sequence[Result] | None:
        """Return what is heard in recordings of the same options in one batch, None where the family takes one each."""
        if not isinstance(self._recognizer, BatchRecognizer):
            return None
        options = self._family.options.parse(recordings[0].options)
        results: Sequence[Result] = self._recognizer.recognize_batch(list(map(self._audio, recordings)), options)
        return results

    def _audio(self, recording: Recording) -> Audio:
        return open_audio(self._artifact.file(recording.file))
