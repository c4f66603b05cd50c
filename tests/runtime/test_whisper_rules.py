"""Decoding rules against transformers' logits processors, the rest against torch or a calculation by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from runtime.families.whisper.rules import (
    SuppressAtBegin,
    SuppressTokens,
    TimestampRules,
    choose,
    compression_ratio,
    log_sum_exp,
    no_speech_probability,
)
from runtime.families.whisper.settings import WhisperSettings

EOT, NO_TIMESTAMPS, BEGIN, VOCABULARY = 20, 30, 31, 52
PROMPT = [21, 22]


def settings_of(max_initial_timestamp_index: int | None) -> WhisperSettings:
    return WhisperSettings(
        sot=21,
        eot=EOT,
        sot_prev=27,
        no_speech=29,
        no_timestamps=NO_TIMESTAMPS,
        timestamp_begin=BEGIN,
        languages={"en": 22},
        tasks={"transcribe": 26},
        suppress_tokens=(1, 2, 21),
        begin_suppress_tokens=(3, EOT),
        max_initial_timestamp_index=max_initial_timestamp_index,
        max_length=100,
    )


def by_transformers(processor: LogitsProcessor, logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    ids = torch.tensor([PROMPT + tokens])
    return processor(ids, torch.from_numpy(logits.copy())[None])[0].numpy()


def logits_from(seed: int, boost: float) -> np.ndarray:
    """Random logits; `boost` moves the timestamps' share of the probability."""
    logits = np.random.default_rng(seed).normal(0, 2, VOCABULARY).astype(np.float32)
    logits[BEGIN:] += np.float32(boost)
    return logits


histories = st.lists(st.one_of(st.integers(0, EOT - 1), st.integers(BEGIN, VOCABULARY - 1)), max_size=12)


@settings(max_examples=400)
@given(
    tokens=histories,
    seed=st.integers(0, 10_000),
    boost=st.floats(-4, 4),
    index=st.sampled_from([None, 0, 1, 5, 50]),
)
def test_timestamp_rules(tokens: list[int], seed: int, boost: float, index: int | None) -> None:
    config = GenerationConfig(eos_token_id=EOT, no_timestamps_token_id=NO_TIMESTAMPS)
    if index is not None:
        config.max_initial_timestamp_index = index
    logits = logits_from(seed, boost)
    expected = by_transformers(WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT)), logits, tokens)
    TimestampRules(settings_of(index))(logits, tokens)
    np.testing.assert_array_equal(logits, expected)


@settings(max_examples=150)
@given(tokens=histories, seed=st.integers(0, 10_000), boost=st.floats(-4, 4), index=st.sampled_from([None, 1, 50]))
def test_known_difference_11_tokens_behind_the_timestamps_are_text(
    tokens: list[int], seed: int, boost: float, index: int | None
) -> None:
    """transformers' rules for a vocabulary that has them in front of all others."""
    end = 41
    added = VOCABULARY - end
    order = [*range(end, VOCABULARY), *range(end)]
    config = GenerationConfig(eos_token_id=EOT + added, no_timestamps_token_id=NO_TIMESTAMPS + added)
    if index is not None:
        config.max_initial_timestamp_index = index
    logits = logits_from(seed, boost)
    moved = [order.index(token) for token in tokens]
    expected = by_transformers(WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT)), logits[order], moved)
    TimestampRules(settings_of(index).model_copy(update={"n_timestamps": end - BEGIN}))(logits, tokens)
    np.testing.assert_array_equal(logits[order], expected)


@settings(max_examples=50)
@given(tokens=histories, ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9))
def test_suppressed_tokens(tokens: list[int], ids: list[int]) -> None:
    logits = logits_from(0, 0)
    at_begin = logits.copy()
    expected = by_transformers(SuppressTokensLogitsProcessor(ids), logits, tokens)
    expected_at_begin = by_transformers(SuppressTokensAtBeginLogitsProcessor(ids, len(PROMPT)), logits, tokens)
    SuppressTokens(ids)(logits, tokens)
    SuppressAtBegin(ids)(at_begin, tokens)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(at_begin, expected_at_begin)


def test_no_tokens_to_suppress() -> None:
    logits = logits_from(0, 0)
    expected = logits.copy()
    SuppressTokens(())(logits, [])
    SuppressAtBegin(())(logits, [])
    np.testing.assert_array_equal(logits, expected)


def test_greedy_choice_and_its_log_probability() -> None:
    logits = logits_from(1, 0)
    logits[:5] = -np.inf
    token, logprob = choose(logits, 0.0, np.random.default_rng(0))
    assert token == int(torch.from_numpy(logits).argmax())
    assert logprob == pytest.approx(float(torch.from_numpy(logits).log_softmax(-1)[token]), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_known_difference_2_samples_come_from_all_tokens(temperature: float) -> None:
    """They follow the tempered distribution; transformers keeps the 50 likeliest tokens unless told otherwise."""
    logits = np.array([-np.inf, 1.0, 0.5, -np.inf, 0.0, -1.0, -np.inf], np.float32)
    generator = np.random.default_rng(3)
    count = 20_000
    drawn = [choose(logits, temperature, generator) for _ in range(count)]
    share = np.bincount([token for token, _ in drawn], minlength=len(logits)) / count
    expected = torch.softmax(torch.from_numpy(logits) / temperature, -1).numpy()
    np.testing.assert_allclose(share, expected, atol=5 * 0.5 / np.sqrt(count))
    assert share[[0, 3, 6]].sum() == 0
    # The log-probability leaves the temperature out, as openai/whisper's does.
    untempered = torch.from_numpy(logits).log_softmax(-1).numpy()
    assert all(logprob == pytest.approx(float(untempered[token]), abs=1e-5) for token, logprob in drawn[:50])


def test_a_seed_gives_the_same_samples() -> None:
    logits = logits_from(2, 0)
    first, second = ([choose(logits, 1.0, g)[0] for _ in range(20)] for g in map(np.random.default_rng, (7, 7)))
    assert first == second
    assert len(set(first)) > 1


def test_no_speech_probability() -> None:
    logits = logits_from(4, 0)
    expected = float(torch.from_numpy(logits).softmax(-1)[29])
    assert no_speech_probability(logits, 29) == pytest.approx(expected, rel=1e-5)


def test_log_sum_exp_of_nothing_allowed() -> None:
    assert log_sum_exp(np.full(3, -np.inf, np.float32)) == -np.inf
    assert log_sum_exp(np.array([1e4, 1e4], np.float32)) == pytest.approx(1e4 + np.log(2))


def test_known_difference_1_compression_ratio_is_of_the_text() -> None:
    """transformers compresses token ids, openai/whisper (and we) the text."""
    text = "na " * 100
    assert compression_ratio(text) == 300 / len(zlib.compress(text.encode()))
    assert compression_ratio(text) > 2.4
    assert compression_ratio("the quick brown fox jumps over the lazy dog") < 2.4
    assert compression_ratio("") == 0
