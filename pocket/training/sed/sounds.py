"""Seven kinds of synthetic sounds over noise; the eighth class, Silence, is where none of them is.

A clip is drawn from a generator: the same generator gives the same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.engines.base import Floats
from verify.events import Sound

SAMPLE_RATE = 32000
SILENCE = "Silence"
SHORTEST_SILENCE_S = 0.2
GRID_HZ = 100  # silence begins and ends on multiples of 10 ms
RED_SHARE, SWELLING_SHARE = 0.4, 0.2  # of the backgrounds; the others are white
NEAR_S, KEPT_APART = 0.1, 0.7  # a sound so near another is left out with this probability, if of its kind always

Doubles = NDArray[np.float64]
Synthesizer = Callable[[int, np.random.Generator], Doubles]


@dataclass(frozen=True)
class Clip:
    """Samples f32 [n] at 32 kHz in [-1, 1], and what sounds in them, by onset."""

    samples: Floats
    sounds: tuple[Sound, ...]


@dataclass(frozen=True)
class Kind:
    """A class of sounds: how `n` samples of one are made, and how long one lasts."""

    synthesize: Synthesizer
    shortest_s: float = 0.3
    longest_s: float = 1.6


def _oscillation(hz: Doubles) -> Doubles:
    """Return a sine of the frequency `hz` [n], which may change from sample to sample."""
    wave: Doubles = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)
    return wave


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sine(n: int, rng: np.random.Generator) -> Doubles:
    return _oscillation(np.full(n, _log_uniform(rng, 200, 6000)))


def _sweep(n: int, rng: np.random.Generator) -> Doubles:
    """Return frequencies [n] in Hz that rise by the same factor in every sample, 2 to 6 times in all."""
    return _log_uniform(rng, 200, 2000) * rng.uniform(2, 6) ** np.linspace(0, 1, n)


def _chirp_up(n: int, rng: np.random.Generator) -> Doubles:
    return _oscillation(_sweep(n, rng))


def _chirp_down(n: int, rng: np.random.Generator) -> Doubles:
    return _oscillation(_sweep(n, rng)[::-1])


def _noise(n: int, rng: np.random.Generator) -> Doubles:
    """Return noise that is white, or weaker in its low or high frequencies."""
    noise = np.convolve(rng.standard_normal(n), [1, rng.uniform(-0.7, 0.7)])[:n]
    noise /= 3 * noise.std()
    return noise


def _clicks(n: int, rng: np.random.Generator) -> Doubles:
    """Return 5 to 20 clicks a second; each is a sine of 1 to 5 kHz that dies away within 6 ms."""
    train = np.zeros(n)
    train[(np.arange(0, n / SAMPLE_RATE, 1 / rng.uniform(5, 20)) * SAMPLE_RATE).astype(int)] = 1.5
    time_s = np.arange(int(0.006 * SAMPLE_RATE)) / SAMPLE_RATE
    click = np.exp(-time_s / rng.uniform(0.5e-3, 1.5e-3)) * np.sin(2 * np.pi * rng.uniform(1000, 5000) * time_s)
    return np.convolve(train, click)[:n]


def _siren(n: int, rng: np.random.Generator) -> Doubles:
    """Return a tone whose pitch sways one to four times a second, with one overtone."""
    sway = np.sin(2 * np.pi * (rng.uniform(1, 4) * np.arange(n) / SAMPLE_RATE + rng.random()))
    hz = rng.uniform(700, 1400) * (1 + rng.uniform(0.2, 0.4) * sway)
    return _oscillation(hz) + 0.3 * _oscillation(2 * hz)


def _buzz(n: int, rng: np.random.Generator) -> Doubles:
    return 0.6 * np.sign(_oscillation(np.full(n, rng.uniform(60, 300))))


# In the order of the shipped model's outputs.
KINDS = {
    "Sine tone": Kind(_sine),
    "Chirp up": Kind(_chirp_up),
    "Chirp down": Kind(_chirp_down),
    "Noise burst": Kind(_noise),
    "Click train": Kind(_clicks, 0.5, 2.0),
    "Siren": Kind(_siren, 1.0, 2.2),
    "Square buzz": Kind(_buzz),
}
LABELS = (*KINDS, SILENCE)


def synthesize(label: str, duration_s: float, rng: np.random.Generator) -> Doubles:
    """Return one sound f64 [n] of about unit size, with ramps of 3 to 20 ms at both ends."""
    n = int(duration_s * SAMPLE_RATE)
    ramp = np.linspace(0, 1, min(n // 4, int(rng.uniform(0.003, 0.02) * SAMPLE_RATE)))
    sound = KINDS[label].synthesize(n, rng)
    sound[: len(ramp)] *= ramp
    sound[n - len(ramp) :] *= ramp[::-1]
    return sound


def background(n: int, rng: np.random.Generator) -> Doubles:
    """Return noise f64 [n] of standard deviation 1: red, swelling or white."""
    noise, drawn = rng.standard_normal(n), rng.random()
    if drawn < RED_SHARE:
        # One pole at 0.97, applied to the spectrum.
        turn = np.exp(-2j * np.pi * np.fft.rfftfreq(n))
        noise = np.fft.irfft(np.fft.rfft(noise) / (1 - 0.97 * turn), n)
    elif drawn < RED_SHARE + SWELLING_SHARE:
        noise *= 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 1) * np.arange(n) / SAMPLE_RATE)
    noise /= noise.std()
    return noise


def draw_clip(
    seconds: float,
    rng: np.random.Generator,
    *,
    snr_db: float | None = None,
    shares: tuple[float, ...] | None = None,
) -> Clip:
    """Return a clip of about one sound a second at most.

    Parameters
    ----------
    seconds : float
        Length of the clip, longer than any sound.
    rng : np.random.Generator
        Where everything random comes from.
    snr_db : float, optional
        How far the noise lies below a sound at full level; drawn from 8 to 40 dB by default. Sounds are up to 12 dB
        below that level.
    shares : tuple of float, optional
        Probabilities of KINDS, which add up to 1; equal by default.

    """
    samples, sounds = np.zeros(int(seconds * SAMPLE_RATE)), list[Sound]()
    for _ in range(rng.integers(0, max(2, int(seconds)))):
        label = str(rng.choice(list(KINDS), p=shares))
        duration_s = rng.uniform(KINDS[label].shortest_s, KINDS[label].longest_s)
        onset = rng.uniform(0, seconds - duration_s)
        sound = Sound(onset, onset + duration_s, label)
        if any(_too_near(sound, other) and (other.label == label or rng.random() < KEPT_APART) for other in sounds):
            continue
        wave = synthesize(label, duration_s, rng) * 10 ** (rng.uniform(-12, 0) / 20)
        first = int(onset * SAMPLE_RATE)
        samples[first : first + len(wave)] += wave
        sounds.append(sound)
    below_db = rng.uniform(8, 40) if snr_db is None else snr_db
    samples += 0.35 * 10 ** (-below_db / 20) * background(len(samples), rng)
    samples *= 0.25 * 10 ** (rng.uniform(-10, 6) / 20)
    sounds += silences(sounds, seconds)
    return Clip(samples.clip(-1, 1).astype(np.float32), tuple(sorted(sounds, key=lambda sound: sound.onset)))


def _too_near(sound: Sound, other: Sound) -> bool:
    """Return whether two sounds overlap or are within 0.1 s."""
    return sound.onset < other.offset + NEAR_S and sound.offset > other.onset - NEAR_S


def silences(sounds: list[Sound], seconds: float) -> list[Sound]:
    """Return the stretches of at least 0.2 s without any sound."""
    heard = np.zeros(round(seconds * GRID_HZ), bool)
    for sound in sounds:
        heard[int(sound.onset * GRID_HZ) : int(np.ceil(sound.offset * GRID_HZ))] = True
    edges = np.diff(~heard, prepend=False, append=False).nonzero()[0].reshape(-1, 2) / GRID_HZ
    return [Sound(float(a), float(b), SILENCE) for a, b in edges if b - a >= SHORTEST_SILENCE_S - 1e-9]


def targets(clip: Clip, step_s: float) -> Floats:
    """Return for every whole step of a clip whether each of LABELS sounds: f32 [n_steps, n_classes]."""
    n_steps = int(len(clip.samples) / SAMPLE_RATE / step_s + 1e-6)
    heard = np.zeros((n_steps, len(LABELS)), np.float32)
    for sound in clip.sounds:
        first = min(round(sound.onset / step_s), n_steps - 1)
        heard[first : max(first + 1, round(sound.offset / step_s)), LABELS.index(sound.label)] = 1
    return heard
