"""Several streams one behind the other in a file: RFC 3533's chains, and mp3s that were joined."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from audio_files import decoded, encoded, ogg_pages, speech_like
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.audio import open_audio
from runtime.errors import InputError


def read(data: bytes, rate: int, *clip: float | None) -> np.ndarray:
    return np.concatenate(list(open_audio(data).blocks(rate, *clip)))


@pytest.mark.parametrize("kinds", [("opus", "opus"), ("ogg", "ogg"), ("opus", "ogg"), ("mp3", "mp3")])
@pytest.mark.parametrize("rates", [(16000, 16000), (16000, 48000), (48000, 24000)])
def test_a_chain_is_what_its_streams_are(kinds: tuple[str, str], rates: tuple[int, int]):
    streams = [
        encoded(speech_like(1.3 + seed, rate, seed, channels=1 + seed), rate, kind)
        for seed, (kind, rate) in enumerate(zip(kinds, rates, strict=True))
    ]
    found = open_audio(b"".join(streams))
    parts = [decoded(stream) for stream in streams]
    assert [(part.rate, part.frames) for part in found.parts] == [(rate, len(samples)) for samples, rate in parts]
    assert found.info.duration_s == pytest.approx(sum(len(samples) / rate for samples, rate in parts))
    assert (found.info.sample_rate, found.info.remark) == (parts[0][1], "")
    if rates[0] == rates[1]:
        expected = np.concatenate([samples for samples, _ in parts])
        np.testing.assert_allclose(read(b"".join(streams), rates[0]), expected, atol=1e-6)
    else:
        expected = np.concatenate([soxr.resample(samples, rate, 8000) for samples, rate in parts])
        np.testing.assert_allclose(read(b"".join(streams), 8000), expected, atol=1e-6)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["opus", "ogg", "mp3"]),
    lengths=st.lists(st.floats(0.3, 1.5), min_size=1, max_size=4),
    clip=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_chain_and_any_part_of_it(kind: str, lengths: list[float], clip: tuple[float, float]):
    streams = [encoded(speech_like(seconds, 16000, seed), 16000, kind) for seed, seconds in enumerate(lengths)]
    whole = np.concatenate([decoded(stream)[0] for stream in streams])
    start, stop = sorted(round(at * len(whole)) / 16000 for at in clip)
    np.testing.assert_allclose(read(b"".join(streams), 16000), whole, atol=1e-6)
    if stop - start > 0.001 and start * 16000 < len(whole) - 1:
        found = read(b"".join(streams), 16000, start, stop)
        expected = whole[round(start * 16000) : round(stop * 16000)]
        assert abs(len(found) - len(expected)) <= len(streams)  # each stream's begin is rounded to a frame
        # Opus and Vorbis converge after a seek.
        np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=2e-2)


def test_a_page_of_a_chain_that_is_lost_is_said_with_its_seconds():
    first, second = (ogg_pages(encoded(speech_like(8, 48000, seed), 48000, "opus")) for seed in (1, 2))
    whole = b"".join(first + second)
    for drop in (first[4], second[4], first[-1], second[-1], second[0]):
        pages = [page for page in first + second if page != drop]
        with pytest.raises(InputError, match=r"damaged or truncated.*\d\.\d\d s found, (about|an unknown)"):
            open_audio(b"".join(pages))
        found = open_audio(b"".join(pages), accept_damaged=True)
        assert found.info.remark.startswith("damaged: ")
        assert sum(map(len, found.blocks(48000))) == found.frames
        assert found.info.duration_s < open_audio(whole).info.duration_s - 0.01
    with pytest.raises(InputError, match="nothing can be read"):
        open_audio(b"".join(first[1:]))


@pytest.mark.parametrize("kind", ["opus", "ogg"])
def test_a_stream_that_was_joined_late_is_no_damaged_one(kind: str):
    """Servers pass on the headers and then the pages of now."""
    pages = ogg_pages(encoded(speech_like(30, 48000), 48000, kind))
    found = open_audio(b"".join(pages[:2] + pages[17:]))
    assert "of a stream on" in found.info.remark
    assert sum(map(len, found.blocks(48000))) == found.frames
    assert 10 * 48000 < found.frames < 26 * 48000
