"""Whisper's log-mel front-end in numpy: the twin of the `frontend` graph, and its streaming form for long recordings.

Values are those of transformers' WhisperFeatureExtractor and openai/whisper's `log_mel_spectrogram`: a periodic Hann
window, centred frames with reflected edges, the power spectrum through a Slaney mel filter bank, log10 with a floor of
1e-10, everything more than 8 below the recording's maximum raised to that, then (x + 4) / 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from runtime.engines.base import Floats
from runtime.families.whisper.settings import WhisperFrontend
from runtime.mel import Doubles, slaney_filters

_POWER_FLOOR = 1e-10
_DYNAMIC_RANGE = 8.0


def mel_filters(frontend: WhisperFrontend) -> Doubles:
    """Return the mel filter bank: triangles from 0 Hz to half the sample rate, each of unit area (Slaney norm).

    Returns
    -------
    ndarray
        [n_fft // 2 + 1, n_mels] f64; `power @ mel_filters` is the mel spectrum of `power` [frames, n_fft // 2 + 1].

    """
    return slaney_filters(frontend.sample_rate, frontend.n_fft, frontend.n_mels)


class LogMelStream:
    """Turns blocks of samples into blocks of frames, with the values that the whole recording would give.

    The result is not normalised yet: that takes the maximum over the recording, known after a first pass.
    """

    def __init__(self, frontend: WhisperFrontend) -> None:
        self._hop = frontend.hop_length
        self._n_fft = frontend.n_fft
        self._filters = mel_filters(frontend)
        self._window = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frontend.n_fft) / frontend.n_fft)

    def frames(self, blocks: Iterable[Floats]) -> Iterator[Floats]:
        """Yield log10 of the mel power of a recording, as blocks [n_mels, k] f32, n // hop_length frames in all.

        Parameters
        ----------
        blocks : iterable of ndarray
            The recording of n samples [*] f32 at the front-end's rate, in blocks of any length. Reflecting its edges
            takes more than n_fft // 2 samples.

        """
        half = self._n_fft // 2
        pending: Floats = np.zeros(0, np.float32)
        started = False
        for block in blocks:
            pending = np.concatenate([pending, block])
            if not started:
                if len(pending) <= half:
                    continue
                pending = np.concatenate([pending[half:0:-1], pending])
                started = True
            count = (len(pending) - self._n_fft) // self._hop + 1
            if count > 0:
                yield self._log_power(pending, count)
                # At least n_fft - hop_length samples stay: enough to reflect the end.
                pending = pending[count * self._hop :]
        if not started:
            msg = f"a recording of {len(pending)} samples cannot be reflected by {half}; pad it to a window"
            raise ValueError(msg)
        pending = np.concatenate([pending, pending[-2 : -half - 2 : -1]])
        # Whisper drops the last frame, so that a window has an even number of them.
        count = (len(pending) - self._n_fft) // self._hop
        if count > 0:
            yield self._log_power(pending, count)

    def _log_power(self, samples: Floats, count: int) -> Floats:
        frames = np.lib.stride_tricks.sliding_window_view(samples, self._n_fft)[: count * self._hop : self._hop]
        # float64 throughout: numpy 1 computes its FFT so in any case, and the result is the same under numpy 2.
        spectrum = np.fft.rfft(frames * self._window, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        log_power = np.log10(np.maximum(power @ self._filters, _POWER_FLOOR))
        return np.ascontiguousarray(log_power.T, dtype=np.float32)


def normalise(log_power: Floats, maximum: float) -> Floats:
    """Return the model's input: `log_power` limited to 8 (80 dB) below `maximum`, then (x + 4) / 4."""
    features: Floats = (np.maximum(log_power, np.float32(maximum - _DYNAMIC_RANGE)) + np.float32(4.0)) / np.float32(4.0)
    return features


def pad_window(audio: Floats, frontend: WhisperFrontend) -> Floats:
    """Return `audio` [n] f32 with zeros appended up to a window (longer audio unchanged)."""
    return np.pad(audio, (0, max(0, frontend.n_samples - len(audio))))


def log_mel(audio: Floats, frontend: WhisperFrontend) -> Floats:
    """Return the features of a recording, as the encoder takes them.

    Parameters
    ----------
    audio : ndarray
        [n] f32 in -1 to 1 at the front-end's rate. Padded with zeros to a window if it is shorter.
    frontend : WhisperFrontend
        The model's front-end.

    Returns
    -------
    ndarray
        [n_mels, max(n, n_samples) // hop_length] f32.

    """
    log_power = np.concatenate(list(LogMelStream(frontend).frames([pad_window(audio, frontend)])), axis=1)
    return normalise(log_power, float(log_power.max()))
