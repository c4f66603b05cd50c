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
from runtime.fastconformer.settings import ENCODER, FRONTEND, recording_case
from runtime.golden import Golden, run_case
from runtime.manifest import Case, Recording, TeacherForced
from runtime.results import Transcript
from verify.families import Decision, Family
from verify.faults import Arrays, Fault, RunGraph, in_hf32, scaled, with_nan
from verify.gates import judge_forced
from verify.results import ForcedAccuracy, RecordingAccuracy
from verify.transcripts import first_difference, judge_transcript, tokens_of


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the choices of tokens and those of durations along each of the artifact's golden searches."""
    n_tokens = artifact.part("dims", ParakeetDims).n_vocab + 1
    columns = {"tokens": slice(n_tokens), "durations": slice(n_tokens, None)}

    def judge(engine: Engine, forced: TeacherForced, kind: str) -> ForcedAccuracy:
        expected: Floats = golden.array(forced.logits)
        found = forced_logits(artifact, engine, golden, forced)
        part = (slice(None), columns[kind])
        return judge_forced(f"{forced.name} {kind}", expected[part], found[part], artifact.content.tolerances)

    return [
        Decision(f"{forced.name} {kind}", ForcedAccuracy, partial(judge, forced=forced, kind=kind))
        for forced in artifact.content.teacher_forced
        if forced.name in selected
        for kind in columns
    ]


def forced_logits(artifact: Artifact, engine: Engine, golden: Golden, forced: TeacherForced) -> Floats:
    """Return logits f32 [n, V + 1 + D] of step and join along the golden search through golden frames.

    The frames are those of `forced.encoder_case`, so what is measured is the prediction net and the joint net.
    """
    dims, settings = artifact.part("dims", ParakeetDims), artifact.part("settings", ParakeetSettings)
    dtype = next(spec.dtype for spec in artifact.content.graphs[JOIN].inputs if spec.name == "frame")
    forcing = TeacherForcingEngine(engine, golden.array(forced.logits))
    search = HostSearch(forcing, dims, settings, dtype)
    case = _encoder_case(artifact, forced.encoder_case)
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
    """Compare text, times and tokens with the golden run's, and the text with the transcript.

    Where tokens differ, what is to blame is found from the end: the search, if it finds other tokens in the golden
    frames too; the encoder, if it does so by frames of the golden features; otherwise the front-end. That takes the
    recording's encoder case, which a long one does not have.
    """
    golden, found = tokens_of(recording.result), tokens_of(result.to_json())
    accuracy = judge_transcript(recording, result, first_difference(golden, found))
    case = _encoder_case(artifact, recording_case(recording.name))
    if golden == found or case is None:
        return accuracy
    return accuracy.model_copy(update={"blamed": _blamed(artifact, engine, case, golden)})


def _blamed(artifact: Artifact, engine: Engine, case: Case, golden_tokens: list[int]) -> str:
    decoder = ParakeetRecognizer(artifact, engine).model
    golden = Golden(artifact)

    def is_right(frames: Array) -> bool:
        found = decoder.search(frames, golden.output(case.outputs["frames_len"]), decoder.start())[0][0]
        return [emission.token for emission in found] == golden_tokens

    if not is_right(golden.output(case.outputs["frames"])):
        return "the search"
    frames = run_case(engine, artifact.content.graphs[ENCODER], golden, case)["frames"]
    return "the front-end" if is_right(frames) else "the encoder"


def _encoder_case(artifact: Artifact, name: str) -> Case | None:
    return next((case for case in artifact.content.cases if case.graph == ENCODER and case.name == name), None)


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it.

    The front-end computes in float32 in every variant. A relative shift that is off by one is within the encoder:
    tests/verify/test_parakeet_faults.py injects it into the modules.
    """
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    n_tokens = artifact.part("dims", ParakeetDims).n_vocab + 1
    factor = artifact.part("dims", ParakeetDims).subsampling_factor
    found = [
        Fault("features normalised after padding", FRONTEND, "structure", _normalised_after_padding),
        Fault("mask one frame late", ENCODER, errors, partial(_late_mask, factor=factor)),
        Fault("encoder output x1.1", ENCODER, errors, partial(scaled, output="frames", by=1.1)),
        Fault("NaN in the encoder", ENCODER, "overflow.non_finite", partial(with_nan, output="frames")),
        Fault("state of the prediction net lost", STEP, errors, _lost_state),
        Fault("blank moved to the front", (STEP, JOIN), "decisions.tokens", partial(_rolled, part=slice(n_tokens))),
        Fault(
            "durations shifted by one",
            (STEP, JOIN),
            "decisions.tokens",
            partial(_rolled, part=slice(n_tokens, None)),
        ),
        Fault("steps of the search begin one frame late", "decode_", errors, _late_search),
    ]
    if variant == "fp32":
        found.append(Fault("encoder in HF32", ENCODER, errors, in_hf32))
    return tuple(found)


def _normalised_after_padding(run: RunGraph, inputs: Arrays) -> Arrays:
    """Count a batch's padding as speech in mean and deviation of the features."""
    audio, length = inputs["audio"], inputs["length"]
    audio[np.arange(audio.shape[1]) >= length[:, None]] = 0
    sound = run(inputs)
    features = run({"audio": audio, "length": np.full_like(length, audio.shape[1])})["features"]
    features[(np.arange(features.shape[2]) >= sound["features_len"][:, None])[:, None].repeat(features.shape[1], 1)] = 0
    return {**sound, "features": features}


def _late_mask(run: RunGraph, inputs: Arrays, factor: int) -> Arrays:
    """Let the encoder see one of its frames beyond the end of each recording, where there is one."""
    most = inputs["features"].shape[2]
    sound = run(inputs)
    frames = run({**inputs, "features_len": np.minimum(inputs["features_len"] + factor, most)})["frames"]
    frames[np.arange(frames.shape[1]) >= sound["frames_len"][:, None]] = 0
    return {**sound, "frames": frames}


def _lost_state(run: RunGraph, inputs: Arrays) -> Arrays:
    return {**run(inputs), "new_h": inputs["h"], "new_c": inputs["c"]}


def _rolled(run: RunGraph, inputs: Arrays, part: slice) -> Arrays:
    """Move the last of some columns of the logits to their front."""
    outputs = run(inputs)
    outputs["logits"][:, part] = np.roll(outputs["logits"][:, part], 1, axis=1)
    return outputs


def _late_search(run: RunGraph, inputs: Arrays) -> Arrays:
    return run({**inputs, "t": inputs["t"] + 1})


FAMILY = Family(RecordingAccuracy, decide, judge, faults, searches=searches)
