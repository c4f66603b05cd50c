"""What the families over a FastConformer verify alike: recordings by stages, and bugs of front-end and encoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from runtime.artifact import Artifact
from runtime.engines.base import Array, Engine
from runtime.fastconformer.settings import ENCODER, FRONTEND, recording_case
from runtime.golden import Golden, run_case
from runtime.manifest import Case, Recording
from runtime.results import Transcript
from verify.faults import Arrays, Fault, RunGraph, in_hf32, scaled, with_nan
from verify.results import RecordingAccuracy
from verify.transcripts import judge_transcript, tokens_of


def encoder_case(artifact: Artifact, name: str) -> Case | None:
    """Return the encoder's case of that name."""
    return next((case for case in artifact.content.cases if case.graph == ENCODER and case.name == name), None)


def judge_by_stages(  # noqa: PLR0917 - those of Family.judge
    artifact: Artifact,
    engine: Engine,
    recording: Recording,
    result: Transcript,
    output: str,
    tokens_in: Callable[[Array, Array], list[int]],
) -> RecordingAccuracy:
    """Compare text, times and tokens with the golden run's, and the text with the transcript.

    Where tokens differ, what is to blame is found from the end: the search, if it finds other tokens in the golden
    frames too; the encoder, if it does so by frames of the golden features; otherwise the front-end. That takes the
    recording's encoder case, which a long one does not have.

    Parameters
    ----------
    artifact, engine, recording, result
        As of `Family.judge`.
    output : str
        The encoder's output that is searched.
    tokens_in : callable
        Returns what the family's search finds in that output [1, T, n] of i64 [1] frames.

    """
    golden_tokens, found = tokens_of(recording.result), tokens_of(result.to_json())
    accuracy = judge_transcript(recording, result, artifact.content)
    case = encoder_case(artifact, recording_case(recording.name))
    if golden_tokens == found or case is None:
        return accuracy
    golden = Golden(artifact)
    frames, lengths = (golden.output(case.outputs[name]) for name in (output, "frames_len"))
    blamed = "the search"
    if tokens_in(frames, lengths) == golden_tokens:
        own = run_case(engine, artifact.content.graphs[ENCODER], golden, case)[output]
        blamed = "the front-end" if tokens_in(own, lengths) == golden_tokens else "the encoder"
    return accuracy.model_copy(update={"blamed": blamed})


def encoder_faults(artifact: Artifact, output: str) -> tuple[Fault, ...]:
    """Return the bugs of front-end and encoder that `controls` injects; `output` is the encoder's.

    The front-end computes in float32 in every variant.
    """
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    factor = artifact.content.dims["subsampling_factor"]
    found = [
        Fault("features normalised after padding", FRONTEND, "structure", _normalised_after_padding),
        Fault("mask one frame late", ENCODER, errors, partial(_late_mask, output=output, factor=factor)),
        Fault("encoder output x1.1", ENCODER, errors, partial(scaled, output=output, by=1.1)),
        Fault("NaN in the encoder", ENCODER, "overflow.non_finite", partial(with_nan, output=output)),
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


def _late_mask(run: RunGraph, inputs: Arrays, output: str, factor: int) -> Arrays:
    """Let the encoder see one of its frames beyond the end of each recording, where there is one."""
    most = inputs["features"].shape[2]
    sound = run(inputs)
    frames = run({**inputs, "features_len": np.minimum(inputs["features_len"] + factor, most)})[output]
    frames[np.arange(frames.shape[1]) >= sound["frames_len"][:, None]] = 0
    return {**sound, output: frames}
