"""The report's section on a user's recordings."""

from __future__ import annotations

import shlex
from typing import Any

from runtime.manifest import Content
from verify.case_results import CaseRecording, CasesFile, HeardCase, in_words
from verify.marked import Text, marked

_LISTED = 100


def section_of(content: Content, cases: CasesFile | None) -> dict[str, Any]:
    """Return what the section is rendered from; there is none without cases."""
    if cases is None:
        return {"cases": None}
    return {
        "cases": cases,
        "cases_listed": _listed(cases),
        "cases_command": _command(content, cases),
        "in_words": in_words,
    }


def _listed(cases: CasesFile) -> list[tuple[str, list[Text]]]:
    """Return what was heard in each recording beside what is in it; of many, those that somebody heard worst."""
    heard: dict[str, list[tuple[str, HeardCase]]] = {}
    for engine in cases.engines:
        for recording in engine.recordings:
            heard.setdefault(recording.name, []).append((engine.title, recording))
    shown = [recording for recording in cases.recordings if recording.name in heard]
    if shown[_LISTED:]:
        shown = sorted(shown, key=lambda recording: -max(_errors(found) for _, found in heard[recording.name]))[
            :_LISTED
        ]
    return [(recording.name, _texts(recording, heard[recording.name])) for recording in shown]


def _errors(heard: HeardCase) -> float:
    """Return how much is wrong: character errors, or events that agree with none of the other side."""
    if "CER" in heard.counts:
        return heard.counts["CER"][0]
    agreed, both = heard.counts.get("event-F1", (0, 0))
    return both - agreed


def _texts(recording: CaseRecording, heard: list[tuple[str, HeardCase]]) -> list[Text]:
    said = (recording.annotation or {}).get("text")
    lines = [] if said is None else [Text("person", (("same", said),), "what was spoken")]
    for who, found in heard:
        counts = ", ".join(f"{name} {counted:g} of {of:g}" for name, (counted, of) in found.counts.items())
        text = found.result.get("text")
        if text is None:
            parts: tuple[tuple[str, str], ...] = ()
        else:
            parts = (("same", text),) if said is None else marked(said, text, strict=False)
        lines.append(Text(who, parts, counts or "nothing to compare with"))
    return lines


def _command(content: Content, cases: CasesFile) -> str:
    """Return what to type to hear them once more, beside the artifacts' folder."""
    command = ["atlasport", "verify", f"artifacts/{content.model}/{content.variant}", "--device", cases.device]
    engines = {engine.engine for engine in cases.engines if not engine.is_reference}
    if len(engines) == 1:
        command += ["--engine", *engines]
    return shlex.join([*command, "--cases", cases.folder])
