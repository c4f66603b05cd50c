"""The mel filter bank that speech front-ends share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[np.float64]

# The Slaney scale: linear below 1 kHz (15 mels), logarithmic above with 27 mels for a factor of 6.4.
_LINEAR_MELS, _LINEAR_HZ = 15.0, 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def hz_from_mel(mel: Doubles) -> Doubles:
    """Return frequencies in Hz of values on the Slaney mel scale (M. Slaney, Auditory Toolbox, 1998)."""
    above = _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MELS))
    return np.where(mel < _LINEAR_MELS, mel * _LINEAR_HZ / _LINEAR_MELS, above)


def mel_from_hz(hz: float) -> float:
    """Return the value on the Slaney mel scale of a frequency in Hz."""
    if hz < _LINEAR_HZ:
        return hz / _LINEAR_HZ * _LINEAR_MELS
    return float(_LINEAR_MELS + np.log(hz / _LINEAR_HZ) / _LOG_STEP)


def slaney_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None
) -> Doubles:
    """Return triangles on the Slaney mel scale, each of unit area (Slaney norm), as librosa's filters.mel has them.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    n_fft, n_mels : int
        Length of the Fourier transform in samples, number of filters.
    f_min, f_max : float
        Where the first filter begins and the last one ends, in Hz; None for half the sample rate.

    Returns
    -------
    ndarray
        [n_fft // 2 + 1, n_mels] f64; `power @ filters` is the mel spectrum of `power` [frames, n_fft // 2 + 1].

    """
    last = mel_from_hz(sample_rate / 2 if f_max is None else f_max)
    edges = hz_from_mel(np.linspace(mel_from_hz(f_min), last, n_mels + 2))
    filters: Doubles = _triangles(edges, sample_rate, n_fft) * (2.0 / (edges[2:] - edges[:-2]))
    return filters


def htk_filters(sample_rate: int, n_fft: int, n_mels: int) -> Doubles:
    """Return triangles of height 1 on HTK's mel scale, 2595 log10(1 + f / 700), from 0 Hz to half the sample rate.

    Those of torchaudio's MelSpectrogram with its defaults. `sample_rate` in Hz, `n_fft` in samples.

    Returns
    -------
    ndarray
        [n_fft // 2 + 1, n_mels] f64; see `slaney_filters`.

    """
    top = 2595.0 * np.log10(1.0 + sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, n_mels + 2) / 2595.0) - 1.0)
    return _triangles(edges, sample_rate, n_fft)


def _triangles(edges: Doubles, sample_rate: int, n_fft: int) -> Doubles:
    """Return triangles [n_fft // 2 + 1, len(edges) - 2] of height 1 between every third of rising `edges` in Hz."""
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - bins) / np.diff(edges)[1:]
    triangles: Doubles = np.maximum(0.0, np.minimum(rising, falling))
    return triangles
