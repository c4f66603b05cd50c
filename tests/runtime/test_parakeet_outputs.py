"""Transcripts with times as files; the renderers are those of Whisper (test_whisper_outputs.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from parakeet_nets import ITEMS, reference_emissions
from parakeet_tokens import pocket_tokenizer

from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.outputs import FORMATS
from runtime.families.parakeet_tdt.transcript import timed_segments
from runtime.results import AudioInfo, TimedTranscript

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


def transcript() -> TimedTranscript:
    return TimedTranscript(
        model="m",
        variant="fp32",
        device="npu:0",
        engine="torchscript",
        audio=AudioInfo("t2.wav", 2.048, 16000),
        text=ITEMS["t2"]["text"],
        segments=timed_segments(reference_emissions("t2"), pocket_tokenizer(), ParakeetOptions(), 0.08),
        timings={"total_s": 1.0, "rtf": 0.5},
        counts=COUNTS,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_formats(tmp_path: Path, name: str) -> None:
    FORMATS[name].write(transcript(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == EXPECTED[name]


def test_json(tmp_path: Path) -> None:
    """Tokens and words have times and confidence."""
    FORMATS["json"].write(transcript(), tmp_path / "file")
    line = (tmp_path / "file").read_text()
    assert line.count("\n") == 1
    read = json.loads(line)
    assert read["text"] == "Turn off the radio. Close the window."
    first, second = read["segments"]
    assert list(first) == ["start", "end", "text", "tokens", "words", "confidence"]
    assert [word["text"] for word in second["words"]] == ["Close", "the", "window."]
    assert second["words"][0] == {
        "text": "Close",
        "start": 1.2,
        "end": 1.52,
        "confidence": pytest.approx(0.9, abs=0.01),
    }
    token = first["tokens"][0]
    assert token == {
        "id": 67,
        "text": " Turn",
        "start": 0.08,
        "end": 0.24,
        "logprob": -0.1,
        "confidence": pytest.approx(0.9, abs=0.01),
    }
    assert "".join(token["text"] for part in read["segments"] for token in part["tokens"]).strip() == read["text"]
    assert list(read) == [
        *("model", "variant", "device", "engine", "audio", "text", "segments", "timings", "counts", "simulated"),
    ]


def test_no_option_is_needed() -> None:
    assert list(FORMATS) == ["txt", "srt", "vtt", "tsv", "json"]
    assert all(not kind.options for kind in FORMATS.values())


def test_remark_counts_per_second() -> None:
    device = "1.00 calls, 250 operators, 1.50 copies and 2.00 syncs of the device"
    assert transcript().remark == f"per second of audio: {device}, 20.0 calls on the host"
    unknown = replace(transcript(), counts=COUNTS | {"operators": 0})
    assert unknown.remark == f"per second of audio: {device.replace('250 operators, ', '')}, 20.0 calls on the host"


def test_remark_on_the_cpu_is_about_the_words() -> None:
    on_cpu = replace(transcript(), device="cpu")
    assert on_cpu.remark == "7 words, confidence 0.90"
    assert replace(on_cpu, segments=()).remark == "no words"
