"""Subtitles under limits against openai-whisper's own, which make_subtitles.py wrote; shared-out times by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import InputError
from runtime.families.whisper.options import WhisperOptions
from runtime.results import AudioInfo, Segment, SubtitleLimits, Transcript, Word
from runtime.subtitles import cues
from runtime.transcript_files import transcript_formats

WRITTEN = json.loads(Path(__file__).with_name("subtitles_of_openai_whisper.json").read_text(encoding="utf-8"))
FORMATS = transcript_formats()


def segment_of(written: dict[str, Any]) -> Segment:
    words = tuple(Word(word["word"].strip(), word["start"], word["end"], 1.0) for word in written["words"])
    return Segment(written["start"], written["end"], written["text"].strip(), (), words=words)


@pytest.mark.parametrize("case", WRITTEN["cases"], ids=lambda case: f"{case['language']} {case['limits']}")
def test_limits_as_in_openai_whisper(case: dict[str, Any], tmp_path: Path) -> None:
    segments = tuple(map(segment_of, WRITTEN["segments"][case["language"]]))
    transcript = Transcript(
        model="m", variant="fp32", device="cpu", engine="e", audio=AudioInfo("a.wav", 20.0, 16000),
        text="", segments=segments, subtitles=WhisperOptions.parse(case["limits"]).subtitles,
    )  # fmt: skip
    for name in ("srt", "vtt"):
        FORMATS[name].write(transcript, tmp_path / name)
        # Theirs leaves hours out of vtt where they are 0, and ends with a line more.
        found = (tmp_path / name).read_text(encoding="utf-8")
        expected = case[name] if name == "srt" else case[name].replace("00:", "00:00:", 1) and _with_hours(case[name])
        assert found.strip() == expected.strip()


def _with_hours(vtt: str) -> str:
    lines = vtt.splitlines()
    return "\n".join(
        " --> ".join(f"00:{time}" for time in line.split(" --> ")) if " --> " in line else line for line in lines
    )


def shown(segment: Segment, **limits: int) -> list[tuple[float, float, str]]:
    return [(cue.start, cue.end, cue.text) for cue in cues([segment], SubtitleLimits(**limits))]


def test_without_word_times_a_segment_s_time_is_shared_out() -> None:
    segment = Segment(10.0, 14.0, "one three fifteen chars", ())
    # 23 characters in 4 s, a word's space its own.
    assert shown(segment, words_per_line=2) == [
        (10.0, pytest.approx(10 + 4 * 9 / 23), "one three"),
        (pytest.approx(10 + 4 * 9 / 23), 14.0, "fifteen chars"),
    ]
    japanese = Segment(0.0, 4.0, "今日は。良い天気", ())
    assert shown(japanese, line_width=4) == [(0.0, 4.0, "今日は。\n良い天気")]
    assert shown(japanese, line_width=4, line_count=1) == [(0.0, 2.0, "今日は。"), (2.0, 4.0, "良い天気")]


def test_without_limits_a_cue_is_a_segment() -> None:
    assert shown(Segment(1.0, 2.0, " a\n b ", ())) == [(1.0, 2.0, "a b")]
    assert shown(Segment(1.0, 2.0, "  ", ())) == []


def test_lines_need_a_width() -> None:
    with pytest.raises(InputError, match=r"--max-line-count: .*expected --max-line-width beside it"):
        WhisperOptions.from_flags({"--max-line-count": "2"})
    with pytest.raises(InputError, match="--max-line-width: "):
        WhisperOptions.from_flags({"--max-line-width": "0"})
