"""results/inference.json: what each engine heard, beside what golden heard and people say was spoken."""

from __future__ import annotations

from typing import Any

from verify.results import EngineSection, Result, Subject


class InferenceRecording(Result):
    """One recording as one engine heard it; `result` is what `run --json` prints."""

    name: str
    result: dict[str, Any]


class GoldenRecording(Result):
    """What the recording should give: the golden run's result, and what a person says is in it (manifest)."""

    name: str
    file: str
    reference: dict[str, Any] | None
    result: dict[str, Any]


class EngineInference(EngineSection):
    """The results of one engine; recordings that could not run are missing."""

    recordings: tuple[InferenceRecording, ...]


class InferenceFile(Subject):
    """results/inference.json."""

    golden: tuple[GoldenRecording, ...]
    engines: tuple[EngineInference, ...]
