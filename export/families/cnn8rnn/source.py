"""The network as its authors compute it, as the source that golden outputs are compared with.

transformers has no such model and the authors' code is not a package. This is that network once more in torch's own
layers (torch.stft, BatchNorm2d, GRU), with nothing folded, rearranged or cut into windows, under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.cnn8rnn.checkpoint import FILTERS, WINDOW, Cnn8RnnCheckpoint
from export.families.cnn8rnn.standin import RandomCnn8Rnn
from export.parity import arrays_of, tensors_of
from runtime.audio import open_audio
from runtime.engines.base import Array, Floats
from runtime.families.cnn8rnn.options import Cnn8RnnOptions
from runtime.families.cnn8rnn.settings import FRONTEND, GATES, RECURRENCE, Cnn8RnnDims, Cnn8RnnSettings
from runtime.manifest import Recording

# How far apart scores and times in seconds of the same sound may be.
_SCORE_LIMIT, _TIME_LIMIT = 1e-3, 1e-6


class SourceCnn8Rnn:
    """The unfolded network in fp32 with the tensors of a checkpoint, or with random ones."""

    def __init__(self, checkpoint: Cnn8RnnCheckpoint | RandomCnn8Rnn) -> None:
        self.implementation = f"torch {torch.__version__}: stft, BatchNorm2d, GRU"
        self._labels, self._frontend = checkpoint.labels, checkpoint.frontend
        self._window, self._filters = checkpoint.read(WINDOW).float(), checkpoint.read(FILTERS).float()
        self.network = _Network(checkpoint.dims).eval()
        self._dtype = torch.float32
        names = [name for name in checkpoint.tensors if name not in {WINDOW, FILTERS}]
        self.network.load_state_dict({name: checkpoint.read(name).float() for name in names}, strict=True)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the network computes where `graph` does."""
        tensors = tensors_of(inputs, torch.float32 if graph == FRONTEND else self._dtype)
        with torch.inference_mode():
            if graph == FRONTEND:
                return {"logmel": self.logmel(tensors["audio"]).numpy()}
            if graph == GATES:
                return arrays_of({"gates": self._gates(tensors["logmel"])})
            if graph == RECURRENCE:
                return arrays_of(self._recurrence(tensors["gates"], tensors["h"]))
            forward, backward = tensors["states"].transpose(0, 1)
            return arrays_of({"logits": self.network.fc_audioset(torch.cat([forward, backward.flip(1)], dim=2))})

    def logits(self, logmel: Floats) -> Floats:
        """Return the logits f32 [n_scores, n_classes] of log-mel frames f32 [n_mels, n_frames]."""
        with torch.inference_mode():
            logits: Floats = self.network(torch.from_numpy(logmel)[None].to(self._dtype))[0].float().numpy()
        return logits

    def _gates(self, logmel: torch.Tensor) -> torch.Tensor:
        """Return what frames add to the gates of both directions [1, 2, T, 3 H], the backward one's last frame first.

        A GRU does not show them: they are its own parameters' products.
        """
        features, of = self.network.features(logmel)[0], self.network.rnn.get_parameter
        forward = F.linear(features, of("weight_ih_l0"), of("bias_ih_l0"))
        backward = F.linear(features, of("weight_ih_l0_reverse"), of("bias_ih_l0_reverse"))
        return torch.stack([forward, backward.flip(0)])[None]

    def _recurrence(self, gates: torch.Tensor, h: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the states behind each step and the last: of a GRU each direction, whose input is its gates."""
        states, last = [], []
        for place, direction in enumerate(("", "_reverse")):
            layer = nn.GRU(gates.shape[3], h.shape[2], batch_first=True).to(gates.dtype)
            nn.init.eye_(layer.get_parameter("weight_ih_l0"))
            nn.init.zeros_(layer.get_parameter("bias_ih_l0"))
            for kind in ("weight_hh_l0", "bias_hh_l0"):
                setattr(layer, kind, self.network.rnn.get_parameter(f"{kind}{direction}"))
            outputs, end = layer(gates[:, place], h[place : place + 1])
            states.append(outputs)
            last.append(end[0])
        return {"states": torch.stack(states, dim=1), "new_h": torch.stack(last)}

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, all but the front-end."""
        self.network.to(dtype)
        self._dtype = dtype

    def logmel(self, audio: torch.Tensor) -> torch.Tensor:
        """Return dB [1, n_mels, 1 + n // hop_length] of samples [1, n]."""
        spectrum = torch.stft(
            audio,
            len(self._window),
            self._frontend.hop_length,
            window=self._window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.abs().square().transpose(1, 2) @ self._filters
        return 10 * torch.log10(power.clamp(min=1e-10)).transpose(1, 2)

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether the same sounds are found in a file as by the golden run, at the same times.

        The whole file is one call of the network. Scores may differ by 0.001.
        """
        options = Cnn8RnnOptions.parse(recording.options)
        scores = self.scores(path)
        pooled = (scores**2).sum(axis=0) / scores.sum(axis=0)
        tags = [
            {"label": self._labels[place], "score": float(pooled[place])}
            for place in np.argsort(-pooled, kind="stable")[: options.top_k]
        ]
        duration_s = open_audio(path).info.duration_s
        events = [event for place in range(scores.shape[1]) for event in self._events(scores, place, options)]
        for event in events:
            event["offset"] = duration_s if event["offset"] is None else event["offset"]
        events.sort(key=lambda event: (event["onset"], self._labels.index(event["label"])))
        return _alike(tags, recording.result["tags"]) and _alike(events, recording.result["events"])

    def scores(self, path: Path) -> Floats:
        """Return the scores [n_scores, n_classes] of a file of at least one score."""
        audio = np.concatenate(list(open_audio(path).blocks(self._frontend.sample_rate)))
        shortest = (Cnn8RnnSettings().frames_per_score - 1) * self._frontend.hop_length
        samples = torch.from_numpy(np.pad(audio, (0, max(0, shortest - len(audio)))))[None]
        with torch.inference_mode():
            scores: Floats = torch.sigmoid(self.network(self.logmel(samples))).clamp(1e-7, 1.0)[0].numpy()
        return scores

    def _events(self, scores: Floats, place: int, options: Cnn8RnnOptions) -> Iterator[dict[str, Any]]:
        """Yield the runs above the low threshold that get above the high one; offset None is the recording's end."""
        step_s = Cnn8RnnSettings().frames_per_score * self._frontend.hop_length / self._frontend.sample_rate
        run: list[float] = []
        for index, score in enumerate([*scores[:, place].tolist(), 0.0]):
            if score > options.common_low:
                run.append(score)
            elif run:
                if max(run) > options.high:
                    yield {
                        "onset": (index - len(run)) * step_s,
                        "offset": None if index == len(scores) else index * step_s,
                        "label": self._labels[place],
                        "score": max(run),
                    }
                run = []


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) + F.max_pool2d(x, self.pool)


class _Network(nn.Module):
    """The authors' network behind its spectrogram."""

    def __init__(self, dims: Cnn8RnnDims) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(dims.n_mels)
        self.conv_block1 = _Block(1, dims.n_channels_1, (2, 2))
        self.conv_block2 = _Block(dims.n_channels_1, dims.n_channels_2, (2, 2))
        self.conv_block3 = _Block(dims.n_channels_2, dims.n_channels_3, (1, 2))
        self.conv_block4 = _Block(dims.n_channels_3, dims.n_channels_4, (1, 2))
        self.fc1 = nn.Linear(dims.n_channels_4, dims.n_fc)
        self.rnn = nn.GRU(dims.n_fc, dims.n_hidden, bidirectional=True, batch_first=True)
        self.fc_audioset = nn.Linear(2 * dims.n_hidden, dims.n_classes)

    def features(self, logmel: torch.Tensor) -> torch.Tensor:
        """Return what the GRU is given, [B, T // 4, n_fc], for dB [B, n_mels, T]."""
        x = self.bn0(logmel[..., None])  # [B, n_mels, T, 1]: one mean and variance a mel
        x = x.permute(0, 3, 2, 1)  # [B, 1, T, n_mels]
        x = self.conv_block4(self.conv_block3(self.conv_block2(self.conv_block1(x))))
        return torch.relu(self.fc1(x.mean(dim=3).transpose(1, 2)))

    def forward(self, logmel: torch.Tensor) -> torch.Tensor:
        """Return logits [B, T // 4, n_classes] for dB [B, n_mels, T]."""
        logits: torch.Tensor = self.fc_audioset(self.rnn(self.features(logmel))[0])
        return logits


def _alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Return whether two lists name the same labels and times, with nearly the same scores."""
    return len(found) == len(expected) and all(
        one["label"] == other["label"]
        and all(abs(one[time] - other[time]) < _TIME_LIMIT for time in ("onset", "offset") if time in one)
        and abs(one["score"] - other["score"]) < _SCORE_LIMIT
        for one, other in zip(found, expected, strict=True)
    )
