"""Granite Speech: the host's features, teacher forcing through the decode loop that users run, recordings."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

import numpy as np

from runtime.artifact import Artifact
from runtime.audio import open_audio
from runtime.differences import compare_output
from runtime.engines.base import Array, Engine, Floats
from runtime.families.granite_speech.features import log_mel
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.prompts import instruction
from runtime.families.granite_speech.recognizer import GraniteRecognizer
from runtime.families.granite_speech.settings import (
    DECODE,
    ENCODE_PROJECT,
    PREFILL,
    GraniteDims,
    GraniteFrontend,
    GraniteSettings,
)
from runtime.families.granite_speech.speech_lm import Encoded, GraniteSpeechLM
from runtime.golden import Golden, kept, run_case
from runtime.limits import judge as judge_difference
from runtime.limits import limit_of
from runtime.manifest import Case, Recording, TeacherForced
from runtime.results import Transcript
from verify.families import Decision, Family, forced_decisions
from verify.faults import Arrays, Fault, RunGraph, in_hf32, off_by_one, scaled, with_nan
from verify.results import CaseAccuracy, OutputAccuracy, RecordingAccuracy
from verify.transcripts import judge_transcript, tokens_of

# What encode_project's cases of whole recordings are called (export/families/granite_speech/cases.py).
_RECORDING_CASE = "recording_{}"


def host_stages(artifact: Artifact, golden: Golden, selected: set[str]) -> list[CaseAccuracy]:
    """Return the front-end's features of the recordings, against those that the cases of encode_project hold."""
    stages: list[CaseAccuracy] = []
    for recording in artifact.content.recordings:
        case = _encoder_case(artifact, recording)
        if case is None or case.name not in selected or any(stage.case == case.name for stage in stages):
            continue
        expected = _golden_features(golden, case)
        found = _features(artifact, recording)
        difference, problem = compare_output(found, expected, "float32")
        output = OutputAccuracy(
            name="features",
            dtype="float32",
            shape=found.shape,
            difference=difference,
            judged=judge_difference(difference, artifact.content.tolerances, "fp32", "features", logits=False),
            problem=problem,
        )
        stages.append(
            CaseAccuracy(graph="features (host)", case=case.name, precision=False, real=True, outputs=(output,))
        )
    return stages


def _encoder_case(artifact: Artifact, recording: Recording) -> Case | None:
    """Return the case that holds the whole of a recording, which a long one does not have."""
    name = _RECORDING_CASE.format(PurePosixPath(recording.file).stem)
    return next((case for case in artifact.content.cases if case.name == name), None)


def _golden_features(golden: Golden, case: Case) -> Floats:
    """Return the features [n_frames, 2 n_mels] f32 of a case without its padding."""
    inputs = golden.inputs(case)
    features: Floats = inputs["features"]
    return features.reshape(-1, features.shape[-1])[: int(inputs["length"][0])]


def _features(artifact: Artifact, recording: Recording) -> Floats:
    """Return what the front-end makes of a whole recording."""
    frontend = artifact.part("frontend", GraniteFrontend)
    audio = open_audio(artifact.file(recording.file))
    return log_mel(np.concatenate(list(audio.blocks(frontend.sample_rate))), frontend)


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the teacher-forced runs of the artifact."""
    return forced_decisions(artifact, golden, selected, forced_logits)


def forced_logits(artifact: Artifact, engine: Engine, golden: Golden, forced: TeacherForced) -> Floats:
    """Return logits [n, V] f32 of the prompt's prefill and of one decode per golden token after it.

    The audio embeddings are the golden ones of `forced.encoder_case`, so what is measured is the language model.
    """
    dims, settings = artifact.part("dims", GraniteDims), artifact.part("settings", GraniteSettings)
    decoder = GraniteSpeechLM(engine, artifact.content.graphs, dims, settings)
    case = next(case for case in artifact.content.cases if case.name == forced.encoder_case)
    expected = forced.tokens[forced.prompt :]
    rows: list[Floats] = []

    def choose(logits: Floats) -> tuple[int, float]:
        rows.append(logits)
        return expected[len(rows) - 1], 0.0

    encoded = _golden_encoded(engine, golden, case, dims)
    decoder.generate(forced.tokens[: forced.prompt], encoded, len(expected), choose=choose)
    return np.stack(rows)


def _golden_encoded(engine: Engine, golden: Golden, case: Case, dims: GraniteDims) -> Encoded:
    """Return the golden outputs of a case of encode_project, as the decoder takes them."""
    n_frames = int(golden.array(case.inputs["length"].key)[0])
    embeds = golden.output(case.outputs["audio_embeds"]).reshape(-1, dims.lm_dim)[: dims.n_embeds(n_frames)]
    ctc_logits = engine.put(golden.output(case.outputs["ctc_logits"]), "float32")
    return Encoded(embeds, ctc_logits, n_frames)


def judge(artifact: Artifact, engine: Engine, recording: Recording, result: Transcript) -> RecordingAccuracy:
    """Compare text, times and tokens with the golden run's, and the text with the transcript.

    Where tokens differ, what is to blame is found from the end: the language model, if it finds other tokens by the
    golden embeddings too; encoder or projector, if it does so by those of the golden features; otherwise the front-end.
    That takes the recording's encoder case, with all of its embeddings.
    """
    golden, found = tokens_of(recording.result), tokens_of(result.to_json())
    accuracy = judge_transcript(recording, result, artifact.content)
    case = _encoder_case(artifact, recording)
    if golden == found or case is None or case.outputs["audio_embeds"].stride > 1 or len(result.segments) > 1:
        return accuracy
    return accuracy.model_copy(update={"blamed": _blamed(artifact, engine, recording, case)})


def _blamed(artifact: Artifact, engine: Engine, recording: Recording, case: Case) -> str:
    recognizer = GraniteRecognizer(artifact, engine)
    golden, graph = Golden(artifact), artifact.content.graphs[ENCODE_PROJECT]
    options = GraniteOptions.parse(recording.options)
    [segment] = recording.result["segments"]

    def is_right(encoded: Encoded) -> bool:
        duration_s = segment["end"] - segment["start"]
        decoding = recognizer.answer(encoded, instruction(options), options, duration_s)
        return decoding.tokens == tuple(segment["tokens"])

    if not is_right(_golden_encoded(engine, golden, case, recognizer.dims)):
        return "the language model"
    if is_right(recognizer.model.encode(_golden_features(golden, case))):
        return "the front-end"
    stored = case.outputs["encoder_out"]
    hidden = kept(run_case(engine, graph, golden, case)["encoder_out"], stored)
    difference, _ = compare_output(hidden, golden.output(stored), graph.outputs[0].dtype)
    precision = graph.precision
    limit = limit_of(artifact.content.tolerances, precision, stored.pool, "relative_l2")
    return "the projector" if difference.relative_l2 <= limit else "the encoder"


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it.

    A projector window that is off by one is within a graph: tests/verify/test_granite_faults.py injects it, and others
    of their kind, into the modules.
    """
    dims, scales = artifact.part("dims", GraniteDims), artifact.part("settings", GraniteSettings).scales
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    language_model = (PREFILL, DECODE)
    late_position, late_mask = (partial(bug, theta=scales.rope_theta) for bug in (_late_position, _late_mask))
    found = [
        Fault("mask missing", ENCODE_PROJECT, errors, partial(_unmasked, dims=dims)),
        Fault("mask one frame late", ENCODE_PROJECT, errors, partial(_unmasked, dims=dims, frames=1)),
        Fault("audio embeddings x1.1", ENCODE_PROJECT, errors, partial(scaled, output="audio_embeds", by=1.1)),
        Fault("NaN in the encoder", ENCODE_PROJECT, "overflow.non_finite", partial(with_nan, output="audio_embeds")),
        Fault("embedding multiplier dropped", PREFILL, errors, partial(_unscaled, by=scales.embedding_multiplier)),
        Fault("prompt one row short", PREFILL, errors, _short_prompt),
        Fault("RoPE position off by one in decode", DECODE, errors, late_position),
        Fault("stale cache row in decode", DECODE, errors, _stale_row),
        Fault("cache mask one row late in decode", DECODE, errors, late_mask),
        Fault("logits not divided", language_model, errors, partial(scaled, output="logits", by=scales.logits_scaling)),
        Fault("NaN in decode", DECODE, "overflow.non_finite", partial(with_nan, output="logits")),
        Fault("vocabulary off by one", language_model, "decisions.tokens", off_by_one),
    ]
    if variant == "fp32":
        found.append(Fault("encoder in HF32", ENCODE_PROJECT, errors, in_hf32))
    return tuple(found)


def _unmasked(run: RunGraph, inputs: Arrays, dims: GraniteDims, frames: int | None = None) -> Arrays:
    """Let the recording see `frames` more than it has, all padding by default; beyond its end nothing changes."""
    length, most = int(inputs["length"][0]), inputs["features"].shape[0] * dims.unit
    seen = most if frames is None else min(length + frames, most)
    sound = run(inputs)
    outputs = run({**inputs, "length": np.full_like(inputs["length"], seen)})
    own = {"encoder_out": length, "audio_embeds": dims.n_embeds(length), "ctc_logits": length}
    for name, rows in own.items():
        width = outputs[name].shape[-1]
        outputs[name].reshape(-1, width)[rows:] = sound[name].reshape(-1, width)[rows:]
    return outputs


def _unscaled(run: RunGraph, inputs: Arrays, by: float) -> Arrays:
    """Undo what the graph multiplies embeddings by."""
    return run({**inputs, "embeds": inputs["embeds"] / np.asarray(by, inputs["embeds"].dtype)})


def _short_prompt(run: RunGraph, inputs: Arrays) -> Arrays:
    """Predict from the row before the prompt's last."""
    return run({**inputs, "length": np.maximum(inputs["length"] - 1, 1)})


def _late_position(run: RunGraph, inputs: Arrays, theta: float) -> Arrays:
    """Turn the new token's query and key as those of the next position; the mask stays.

    Scores depend on differences of positions only, so the cached keys are turned back in place of the query.
    """
    outputs = run({**inputs, "k": turned(inputs["k"], -1, theta)})
    return {**outputs, "new_k": turned(outputs["new_k"], 1, theta)}


def turned(rows: Array, by: int, theta: float) -> Array:
    """Return keys [..., dh] that stand `by` positions later: RoPE over halves of dh with base `theta`."""
    half = rows.shape[-1] // 2
    angles = by * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = rows[..., :half].astype(np.float64), rows[..., half:].astype(np.float64)
    result: Array = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(rows.dtype)
    return result


def _stale_row(run: RunGraph, inputs: Arrays) -> Arrays:
    """Lose the row before the new one: the runtime never wrote it."""
    row = int(inputs["pos"][0]) - 1
    for name in ("k", "v"):
        inputs[name][:, :, row] = 0
    return run(inputs)


def _late_mask(run: RunGraph, inputs: Arrays, theta: float) -> Arrays:
    """Let the graph read the cache row at the new token's place; queries and keys are turned as for their own one."""
    outputs = run({**inputs, "pos": inputs["pos"] + 1, "k": turned(inputs["k"], 1, theta)})
    return {**outputs, "new_k": turned(outputs["new_k"], -1, theta)}


FAMILY = Family(
    RecordingAccuracy,
    decide,
    judge,
    faults,
    window_graph=ENCODE_PROJECT,
    step_graph=DECODE,
    host_stages=host_stages,
)
