"""Training batches: windows of one to three utterances in noise, and what the decoder should say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from pocket.training.whisper.phrases import LANGUAGES, pick
from pocket.training.whisper.synthesize import SAMPLE_RATE, Utterance
from pocket.training.whisper.tokenizer import Tokens

IGNORED = -100  # torch's label for "no loss here"
HOP = 160
N_FFT = 400
PROMPT_TOKENS = 36
MOST_SPOKEN = 3
LANGUAGE_SHARES = (0.38, 0.38, 0.24)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """One utterance inside a window: begin and end in seconds, text, English text."""

    begin: float
    end: float
    text: str
    english: str


@dataclass(frozen=True)
class Window:
    """Audio f32 [n]; None for the language where nobody speaks; when an utterance begins that the end cuts off."""

    audio: Floats
    language: str | None
    spoken: tuple[Spoken, ...]
    cut_at: float | None = None


@dataclass(frozen=True)
class Target:
    """Decoder input and labels of equal length, and the spoken text's tokens for the CTC head (empty: not used)."""

    tokens: list[int]
    labels: list[int]
    ctc: list[int]


@dataclass(frozen=True)
class Batch:
    """`mel` f32 [B, 80, frames]; `tokens` and `labels` i64 [B, T]; CTC targets, empty where there is none."""

    mel: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    ctc: list[list[int]]


class LogMel:
    """WhisperFeatureExtractor's recipe for a batch of any length, with its own filters."""

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperFeatureExtractor

        filters = WhisperFeatureExtractor.from_pretrained(folder).mel_filters
        self._filters = torch.tensor(filters, dtype=torch.float32).T.contiguous()
        self._window = torch.hann_window(N_FFT)

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """Return log-mel f32 [B, 80, n / 160] of `audio` f32 [B, n]."""
        spectrum = torch.stft(audio, N_FFT, HOP, window=self._window, return_complex=True)
        mel = (self._filters @ spectrum[..., :-1].abs().square()).clamp(min=1e-10).log10()
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Sampler:
    """Draws batches from a pool of utterances; everything random comes from one generator."""

    def __init__(self, pool: Sequence[Utterance], tokens: Tokens, log_mel: LogMel, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._pool = {code: [item for item in pool if item.language == code] for code in LANGUAGES}
        self._tokens = tokens
        self._log_mel = log_mel

    def batch(self, size: int, samples: int, hardness: float) -> Batch:
        """Return `size` windows of `samples` samples; `hardness` 0..1 scales how often audio is distorted."""
        prompted = self._chance(0.12)
        windows = [self._window(samples, hardness) for _ in range(size)]
        targets = [self._target(window, prompted=prompted and self._chance(0.7)) for window in windows]
        mel = self._log_mel(torch.from_numpy(np.stack([window.audio for window in windows])))
        for example in mel:
            self._mask(example, hardness)
        longest = max(len(target.tokens) for target in targets)

        def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

        return Batch(
            mel=mel,
            tokens=padded([target.tokens for target in targets], self._tokens.eot),
            labels=padded([target.labels for target in targets], IGNORED),
            ctc=[target.ctc for target in targets],
        )

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _window(self, samples: int, hardness: float) -> Window:
        if self._chance(0.06):
            silent = self._chance(0.2)
            level = 0.0 if silent else 10 ** self.rng.uniform(-3.5, -0.7)
            return Window((self._noise(samples) * level).astype(np.float32), None, ())
        language = str(self.rng.choice(LANGUAGES, p=LANGUAGE_SHARES))
        audio, spoken, cut_at = self._speech(self._pool[language], samples, hardness)
        if self._chance(0.8 * hardness):
            level = float(np.sqrt(np.mean(np.square(audio[audio != 0]))))
            audio += self._noise(samples) * level * 10 ** (-self.rng.uniform(3, 35) / 20)
        return Window((audio * self.rng.uniform(0.15, 1.2)).astype(np.float32), language, tuple(spoken), cut_at)

    def _speech(
        self, pool: list[Utterance], samples: int, hardness: float
    ) -> tuple[Floats, list[Spoken], float | None]:
        """Lay one to three utterances into a window; the last one may run over its end."""
        audio, spoken, end = np.zeros(samples, np.float32), list[Spoken](), 0
        while True:
            item = pick(self.rng, pool)
            speech = self._vary(item.audio, hardness)
            if spoken:
                start = end + int(self.rng.uniform(0.3, 1.5) * SAMPLE_RATE)
            elif len(speech) > samples - 800:
                continue
            else:
                room = samples - len(speech)
                start = int(self.rng.integers((min(room, SAMPLE_RATE) if self._chance(0.75) else room) + 1))
            speech = speech * self.rng.uniform(0.7, 1.0)
            end = start + len(speech)
            if end > samples:
                if samples - start > 0.35 * SAMPLE_RATE and self._chance(0.5):
                    audio[start:] = speech[: samples - start]
                    return audio, spoken, start / SAMPLE_RATE
                return audio, spoken, None
            audio[start:end] = speech
            spoken.append(Spoken(start / SAMPLE_RATE, end / SAMPLE_RATE, item.text, item.english))
            if len(spoken) == MOST_SPOKEN or self._chance(0.35):
                return audio, spoken, None

    def _vary(self, speech: Floats, hardness: float) -> Floats:
        """Change pace and pitch together, or cut the band to 4 kHz."""
        if self._chance(0.4 * hardness):
            speech = soxr.resample(speech, 10, pick(self.rng, (9, 10, 11)))
        if self._chance(0.2 * hardness):
            speech = soxr.resample(soxr.resample(speech, 2, 1), 1, 2)
        return speech

    def _noise(self, samples: int) -> NDArray[np.float64]:
        """Return noise of unit level: white, red, a hum, or white that swells."""
        noise, time = self.rng.standard_normal(samples), np.arange(samples)
        kind = self.rng.choice(("white", "red", "hum", "swell"), p=(0.4, 0.35, 0.15, 0.1))
        if kind == "red":
            walk = np.cumsum(noise)
            noise = walk - _moving_mean(walk, N_FFT)
        elif kind == "hum":
            noise = np.sin(time * self.rng.uniform(0.02, 1.0)) + 0.1 * noise
        elif kind == "swell":
            noise = noise * (0.2 + np.abs(np.sin(time * self.rng.uniform(1e-4, 2e-3))))
        return np.asarray(noise / (noise.std() + 1e-6))

    def _mask(self, mel: torch.Tensor, hardness: float) -> None:
        """Blank out a band and a short stretch of `mel` [80, frames] in place, as SpecAugment does."""
        mean = mel.mean()
        if self._chance(0.5 * hardness):
            low = int(self.rng.integers(71))
            mel[low : low + int(self.rng.integers(1, 13))] = mean
        if self._chance(0.3 * hardness):
            first = int(self.rng.integers(mel.shape[1] - 19))
            mel[:, first : first + int(self.rng.integers(1, 11))] = mean

    def _target(self, window: Window, *, prompted: bool) -> Target:
        tokens, rng = self._tokens, self.rng
        # A cut-off utterance can only be told by its begin stamp.
        timed = window.cut_at is not None or self._chance(0.45)
        if window.language is None:
            return self._nothing(timed=timed)
        translate = self._chance(0.05 if window.language == "en" else 0.35)
        start = [
            tokens.sot,
            tokens.languages[window.language],
            tokens.tasks["translate" if translate else "transcribe"],
        ]
        body = list[int]()
        for spoken in window.spoken:
            text = tokens.encode(spoken.english if translate else spoken.text)
            body += [tokens.timestamp(spoken.begin), *text, tokens.timestamp(spoken.end)] if timed else text
        if window.cut_at is not None:
            body.append(tokens.timestamp(window.cut_at))
        sequence = [*start, *([] if timed else [tokens.no_timestamps]), *body, tokens.eot]
        labels = sequence[1:]
        # The user chooses task and stamps: the model learns the language, then what follows the choices.
        labels[1] = IGNORED
        if not timed:
            labels[2] = IGNORED
        prompt = list[int]()
        if prompted:
            pool = self._pool[window.language]
            texts = [token for _ in range(int(rng.integers(1, 4))) for token in tokens.encode(pick(rng, pool).text)]
            prompt = [tokens.sot_prev, *texts[:PROMPT_TOKENS]]
        usable = window.cut_at is None
        return Target(
            tokens=prompt + sequence[:-1],
            labels=[IGNORED] * len(prompt) + labels,
            ctc=[token for spoken in window.spoken for token in tokens.encode(spoken.text)] if usable else [],
        )

    def _nothing(self, *, timed: bool) -> Target:
        """Return the target of a window without speech: no-speech first, and nothing whatever was asked for."""
        tokens = self._tokens
        language = tokens.languages[pick(self.rng, LANGUAGES)]
        task = tokens.tasks[pick(self.rng, ("transcribe", "translate"))]
        first = tokens.timestamp_begin if timed else tokens.no_timestamps
        labels = [tokens.no_speech, IGNORED, first if timed else IGNORED, tokens.eot]
        return Target([tokens.sot, language, task, first], labels, [])


def _moving_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    padded = np.pad(values, (width // 2 + 1, width - width // 2 - 1), mode="edge")
    sums = np.cumsum(padded)
    return (sums[width:] - sums[:-width]) / width
