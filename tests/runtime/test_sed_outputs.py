"""Files of sound events, read back by others: json, csv, numpy, an HTML parser, a PNG reader of a few lines."""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sed_reference import RATE, clip, long_recording, write

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.cnn8rnn import framewise as framewise_module
from runtime.families.cnn8rnn.framewise import FramewiseWriter
from runtime.families.cnn8rnn.heatmap import WIDTHS
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.outputs import FORMATS
from runtime.families.cnn8rnn.png import png_url
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.families.cnn8rnn.settings import Cnn8RnnFrontend, Cnn8RnnSettings
from runtime.results import Event, SoundEvents

BLACK_TO_WHITE = ((0, 0, 0), (255, 255, 255))


@pytest.fixture(scope="module")
def pocket(sed_artifact: Path) -> Cnn8RnnRecognizer:
    return open_recognizer(open_artifact(sed_artifact), threads=1)


@pytest.fixture(scope="module")
def three_seconds(pocket: Cnn8RnnRecognizer, tmp_path_factory: pytest.TempPathFactory) -> SoundEvents:
    path = write(tmp_path_factory.mktemp("sed") / "3 s & <more>.wav", clip("sed_1.flac")[: 3 * RATE])
    return pocket.recognize(open_audio(path), Cnn8RnnOptions(scores=True))


@pytest.fixture(scope="module")
def minute(pocket: Cnn8RnnRecognizer, tmp_path_factory: pytest.TempPathFactory) -> SoundEvents:
    path = write(tmp_path_factory.mktemp("sed") / "minute.wav", long_recording(65))
    return pocket.recognize(open_audio(path), Cnn8RnnOptions(scores=True, clip=(0.5, None)))


def written(result: SoundEvents, name: str, folder: Path) -> Path:
    # Under the name that the command line writes to before it renames.
    path = folder / f".x.{name}.partial"
    FORMATS[name].write(result, path)
    return path


# --- events ---


def test_tsv(minute: SoundEvents, tmp_path: Path) -> None:
    with written(minute, "tsv", tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert list(rows[0]) == ["filename", "onset", "offset", "event_label"]
    assert len(rows) == len(minute.events) > 60
    for row, event in zip(rows, minute.events, strict=True):
        assert (row["filename"], row["event_label"]) == ("minute.wav", event.label)
        numbers = [float(row[name]) for name in ("onset", "offset")]
        np.testing.assert_allclose(numbers, [event.onset, event.offset], atol=5.1e-4)


def test_audacity(minute: SoundEvents, tmp_path: Path) -> None:
    lines = written(minute, "audacity", tmp_path).read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        [f"{event.onset:.6f}", f"{event.offset:.6f}", event.label] for event in minute.events
    ]
    assert FORMATS["audacity"].suffix == "labels.txt"


def test_json(minute: SoundEvents, tmp_path: Path) -> None:
    text = written(minute, "json", tmp_path).read_text()
    assert text.count("\n") == 1
    found = json.loads(text, parse_constant=pytest.fail)
    assert found["resolution_s"] == 0.04
    assert found["events"][0] == {
        "onset": minute.events[0].onset,
        "offset": minute.events[0].offset,
        "label": minute.events[0].label,
        "score": minute.events[0].score,
    }
    assert [tag["label"] for tag in found["tags"]] == [tag.label for tag in minute.tags]
    assert found["audio"]["duration_s"] == 64.5


def test_no_events_are_empty_files(three_seconds: SoundEvents, tmp_path: Path) -> None:
    nothing = replace(three_seconds, events=())
    assert written(nothing, "tsv", tmp_path).read_text() == "filename\tonset\toffset\tevent_label\n"
    assert written(nothing, "audacity", tmp_path).read_text() == ""
    assert "0 events" in written(nothing, "html", tmp_path).read_text()


def test_a_tab_does_not_shift_columns(three_seconds: SoundEvents, tmp_path: Path) -> None:
    odd = replace(three_seconds, events=(Event(0, 1, 'a\tb, "c"', 0.5),))
    odd = replace(odd, audio=replace(odd.audio, path="in/two\tor\nmore.wav"))
    assert written(odd, "tsv", tmp_path).read_text().splitlines()[1] == 'two or more.wav\t0.000\t1.000\ta b, "c"'
    assert written(odd, "audacity", tmp_path).read_text() == '0.000000\t1.000000\ta b, "c"\n'


# --- framewise scores ---


def rows_as_the_original(result: SoundEvents) -> np.ndarray:
    """Each score four times, the last one up to the last frame."""
    repeated = np.repeat(np.asarray(result.scores.scores), 4, axis=0)
    missing = result.scores.n_frames - len(repeated)
    return np.concatenate([repeated, np.repeat(repeated[-1:], missing, axis=0)])


def test_three_seconds_have_301_rows(three_seconds: SoundEvents, tmp_path: Path) -> None:
    with np.load(written(three_seconds, "npz", tmp_path), allow_pickle=False) as file:
        assert sorted(file.files) == ["axes", "frame_s", "labels", "resolution_s", "scores", "start_s"]
        assert file["axes"].tolist() == ["frame", "class"]
        assert (file["frame_s"], file["resolution_s"], file["start_s"]) == (0.01, 0.04, 0.0)
        assert tuple(file["labels"]) == three_seconds.scores.labels
        assert file["scores"].dtype == np.float32
        np.testing.assert_array_equal(file["scores"], rows_as_the_original(three_seconds))
        assert len(file["scores"]) == 301
    with written(three_seconds, "csv", tmp_path).open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["time_s", "resolution_s", *three_seconds.scores.labels]
    values = np.array(rows, float)
    assert len(values) == 301
    np.testing.assert_allclose(values[:, 0], np.arange(301) / 100, atol=1e-9)
    assert set(values[:, 1]) == {0.04}
    np.testing.assert_allclose(values[:, 2:], rows_as_the_original(three_seconds), rtol=1e-5)


def test_long_ones_are_written_block_by_block(minute: SoundEvents, tmp_path: Path) -> None:
    expected = rows_as_the_original(minute)
    assert len(expected) == 6451
    with np.load(written(minute, "npz", tmp_path)) as file:
        np.testing.assert_array_equal(file["scores"], expected)
        assert file["start_s"] == 0.5
    values = np.loadtxt(written(minute, "csv", tmp_path), delimiter=",", skiprows=1)
    np.testing.assert_allclose(values[:, 0], 0.5 + np.arange(6451) / 100, atol=1e-9)
    np.testing.assert_allclose(values[:, 2:], expected, rtol=1e-5)


def test_labels_with_commas(three_seconds: SoundEvents, tmp_path: Path) -> None:
    labels = ("Vehicle horn, car horn", 'a "b"', *three_seconds.scores.labels[2:])
    odd = replace(three_seconds, scores=replace(three_seconds.scores, labels=labels))
    with written(odd, "csv", tmp_path).open(newline="") as file:
        assert next(csv.reader(file))[2:] == list(labels)
    with np.load(written(odd, "npz", tmp_path)) as file:
        assert tuple(file["labels"]) == labels


@pytest.mark.parametrize("name", ["npz", "csv", "html"])
def test_formats_that_need_scores(three_seconds: SoundEvents, tmp_path: Path, name: str) -> None:
    assert FORMATS[name].options == {"scores": True}
    with pytest.raises(InputError, match=f"{name}: expected a result with framewise scores"):
        written(replace(three_seconds, scores=None), name, tmp_path)


# --- heat map ---


def png_pixels(url: str) -> np.ndarray:
    """Colours [height, width, 3] of a PNG of a palette without filters."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        chunks[kind] = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + chunks[kind])
        at += length + 12
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 3, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(256, 3)[rows[:, 1:]]


def test_png_by_hand() -> None:
    pixels = png_pixels(png_url(np.array([[0, 0.5], [1, 2]], np.float32), BLACK_TO_WHITE))
    assert pixels[..., 0].tolist() == [[0, 128], [255, 255]]
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def body_of(page: str) -> ET.Element:
    return ET.fromstring(re.search(r"<body.*</body>", page, re.DOTALL)[0])


def of_class(tree: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in tree.iter() if name in element.get("class", "").split()]


def style(element: ET.Element, name: str) -> float:
    return float(re.search(rf"(?:^|;){name}:([\d.]+)", element.get("style"))[1])


def test_heatmap_is_one_file_without_anything_from_elsewhere(three_seconds: SoundEvents, tmp_path: Path) -> None:
    page = written(three_seconds, "html", tmp_path).read_text()
    seen = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.add(tag)
            for name, value in attrs:
                if name in {"href", "src"}:
                    assert value.startswith("data:image/png;base64,")

    Reader().feed(page)
    assert not seen & {"script", "link", "iframe", "object"}
    assert "url(" not in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert "40 ms, which is the true resolution" in page
    assert "<h1>3 s &amp; &lt;more&gt;.wav</h1>" in page


def test_heatmap_has_the_events_where_they_are(minute: SoundEvents, tmp_path: Path) -> None:
    tree = body_of(written(minute, "html", tmp_path).read_text())
    first, *rows = [section for section in tree.iter("section") if of_class(section, "event")]
    over_spectrogram = of_class(first, "event")
    under_scores = [bar for row in rows for bar in of_class(row, "event")]
    length = minute.scores.n_frames / 100
    by_row = sorted(minute.events, key=lambda event: [row[0].get("title") for row in rows].index(event.label))
    for drawn, events in ((over_spectrogram, minute.events), (under_scores, by_row)):
        for bar, event in zip(drawn, events, strict=True):
            assert 0.5 + style(bar, "left") / 100 * length == pytest.approx(event.onset, abs=0.001)
            assert style(bar, "width") / 100 * length == pytest.approx(event.offset - event.onset, abs=0.001)
            assert bar.get("title").startswith(f"{event.label}: {event.onset:.2f} to {event.offset:.2f} s")


@pytest.mark.parametrize(("width", "pooled"), [("wide", 2), ("middling", 3), ("narrow", 6)])
def test_heatmap_shows_the_scores(minute: SoundEvents, tmp_path: Path, width: str, pooled: int) -> None:
    """A row's darkest columns are those of the highest scores; where several share a column, the highest shows."""
    tree = body_of(written(minute, "html", tmp_path).read_text())
    spectrogram = next(tree.iter("img"))
    assert png_pixels(spectrogram.get("src")).shape == (64, 1613, 3)
    rows = {section[0].get("title"): of_class(section, width) for section in tree.iter("section") if len(section) > 1}
    assert set(rows) == set(minute.scores.labels)
    for name, (row,) in rows.items():
        scores = minute.scores.scores[:, minute.scores.labels.index(name)]
        highest = [scores[index : index + pooled].max() for index in range(0, len(scores), pooled)]
        blue = png_pixels(row.get("src")).astype(int).sum(axis=2)[0]
        assert len(blue) == len(highest) <= WIDTHS[width]
        order = np.argsort(highest)
        assert (np.diff(blue[order]) <= 0).all()


def test_heatmap_escapes_labels(three_seconds: SoundEvents, tmp_path: Path) -> None:
    label = "<script>alert(1)</script> & more"
    labels = (label, *three_seconds.scores.labels[1:])
    odd = replace(
        three_seconds, events=(Event(0, 3, label, 0.5),), scores=replace(three_seconds.scores, labels=labels), tags=()
    )
    page = written(odd, "html", tmp_path).read_text()
    assert "<script" not in page
    assert [text for text in body_of(page).itertext() if text == label]


def test_heatmap_of_many_classes_says_what_it_leaves_out(three_seconds: SoundEvents, tmp_path: Path) -> None:
    labels = tuple(f"class {number}" for number in range(30))
    scores = np.tile(np.linspace(0, 1, 30, dtype=np.float32), (75, 1))
    events = tuple(Event(0.0, 3.0, label, number / 30) for number, label in enumerate(labels))
    many = replace(
        three_seconds, events=events, scores=replace(three_seconds.scores, labels=labels, scores=scores), tags=()
    )
    page = written(many, "html", tmp_path).read_text()
    assert "6 more classes with events are not shown" in page
    assert ">class 29<" in page
    assert ">class 5<" not in page


@pytest.mark.parametrize("seconds", [1 / RATE, 0.04])
def test_heatmap_of_almost_nothing(pocket: Cnn8RnnRecognizer, tmp_path: Path, seconds: float) -> None:
    path = write(tmp_path / "a.wav", np.zeros(max(1, round(seconds * RATE)), np.float32))
    result = pocket.recognize(open_audio(path), Cnn8RnnOptions(scores=True))
    tree = body_of(written(result, "html", tmp_path).read_text())
    assert len(list(tree.iter("img"))) == 1 + 8 * 3


# --- what is kept while a recording is read ---


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_spectrogram_is_pooled_alike_in_any_pieces(sizes: list[int]) -> None:
    frames = np.random.default_rng(0).normal(size=(sum(sizes), 3)).astype(np.float32)
    limit = framewise_module.MAX_COLUMNS
    framewise_module.MAX_COLUMNS = 10
    try:
        pool = framewise_module._PooledFrames(3)
        for piece in np.split(frames, np.cumsum(sizes)[:-1]):
            pool.push(piece)
        columns, count = pool.result()
    finally:
        framewise_module.MAX_COLUMNS = limit
    expected = [frames[i : i + count].mean(axis=0) for i in range(0, len(frames), count)]
    assert len(columns) == len(expected) <= 11
    assert count == 1 or len(frames) > 10 * count / 2
    np.testing.assert_allclose(columns.ravel(), np.ravel(expected), atol=1e-5)


def test_scores_outlive_their_writer() -> None:
    writer = FramewiseWriter(("a", "b"), Cnn8RnnFrontend(n_mels=3), Cnn8RnnSettings())
    scores = np.random.default_rng(0).random((7, 2)).astype(np.float32)
    for piece in (scores[:3], scores[3:]):
        writer.push(piece, np.zeros((3, 4 * len(piece)), np.float32))
    kept = writer.result(29, 1.5)
    del writer
    np.testing.assert_array_equal(kept.scores, scores)
    assert (kept.n_frames, kept.start_s, kept.frame_s, kept.frames_per_score) == (29, 1.5, 0.01, 4)
