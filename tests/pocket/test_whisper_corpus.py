from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer

from pocket.training.whisper.batches import IGNORED, LogMel, Sampler
from pocket.training.whisper.evaluate import place
from pocket.training.whisper.phrases import is_held_out, number, random_phrase
from pocket.training.whisper.synthesize import (
    SEEN,
    UNSEEN,
    Utterance,
    read_utterances,
    synthesize,
    write_corpus,
    write_utterances,
)
from pocket.training.whisper.tokenizer import Tokens, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "pocket" / "whisper-pocket"

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, ("zero", "null", "cero")),
        (16, ("sixteen", "sechzehn", "dieciséis")),
        (21, ("twenty one", "einundzwanzig", "veintiuno")),
        (30, ("thirty", "dreißig", "treinta")),
        (87, ("eighty seven", "siebenundachtzig", "ochenta y siete")),
    ],
)
def test_numbers(value: int, expected: tuple[str, str, str]) -> None:
    assert number(value) == expected


def test_about_a_twelfth_of_the_longer_texts_is_held_out() -> None:
    rng = np.random.default_rng(0)
    phrases = {phrase for phrase in (random_phrase(rng) for _ in range(20000)) if " " in phrase.en}
    share = np.mean([is_held_out(phrase) for phrase in phrases])
    assert 0.06 < share < 0.11


def test_no_test_voice_is_in_the_training_set() -> None:
    for language in SEEN:
        assert not set(SEEN[language]) & set(UNSEEN[language])


@needs_espeak
def test_speech_is_the_same_twice_trimmed_and_of_the_right_texts() -> None:
    first, second = (synthesize(4, "de", SEEN["de"], seed=5, held_out_texts=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.text == other.text
        assert np.array_equal(one.pcm, other.pcm)
        assert one.language == "de"
        # Begins and ends with speech: no more than 2 % of the peak is cut away.
        assert abs(int(one.pcm[0])) > 0.015 * np.abs(one.pcm.astype(int)).max()


@needs_espeak
def test_a_corpus_keeps_held_out_texts_and_languages_apart(tmp_path: Path) -> None:
    write_corpus(tmp_path, 20, seed=1, progress=lambda _: None)
    train, unseen = read_utterances(tmp_path / "train.npz"), read_utterances(tmp_path / "unseen_text.npz")
    assert {item.language for item in train} == {item.language for item in unseen} == {"en", "de", "es"}
    assert not {item.english for item in train} & {item.english for item in unseen}


def test_a_missing_espeak_is_one_clear_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pocket.training.whisper", "--out", str(tmp_path / "new")],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 3
    assert run.stderr.count("\n") == 1
    assert "apt-get install espeak-ng" in run.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--out", "--corpus"])
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, option: str) -> None:
    folders = {"--out": tmp_path / "new", "--corpus": tmp_path / "corpus"}
    if option == "--out":
        folders["--out"] = SHIPPED
    before = (SHIPPED / "model.safetensors").read_bytes()
    arguments = [part for name, folder in folders.items() for part in (name, str(folder))]
    run = subprocess.run(
        [sys.executable, "-m", "pocket.training.whisper", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert option in run.stderr
    assert (SHIPPED / "model.safetensors").read_bytes() == before


def test_utterances_survive_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    items = [
        Utterance(rng.integers(-9000, 9000, 2500 + i).astype(np.int16), "es", f"número {i}", f"number {i}")
        for i in range(3)
    ]
    write_utterances(items, tmp_path / "some.npz")
    for item, found in zip(items, read_utterances(tmp_path / "some.npz"), strict=True):
        assert (item.language, item.text, item.english) == (found.language, found.text, found.english)
        assert np.array_equal(item.pcm, found.pcm)


def test_the_tokenizer_has_the_layout_of_the_shipped_model(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, seed=7)
    new, shipped = WhisperTokenizer.from_pretrained(tmp_path), WhisperTokenizer.from_pretrained(SHIPPED)
    special = {token: index for token, index in shipped.get_vocab().items() if token.startswith("<|")}
    assert {token: new.get_vocab()[token] for token in special} == special
    assert new.decode(new("turn on the light").input_ids, skip_special_tokens=True) == "turn on the light"
    config, expected = (WhisperConfig.from_pretrained(folder).to_dict() for folder in (tmp_path, SHIPPED))
    for name in ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "max_source_positions", "eos_token_id"):
        assert config[name] == expected[name], name


def test_log_mel_is_that_of_transformers() -> None:
    audio = np.random.default_rng(1).standard_normal((2, 96000)).astype(np.float32) * 0.1
    expected = WhisperFeatureExtractor.from_pretrained(SHIPPED)(list(audio), sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(LogMel(SHIPPED)(torch.from_numpy(audio)), expected.input_features, atol=1e-4, rtol=0)


def test_labels_are_the_next_tokens_and_the_text_is_what_is_spoken(utterances: list[Utterance]) -> None:
    tokens = Tokens.read(SHIPPED)
    sampler = Sampler(utterances, tokens, LogMel(SHIPPED), seed=2)
    texts = {text for item in utterances for text in (item.text, item.english)}
    seen_prompt = seen_silence = False
    for _ in range(12):
        batch = sampler.batch(8, 96000, 1.0)
        assert batch.mel.shape == (8, 80, 600)
        for row, labels in zip(batch.tokens.tolist(), batch.labels.tolist(), strict=True):
            start = row.index(tokens.sot)
            seen_prompt |= start > 0
            assert labels[:start] == [IGNORED] * start
            if labels[start] == tokens.no_speech:
                seen_silence = True
                continue
            kept = [index for index, label in enumerate(labels) if label != IGNORED]
            following = [*row[1:], tokens.eot]
            assert [labels[index] for index in kept] == [following[index] for index in kept]
            assert labels[start] in tokens.languages.values()
            body = [token for token in labels[start + 1 :] if token not in (IGNORED, tokens.eot, tokens.no_timestamps)]
            if body and body[0] >= tokens.timestamp_begin and len(body) > 2:
                first = body[1 : next(i for i, token in enumerate(body) if i and token >= tokens.timestamp_begin)]
                assert tokens.decode(first) in texts
    assert seen_prompt
    assert seen_silence


def test_noise_lies_as_far_below_the_speech_as_asked(utterances: list[Utterance]) -> None:
    item = utterances[0]
    clean, noisy = (place([item], snr_db=snr, seed=1)[0] for snr in (None, 10))
    noise = noisy.audio - clean.audio
    speech = clean.audio[clean.audio != 0]
    snr = 10 * np.log10(np.mean(speech**2) / np.mean(noise**2))
    assert snr == pytest.approx(10, abs=0.1)
    assert clean.spoken[0].end - clean.spoken[0].begin == pytest.approx(len(item.pcm) / 16000, abs=1e-6)
