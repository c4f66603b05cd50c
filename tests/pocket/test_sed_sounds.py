from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocket.training.sed.sounds import KINDS, LABELS, SAMPLE_RATE, SILENCE, draw_clip, silences, synthesize, targets
from verify.events import Sound

SHIPPED = Path(__file__).resolve().parents[2] / "pocket" / "sed-pocket"


def loudest_hz(samples: np.ndarray) -> float:
    """Return the strongest frequency of a windowed spectrum."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)[spectrum.argmax()])


def parts(samples: np.ndarray, count: int) -> list[np.ndarray]:
    return np.array_split(samples, count)


@pytest.mark.parametrize("seed", range(5))
def test_each_kind_sounds_as_its_name_says(seed: int) -> None:
    made = {label: synthesize(label, 1.5, np.random.default_rng(seed)) for label in KINDS}
    assert all(len(wave) == 1.5 * SAMPLE_RATE and np.abs(wave).max() < 4 for wave in made.values())
    assert all(wave[0] == 0 == wave[-1] for wave in made.values())

    tone = [loudest_hz(part) for part in parts(made["Sine tone"], 5)]
    assert max(tone) - min(tone) < 8  # resolution of 0.3 s
    assert 195 < tone[0] < 6005
    up = [loudest_hz(part) for part in parts(made["Chirp up"], 5)]
    assert up == sorted(up)
    assert 1.5 < up[-1] / up[0] < 6
    down = [loudest_hz(part) for part in parts(made["Chirp down"], 5)]
    assert down == sorted(down, reverse=True)
    siren = [loudest_hz(part) for part in parts(made["Siren"], 50)]
    assert 400 < min(siren) < max(siren) < 2000
    assert max(siren) / min(siren) > 1.3
    buzz = made["Square buzz"][SAMPLE_RATE // 2 : SAMPLE_RATE]
    assert np.isin(np.abs(buzz), [0, 0.6]).all()
    assert 55 < loudest_hz(buzz) < 305
    noise = made["Noise burst"][SAMPLE_RATE // 2 : SAMPLE_RATE]
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    assert spectrum.max() < 0.01 * spectrum.sum()  # no tone stands out
    loud = np.abs(made["Click train"]) > 0.2
    starts = (np.diff(np.flatnonzero(loud)) > 0.02 * SAMPLE_RATE).sum() + 1
    assert 5 <= starts <= 31


def test_a_clip_is_what_its_seed_says() -> None:
    one, again, other = (draw_clip(4.0, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, again.samples)
    assert one.sounds == again.sounds
    assert not np.array_equal(one.samples, other.samples)


@pytest.mark.parametrize("seed", range(8))
def test_sounds_are_where_the_clip_is_loud(seed: int) -> None:
    clip = draw_clip(6.0, np.random.default_rng(seed), snr_db=60.0)
    assert clip.samples.dtype == np.float32
    assert np.abs(clip.samples).max() <= 1
    assert all(0 <= sound.onset < sound.offset <= 6.0 for sound in clip.sounds)
    assert [sound.onset for sound in clip.sounds] == sorted(sound.onset for sound in clip.sounds)
    energy = np.square(clip.samples.astype(float))

    def level(sound: Sound) -> float:
        # 30 ms at each end are ramps and rounding.
        return float(energy[int((sound.onset + 0.03) * SAMPLE_RATE) : int((sound.offset - 0.03) * SAMPLE_RATE)].mean())

    quiet = [level(sound) for sound in clip.sounds if sound.label == SILENCE]
    loud = [level(sound) for sound in clip.sounds if sound.label != SILENCE]
    if quiet and loud:
        assert max(quiet) < 0.05 * min(loud)


def test_shares_and_noise_are_as_asked() -> None:
    only_buzz = tuple(float(label == "Square buzz") for label in KINDS)
    rng = np.random.default_rng(3)
    labels = {sound.label for _ in range(20) for sound in draw_clip(4.0, rng, shares=only_buzz).sounds}
    assert labels == {"Square buzz", SILENCE}


sounds_in_10_s = st.lists(
    st.builds(
        lambda onset, length: Sound(onset / 1000, (onset + length) / 1000, "Siren"),
        st.integers(0, 8000),
        st.integers(10, 2000),
    ),
    max_size=8,
)


@given(sounds_in_10_s)
def test_silence_is_every_gap_of_at_least_a_fifth_of_a_second(sounds: list[Sound]) -> None:
    found = silences(sounds, 10.0)
    heard = {step for sound in sounds for step in range(int(sound.onset * 100), int(np.ceil(sound.offset * 100)))}
    quiet = [step not in heard for step in range(1000)]
    silent = {step for sound in found for step in range(round(sound.onset * 100), round(sound.offset * 100))}
    run = list[int]()
    for step, is_quiet in enumerate([*quiet, False]):
        if is_quiet:
            run.append(step)
        else:
            assert set(run) <= silent if len(run) >= 20 else not set(run) & silent
            run = []
    assert not silent & heard
    assert all(sound.label == SILENCE for sound in found)


def test_targets_have_the_scores_that_a_sound_covers() -> None:
    clip = draw_clip(4.0, np.random.default_rng(6))
    heard = targets(clip, 0.04)
    assert heard.shape == (100, len(LABELS))
    expected = np.zeros_like(heard)
    for sound in clip.sounds:
        for step in range(100):
            # More than half of the score's 40 ms, as edges are rounded to the nearest.
            if min(sound.offset, (step + 1) * 0.04) - max(sound.onset, step * 0.04) > 0.0201:
                expected[step, LABELS.index(sound.label)] = 1
    assert len(clip.sounds) > 2
    assert np.abs(heard - expected).sum() <= len(clip.sounds)  # a sound that ends within one score of its onset's
    assert (heard.sum(axis=0) > 0).sum() == len({sound.label for sound in clip.sounds})


def test_labels_are_the_shipped_models() -> None:
    assert "".join(f"{label}\n" for label in LABELS) == (SHIPPED / "classes.txt").read_text()
    assert json.loads((SHIPPED / "config.json").read_text())["classes_num"] == len(LABELS)
