"""Layouts of other packages: the real packages load them and write what NeMo wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from command_line import atlasport
from tokenizers import Tokenizer, models, trainers

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.layouts import LAYOUTS
from export.families.parakeet_tdt.layouts.network import NetworkSource, check_network
from export.families.parakeet_tdt.layouts.scores import piece_scores
from export.layouts import export_layout
from runtime.artifact import artifacts_in, sha256_of
from runtime.errors import InputError
from runtime.fastconformer.settings import FastConformerFrontend

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "parakeet_reference"
ITEMS: dict[str, Any] = json.loads((REFERENCE / "reference.json").read_text())["items"]
FRAME_S = 0.08


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def onnx_asr_folder(out: Path) -> Path:
    process = atlasport("export", "parakeet-pocket", "--layout", "onnx-asr", "--out", str(out))
    assert process.returncode == 0, process.stderr
    folder = out / "parakeet-pocket" / "layout-onnx-asr"
    assert f"exported {folder}" in process.stdout
    return folder


@pytest.fixture(scope="module")
def sherpa_folder(out: Path) -> Path:
    return export_layout("parakeet-pocket", "sherpa-onnx", out=out)


def frames_of(timestamps: list[float]) -> list[int]:
    return [round(seconds / FRAME_S) for seconds in timestamps]


def test_onnx_asr_writes_what_nemo_writes(onnx_asr_folder: Path) -> None:
    onnx_asr = pytest.importorskip("onnx_asr")
    model = onnx_asr.load_model("nemo-conformer-tdt", onnx_asr_folder, providers=["CPUExecutionProvider"])
    recordings = [str(REFERENCE / f"{name}.wav") for name in ITEMS]
    single = [model.with_timestamps().recognize(recording) for recording in recordings]
    assert [result.text for result in single] == [item["text"] for item in ITEMS.values()]
    assert [frames_of(result.timestamps) for result in single] == [item["frames"] for item in ITEMS.values()]
    assert model.recognize(recordings) == [item["text"] for item in ITEMS.values()]


@pytest.mark.slow
def test_sherpa_onnx_writes_what_nemo_writes(sherpa_folder: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    parts = {part: str(sherpa_folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **parts, tokens=str(sherpa_folder / "tokens.txt"), model_type="nemo_transducer"
    )
    for name, item in ITEMS.items():
        samples, rate = soundfile.read(REFERENCE / f"{name}.wav", dtype="float32")
        stream = recognizer.create_stream()
        # Its frames lie half a hop later than NeMo's, which the model hears: without the lead t4 lacks its last word.
        stream.accept_waveform(rate, np.concatenate([np.zeros(80, np.float32), samples]))
        recognizer.decode_stream(stream)
        result = stream.result
        assert result.text == item["text"]
        assert frames_of(result.timestamps) == item["frames"], name
        assert frames_of(result.durations) == item["durations"], name


@pytest.mark.slow
def test_sherpa_onnx_spells_hotwords(sherpa_folder: Path, tmp_path: Path) -> None:
    """Far too strong a hotword is all that it hears: its spelling is that of bpe.vocab, in the model's own pieces."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    (tmp_path / "hotwords.txt").write_text("seventy gates\n")
    parts = {part: str(sherpa_folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        **parts,
        tokens=str(sherpa_folder / "tokens.txt"),
        model_type="nemo_transducer",
        decoding_method="modified_beam_search",
        hotwords_file=str(tmp_path / "hotwords.txt"),
        hotwords_score=30.0,
        modeling_unit="bpe",
        bpe_vocab=str(sherpa_folder / "bpe.vocab"),
    )
    samples, rate = soundfile.read(REFERENCE / "t1.wav", dtype="float32")
    stream = recognizer.create_stream()
    stream.accept_waveform(rate, samples)
    recognizer.decode_stream(stream)
    assert "seventy gates" in stream.result.text


@pytest.mark.parametrize("text", ["low lower lowest", "new newer newest wide wider", "abcabcab cabcab"])
def test_scores_merge_as_the_tokenizer_does(text: str, tmp_path: Path) -> None:
    """By hand: of all neighbours, those whose union scores highest become one, until none is a piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(text.split(), trainers.BpeTrainer(vocab_size=40, show_progress=False))
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    scores = piece_scores(file)
    score = {tokenizer.id_to_token(token): value for token, value in enumerate(scores)}
    for word in [*text.split(), text.replace(" ", "")]:
        parts = list(word)
        while joined := [index for index in range(len(parts) - 1) if parts[index] + parts[index + 1] in score]:
            best = max(joined, key=lambda index: score[parts[index] + parts[index + 1]])
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        assert parts == tokenizer.encode(word).tokens


def test_the_encoder_computes_what_nemos_does(onnx_asr_folder: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_asr_folder / "encoder-model.onnx", providers=["CPUExecutionProvider"])
    with np.load(REFERENCE / "t2.npz") as reference:
        # NeMo computes one frame more than it counts.
        features = reference["features"][None]
        inputs = {"audio_signal": features, "length": np.array([features.shape[2] - 1], np.int64)}
        outputs, n_frames = session.run(["outputs", "encoded_lengths"], inputs)
        assert n_frames.tolist() == reference["encoder_len"].tolist()
        np.testing.assert_allclose(outputs[0], reference["encoder"], atol=2e-4)


def test_the_decoder_computes_what_nemos_does(onnx_asr_folder: Path) -> None:
    file = onnx_asr_folder / "decoder_joint-model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = ["outputs", "prednet_lengths", "output_states_1", "output_states_2"]
    states = {f"input_states_{index}": np.zeros((2, 1, 96), np.float32) for index in (1, 2)}
    reference = np.load(REFERENCE / "t2.npz")
    blank = token = 192
    for frame, label, expected in zip(
        reference["step_frame"], reference["step_label"], reference["joint"], strict=True
    ):
        inputs = {
            "encoder_outputs": reference["encoder"][None, :, [frame]],
            "targets": np.array([[token]], np.int32),
            "target_length": np.array([1], np.int32),
        }
        outputs, length, *after = session.run(names, inputs | states)
        np.testing.assert_allclose(_log_softmax(outputs[0, 0, 0]), _log_softmax(expected), atol=2e-4)
        assert (length.dtype, length.tolist()) == (np.int32, [1])
        if label != blank:
            token, states = label, dict(zip(states, after, strict=True))


def _log_softmax(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = values - values.max()
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum())
    return result


@pytest.mark.slow
def test_what_the_packages_ask_of_the_files(onnx_asr_folder: Path, sherpa_folder: Path) -> None:
    vocabulary = (onnx_asr_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert vocabulary == (sherpa_folder / "tokens.txt").read_text(encoding="utf-8").splitlines()
    assert (len(vocabulary), vocabulary[-1]) == (193, "<blk> 192")
    decoder = onnx.load(onnx_asr_folder / "decoder_joint-model.onnx", load_external_data=False)
    types = {value.name: value.type.tensor_type.elem_type for value in decoder.graph.input}
    assert types["targets"] == types["target_length"] == onnx.TensorProto.INT32
    encoder = onnx.load(sherpa_folder / "encoder.onnx", load_external_data=False)
    metadata = {prop.key: prop.value for prop in encoder.metadata_props}
    assert "tdt" in metadata["url"]
    assert (metadata["vocab_size"], metadata["licence"]) == ("192", "apache-2.0")


def test_a_layout_is_no_artifact_and_says_where_it_comes_from(out: Path, onnx_asr_folder: Path) -> None:
    assert artifacts_in(out) == []
    record = json.loads((onnx_asr_folder / "layout.json").read_text())
    assert record["source"]["licence"] == "apache-2.0"
    assert record["source"]["files"] == {"parakeet-pocket.nemo": sha256_of(ROOT / "pocket" / "parakeet-pocket.nemo")}
    found = {path.name: sha256_of(path) for path in onnx_asr_folder.iterdir() if path.name != "layout.json"}
    assert found == {name: entry["sha256"] for name, entry in record["files"].items()}


def replace_writer(monkeypatch: pytest.MonkeyPatch, write: Callable[[NetworkSource, Path], None]) -> None:
    """Let the layout onnx-asr be written by `write`, which is quicker than what it takes the place of."""
    monkeypatch.setitem(LAYOUTS, "onnx-asr", dataclasses.replace(LAYOUTS["onnx-asr"], write=write))


def test_an_older_one_is_replaced_and_a_foreign_folder_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_writer(monkeypatch, lambda _source, folder: (folder / "vocab.txt").touch())
    target = tmp_path / "parakeet-pocket" / "layout-onnx-asr"
    target.mkdir(parents=True)
    (target / "vocab.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        export_layout("parakeet-pocket", "onnx-asr", out=tmp_path)
    assert (target / "vocab.txt").read_text() == "mine"
    (target / "layout.json").write_text("{}")
    export_layout("parakeet-pocket", "onnx-asr", out=tmp_path)
    assert (target / "vocab.txt").read_text() == ""


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_source: NetworkSource, folder: Path) -> None:
        assert any(folder.iterdir())
        raise InputError("no")

    replace_writer(monkeypatch, fail)
    with pytest.raises(InputError, match="no"):
        export_layout("parakeet-pocket", "onnx-asr", out=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("model", "layout", "expected"),
    [
        (
            "whisper-pocket",
            "onnx-asr",
            "layout onnx-asr expects a model of parakeet_tdt, found whisper",
        ),
        ("parakeet-pocket", "nemo", "layout 'nemo': expected onnx-asr or sherpa-onnx"),
    ],
)
def test_what_no_layout_is_for_is_refused_by_name(tmp_path: Path, model: str, layout: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        export_layout(model, layout, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--precision", "fp16"), ("--formats", "pt2")])
def test_a_layout_says_precision_and_formats(tmp_path: Path, option: tuple[str, str]) -> None:
    process = atlasport("export", "parakeet-pocket", "--layout", "onnx-asr", "--out", str(tmp_path), *option)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "neither --precision nor --formats" in process.stderr
    assert list(tmp_path.iterdir()) == []


def _source() -> NetworkSource:
    checkpoint = ParakeetCheckpoint.from_nemo(ROOT / "pocket" / "parakeet-pocket.nemo")
    pieces = {"pieces": ("a", "b"), "scores": (-1.0, -2.0)}
    return NetworkSource(
        checkpoint.dims, checkpoint.frontend, checkpoint.settings, **pieces, origin="here", licence="apache-2.0"
    )


Change = Callable[[NetworkSource], NetworkSource]
CHANGES: dict[str, tuple[Change, str]] = {
    "durations": (
        lambda source: dataclasses.replace(
            source, settings=source.settings.model_copy(update={"durations": (0, 2, 4, 6, 8)})
        ),
        r"expected durations \[0, 1, 2, 3, 4\], found \[0, 2, 4, 6, 8\]",
    ),
    "hop": (
        lambda source: dataclasses.replace(source, frontend=FastConformerFrontend(hop_length=200)),
        "expected hop_length 160, found 200",
    ),
    "space": (lambda source: dataclasses.replace(source, pieces=("a", "b c")), "found 'b c'"),
    "blank": (lambda source: dataclasses.replace(source, pieces=("a", "<blk>")), "found '<blk>'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_package_would_take_for_something_else_is_refused(name: str) -> None:
    source = _source()
    check_network(source, "sherpa-onnx")
    change, expected = CHANGES[name]
    with pytest.raises(InputError, match=expected):
        check_network(change(source), "sherpa-onnx")


def test_onnx_asr_knows_features_of_80_and_128_mels_only() -> None:
    source = _source()
    LAYOUTS["onnx-asr"].check(source)
    other = dataclasses.replace(source, dims=source.dims.model_copy(update={"n_mels": 64}))
    with pytest.raises(InputError, match="expected 80 or 128 mels, found 64"):
        LAYOUTS["onnx-asr"].check(other)
