"""Write subtitles_of_openai_whisper.json: what openai-whisper's writers make of transcripts with word times.

Run by hand, with a Python that has openai-whisper (20250625): python tests/runtime/make_subtitles.py
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from whisper.utils import WriteSRT, WriteVTT

TARGET = Path(__file__).with_name("subtitles_of_openai_whisper.json")
ENGLISH = (
    ("And so, my fellow Americans, ask not what your country can do for you,", 0.3, 0.25),
    ("ask what you can do for your country.", 5.1, 0.3),
    ("Now.", 12.4, 0.5),
    ("Donaudampfschifffahrtsgesellschaft is a word that is longer than a line.", 13.0, 0.4),
)
JAPANESE = (
    (("これ", "は", "きっと", "仲間", "に", "良く", "ない", "こと", "が", "あった", "に", "違い", "ない。"), 0.5, 0.2),
    (("と", "考え", "ました。"), 8.0, 0.3),
)
LIMITS: tuple[dict[str, Any], ...] = (
    {"max_line_width": 20},
    {"max_line_width": 42, "max_line_count": 2},
    {"max_line_width": 16, "max_line_count": 1},
    {"max_line_width": 10, "max_line_count": 3},
    {"max_words_per_line": 4},
    {"max_words_per_line": 1},
    {"max_line_width": 12, "max_words_per_line": 5},
    {"max_line_width": 30, "max_line_count": 2, "max_words_per_line": 3},
    {"highlight_words": True},
    {"highlight_words": True, "max_line_width": 16, "max_line_count": 2},
)


def transcripts() -> dict[str, list[dict[str, Any]]]:
    """Return segments by language; an English word has the space before it, as whisper's have."""
    spaced = [([f" {word}" for word in text.split()], start, step) for text, start, step in ENGLISH]
    return {"en": [_segment(*each) for each in spaced], "ja": [_segment(list(w), s, d) for w, s, d in JAPANESE]}


def _segment(words: list[str], start: float, step: float) -> dict[str, Any]:
    timed = [
        {"word": word, "start": round(start + n * step, 2), "end": round(start + (n + 1) * step, 2)}
        for n, word in enumerate(words)
    ]
    return {"start": start, "end": timed[-1]["end"], "text": "".join(words), "words": timed}


def _written(writer: Any, segments: list[dict[str, Any]], limits: dict[str, Any]) -> str:
    file = io.StringIO()
    writer(".").write_result({"segments": segments}, file, limits)
    return file.getvalue()


if __name__ == "__main__":
    cases = [
        {"language": language, "limits": limits, "srt": _written(WriteSRT, segments, limits),
         "vtt": _written(WriteVTT, segments, limits)}
        for language, segments in transcripts().items()
        for limits in LIMITS
    ]  # fmt: skip
    content = {"segments": transcripts(), "cases": cases}
    TARGET.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
