"""Whisper: teacher forcing and recordings go through the decode loop of `runtime`, the one that users run."""

from __future__ import annotations

from functools import partial

import numpy as np

from runtime.artifact import Artifact
from runtime.engines.base import Engine, Floats
from runtime.families.whisper.encoder_decoder import WhisperEncoderDecoder
from runtime.families.whisper.settings import WhisperDims, WhisperSettings
from runtime.golden import Golden
from runtime.manifest import Recording, TeacherForced
from runtime.results import Transcript
from verify.families import Decision, Family, forced_decisions
from verify.faults import Arrays, Fault, RunGraph, in_hf32, off_by_one, scaled, with_nan
from verify.results import RecordingAccuracy
from verify.transcripts import judge_transcript


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the teacher-forced runs of the artifact."""
    return forced_decisions(artifact, golden, selected, forced_logits)


def forced_logits(artifact: Artifact, engine: Engine, golden: Golden, forced: TeacherForced) -> Floats:
    """Return logits [n, V] f32 of the prompt's prefill and of one step per golden token after it.

    The cross-attention inputs are the golden ones of `forced.encoder_case`, so what is measured is the decoder.
    """
    content = artifact.content
    decoder = WhisperEncoderDecoder(
        engine, content.graphs, WhisperDims(**content.dims), WhisperSettings.model_validate(content.settings)
    )
    encoder_case = next(case for case in content.cases if case.name == forced.encoder_case)
    dtypes = {spec.name: spec.dtype for spec in content.graphs["step"].inputs}
    cross = {
        name: engine.put(golden.output(stored), dtypes[name])
        for name, stored in encoder_case.outputs.items()
        if name.startswith("cross_")
    }
    expected = forced.tokens[forced.prompt :]
    rows: list[Floats] = []

    def choose(logits: Floats) -> tuple[int, float]:
        rows.append(logits)
        return expected[len(rows) - 1], 0.0

    prompted = decoder.prompted(decoder.window(cross), list(forced.tokens[: forced.prompt]))
    decoder.decode(prompted, (), choose, len(expected))
    return np.stack(rows)


def judge(artifact: Artifact, _engine: Engine, recording: Recording, result: Transcript) -> RecordingAccuracy:
    """Compare text, times and text tokens with the golden run's, and the text with the transcript.

    The text tokens are those without timestamps and other special ones.

    A timestamp token counts from the start of its window. Where rounding moves a window by one tick, all its timestamp
    tokens move back by one and every time stays (seen: whisper-pocket in bf16); times are compared in seconds.
    """
    special = WhisperSettings.model_validate(artifact.content.settings).special
    return judge_transcript(recording, result, artifact.content, special)


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it."""
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    found = [
        Fault("encoder output x1.1", "encoder", errors, partial(scaled, output="hidden", by=1.1)),
        Fault("step one position late", "step", errors, _late_position),
        Fault("stale cache row in step", "step", errors, _stale_row),
        Fault("NaN in step", "step", "overflow.non_finite", partial(with_nan, output="logits")),
        Fault("vocabulary off by one in step", "step", "decisions.tokens", off_by_one),
    ]
    if variant == "fp32":
        found.append(Fault("encoder in HF32", "encoder", errors, in_hf32))
    return tuple(found)


def _late_position(run: RunGraph, inputs: Arrays) -> Arrays:
    last = next(array.shape[2] for name, array in inputs.items() if name.startswith("self_")) - 1
    return run({**inputs, "pos": np.minimum(inputs["pos"] + 1, last)})


def _stale_row(run: RunGraph, inputs: Arrays) -> Arrays:
    """Lose the row before the new one: the runtime never wrote it, or the mask is one row off."""
    row = int(inputs["pos"][0]) - 1
    for name in [name for name in inputs if name.startswith("self_")]:
        inputs[name][:, :, row] = 0
    return run(inputs)


FAMILY = Family(RecordingAccuracy, decide, judge, faults, window_graph="encoder", step_graph="step")
