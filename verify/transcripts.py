"""Compares transcripts with golden ones. Nothing here runs a graph."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from runtime.decisions import Decision, decisions_of, same_decision
from runtime.manifest import Content, Recording
from runtime.results import Transcript
from runtime.spoken import error_rate, error_rates
from verify.results import RecordingAccuracy, ReferenceRate


def first_difference(golden: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the index of the first token that differs or that one side lacks, None where all are equal."""
    shorter = min(len(golden), len(found))
    first = next((i for i in range(shorter) if golden[i] != found[i]), shorter)
    return None if first == len(golden) == len(found) else first


def tokens_of(result: Mapping[str, Any], special: Container[int] = ()) -> list[int]:
    """Return the tokens of a transcript's JSON but the special ones."""
    return [token for segment in result["segments"] for token in segment["tokens"] if token not in special]


def judge_transcript(
    recording: Recording, transcript: Transcript, content: Content, special: Container[int] = ()
) -> RecordingAccuracy:
    """Compare a transcript with the golden run's and with the human transcript.

    Equal means equal, but for a near-tie below fp32: what follows from the first decision that differs (see
    runtime/decisions.py) is then another text with other times, of which words are counted that got worse.

    Parameters
    ----------
    recording, transcript
        The golden run and the engine's.
    content
        The artifact's, whose limits say what a near-tie is.
    special
        Tokens that are no text.

    """
    golden = recording.result
    said: str | None = (recording.reference or {}).get("text")
    rates = error_rates(said, transcript.text) if said is not None else None
    golden_rates = error_rates(said, golden["text"]) if said is not None else None
    wer, cer = rates or (None, None)
    golden_wer, golden_cer = golden_rates or (None, None)
    heard = transcript.to_json()
    first = first_difference(tokens_of(golden, special), tokens_of(heard, special))
    ours, theirs = (decisions_of(result["segments"], special) for result in (golden, heard))
    return RecordingAccuracy(
        name=recording.name,
        text_equal=transcript.text == golden["text"],
        times_equal=_same_times(ours, theirs),
        tokens_equal=first is None,
        temperatures_equal=_same_temperatures(golden, heard),
        first_difference=first,
        wer=wer,
        cer=cer,
        golden_wer=golden_wer,
        golden_cer=golden_cer,
        reference=_judged(recording),
        near_tie=_is_near(recording, content, ours, theirs),
        **_worse(recording, transcript.text),
    )


def _is_near(recording: Recording, content: Content, golden: Sequence[Decision], found: Sequence[Decision]) -> bool:
    """Return whether the first decision that differs was one that the source, too, may take otherwise."""
    if recording.margins is None or content.variant == "fp32":
        return False
    pairs = zip(golden, found, strict=False)
    first = next((place for place, pair in enumerate(pairs) if not same_decision(*pair)), None)
    return first is not None and any(
        margins[first] < 2 * content.tolerances.decisions[head].pair_error
        for head, margins in recording.margins.items()
        if head in content.tolerances.decisions
    )


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


def _same_temperatures(golden: Mapping[str, Any], found: Mapping[str, Any]) -> bool | None:
    """Return whether text was accepted at the same temperatures, None where the golden run has none."""
    ours, theirs = ({segment.get("temperature") for segment in result["segments"]} for result in (golden, found))
    return None if ours <= {None} else ours == theirs


def _same_times(golden: Sequence[Decision], found: Sequence[Decision]) -> bool:
    ours, theirs = ([decision for decision in side if decision[0] == "time"] for side in (golden, found))
    return len(ours) == len(theirs) and all(map(same_decision, ours, theirs))
