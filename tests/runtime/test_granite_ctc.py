"""The encoder's draft: greedy CTC against a plain walk over torch's softmax, and against texts made by hand."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from granite_nets import SAMPLES, Original, samples_of
from hypothesis import given
from hypothesis import strategies as st

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.granite_speech.ctc import ctc_draft, require_characters
from runtime.families.granite_speech.options import GraniteOptions
from runtime.families.granite_speech.recognizer import GraniteRecognizer

CHARACTERS = "_ abc"  # the blank, then ids 1 to 4


def spelled(path: str) -> np.ndarray:
    """Logits whose likeliest character in each frame is that of `path`."""
    logits = np.zeros((len(path), len(CHARACTERS)), np.float32)
    logits[np.arange(len(path)), [CHARACTERS.index(character) for character in path]] = 5
    return logits


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("", ""),
        ("____", ""),
        ("abc", "abc"),
        ("aabbcc", "abc"),
        ("a_a", "aa"),
        ("_aa__a_", "aa"),
        ("ab ba", "ab ba"),
        ("a _ b", "a  b"),
        ("c", "c"),
    ],
)
def test_runs_first_then_blanks(path: str, text: str) -> None:
    draft = ctc_draft(spelled(path), CHARACTERS)
    assert draft.text == text
    if text:
        assert draft.confidence == pytest.approx(np.exp(5) / (np.exp(5) + 4))
    else:
        assert draft.confidence is None


def test_confidence_by_hand() -> None:
    """Two frames of `a` at 1/2 and 3/4, a blank, one of `b` at 2/3: the mean of 3/4 and 2/3."""
    probabilities = np.array(
        [[0.2, 0.1, 0.5, 0.1, 0.1], [0.1, 0.05, 0.75, 0.05, 0.05], [0.9, 0.025, 0.025, 0.025, 0.025], [0, 0, 0, 2, 1]]
    )
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities) + np.array([[0.0], [100.0], [-30.0], [7.0]])  # a softmax knows no offset
    logits[3, :3] = -1e4
    draft = ctc_draft(logits.astype(np.float32), CHARACTERS)
    assert draft.text == "ab"
    assert draft.confidence == pytest.approx((3 / 4 + 2 / 3) / 2, rel=1e-5)


def test_ids_beyond_the_table_are_marked() -> None:
    draft = ctc_draft(spelled("abc"), CHARACTERS[:3])
    assert draft.text == "a\ufffd\ufffd"


@given(seed=st.integers(0, 2**32), n_frames=st.integers(1, 40), blanks=st.floats(0, 3))
def test_a_plain_walk_finds_the_same(seed: int, n_frames: int, blanks: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n_frames, 5)).astype(np.float32) * 3
    logits[:, 0] += blanks
    expected: list[tuple[str, float]] = []
    before = None
    for row in torch.from_numpy(logits).double().softmax(dim=1):
        probability, id_ = row.max(dim=0)
        if id_ == before and id_ != 0:
            character, highest = expected[-1]
            expected[-1] = character, max(highest, float(probability))
        elif id_ != 0:
            expected.append((CHARACTERS[id_], float(probability)))
        before = id_
    draft = ctc_draft(logits, CHARACTERS)
    assert draft.text == "".join(character for character, _ in expected)
    if expected:
        assert draft.confidence == pytest.approx(sum(value for _, value in expected) / len(expected))


def test_without_a_table_a_draft_is_refused() -> None:
    require_characters(CHARACTERS)
    with pytest.raises(InputError, match=r"--draft: expected the characters .* found none; leave it out"):
        require_characters("")


def test_a_draft_is_that_of_transformers_encoder(granite_artifact: Path, granite_checkpoint: Path) -> None:
    """Chunk by chunk, of the frames of the recording only; the table has most of the 48 outputs."""
    recognizer = open_recognizer(open_artifact(granite_artifact), threads=1)
    assert isinstance(recognizer, GraniteRecognizer)
    characters = "".join(map(chr, range(ord("0"), ord("0") + 40)))
    recognizer.settings = recognizer.settings.model_copy(update={"ctc_characters": characters})
    options = GraniteOptions.parse({"draft": True, "max_new_tokens": 2, "chunk_s": 3.3})
    segments = recognizer.recognize(open_audio(SAMPLES / "long_en.wav"), options).segments
    original, samples = Original(granite_checkpoint), samples_of("long_en.wav")
    encoder = original.model.model.encoder
    for segment in segments[::3]:
        part = samples[round(segment.start * 16000) : round(segment.end * 16000)]
        features = original.processor.audio_processor(torch.from_numpy(part))["input_features"]
        with torch.inference_mode():
            weights = encoder.out(encoder(features).last_hidden_state)[0].double().softmax(dim=1)
        highest, ids = weights.max(dim=1)
        runs = [
            (id_, max(p for _, p in run))
            for id_, run in groupby(zip(ids.tolist(), highest.tolist(), strict=True), itemgetter(0))
        ]
        spelled_out = [(id_, probability) for id_, probability in runs if id_ != 0]
        assert segment.draft is not None
        assert segment.draft.text == "".join((characters[i] if i < 40 else "\ufffd") for i, _ in spelled_out)
        expected = sum(probability for _, probability in spelled_out) / len(spelled_out)
        assert segment.draft.confidence == pytest.approx(expected, rel=1e-4)
