"""Cnn8Rnn: scores are compared at their thresholds, and recordings go through the recogniser that users run."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.cnn8rnn.classes import read_classes
from runtime.families.cnn8rnn.heads import ClipPooling, scores_from_logits
from runtime.families.cnn8rnn.network import Network
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.settings import (
    FRONTEND,
    GATES,
    HEAD,
    RECURRENCE,
    Cnn8RnnDims,
    Cnn8RnnFrontend,
    Cnn8RnnSettings,
)
from runtime.golden import Golden
from runtime.manifest import Case, Recording
from runtime.results import SoundEvents
from verify.events import judge_events, judge_frames
from verify.families import Decision, Family
from verify.faults import Arrays, Fault, RunGraph, in_hf32, scaled, with_nan
from verify.results import EventAccuracy, FrameDecisions


def decide(artifact: Artifact, golden: Golden, selected: set[str]) -> list[Decision]:
    """Return the decisions that the scores of every recording's case amount to, at the default thresholds.

    The logits are those of the whole network, which is given golden log-mel frames: what a graph hands on to the next
    one, and a call of the recurrence to the next call, is judged here.
    """
    labels = _labels(artifact)
    thresholds = Cnn8RnnOptions().thresholds_of(labels, labels)
    per_score = artifact.part("settings", Cnn8RnnSettings).frames_per_score

    def judge(engine: Engine, case: Case) -> FrameDecisions:
        logmel = golden.array(f"{case.name}_audio/logmel")[0]
        logits = Network(artifact.content, engine, per_score).logits(logmel)
        scores, pooling = scores_from_logits(logits), ClipPooling(logits.shape[1])
        pooling.push(scores)
        heads = scores, pooling.result()
        expected = golden.output(case.outputs["logits"])[0]
        return judge_frames(case.name, expected, logits, heads, thresholds, real=case.real)

    return [Decision(case.name, FrameDecisions, partial(judge, case=case)) for case in _cases(artifact, selected)]


def judge(artifact: Artifact, _engine: Engine, recording: Recording, result: SoundEvents) -> EventAccuracy:
    """Compare events and tags with the golden run's, and the events with a person's."""
    frontend, settings = artifact.part("frontend", Cnn8RnnFrontend), artifact.part("settings", Cnn8RnnSettings)
    return judge_events(recording, result, settings.frames_per_score * frontend.hop_length / frontend.sample_rate)


def faults(artifact: Artifact) -> tuple[Fault, ...]:
    """Return the bugs that `controls` injects, each with the gate that has to see it.

    The front-end computes in float32 in every variant, so a tenth of a per cent shows there. A GRU that lost a
    direction altogether takes other weights: tests/verify/test_sed_faults.py injects it into the modules.
    """
    variant = artifact.content.variant
    errors = "structure" if variant == "fp32" else "precision"
    frontend = artifact.part("frontend", Cnn8RnnFrontend)
    loudest, faintest = _far_classes(artifact)
    found = [
        Fault("symmetric Hann window", FRONTEND, "structure", partial(_symmetric_hann, frontend=frontend)),
        Fault("audio x1.1", FRONTEND, "structure", _audio_gain),
        Fault("log-mel one frame late", FRONTEND, "structure", partial(_late, output="logmel", axis=2)),
        Fault("logits x1.1", HEAD, errors, partial(scaled, output="logits", by=1.1)),
        Fault("scores one frame late", HEAD, errors, partial(_late, output="logits", axis=1)),
        Fault("GRU that begins anew at each call", RECURRENCE, errors, _forgetful),
        Fault("backward GRU that begins with padding", GATES, errors, _padded_first),
        Fault("two classes swapped", HEAD, "decisions.scores", partial(_swapped, one=loudest, other=faintest)),
        Fault("NaN in the logits", HEAD, "overflow.non_finite", partial(with_nan, output="logits")),
    ]
    if variant == "fp32":
        found.append(Fault("gates in HF32", GATES, errors, in_hf32))
    return tuple(found)


def _labels(artifact: Artifact) -> tuple[str, ...]:
    classes_file = artifact.part("settings", Cnn8RnnSettings).classes_file
    return read_classes(artifact.file(classes_file), artifact.part("dims", Cnn8RnnDims).n_classes)


def _cases(artifact: Artifact, selected: set[str] | None = None) -> list[Case]:
    """Return the cases of the head, of which every recording has one."""
    return [c for c in artifact.content.cases if c.graph == HEAD and (selected is None or c.name in selected)]


def _far_classes(artifact: Artifact) -> tuple[int, int]:
    """Return the class with the highest golden logit of all, and the one whose highest is lowest."""
    golden = Golden(artifact)
    highest = np.max([golden.output(case.outputs["logits"]).max(axis=(0, 1)) for case in _cases(artifact)], axis=0)
    return int(highest.argmax()), int(highest.argmin())


def _symmetric_hann(run: RunGraph, inputs: Arrays, frontend: Cnn8RnnFrontend) -> Arrays:
    """Window with the symmetric Hann window, as scipy and numpy make it unless told otherwise.

    The graph's own window is in its kernel. So every frame's samples are multiplied by the ratio of the two windows
    and laid out at a distance at which the graph's frames see one of them each.
    """
    n_fft, hop = frontend.n_fft, frontend.hop_length
    sample = np.arange(1, n_fft)
    ratio = np.zeros(n_fft)  # both windows begin with 0
    ratio[1:] = (np.sin(np.pi * sample / (n_fft - 1)) / np.sin(np.pi * sample / n_fft)) ** 2
    padded = np.pad(inputs["audio"][0], n_fft // 2, mode="reflect")
    frames = sliding_window_view(padded, n_fft)[::hop]
    middle = -(-n_fft // (2 * hop))  # in hops: of the frame in its place
    start = middle * hop - n_fft // 2
    apart = np.zeros((len(frames), 2 * middle * hop), np.float32)
    apart[:, start : start + n_fft] = frames * ratio
    outputs = run({"audio": apart.reshape(1, -1)})
    return {"logmel": outputs["logmel"][:, :, middle :: 2 * middle]}


def _audio_gain(run: RunGraph, inputs: Arrays) -> Arrays:
    return run({"audio": inputs["audio"] * np.float32(1.1)})


def _late(run: RunGraph, inputs: Arrays, output: str, axis: int) -> Arrays:
    """Delay by one place; the first is there twice."""
    array = run(inputs)[output]
    sources = np.maximum(np.arange(array.shape[axis]) - 1, 0)
    return {output: array.take(sources, axis=axis)}


def _forgetful(run: RunGraph, inputs: Arrays) -> Arrays:
    """Drop the states behind the call before."""
    return run({**inputs, "h": np.zeros_like(inputs["h"])})


def _padded_first(run: RunGraph, inputs: Arrays) -> Arrays:
    """Put a frame of zeros ahead of the backward direction's first, as where a recording is padded and then turned."""
    gates = run(inputs)["gates"]
    backward = gates[:, 1]
    gates[:, 1] = np.concatenate([np.zeros_like(backward[:, :1]), backward[:, :-1]], axis=1)
    return {"gates": gates}


def _swapped(run: RunGraph, inputs: Arrays, one: int, other: int) -> Arrays:
    logits = run(inputs)["logits"]
    logits[..., [one, other]] = logits[..., [other, one]]
    return {"logits": logits}


FAMILY = Family(EventAccuracy, decide, judge, faults, window_graph=GATES)
