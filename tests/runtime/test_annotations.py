"""Sound events as DCASE writes them beside a recording; transcripts are in tests/export/test_recordings.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.annotations import annotation_of
from runtime.errors import InputError

EVENT = {"onset": 0.5, "offset": 1.25, "label": "Dog"}


@pytest.mark.parametrize(
    ("listed", "events"),
    [
        ("onset\toffset\tevent_label\n0.5\t1.25\tDog\n", [EVENT]),
        ("0.5\t1.25\tDog\r\n\r\n", [EVENT]),
        ("\ufeff0.5\t1.25\tDog", [EVENT]),
        ("filename\tonset\toffset\tevent_label\naudio/a.wav\t0.5\t1.25\tDog", [EVENT]),
        ("event_label\toffset\tonset\nDog\t1.25\t0.5", [EVENT]),
        ('0\t1\t"Dog", barking', [{"onset": 0, "offset": 1, "label": '"Dog", barking'}]),
        # DESED's line for a file without events.
        ("filename\tonset\toffset\tevent_label\na.wav\t\t\t", []),
        ("onset\toffset\tevent_label\n", []),
        ("", []),
    ],
)
def test_events_beside_a_recording(listed: str, events: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(listed, encoding="utf-8", newline="")
    assert annotation_of(tmp_path / "a.wav") == {"events": events}


def test_a_text_and_events(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("0.5\t1.25\tDog")
    (tmp_path / "a.txt").write_text("sit\n")
    assert annotation_of(tmp_path / "a.wav") == {"text": "sit", "events": [EVENT]}
    assert annotation_of(tmp_path / "b.wav") is None


@pytest.mark.parametrize(
    "listed",
    [
        "0.5 1.25 Dog",
        "Dog\t0.5\t1.25",
        "1.25\t0.5\tDog",
        "-1\t0.5\tDog",
        "nan\t1\tDog",
        "0\tinf\tDog",
        "0\t1e9\tDog",
        "0.5\t1.25\t",
        "0.5\t1.25\tDog\tloud",
        "filename\tonset\toffset\tevent_label\nb.wav\t0.5\t1.25\tDog",
    ],
)
def test_what_is_no_event_is_named(listed: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(listed)
    with pytest.raises(InputError, match=r"a\.tsv: event 1: expected") as caught:
        annotation_of(tmp_path / "a.wav")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("events", [[{"onset": 0, "offset": 1}], [3], {"Dog": 1}, [{**EVENT, "offset": 1e400}]])
def test_events_in_json_are_checked(events: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"events": events}))
    with pytest.raises(InputError, match=r"a\.json: expected events with onset"):
        annotation_of(tmp_path / "a.wav")
