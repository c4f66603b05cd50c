"""Metrics against hand calculations, scipy-free formulas and jiwer's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.differences import compare, kl_divergence
from verify.metrics import statistics, top2_margin


def test_compare_by_hand() -> None:
    golden = np.array([[3.0, 4.0, 0.0, 0.01]], np.float32)
    actual = np.array([[3.3, 4.0, 0.1, 0.02]], np.float32)
    found = compare(actual, golden, "float32")
    assert found.relative_l2 == pytest.approx(math.sqrt(0.09 + 0.01 + 0.0001) / math.sqrt(25.0001), rel=1e-6)
    assert found.max_relative == pytest.approx(0.3 / 4, rel=1e-6)
    # Denominators: 3, 4, and 1 % of 4 for the two small ones.
    assert found.mean_relative == pytest.approx((0.1 + 0 + 0.1 / 0.04 + 0.01 / 0.04) / 4, rel=1e-6)
    # The zero has no relative error of its own.
    assert found.raw_mean_relative == pytest.approx((0.1 + 0 + 1.0) / 3, rel=1e-6)
    assert found.raw_max_relative == pytest.approx(1.0, rel=1e-6)
    assert found.max_abs == pytest.approx(0.3, rel=1e-6)
    assert found.mean_abs == pytest.approx((0.3 + 0 + 0.1 + 0.01) / 4, rel=1e-6)
    assert (found.elements, found.zero_reference, found.non_finite, found.at_limit) == (4, 1, 0, 0)


def test_a_gain_is_its_own_relative_error() -> None:
    golden = np.random.default_rng(0).standard_normal((3, 50))
    found = compare(1.1 * golden, golden, "float32")
    for value in (found.relative_l2, found.max_relative, found.raw_mean_relative, found.raw_max_relative):
        assert value == pytest.approx(0.1)
    assert found.cosine == pytest.approx(1.0), "the measure that misses it"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_infinitely_far(bad: float) -> None:
    golden = np.ones((2, 3), np.float32)
    actual = golden.copy()
    actual[1, 2] = bad
    found = compare(actual, golden, "float32")
    assert math.isinf(found.relative_l2)
    assert math.isinf(found.mean_relative)
    assert math.isinf(found.raw_mean_relative)
    assert found.non_finite == 1


def test_zero_golden() -> None:
    zero = np.zeros(4, np.float32)
    assert compare(zero, zero, "float32").relative_l2 == 0
    assert math.isinf(compare(zero + 1e-9, zero, "float32").relative_l2)
    assert math.isinf(compare(zero + 1e-9, zero, "float32").mean_relative)


@pytest.mark.parametrize(
    ("dtype", "limit", "below"),
    [
        ("float16", np.float16(65504), np.float16(65472)),
        ("bfloat16", np.float32(3.3895314e38), np.float32(3.3762e38)),
        ("float32", np.finfo(np.float32).max, np.float32(3.3895314e38)),
    ],
)
def test_values_at_the_limit_are_counted(dtype: str, limit: float, below: float) -> None:
    values = np.array([limit, -limit, below, 1.0])
    assert compare(values, values, dtype).at_limit == 2


def test_kl_by_hand() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    golden, actual = np.log([p, p]) + 7.0, np.log([q, p]) - 3.0  # softmax does not see a shift
    np.testing.assert_allclose(kl_divergence(golden, actual), [expected, 0.0], atol=1e-12)


def test_kl_of_logits_that_are_not_finite() -> None:
    golden = np.zeros((2, 3))
    actual = np.array([[0.0, np.nan, 0.0], [0.0, 0.0, 0.0]])
    assert compare(actual, golden, "float32", logits=True).kl == math.inf


def test_a_shift_of_logits_is_no_error_and_of_hidden_states_is_one() -> None:
    golden = np.random.default_rng(1).standard_normal((4, 50)) + 20
    shifted = golden + np.array([[3.0], [-1.0], [0.5], [2.0]])
    as_logits, as_states = compare(shifted, golden, "float32", logits=True), compare(shifted, golden, "float32")
    assert as_logits.relative_l2 == pytest.approx(0, abs=1e-12)
    assert as_logits.kl == pytest.approx(0, abs=1e-12)
    assert as_states.relative_l2 == pytest.approx(np.linalg.norm(shifted - golden) / np.linalg.norm(golden))
    assert as_states.kl is None


def test_one_bad_row_shows_in_its_own_error() -> None:
    golden = np.ones((1, 100, 4))
    actual = golden.copy()
    actual[0, 40] *= 1.3
    found = compare(actual, golden, "float32")
    assert found.row_l2 == pytest.approx(0.3)
    assert found.relative_l2 == pytest.approx(0.03)
    # A row of nothing counts as one of a tenth of the usual size.
    golden[0, 7], actual[0, 40] = 0.0, 1.0
    actual[0, 7] = 0.01
    assert compare(actual, golden, "float32").row_l2 == pytest.approx(0.01 / (0.1 * math.sqrt(0.99)))


def test_rounding_averages_out_and_a_constant_does_not() -> None:
    rng = np.random.default_rng(2)
    golden = rng.standard_normal((1, 1000, 8))
    noise = 0.01 * rng.standard_normal(golden.shape)
    rounded, constant = compare(golden + noise, golden, "float32"), compare(golden + 0.01, golden, "float32")
    assert rounded.relative_l2 == pytest.approx(constant.relative_l2, rel=0.05)
    assert rounded.bias is not None
    assert constant.bias == pytest.approx(0.01 / np.sqrt((golden**2).mean()), rel=0.05)
    assert rounded.bias < constant.bias / 10
    assert compare(golden[:, :8] + 0.01, golden[:, :8], "float32").bias is None, "eight rows tell nothing"


def test_a_gain_of_logits_is_the_slope() -> None:
    golden = np.random.default_rng(3).standard_normal((20, 50))
    found = compare(1.003 * golden, golden, "float32", logits=True)
    assert found.slope == pytest.approx(0.003)
    assert compare(1.003 * golden[:8], golden[:8], "float32", logits=True).slope is None


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.integers(0, 2**31))
def test_kl_is_never_negative(logits: list[float], seed: int) -> None:
    golden = np.array([logits])
    actual = golden + np.random.default_rng(seed).standard_normal(golden.shape)
    assert kl_divergence(golden, actual)[0] >= 0
    assert kl_divergence(golden, golden)[0] == 0


def test_top2_margin() -> None:
    assert top2_margin(np.array([[1.0, 5.0, 3.5, -2.0], [2.0, 2.0, 0.0, 1.0]])).tolist() == [1.5, 0.0]


def test_statistics_by_hand() -> None:
    found = statistics([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.min, found.p50, found.max) == (3.0, 1.0, 3.0, 5.0)
    assert found.std == pytest.approx(math.sqrt(2.5))
    assert found.p90 == pytest.approx(4.6)
    assert statistics([2.0]).std == 0.0
