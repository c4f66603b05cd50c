"""transformers' feature extractor of Granite Speech, which needs torchaudio, without it.

torchaudio's wheel does not load beside a CPU build of torch. What transformers takes from it is one transform, rebuilt
here from torch.stft and transformers' own mel filters.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers.audio_utils import mel_filter_bank
from transformers.models.granite_speech import feature_extraction_granite_speech as original


class MelSpectrogram(torch.nn.Module):
    """torchaudio.transforms.MelSpectrogram with its defaults: HTK mels without norm, centred frames, power 2.

    It computes in the dtype of its buffers: in float32 as torchaudio does, or after `double()` in float64.
    """

    def __init__(self, sample_rate: int, n_fft: int, win_length: int, hop_length: int, n_mels: int) -> None:
        super().__init__()
        self._lengths = {"n_fft": n_fft, "hop_length": hop_length, "win_length": win_length}
        self.register_buffer("window", torch.hann_window(win_length, dtype=torch.float64).float())
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate, mel_scale="htk")
        self.register_buffer("filters", torch.from_numpy(filters).float())

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return [B, n_mels, frames] of samples [B, n]."""
        samples = samples.to(self.window.dtype)
        spectrum = torch.stft(
            samples, **self._lengths, window=self.window, center=True, pad_mode="reflect", return_complex=True
        )
        return (spectrum.abs().square().transpose(1, 2) @ self.filters).transpose(1, 2)


def use_torchaudio_standin() -> None:
    """Let transformers' feature extractor of this process take the transform from here."""
    original.torchaudio = SimpleNamespace(transforms=SimpleNamespace(MelSpectrogram=MelSpectrogram))
    original.requires_backends = lambda *_: None


def feature_extractor(*, exact: bool = False, **settings: int) -> original.GraniteSpeechFeatureExtractor:
    """Return transformers' feature extractor; `exact` takes float32's rounding (1e-4 in weak bands) out of it."""
    use_torchaudio_standin()
    extractor = original.GraniteSpeechFeatureExtractor(**settings)
    if exact:
        extractor.mel_filters.double()
    return extractor
