"""Parakeet-TDT: logits along the golden search, and recordings by the recogniser that users run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from runtime.artifact import Artifact
from runtime.engines.base import Array, Engine, Floats
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.parakeet_tdt.search import HostSearch
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings
from runtime.families.parakeet_tdt.teacher_forcing import TeacherForcingEngine
from runtime.fastconformer.settings import ENCODER
from runtime.golden import Golden
from runtime.limits import forced_pool
from runtime.manifest import Recording, TeacherForced
from runtime.results import Transcript
from verify.decisions import judge_forced
from verify.families import Decision, Family
from verify.fastconformer import encoder_case, encoder_faults, judge_by_stages
from verify.faults import Arrays, Fault, RunGraph
from verify.results import ForcedAccuracy, RecordingAccuracy


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the choices of tokens and those of durations along each of the artifact's golden searches."""

    def judge(engine: Engine, forced: TeacherForced, head: str) -> ForcedAccuracy:
        expected: Floats = golden.array(forced.logits)
        found = forced_logits(artifact, engine, golden, forced)
        part = (slice(None), slice(*forced.heads[head]))
        name = f"{forced.name} {head}"
        pool = forced_pool(forced.heads, head)
        return judge_forced(name, expected[part], found[part], artifact.content, head=head, pool=pool)

    return [
        Decision(f"{forced.name} {head}", ForcedAccuracy, partial(judge, forced=forced, head=head))
        for forced in artifact.content.teacher_forced
        if forced.name in selected
        for head in forced.heads
    ]


def forced_logits(artifact: Artifact, engine: Engine, golden: Golden, forced: TeacherForced) -> Floats:
    """Return logits f32 [n, V + 1 + D] of step and join along the golden search through golden frames.

    The frames are those of `forced.encoder_case`, so what is measured is the prediction net and the joint net.
    """
    dims, settings = artifact.part("dims", ParakeetDims), artifact.part("settings", ParakeetSettings)
    dtype = next(spec.dtype for spec in artifact.content.graphs[JOIN].inputs if spec.name == "frame")
    forcing = TeacherForcingEngine(engine, golden.array(forced.logits))
    search = HostSearch(forcing, dims, settings, dtype)
    case = encoder_case(artifact, forced.encoder_case)
    assert case is not None
    frames, lengths = (golden.output(case.outputs[name]) for name in ("frames", "frames_len"))
    search.run(frames, lengths, search.start(1))
    return forcing.rows


def searches(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Return the search on the host, and that on the device by the graph of most steps."""
    steps = artifact.part("settings", ParakeetSettings).decode_steps
    on_device = {f"search on the device, {max(steps)} steps a call": {"decode": "device"}} if steps else {}
    return {"search on the host": {}} | on_device


def judge(artifact: Artifact, engine: Engine, recording: Recording, result: Transcript) -> RecordingAccuracy:
    """Compare text, times and tokens with the golden run's; see verify/fastconformer.py."""

    def tokens(frames: Array, lengths: Array) -> list[int]:
        decoder = ParakeetRecognizer(artifact, engine).model
        found, _ = decoder.search(frames, lengths, decoder.start())
        return [emission.token for emission in found[0]]

    return judge_by_stages(artifact, engine, recording, result, "frames", tokens)


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it.

    The front-end computes in float32 in every variant. A relative shift that is off by one is within the encoder:
    tests/verify/test_parakeet_faults.py injects it into the modules.
    """
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    n_tokens = artifact.part("dims", ParakeetDims).n_vocab + 1
    return (
        *encoder_faults(artifact, "frames"),
        Fault("state of the prediction net lost", STEP, errors, _lost_state),
        Fault("blank moved to the front", (STEP, JOIN), "decisions.tokens", partial(_rolled, part=slice(n_tokens))),
        Fault(
            "durations shifted by one",
            (STEP, JOIN),
            "decisions.tokens",
            partial(_rolled, part=slice(n_tokens, None)),
        ),
        Fault("steps of the search begin one frame late", "decode_", errors, _late_search),
    )


def _lost_state(run: RunGraph, inputs: Arrays) -> Arrays:
    return {**run(inputs), "new_h": inputs["h"], "new_c": inputs["c"]}


def _rolled(run: RunGraph, inputs: Arrays, part: slice) -> Arrays:
    """Move the last of some columns of the logits to their front."""
    outputs = run(inputs)
    outputs["logits"][:, part] = np.roll(outputs["logits"][:, part], 1, axis=1)
    return outputs


def _late_search(run: RunGraph, inputs: Arrays) -> Arrays:
    return run({**inputs, "t": inputs["t"] + 1})


FAMILY = Family(RecordingAccuracy, decide, judge, faults, window_graph=ENCODER, searches=searches)
