"""Parakeet-CTC: what is likeliest in every frame of the golden sounds, and recordings by the recogniser of users."""

from __future__ import annotations

from functools import partial
from itertools import groupby

import numpy as np

from runtime.artifact import Artifact
from runtime.engines.base import Array, Engine, Floats
from runtime.fastconformer.settings import ENCODER
from runtime.golden import Golden, run_case
from runtime.manifest import Case, Recording
from runtime.results import Transcript
from verify.decisions import judge_forced
from verify.families import Decision, Family
from verify.fastconformer import encoder_faults, judge_by_stages
from verify.faults import Arrays, Fault, RunGraph
from verify.results import ForcedAccuracy, RecordingAccuracy


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the choices of ids in the frames of each encoder case."""

    def judge(engine: Engine, case: Case) -> ForcedAccuracy:
        lengths = golden.output(case.outputs["frames_len"])

        def rows(logits: Floats) -> Floats:
            return np.concatenate([row[:length] for row, length in zip(logits, lengths, strict=True)])

        found = run_case(engine, artifact.content.graphs[ENCODER], golden, case)["logits"]
        expected = golden.output(case.outputs["logits"])
        return judge_forced(case.name, rows(expected), rows(found), artifact.content, real=case.real)

    return [
        Decision(case.name, ForcedAccuracy, partial(judge, case=case))
        for case in artifact.content.cases
        if case.graph == ENCODER and case.name in selected
    ]


def judge(artifact: Artifact, engine: Engine, recording: Recording, result: Transcript) -> RecordingAccuracy:
    """Compare text, times and tokens with the golden run's; see verify/fastconformer.py."""
    blank = artifact.content.dims["n_vocab"]

    def tokens(logits: Array, lengths: Array) -> list[int]:
        ids = logits[0, : int(lengths[0])].argmax(axis=1).tolist()
        return [token for token, _ in groupby(ids) if token != blank]

    return judge_by_stages(artifact, engine, recording, result, "logits", tokens)


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it."""
    return (
        *encoder_faults(artifact, "logits"),
        Fault("blank moved to the front", ENCODER, "decisions.tokens", _rolled),
    )


def _rolled(run: RunGraph, inputs: Arrays) -> Arrays:
    """Move the last of the logits to their front."""
    outputs = run(inputs)
    return {**outputs, "logits": np.roll(outputs["logits"], 1, axis=2)}


FAMILY = Family(RecordingAccuracy, decide, judge, faults, window_graph=ENCODER)
