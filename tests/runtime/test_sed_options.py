"""Options, files of thresholds, lists of classes: what is accepted, and what the refusals say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from runtime.errors import InputError
from runtime.families.cnn8rnn.classes import find_labels, read_classes
from runtime.families.cnn8rnn.options import Cnn8RnnOptions, read_thresholds
from runtime.families.cnn8rnn.settings import Cnn8RnnSettings

LABELS = ("Speech", "Dog", "Vehicle horn, car horn, honking", "speech synthesizer")


def test_options_survive_json() -> None:
    options = Cnn8RnnOptions(
        high=0.6, thresholds={"Dog": (0.5, 0.1), "Speech": 0.9}, median=5, labels=("Dog",), clip=(1.0, None)
    )
    assert Cnn8RnnOptions.parse(json.loads(json.dumps(options.model_dump(mode="json")))) == options
    assert Cnn8RnnOptions.parse({}) == Cnn8RnnOptions()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "option top_k: "),
        ({"high": 0}, "option high: "),
        ({"high": 1.5}, "option high: "),
        ({"high": "loud"}, "option high: .*number"),
        ({"high": 0.5, "low": 0.6}, "option low: .*at most the high threshold, 0.5, found 0.6"),
        ({"low": -0.1}, "option low: "),
        ({"median": 4}, "option median: .*odd"),
        ({"median": 0}, "option median: "),
        ({"median": 127}, "option median: .*125"),
        ({"gap_s": -1}, "option gap_s: "),
        ({"gap_s": math.inf}, "option gap_s: "),
        ({"min_duration_s": math.nan}, "option min_duration_s: "),
        ({"labels": ()}, "option labels: "),
        ({"thresholds": 0.5}, "option thresholds: .*path of a file"),
        ({"thresholds": {"Dog": 2}}, "option thresholds: .*'Dog': expected high.*found 2"),
        ({"thresholds": {"Dog": [0.1, 0.2]}}, "option thresholds: .*high >= low"),
        ({"thresholds": {"Dog": [0.3, 0.2, 0.1]}}, "option thresholds: "),
        ({"thresholds": {"Dog": math.nan}}, "option thresholds: "),
        ({"thresholds": {"Dog": None}}, "option thresholds: "),
        ({"language": "en"}, "option language: "),
        ({"clip": (3, 2)}, "option clip: "),
    ],
)
def test_bad_option(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Cnn8RnnOptions.parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "pairs"),
    [
        ({}, [(0.75, 0.25), (0.75, 0.25)]),
        ({"high": 0.6}, [(0.6, 0.2), (0.6, 0.2)]),
        ({"high": 0.6, "low": 0.5}, [(0.6, 0.5), (0.6, 0.5)]),
        # High alone: low in the proportion of the common ones.
        ({"thresholds": {"Dog": 0.3}}, [(0.75, 0.25), (0.3, 0.1)]),
        ({"low": 0.0, "thresholds": {"dog": 0.3}}, [(0.75, 0.0), (0.3, 0.0)]),
        ({"thresholds": {"Dog": [0.9, 0.8], "Speech": [0.5, 0.5]}}, [(0.5, 0.5), (0.9, 0.8)]),
    ],
)
def test_thresholds_of_classes(values: dict, pairs: list[tuple[float, float]]) -> None:
    high, low = Cnn8RnnOptions.parse(values).thresholds_of(LABELS[:2], LABELS)
    assert [(float(h), float(lo)) for h, lo in zip(high, low, strict=True)] == [pytest.approx(pair) for pair in pairs]


# --- files of thresholds ---


@pytest.mark.parametrize(
    "text",
    [
        '{"Dog": [0.5, 0.1], "Vehicle horn, car horn, honking": 0.9}',
        "label\thigh\tlow\nDog\t0.5\t0.1\nVehicle horn, car horn, honking\t0.9\n",
        "\ufeffDog\t0.5\t0.1\r\n\r\nVehicle horn, car horn, honking\t0.9\t\r\n",
    ],
)
def test_thresholds_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "thresholds"
    path.write_bytes(text.encode())
    expected = {"Dog": (0.5, 0.1), "Vehicle horn, car horn, honking": 0.9}
    assert read_thresholds(path) == expected
    for given in (path, str(path)):
        assert Cnn8RnnOptions.parse({"thresholds": given}).thresholds == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "No such file"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"Dog": 0.5', "thresholds of classes"),
        (b'{"Dog": 0.5, "Dog": 0.6}', "'Dog' is there twice"),
        (b'{"Dog": {"high": 0.5}}', "'Dog': expected high"),
        (b"[0.5]", "not an object"),
        (b"Dog\tloud\n", "line 1: expected numbers"),
        (b"Dog\t0.5\t0.9\n", "high >= low"),
        (b"Dog\n", "'Dog': expected high"),
        (b"Dog\t0.5\nDog\t0.6\n", "'Dog' is there twice"),
    ],
)
def test_bad_thresholds(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "thresholds.tsv"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        Cnn8RnnOptions.parse({"thresholds": path})
    assert str(caught.value).startswith(f"{path}: expected thresholds")
    assert "\n" not in str(caught.value)


# --- classes ---


def test_classes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    for text in ("{}\n", "{}", "\ufeff{}\n\n"):
        path.write_bytes(text.format("\n".join(LABELS)).encode())
        assert read_classes(path, 4) == LABELS
    path.write_bytes(" \r\n".join(LABELS).encode())
    assert read_classes(path, 4) == LABELS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected 3 class labels, one a line, found no such file"),
        (b"a\nb\n", "expected 3 class labels.* found 2"),
        (b"a\nb\nc\nd\n", "expected 3 class labels.* found 4"),
        (b"", "expected 3 class labels.* found 0"),
        (b"a\n\nc\n", "found line 2 empty"),
        (b"a\nb\na\n", "expected 3 different class labels, found 'a' on lines 1 and 3"),
        (b"a\nb \nb\n", "'b' on lines 2 and 3"),
        (b"a\n\xff\nb\n", "not UTF-8"),
    ],
)
def test_bad_classes(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "classes.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_classes(path, 3)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_labels_are_found() -> None:
    assert find_labels(["dog", " Speech", LABELS[2]], LABELS, "labels") == [1, 0, 2]
    # As spelled, where two differ by case alone.
    assert find_labels(["dog", "Dog"], ["Dog", "dog"], "labels") == [1, 0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Speach", r"--labels: label 'Speach': .* did you mean 'Speech'"),
        ("Dogs", "did you mean 'Dog'"),
        ("xyzzy", "no such class; it has 'Speech', 'Dog'"),
    ],
)
def test_unknown_label(label: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_labels([label], LABELS, "labels")


def test_long_lists_are_cut() -> None:
    with pytest.raises(InputError, match="'9' and 437 more"):
        find_labels(["xyzzy"], [str(number) for number in range(447)], "labels")


@pytest.mark.parametrize("settings", [{"window_frames": 999}, {"context_frames": 402}, {"context_frames": 3200}])
def test_windows_are_whole_scores(settings: dict) -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        Cnn8RnnSettings(**settings)
