from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.families.whisper.family import FAMILY
from runtime.results import AudioInfo, Segment, Transcript


def render(transcript: Transcript, format: str) -> str:  # noqa: A002
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        FAMILY.formats[format].write(transcript, path)
        return path.read_text(encoding="utf-8")


def transcript(*segments: tuple[float, float, str]) -> Transcript:
    return Transcript(
        model="m",
        variant="fp32",
        device="cpu",
        engine="onnxruntime",
        audio=AudioInfo("a.wav", 10.0, 16000),
        text="".join(text for _, _, text in segments),
        language="de",
        segments=tuple(Segment(start, end, text, (1, 2), -0.5, 0.1, 1.2, 0.0) for start, end, text in segments),
        timings={"total_s": 1.0},
    )


TWO = transcript((0.0, 2.5, " Grüße <an> alle & jeden,"), (59.9996, 3661.0074, " a --> b\n\n c\td "))
EMPTY = transcript()

EXPECTED = {
    "txt": "Grüße <an> alle & jeden,\na --> b c\td\n",
    "srt": (
        "1\n00:00:00,000 --> 00:00:02,500\nGrüße <an> alle & jeden,\n\n2\n00:01:00,000 --> 01:01:01,007\na -> b c\td\n"
    ),
    "vtt": (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nGrüße &lt;an&gt; alle &amp; jeden,\n\n"
        "00:01:00.000 --> 01:01:01.007\na --&gt; b c\td\n"
    ),
    "tsv": "start\tend\ttext\n0\t2500\tGrüße <an> alle & jeden,\n60000\t3661007\ta --> b c d\n",
}
EXPECTED_EMPTY = {"txt": "", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}


@pytest.mark.parametrize("format", EXPECTED)
def test_formats(format: str):  # noqa: A002
    assert render(TWO, format) == EXPECTED[format]
    assert render(EMPTY, format) == render(transcript((0, 1, " \n ")), format) == EXPECTED_EMPTY[format]


def test_json():
    line = render(TWO, "json")
    assert line.count("\n") == 1
    assert "Grüße" in line
    read = json.loads(line)
    assert read["audio"] == {"path": "a.wav", "duration_s": 10.0, "sample_rate": 16000, "remark": ""}
    assert read["segments"][1]["text"] == " a --> b\n\n c\td "
    assert read["segments"][1]["tokens"] == [1, 2]
    assert list(read)[:6] == ["schema_version", "model", "variant", "device", "engine", "audio"]
    assert "remark" not in read


def test_subtitles_need_times():
    assert list(FAMILY.formats) == ["txt", "srt", "vtt", "tsv", "json"]
    assert [dict(kind.options) for kind in FAMILY.formats.values()] == [{}, *[{"timestamps": True}] * 4]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0004, "00:00:00,000"),
        (0.9995, "00:00:01,000"),
        (59.9994, "00:00:59,999"),
        (59.9996, "00:01:00,000"),
        (3599.9999, "01:00:00,000"),
        (359999.999, "99:59:59,999"),
        (360000.0, "100:00:00,000"),
    ],
)
def test_times(seconds: float, expected: str):
    assert f"{expected} --> {expected}\n" in render(transcript((seconds, seconds, "x")), "srt")


segments = st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 60), st.text(max_size=20)), max_size=6)
CUE = re.compile(r"(\d+):([0-5]\d):([0-5]\d)[,.](\d{3}) --> (\d+):([0-5]\d):([0-5]\d)[,.](\d{3})")


@given(segments, st.sampled_from(["srt", "vtt"]))
def test_subtitles_read_back(given_segments: list[tuple[float, float, str]], format: str):  # noqa: A002
    """One cue a segment with text, in order, each of time line and one text line, times within half a millisecond."""
    given_segments = sorted((start, start + length, text) for start, length, text in given_segments)
    rendered = render(transcript(*given_segments), format)
    blocks = [block.split("\n") for block in rendered.removeprefix("WEBVTT\n").strip("\n").split("\n\n") if block]
    kept = [segment for segment in given_segments if segment[2].strip()]
    kept = [segment for segment in kept if any(line.strip() for line in segment[2].splitlines())]
    assert len(blocks) == len(kept)
    for number, (block, (start, end, _)) in enumerate(zip(blocks, kept, strict=True), 1):
        if format == "srt":
            assert block.pop(0) == str(number)
        time, text = block
        match = CUE.fullmatch(time)
        assert match
        hours, minutes, seconds, thousandths, *rest = map(int, match.groups())
        first = hours * 3600 + minutes * 60 + seconds + thousandths / 1000
        last = rest[0] * 3600 + rest[1] * 60 + rest[2] + rest[3] / 1000
        assert abs(first - start) < 0.000501
        assert abs(last - end) < 0.000501
        assert first <= last
        assert "-->" not in text
        assert text.strip()


@given(segments)
def test_rows_read_back(given_segments: list[tuple[float, float, str]]):
    rows = render(transcript(*given_segments), "tsv").removesuffix("\n").split("\n")
    assert all(len(row.split("\t")) == 3 for row in rows)
    assert json.loads(render(transcript(*given_segments), "json"))["segments"] is not None
