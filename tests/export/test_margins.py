"""Margins of the Parakeets' and Granite's decisions: each has one, and it is the gap of the logits that were there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from runtime.artifact import open_artifact
from runtime.decisions import decisions_of
from runtime.golden import Golden


def test_margins_of_a_search_by_its_golden_logits(parakeet_artifact: Path) -> None:
    """Row by row: those of the blanks before a token count with it, those of a duration with what comes next."""
    artifact = open_artifact(parakeet_artifact)
    content = artifact.content
    for recording in content.recordings:
        assert recording.margins is not None, recording.name
        for margins in recording.margins.values():
            assert len(margins) == len(decisions_of(recording.result["segments"]))
            assert min(margins) >= 0
    [run] = content.teacher_forced
    recording = next(r for r in content.recordings if run.encoder_case == f"{r.name}_recording")
    assert recording.margins is not None
    logits, n_tokens = Golden(artifact).array(run.logits), content.dims["n_vocab"] + 1
    best = np.sort(logits[:, :n_tokens], axis=1)
    gaps, chosen = best[:, -1] - best[:, -2], logits[:, :n_tokens].argmax(axis=1)
    durations = np.sort(logits[:, n_tokens:], axis=1)
    duration_gaps = durations[:, -1] - durations[:, -2]
    at = np.flatnonzero(chosen != n_tokens - 1)
    decisions = decisions_of(recording.result["segments"])
    tokens = [place for place, (kind, _) in enumerate(decisions) if kind == "token"]
    assert chosen[at].tolist() == [decisions[place][1] for place in tokens]
    starts = [0, *(at[:-1] + 1)]
    np.testing.assert_allclose(
        np.array(recording.margins["tokens"])[tokens],
        [gaps[start : stop + 1].min() for start, stop in zip(starts, at, strict=True)],
        rtol=1e-3,
        atol=1e-3,
    )
    # From the second on: how far the token before, and the blanks between, moved on.
    np.testing.assert_allclose(
        np.array(recording.margins["durations"])[tokens[1:]],
        [duration_gaps[start:stop].min() for start, stop in pairwise(at)],
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_recording_with_a_hotword_and_one_in_windows(parakeet_artifact: Path) -> None:
    recordings = {recording.name: recording for recording in open_artifact(parakeet_artifact).content.recordings}
    [told] = [name for name in recordings if name.endswith("_hotword")]
    plain = recordings[told.removesuffix("_hotword")]
    [[phrase, weight]] = recordings[told].options["hotwords"]
    assert recordings[told].result["text"] != plain.result["text"]
    assert phrase in recordings[told].result["text"]
    assert weight > 3
    assert recordings[told].reference is None
    [cut] = [name for name in recordings if name.endswith("_windows")]
    assert recordings[cut].result["text"] == recordings[cut.removesuffix("_windows")].result["text"]


def test_margins_of_ctc_by_the_logits_of_its_frames(ctc_artifact: Path) -> None:
    """What a token is, in the frames behind the first one of the token before it, up to its own."""
    artifact = open_artifact(ctc_artifact)
    [recording] = artifact.content.recordings
    assert recording.margins is not None
    case = next(case for case in artifact.content.cases if case.name == f"{recording.name}_recording")
    ordered = np.sort(logits := Golden(artifact).array(case.outputs["logits"].key)[0], axis=1)
    gaps, ids = ordered[:, -1] - ordered[:, -2], logits.argmax(axis=1).tolist()
    behind, expected, tokens = 0, [], []
    for frame, token in enumerate(ids):
        if token != artifact.content.dims["n_vocab"] and (frame == 0 or token != ids[frame - 1]):
            expected.append(gaps[behind : frame + 1].min())
            tokens.append(token)
            behind = frame + 1
    decisions = decisions_of(recording.result["segments"])
    margins = recording.margins["tokens"]
    assert len(margins) == len(decisions)
    own = [(value, margin) for (kind, value), margin in zip(decisions, margins, strict=True) if kind == "token"]
    assert [token for token, _ in own] == tokens
    np.testing.assert_allclose([margin for _, margin in own], expected, rtol=1e-3, atol=1e-3)
    # It starts with the first frame of the token before it.
    times = [margin for (kind, _), margin in zip(decisions[1:], margins[1:], strict=True) if kind == "time"]
    assert min(times) == min(expected)


def test_every_decision_of_granite_has_a_margin(granite_artifact: Path) -> None:
    """Those of tokens are numbers of the logits' size; times are known beforehand."""
    content = open_artifact(granite_artifact).content
    assert content.recordings
    for recording in content.recordings:
        assert recording.margins is not None
        [margins] = recording.margins.values()
        decisions = decisions_of(recording.result["segments"])
        assert len(margins) == len(decisions)
        own = [margin for margin, (kind, _) in zip(margins, decisions, strict=True) if kind == "token"]
        assert 0 <= min(own) < max(own) < 1e3
