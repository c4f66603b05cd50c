"""Error rates by hand."""

from __future__ import annotations

import pytest

from runtime.spoken import ErrorRate, error_rate, error_rates


def test_error_rates() -> None:
    # One word of four replaced; of 15 characters, s-i-x against t-e-n are three.
    assert error_rates("Drei, null sechs vier!", "drei null sechs vier") == (0.0, 0.0)
    rates = error_rates("one two six four", "one two ten four")
    assert rates == (pytest.approx(1 / 4), pytest.approx(3 / 16))
    assert error_rates("one two", "") == (1.0, 1.0)
    assert error_rates("...", "words") is None


def test_the_language_decides_between_words_and_characters() -> None:
    assert error_rate({"text": "eins zwei drei vier", "language": "de"}, "eins zwo drei vier") == ErrorRate(
        "WER", 0.25, 4
    )
    assert error_rate({"text": "eins zwei drei vier"}, "eins") == ErrorRate("WER", 0.75, 4)
    assert error_rate({"text": "\u4eba\u9593\u306b\u3002", "language": "ja"}, "\u4eba\u9593\u3092") == ErrorRate(
        "CER", pytest.approx(1 / 3), 3
    )


@pytest.mark.parametrize("reference", [None, {}, {"text": ""}, {"text": "..."}, {"events": []}])
def test_where_nothing_is_known_to_be_said_there_is_no_rate(reference: dict[str, object] | None) -> None:
    assert error_rate(reference, "words") is None
