"""Transcripts as files: plain text, SubRip and WebVTT subtitles, tab-separated, JSON; of any family for speech.

`txt` has one line a segment; `srt` and `vtt` are subtitles, see `subtitles`; `tsv` has start and end in milliseconds
and the text; `json` is the one line that `run --json` prints. A segment is one line of text; segments without text are
left out but of `json`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from runtime.family import Format
from runtime.results import Segment, Transcript
from runtime.subtitles import Cue, cues, one_line


def transcript_formats(timed: Mapping[str, Any] | None = None) -> dict[str, Format[Transcript]]:
    """Return how a family's transcripts are written; `timed` are the options that it needs for times."""
    plain: dict[str, Any] = {}
    with_times = dict(timed or {})
    return {
        "txt": _format(_txt, plain),
        "srt": _format(_srt, with_times),
        "vtt": _format(_vtt, with_times),
        "tsv": _format(_tsv, with_times),
        "json": _format(_json, with_times),
    }


def _lines(transcript: Transcript) -> list[tuple[Segment, str]]:
    """Return the segments that have text, each with its text on one line."""
    pairs = ((segment, one_line(segment.text)) for segment in transcript.segments)
    return [(segment, text) for segment, text in pairs if text]


def _txt(transcript: Transcript) -> str:
    return "".join(f"{text}\n" for _, text in _lines(transcript))


def _srt(transcript: Transcript) -> str:
    blocks = (
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{_marked(cue, _without_arrows)}\n"
        for number, cue in enumerate(cues(transcript.segments, transcript.subtitles), 1)
    )
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    # WebVTT, section 4.2.2: "&" and "<" are escaped, and "-->" may not occur.
    blocks = (
        f"\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{_marked(cue, partial(html.escape, quote=False))}\n"
        for cue in cues(transcript.segments, transcript.subtitles)
    )
    return "WEBVTT\n" + "".join(blocks)


def _marked(cue: Cue, escape: Callable[[str], str]) -> str:
    """Return a cue's text, escaped, with the word that is spoken underlined."""
    if cue.marked is None:
        return escape(cue.text)
    start, stop = cue.marked
    return f"{escape(cue.text[:start])}<u>{escape(cue.text[start:stop])}</u>{escape(cue.text[stop:])}"


def _without_arrows(text: str) -> str:
    """Shorten arrows, which end a cue's text for some players."""
    return re.sub("-{2,}>", "->", text)


def _tsv(transcript: Transcript) -> str:
    rows = (
        (str(_milliseconds(segment.start)), str(_milliseconds(segment.end)), text.replace("\t", " "))
        for segment, text in _lines(transcript)
    )
    return "".join("\t".join(row) + "\n" for row in (("start", "end", "text"), *rows))


def _json(transcript: Transcript) -> str:
    return json.dumps(transcript.to_json(), ensure_ascii=False, allow_nan=False) + "\n"


def _format(render: Callable[[Transcript], str], options: Mapping[str, Any]) -> Format[Transcript]:
    def write(transcript: Transcript, path: Path) -> None:
        path.write_text(render(transcript), encoding="utf-8")

    return Format(write, options)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _time(seconds: float, separator: str) -> str:
    """Return hours:minutes:seconds with milliseconds; 59.9996 s is 00:01:00.000."""
    rest, milliseconds = divmod(_milliseconds(seconds), 1000)
    rest, whole = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}:{whole:02}{separator}{milliseconds:03}"
