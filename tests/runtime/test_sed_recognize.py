"""The trained pocket model on whole recordings: what it hears, lengths, options, errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sed_reference import RATE, SAMPLES, STEP_S, clip, long_recording, plain_events, plain_scores, recognizer_of, write

from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import open_engine
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError, InputError
from runtime.families import family_of, open_recognizer
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.recognizer import Cnn8RnnRecognizer
from runtime.results import SoundEvents

FIRST = SAMPLES / "sed_1.flac"
CLIPS = ("sed_1.flac", "sed_2.flac", "sed_3.flac")


@pytest.fixture(scope="module", params=["onnxruntime", "torchscript"])
def engines(sed_artifact: Path, request: pytest.FixtureRequest) -> Cnn8RnnRecognizer:
    return recognizer_of(sed_artifact, request.param)


@pytest.fixture(scope="module")
def pocket(sed_artifact: Path) -> Cnn8RnnRecognizer:
    return open_recognizer(open_artifact(sed_artifact), threads=1)


def recognize(recognizer: Cnn8RnnRecognizer, path: Path, **options: object) -> SoundEvents:
    return recognizer.recognize(open_audio(path), Cnn8RnnOptions.parse(options))


# --- what it hears ---


@pytest.mark.parametrize("name", CLIPS)
def test_sounds_are_found(engines: Cnn8RnnRecognizer, name: str) -> None:
    """Against the annotations: classes of the events, onsets and offsets within 200 ms; one event of the 18 is missed.

    The chirp that a click train covers is not found.
    """
    annotated = json.loads((SAMPLES / "samples.json").read_text())[name]["events"]
    events = recognize(engines, SAMPLES / name).events
    expected = [event for event in annotated if event["label"] != "Chirp up"]
    assert [event.label for event in events] == [event["label"] for event in expected]
    for event, known in zip(events, expected, strict=True):
        assert abs(event.onset - known["onset"]) <= 0.2
        assert abs(event.offset - known["offset"]) <= 0.2


@pytest.mark.parametrize("name", CLIPS)
def test_events_and_tags_are_those_of_the_plain_way(engines: Cnn8RnnRecognizer, name: str) -> None:
    options = {"high": 0.5, "low": 0.2, "median": 5, "gap_s": 0.2, "min_duration_s": 0.3}
    found = recognize(engines, SAMPLES / name, scores=True, **options)
    scores = plain_scores(engines, clip(name))
    plain = plain_events(scores.astype(np.float32), [0.5] * 8, [0.2] * 8, (5, 5, 8))
    last = len(scores)
    assert [(event.label, event.onset, event.offset) for event in found.events] == [
        (engines.labels[place], pytest.approx(a * STEP_S), pytest.approx(6.0 if b == last else b * STEP_S))
        for place, a, b, _ in plain
    ]
    np.testing.assert_allclose([event.score for event in found.events], [event[3] for event in plain], atol=1e-6)
    of_clip = (scores**2).sum(axis=0) / scores.sum(axis=0)
    expected = sorted(zip(of_clip, engines.labels, strict=True), reverse=True)
    assert [tag.label for tag in found.tags] == [label for _, label in expected]
    np.testing.assert_allclose([tag.score for tag in found.tags], [score for score, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(found.scores.scores, scores, atol=1e-6)


# --- lengths ---


@pytest.mark.parametrize(
    ("n_samples", "n_frames", "n_scores"),
    [
        (1, 1, 1),
        (319, 1, 1),
        (320, 2, 1),
        (959, 3, 1),
        (960, 4, 1),
        (2239, 7, 1),
        (2240, 8, 2),
        (9_600, 31, 7),  # 0.3 s
        (96_000, 301, 75),  # 3 s
        (319_680, 1000, 250),  # 9.99 s
        (320_000, 1001, 250),
        (320_320, 1002, 250),  # 10.01 s
        (2_080_000, 6501, 1625),  # 65 s
    ],
)
def test_lengths(engines: Cnn8RnnRecognizer, tmp_path: Path, n_samples: int, n_frames: int, n_scores: int) -> None:
    recording = long_recording(65)[:n_samples]
    found = recognize(engines, write(tmp_path / "a.wav", recording), scores=True, high=0.01, low=0.01)
    assert (found.scores.n_frames, found.scores.scores.shape) == (n_frames, (n_scores, 8))
    expected = plain_scores(engines, np.pad(recording, (0, max(0, 960 - n_samples))))
    np.testing.assert_allclose(found.scores.scores, expected, atol=1e-4)
    # What is heard at the end is heard to the end, and not beyond.
    assert max(event.offset for event in found.events) == pytest.approx(n_samples / RATE, abs=1e-6)
    assert all(0 <= event.onset < event.offset for event in found.events)


def test_other_rates_and_channels(pocket: Cnn8RnnRecognizer, tmp_path: Path) -> None:
    """48 kHz in stereo: the same sounds within a score's length."""
    from soxr import resample

    at_48 = resample(clip("sed_1.flac"), RATE, 48000)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([at_48, at_48], axis=1), 48000, subtype="FLOAT")
    found, expected = recognize(pocket, path).events, recognize(pocket, FIRST).events
    assert [event.label for event in found] == [event.label for event in expected]
    times = [[(event.onset, event.offset) for event in events] for events in (found, expected)]
    np.testing.assert_allclose(*times, atol=0.041)
    assert found[-1].offset == 6.0


# --- options ---


def test_top_k(pocket: Cnn8RnnRecognizer) -> None:
    everything = recognize(pocket, FIRST).tags
    assert [tag.score for tag in everything] == sorted((tag.score for tag in everything), reverse=True)
    assert len(everything) == 8
    assert recognize(pocket, FIRST, top_k=2).tags == everything[:2]


def test_labels_restrict_everything(pocket: Cnn8RnnRecognizer) -> None:
    everything = recognize(pocket, FIRST, scores=True)
    found = recognize(pocket, FIRST, scores=True, labels=["siren", "Click train", "Siren"])
    wanted = {"Siren", "Click train"}
    assert found.events == tuple(event for event in everything.events if event.label in wanted)
    assert found.tags == tuple(tag for tag in everything.tags if tag.label in wanted)
    assert found.scores.labels == ("Siren", "Click train")
    np.testing.assert_array_equal(found.scores.scores, everything.scores.scores[:, [5, 4]])


def test_thresholds_of_one_class(pocket: Cnn8RnnRecognizer, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.tsv"
    path.write_text("Siren\t1.0\nChirp up\t0.001\t0\n")
    found, usual = recognize(pocket, FIRST, thresholds=path), recognize(pocket, FIRST)
    others = [event for event in usual.events if event.label != "Siren"]
    assert [event for event in found.events if event.label != "Chirp up"] == others
    assert [(e.onset, e.offset) for e in found.events if e.label == "Chirp up"] == [(0.0, 6.0)]


@pytest.mark.parametrize("options", [{"labels": ["Sirene"]}, {"thresholds": {"Sirene": 0.5}}])
def test_unknown_label(pocket: Cnn8RnnRecognizer, options: dict) -> None:
    with pytest.raises(InputError, match=rf"--{next(iter(options))}: label 'Sirene'.*did you mean 'Siren'") as caught:
        recognize(pocket, FIRST, **options)
    assert "\n" not in str(caught.value)


def test_clip_is_a_recording_of_its_own(pocket: Cnn8RnnRecognizer, tmp_path: Path) -> None:
    start, end = 1.5, 4.21
    cut = write(tmp_path / "cut.wav", clip("sed_1.flac")[int(start * RATE) : round(end * RATE)])
    found, expected = recognize(pocket, FIRST, clip=(start, end), scores=True), recognize(pocket, cut, scores=True)
    moved = [(round(e.onset + start, 6), round(e.offset + start, 6), e.label) for e in expected.events]
    assert [(event.onset, event.offset, event.label) for event in found.events] == moved
    assert found.tags == expected.tags
    assert moved[-1][1] == end
    assert (found.scores.start_s, expected.scores.start_s) == (1.5, 0.0)
    assert recognize(pocket, FIRST, clip=(1.5, None)).events[-1].offset == 6.0
    assert recognize(pocket, FIRST, clip=(1.5, 99.0)).events[-1].offset == 6.0
    with pytest.raises(InputError, match="start within its 6"):
        recognize(pocket, FIRST, clip=(7.0, None))


# --- progress, timings, state ---


def test_progress_and_timings(sed_artifact: Path, tmp_path: Path) -> None:
    recognizer = recognizer_of(sed_artifact, window_frames=1000)
    told: list[tuple[float, float]] = []
    path = write(tmp_path / "a.wav", long_recording(20))
    found = recognizer.recognize(open_audio(path), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(pytest.approx(6 + 2 * index), 20.0) for index in range(6)] + [(20.0, 20.0)]
    assert set(found.timings) == {"frontend_s", "body_s", "total_s", "rtf"}
    assert 0 < found.timings["frontend_s"] + found.timings["body_s"] <= found.timings["total_s"]
    assert found.timings["rtf"] == pytest.approx(found.timings["total_s"] / 20)


def test_recordings_do_not_leave_anything_behind(pocket: Cnn8RnnRecognizer) -> None:
    first = [recognize(pocket, SAMPLES / name) for name in CLIPS]
    again = [recognize(pocket, SAMPLES / name) for name in reversed(CLIPS)]
    for one, other in zip(first, reversed(again), strict=True):
        assert (one.events, one.tags) == (other.events, other.tags)


def test_scores_are_kept_on_request_and_leave_no_file(
    pocket: Cnn8RnnRecognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert recognize(pocket, FIRST).scores is None
    found = recognize(pocket, FIRST, scores=True)
    assert found.scores.scores.shape == (150, 8)
    assert "scores" not in found.to_json()
    assert list(tmp_path.iterdir()) == []


# --- errors ---


def test_no_room_for_scores(pocket: Cnn8RnnRecognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", 0) as full:
        monkeypatch.setattr("runtime.families.cnn8rnn.framewise.tempfile.TemporaryFile", lambda **_: full)
        with pytest.raises(EnvironmentNotFitError, match=r"framewise scores.*No space left.*TMPDIR"):
            recognize(pocket, FIRST, scores=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite(sed_artifact: Path, value: float) -> None:
    """A device that fails inside the body: the real engine, its logits spoilt."""
    artifact = open_artifact(sed_artifact)
    engine = open_engine(artifact, threads=1)
    run = engine.run

    def spoilt(graph: str, inputs: dict) -> dict:
        outputs = run(graph, inputs)
        if "logits" in outputs:
            outputs["logits"][0, 3, 2] = value
        return outputs

    engine.run = spoilt
    with pytest.raises(EnvironmentNotFitError, match=r"sed-pocket/fp32: expected finite logits.*onnxruntime on cpu"):
        recognize(Cnn8RnnRecognizer(artifact, engine), FIRST)


def changed(artifact: Artifact, **parts: dict) -> Artifact:
    content = artifact.content
    update = {name: {**getattr(content, name), **values} for name, values in parts.items()}
    new = artifact.manifest.model_copy(update={"content": content.model_copy(update=update)})
    return Artifact(artifact.path, new)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"dims": {"n_classes": 9}}, "classes.txt: expected 9 class labels.* found 8; export the model again"),
        ({"settings": {"classes_file": "labels.txt"}}, "expected 'labels.txt' in the manifest's list"),
        ({"settings": {"window_frames": 6401}}, "manifest, settings: .*divisible by 4.* found 6401"),
        ({"frontend": {"hop_length": 0}}, r"manifest, frontend\.hop_length: .*greater than 0"),
        ({"dims": {"n_layers": 9}}, r"manifest, dims\.n_layers: "),
    ],
)
def test_a_manifest_of_something_else(sed_artifact: Path, parts: dict, message: str) -> None:
    artifact = open_artifact(sed_artifact)
    with pytest.raises(DamagedArtifactError, match=message) as caught:
        Cnn8RnnRecognizer(changed(artifact, **parts), open_engine(artifact, threads=1))
    assert "\n" not in str(caught.value)


def test_a_changed_list_of_classes(sed_artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(sed_artifact, copy)
    path = copy / "classes.txt"
    path.write_text(path.read_text().replace("Siren", "Sirem"))
    with pytest.raises(DamagedArtifactError, match=r"classes\.txt"):
        open_artifact(copy)


@pytest.mark.parametrize("content", [b"", b"not audio at all, just text"])
def test_bad_audio(pocket: Cnn8RnnRecognizer, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.wav: expected a recording"):
        recognize(pocket, path)


def test_nan_in_audio(pocket: Cnn8RnnRecognizer, tmp_path: Path) -> None:
    samples = clip("sed_1.flac").copy()
    samples[1000] = math.nan
    with pytest.raises(InputError, match="not finite"):
        recognize(pocket, write(tmp_path / "nan.wav", samples))


def test_the_family_is_known(sed_artifact: Path) -> None:
    family = family_of(open_artifact(sed_artifact))
    assert family.options.parse({"high": 0.5}) == Cnn8RnnOptions(high=0.5)
    assert list(family.formats) == ["tsv", "json", "audacity", "npz", "csv", "html"]
