"""Compares transcripts with golden ones. Nothing here runs a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.manifest import Recording
from runtime.results import Segment, Transcript
from runtime.spoken import error_rate, error_rates
from verify.results import RecordingAccuracy, ReferenceRate

_SAME_TIME_S = 1e-3


def first_difference(golden: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the index of the first token that differs or that one side lacks, None where all are equal."""
    shorter = min(len(golden), len(found))
    first = next((i for i in range(shorter) if golden[i] != found[i]), shorter)
    return None if first == len(golden) == len(found) else first


def tokens_of(result: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a transcript's JSON."""
    return [token for segment in result["segments"] for token in segment["tokens"]]


def judge_transcript(recording: Recording, transcript: Transcript, first: int | None) -> RecordingAccuracy:
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
    golden = recording.result
    said: str | None = (recording.reference or {}).get("text")
    rates = error_rates(said, transcript.text) if said is not None else None
    golden_rates = error_rates(said, golden["text"]) if said is not None else None
    wer, cer = rates or (None, None)
    golden_wer, golden_cer = golden_rates or (None, None)
    return RecordingAccuracy(
        name=recording.name,
        text_equal=transcript.text == golden["text"],
        times_equal=_same_times(golden["segments"], transcript.segments),
        tokens_equal=first is None,
        first_difference=first,
        wer=wer,
        cer=cer,
        golden_wer=golden_wer,
        golden_cer=golden_cer,
        reference=_judged(recording),
    )


def _judged(recording: Recording) -> ReferenceRate | None:
    """Return how far the golden text is from what was spoken, None where nothing is known to be said."""
    rate = error_rate(recording.reference, recording.result["text"])
    if rate is None:
        return None
    return ReferenceRate(kind=rate.kind, value=rate.value, length=rate.length, not_judged=recording.not_judged)


def _same_times(golden: Sequence[dict[str, Any]], found: Sequence[Segment]) -> bool:
    return len(golden) == len(found) and all(
        abs(a["start"] - b.start) < _SAME_TIME_S and abs(a["end"] - b.end) < _SAME_TIME_S
        for a, b in zip(golden, found, strict=True)
    )
