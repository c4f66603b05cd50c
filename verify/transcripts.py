"""Compares transcripts with golden ones. Nothing here runs a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.manifest import Content, Recording
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


def near_tie_of(content: Content) -> float | None:
    """Return the margin of golden choices below which the source, too, may choose otherwise; None in fp32."""
    decisions = content.tolerances.decisions.get("tokens")
    return None if content.variant == "fp32" or decisions is None else 2 * decisions.pair_error


def judge_transcript(
    recording: Recording, transcript: Transcript, first: int | None, near_tie: float | None = None
) -> RecordingAccuracy:
    """Compare a transcript with the golden run's and with the human transcript.

    Equal means equal, but for a near-tie below fp32: what follows from the first token that differs is then another
    text, of which words are counted that got worse.

    Parameters
    ----------
    recording, transcript
        The golden run and the engine's.
    first : int or None
        Index of the first text token that differs.
    near_tie : float or None
        Where the golden margin of that token is below it, the difference is excused.

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
        near_tie=_is_near(recording, first, near_tie),
        **_worse(recording, transcript.text),
    )


def _is_near(recording: Recording, first: int | None, near_tie: float | None) -> bool:
    margins = recording.margins or ()
    return first is not None and near_tie is not None and first < len(margins) and margins[first] < near_tie


def _worse(recording: Recording, text: str) -> dict[str, int]:
    """Count words, or characters, that are wrong and not so in the golden text, which stands for what nobody knows."""
    golden = str(recording.result["text"])
    said = recording.reference if (recording.reference or {}).get("text") else {**recording.result, "text": golden}
    found, expected = error_rate(said, text), error_rate(said, golden)
    if found is None or expected is None:
        return {}
    return {"worse": max(0, round((found.value - expected.value) * found.length)), "spoken": found.length}


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
