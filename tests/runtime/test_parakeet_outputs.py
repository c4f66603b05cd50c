"""Transcripts with times as files; the renderers are those of Whisper (test_whisper_outputs.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from parakeet_nets import ITEMS, reference_emissions
from parakeet_tokens import pocket_tokenizer

from runtime.families.parakeet_tdt.family import FAMILY
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.timestamps import timed_tokens
from runtime.fastconformer.transcript import remark_of, timed_segments
from runtime.results import AudioInfo, Transcript

EXPECTED = {
    "txt": "Turn off the radio.\nClose the window.\n",
    "srt": (
        "1\n00:00:00,080 --> 00:00:00,960\nTurn off the radio.\n\n2\n00:00:01,200 --> 00:00:02,000\nClose the window.\n"
    ),
    "vtt": (
        "WEBVTT\n\n00:00:00.080 --> 00:00:00.960\nTurn off the radio.\n\n"
        "00:00:01.200 --> 00:00:02.000\nClose the window.\n"
    ),
    "tsv": "start\tend\ttext\n80\t960\tTurn off the radio.\n1200\t2000\tClose the window.\n",
}


COUNTS = {
    "calls": 2,
    "operators": 500,
    "copies_in": 2,
    "copies_out": 1,
    "syncs": 4,
    "host_calls": 40,
    "audio_s": 2.0,
}


def transcript() -> Transcript:
    return Transcript(
        model="m",
        variant="fp32",
        device="npu:0",
        engine="torchscript",
        audio=AudioInfo("t2.wav", 2.048, 16000),
        text=ITEMS["t2"]["text"],
        segments=timed_segments(
            timed_tokens(reference_emissions("t2"), pocket_tokenizer(), "max_prob"),
            pocket_tokenizer(),
            ParakeetOptions(),
            0.08,
            lambda start_s, end_s: (round(start_s, 6), round(end_s, 6)),
        ),
        timings={"total_s": 1.0, "rtf": 0.5},
        counts=COUNTS,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_formats(tmp_path: Path, name: str) -> None:
    FAMILY.formats[name].write(transcript(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == EXPECTED[name]


def test_json(tmp_path: Path) -> None:
    """Tokens and words have times and confidence."""
    FAMILY.formats["json"].write(transcript(), tmp_path / "file")
    line = (tmp_path / "file").read_text()
    assert line.count("\n") == 1
    read = json.loads(line)
    assert read["text"] == "Turn off the radio. Close the window."
    first, second = read["segments"]
    assert first["tokens"] == [token["id"] for token in first["token_times"]]
    assert [word["text"] for word in second["words"]] == ["Close", "the", "window."]
    assert second["words"][0] == {
        "text": "Close",
        "start": 1.2,
        "end": 1.52,
        "confidence": pytest.approx(0.9, abs=0.01),
    }
    token = first["token_times"][0]
    assert token == {
        "id": 67,
        "text": " Turn",
        "start": 0.08,
        "end": 0.24,
        "logprob": -0.1,
        "confidence": pytest.approx(0.9, abs=0.01),
    }
    assert "".join(token["text"] for part in read["segments"] for token in part["token_times"]).strip() == read["text"]
    assert read["counts"] == COUNTS


def test_no_option_is_needed() -> None:
    assert list(FAMILY.formats) == ["txt", "srt", "vtt", "tsv", "json"]
    assert all(not kind.options for kind in FAMILY.formats.values())


def test_remark_counts_per_second() -> None:
    device = "1.00 calls, 250 operators, 1.50 copies and 2.00 syncs of the device"
    assert remark_of("npu:0", transcript().segments, COUNTS) == f"per second of audio: {device}, 20.0 calls on the host"
    unknown = remark_of("npu:0", transcript().segments, COUNTS | {"operators": 0})
    assert unknown == f"per second of audio: {device.replace('250 operators, ', '')}, 20.0 calls on the host"


def test_remark_on_the_cpu_is_about_the_words() -> None:
    assert remark_of("cpu", transcript().segments, COUNTS) == "7 words, confidence 0.90"
    assert remark_of("cpu", (), COUNTS) == "no words"
