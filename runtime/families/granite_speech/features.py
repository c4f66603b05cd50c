"""Granite Speech's log-mel front-end in numpy.

Values are those of transformers' GraniteSpeechFeatureExtractor, which takes its mel spectrogram from torchaudio: a
periodic Hann window in the middle of a longer Fourier transform, centred frames with reflected edges, the power
spectrum through HTK mels without norm, log10 with a floor of 1e-10, everything more than 8 below the maximum raised to
that, x / 4 + 1, and two frames side by side as one of the encoder's.
"""

from __future__ import annotations

import numpy as np

from runtime.engines.base import Floats
from runtime.families.granite_speech.settings import GraniteFrontend
from runtime.mel import htk_filters

_POWER_FLOOR = 1e-10
_DYNAMIC_RANGE = 8.0
_STACKED = 2
# Frames transformed at a time: 4 MiB of float64.
_BLOCK = 1024


def n_frames(n_samples: int, frontend: GraniteFrontend) -> int:
    """Return how many frames `log_mel` makes of `n_samples` samples: at least one, 20 ms each."""
    return (max(n_samples, _shortest(frontend)) // frontend.hop_length + 1) // _STACKED


def log_mel(samples: Floats, frontend: GraniteFrontend) -> Floats:
    """Return the features of a recording, as the encoder takes them.

    A recording too short to reflect its edges (n_fft // 2 samples, 16 ms) is padded with zeros to one frame, where
    transformers raises an error; an odd last mel frame is dropped, but counts for the maximum.

    Parameters
    ----------
    samples : ndarray
        [n] f32 in -1 to 1 at the front-end's rate, n >= 1. Beside it this takes 13 MiB and 2.5 times its memory.
    frontend : GraniteFrontend
        The model's front-end.

    Returns
    -------
    ndarray
        [n_frames, 2 * n_mels] f32.

    """
    half = frontend.n_fft // 2
    whole = np.pad(samples, (0, max(0, _shortest(frontend) - len(samples))))
    centred = np.pad(whole, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(centred, frontend.n_fft)[:: frontend.hop_length]
    # Rounded as transformers holds them; the products are float64, since float32 loses 1e-4 in weak bands.
    filters = htk_filters(frontend.sample_rate, frontend.n_fft, frontend.n_mels).astype(np.float32)
    window = _window(frontend).astype(np.float64)
    log_power: Floats = np.empty((len(frames), frontend.n_mels), np.float32)
    for start in range(0, len(frames), _BLOCK):
        block = slice(start, start + _BLOCK)
        spectrum = np.fft.rfft(frames[block] * window, axis=1)
        power = (spectrum.real**2 + spectrum.imag**2) @ filters
        log_power[block] = np.log10(np.maximum(power, _POWER_FLOOR))
    floor = log_power.max() - np.float32(_DYNAMIC_RANGE)
    features: Floats = np.maximum(log_power, floor) / np.float32(4.0) + np.float32(1.0)
    count = len(features) // _STACKED
    return features[: count * _STACKED].reshape(count, _STACKED * frontend.n_mels)


def _shortest(frontend: GraniteFrontend) -> int:
    """Return the least number of samples that edges can be reflected in and that make one frame."""
    return max(frontend.n_fft // 2 + 1, (_STACKED - 1) * frontend.hop_length)


def _window(frontend: GraniteFrontend) -> Floats:
    """Return the window [n_fft] f32: a periodic Hann window with zeros on both sides."""
    n_fft, length = frontend.n_fft, frontend.win_length
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)
    left = (n_fft - length) // 2
    return np.pad(hann.astype(np.float32), (left, n_fft - length - left))
