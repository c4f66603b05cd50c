"""Parakeet-TDT's graphs: log-mel `frontend`, `encoder`, `step`, `join` and N steps of greedy search, `decode_N`.

B (recordings) and all lengths are open. d is the encoder's width, J the joint net's, L and H layers and width of the
prediction net, V the number of pieces and the id of the blank, D the number of durations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.parakeet_tdt.modules import (
    MASKED,
    Parakeet,
    live_frames,
    position_frequencies,
    relative_positions,
)
from export.graphs import DTYPE_NAMES, GraphDefinition
from runtime.families.parakeet_tdt.settings import (
    ENCODER,
    FRONTEND,
    JOIN,
    STEP,
    ParakeetDims,
    ParakeetFrontend,
    ParakeetSettings,
    decode_graph,
)
from runtime.manifest import TensorSpec

# NeMo's log_zero_guard_value, and what it adds to the standard deviation.
_POWER_FLOOR, _STD_FLOOR = 2.0**-24, 1e-5


@dataclass(frozen=True)
class Constants:
    """The front-end's own: `window` [win_length], `filters` [n_mels, n_fft // 2 + 1], both f32."""

    window: torch.Tensor
    filters: torch.Tensor


class LogMel(nn.Module):
    """Normalised log-mel features of NeMo's AudioToMelSpectrogramPreprocessor.

    The Fourier transform is a convolution, as ATC has no STFT and ONNX's is inexact. The kernel holds windowed cosines,
    then sines, computed in float64: one output channel per frequency and part. The window is shorter than the transform
    and stands in its middle; where it is zero the kernel ends.
    """

    def __init__(self, constants: Constants, frontend: ParakeetFrontend) -> None:
        super().__init__()
        n_fft, window = frontend.n_fft, constants.window.double()
        self.hop_length = frontend.hop_length
        self.preemphasis = frontend.preemphasis
        before = (n_fft - frontend.win_length) // 2
        self.padding = (n_fft // 2 - before, frontend.win_length - (n_fft // 2 - before))
        # Frequencies that no filter takes are left out.
        freq = constants.filters.any(dim=0).nonzero()  # [n_freq, 1]
        sample = before + torch.arange(frontend.win_length, dtype=torch.float64, device="cpu")
        # The remainder is exact, which the cosine of a large angle would not be.
        angle = torch.remainder(freq * sample, n_fft) * (2 * math.pi / n_fft)
        kernel = torch.cat([torch.cos(angle), torch.sin(angle)]) * window
        # For log(power + floor) less log(floor), which normalisation removes: silence is zero, not rounding.
        taken = constants.filters[:, freq[:, 0]] / _POWER_FLOOR
        self.kernel: torch.Tensor
        self.filters: torch.Tensor
        self.register_buffer("kernel", kernel.float()[:, None], persistent=False)  # [2 n_freq, 1, win_length]
        self.register_buffer("filters", torch.cat([taken, taken], dim=1), persistent=False)  # [n_mels, 2 n_freq]

    def forward(self, audio: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [B, n_mels, n_samples // hop_length + 1] f32 and their number i64 [B].

        A recording of one frame has no variance: its features are zero, as all beyond a recording's end.

        Parameters
        ----------
        audio : torch.Tensor
            [B, n_samples] f32; samples beyond `length` may be anything.
        length : torch.Tensor
            i64 [B], in samples.

        """
        audio = audio.masked_fill(~live_frames(audio.unsqueeze(2), length), 0.0)
        emphasized = audio - self.preemphasis * F.pad(audio[:, :-1], (1, 0))
        emphasized = emphasized.masked_fill(~live_frames(audio.unsqueeze(2), length), 0.0)
        padded = F.pad(emphasized.unsqueeze(1), self.padding)
        spectrum = F.conv1d(padded, self.kernel, stride=self.hop_length)
        # The filters stand there twice: they add the power of the cosines and that of the sines.
        logmel = torch.log(torch.matmul(self.filters, spectrum * spectrum) + 1.0)
        n_frames = torch.div(length, self.hop_length, rounding_mode="floor")
        return self._normalized(logmel, n_frames), n_frames

    @staticmethod
    def _normalized(logmel: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
        """Return each mel with mean 0 and variance 1 over the frames that count, zero elsewhere."""
        dead = ~live_frames(logmel.transpose(1, 2), n_frames).unsqueeze(1)  # [B, 1, T]
        count = n_frames.unsqueeze(1).unsqueeze(2).float()
        mean = logmel.masked_fill(dead, 0.0).sum(dim=2, keepdim=True) / count.clamp(min=1.0)
        centred = (logmel - mean).masked_fill(dead, 0.0)
        variance = (centred * centred).sum(dim=2, keepdim=True) / (count - 1.0).clamp(min=1.0)
        return centred / (torch.sqrt(variance) + _STD_FLOOR)


class EncoderBody(nn.Module):
    """Base: features to the encoder's own frames."""

    def __init__(self, model: Parakeet, dims: ParakeetDims) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.scale = math.sqrt(dims.d_model) if dims.xscaling else 1.0
        self.frequencies: torch.Tensor
        self.register_buffer("frequencies", position_frequencies(dims.d_model), persistent=False)

    def encode(
        self, features: torch.Tensor, features_len: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows [B T, d], bool [B, T] of which are frames that count, and their numbers i64 [B].

        Parameters
        ----------
        features : torch.Tensor
            [B, n_mels, n_frames] f32; those beyond `features_len` may be anything.
        features_len : torch.Tensor
            i64 [B].

        """
        dtype = self.encoder.pre_encode.out.weight.dtype
        rows, live, frames_len = self.encoder.pre_encode(features.transpose(1, 2).to(dtype), features_len)
        positions = relative_positions(live, self.frequencies).to(dtype)
        mask = (~live).to(dtype).unsqueeze(1).unsqueeze(2) * MASKED
        keep = live.to(dtype).unsqueeze(2)
        if self.scale != 1.0:
            rows = rows * self.scale
        for layer in self.encoder.layers:
            rows = layer(rows, positions, mask, keep)
        return rows, live, frames_len


class EncoderGraph(EncoderBody):
    """Features to frames that the joint net adds to its predictions."""

    def __init__(self, model: Parakeet, dims: ParakeetDims) -> None:
        super().__init__(model, dims)
        self.joint = model.joint

    def forward(self, features: torch.Tensor, features_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames [B, T, J] in the weights' dtype, zero where there are none, and their number i64 [B].

        The arguments are those of `encode`.
        """
        rows, live, frames_len = self.encode(features, features_len)
        enc = self.joint.enc
        projected = enc(rows).view(*live.shape, enc.out_features)
        return projected.masked_fill(~live.unsqueeze(2), 0.0), frames_len


class _DecoderGraph(nn.Module):
    """Base: the prediction net and the joint net, under the checkpoint's names."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.joint = model.joint

    def predict(
        self, token: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return predicted [B, J], h, c [L, B, H] for `token` i64 [B] and the states before it."""
        prediction = self.decoder.prediction
        x, h, c = prediction.dec_rnn.lstm(prediction.embed(token), h, c)
        return self.joint.pred(x), h, c


class StepGraph(_DecoderGraph):
    """Prediction net and joint net: what is needed after an emitted token."""

    def forward(
        self, token: torch.Tensor, h: torch.Tensor, c: torch.Tensor, frame: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return logits [B, V + 1 + D] f32, predicted [B, J], new_h, new_c [L, B, H].

        Parameters
        ----------
        token : torch.Tensor
            i64 [B]: the last emitted one; the blank at the start.
        h, c : torch.Tensor
            [L, B, H]: states before the token; zero at the start.
        frame : torch.Tensor
            [B, J].

        """
        predicted, h, c = self.predict(token, h, c)
        return self.joint(frame, predicted), predicted, h, c


class JoinGraph(nn.Module):
    """The joint net alone: what is needed after a blank."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.joint = model.joint

    def forward(self, frame: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return logits [B, V + 1 + D] f32 for `frame` and `predicted` [B, J]."""
        logits: torch.Tensor = self.joint(frame, predicted)
        return logits


class DecodeGraph(_DecoderGraph):
    """One step of NeMo's greedy search (rnnt_greedy_decoding.py, GreedyTDTInfer) without a decision of the host."""

    def __init__(self, model: Parakeet, dims: ParakeetDims, settings: ParakeetSettings) -> None:
        super().__init__(model)
        self.blank, self.max_symbols = dims.blank, settings.max_symbols
        self.table: torch.Tensor
        self.register_buffer("table", torch.tensor(settings.durations, device="cpu"), persistent=False)

    def forward(  # noqa: PLR0917 - the graph's inputs
        self,
        frames: torch.Tensor,
        frames_len: torch.Tensor,
        t: torch.Tensor,
        token: torch.Tensor,
        count: torch.Tensor,
        predicted: torch.Tensor,
        h: torch.Tensor,
        c: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return what the step did, then t, token, count, predicted, h, c for the next one.

        What it did, all [B, 1]: tokens i64 (-1 where none was emitted), at i64 (its frame), durations i64 (in frames),
        and of the V + 1 token logits, f32, the largest (logit), log-sum-exp and mean by probability: the difference of
        the first two is the log-probability, that of the last two the entropy.

        Parameters
        ----------
        frames, frames_len : torch.Tensor
            [B, T, J] and i64 [B]: the encoder's.
        t, token, count : torch.Tensor
            i64 [B]: the frame to be looked at, the last emitted token (the blank at the start), and how many tokens
            frame `t` has emitted.
        predicted : torch.Tensor
            [B, J]: the prediction after `token`.
        h, c : torch.Tensor
            [L, B, H]: the states after `token`.

        """
        logits = self.joint(_frame_at(frames, frames_len, t), predicted)
        scores = logits[:, : self.blank + 1]
        best = scores.argmax(dim=1)
        duration = self.table.index_select(0, logits[:, self.blank + 1 :].argmax(dim=1))
        live = t < frames_len
        emitted = live & (best != self.blank)
        highest, logprobs = scores.amax(dim=1), torch.log_softmax(scores, dim=1)
        mean = (logprobs.exp() * scores).sum(dim=1)
        did = (best.masked_fill(~emitted, -1), t, duration, highest, highest - logprobs.amax(dim=1), mean)

        counted = count + emitted.long()
        # A blank moves at least one frame, as does the last token that one frame may emit.
        stays = emitted & (counted < self.max_symbols)
        moved = torch.where(stays, duration, duration.clamp(min=1))
        new_count = counted.masked_fill(live & (moved > 0), 0)
        new_token = torch.where(emitted, best, token)
        after = self.predict(best, h, c)
        row = emitted.unsqueeze(1)
        states = (torch.where(row, new, old) for new, old in zip(after, (predicted, h, c), strict=True))
        columns = (column.unsqueeze(1) for column in did)
        return (*columns, torch.where(live, t + moved, t), new_token, new_count, *states)


def _frame_at(frames: torch.Tensor, frames_len: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return [B, J]: frame `t` i64 [B] of each recording, or its last one."""
    index = torch.minimum(t, frames_len - 1).clamp(min=0).unsqueeze(1).unsqueeze(2)
    return frames.gather(1, index.expand(-1, 1, frames.shape[2])).squeeze(1)


def parakeet_graphs(
    model: Parakeet,
    constants: Constants,
    dims: ParakeetDims,
    frontend: ParakeetFrontend,
    settings: ParakeetSettings,
    *,
    dtype: torch.dtype,
) -> dict[str, GraphDefinition]:
    """Return the graphs `frontend`, `encoder`, `step`, `join` and `decode_N` for each N of `settings.decode_steps`.

    Parameters
    ----------
    model : Parakeet
        With its parameters, or on the meta device.
    constants : Constants
        What the front-end holds.
    dims, frontend, settings : ParakeetDims, ParakeetFrontend, ParakeetSettings
        The network, its front-end and its decoding.
    dtype : torch.dtype
        Of weights, frames and states. Audio, features and logits are float32.

    """
    model = model.eval().requires_grad_(requires_grad=False)
    spec = _specs(dims, dtype)
    least = {"batch": 1}
    mel = GraphDefinition(
        FRONTEND,
        LogMel(constants, frontend).eval(),
        (spec["audio"], spec["length"]),
        (spec["features"], spec["features_len"]),
        least | {"n_samples": frontend.hop_length},
    )
    encoder = GraphDefinition(
        ENCODER,
        EncoderGraph(model, dims).eval(),
        (spec["features"], spec["features_len"]),
        (spec["frames"], spec["frames_len"]),
        least | {"n_frames": 1},
        {"n_frames": 3 * dims.subsampling_factor + 1},
    )
    after = tuple(spec[f"new_{name}"] for name in ("predicted", "h", "c"))
    inputs = tuple(spec[name] for name in ("token", "h", "c", "frame"))
    step = GraphDefinition(
        STEP, StepGraph(model).eval(), inputs, (spec["logits"], spec["predicted"], *after[1:]), least
    )
    inputs = (spec["frame"], spec["predicted"])
    graphs = [mel, encoder, step, GraphDefinition(JOIN, JoinGraph(model).eval(), inputs, (spec["logits"],), least)]
    state = ("t", "token", "count", "predicted", "h", "c")
    inputs = tuple(spec[name] for name in ("frames", "frames_len", *state))
    for n_steps in settings.decode_steps:
        module = DecodeGraph(model, dims, settings).eval()
        outputs = (*_columns(n_steps), *(spec[f"new_{name}"] for name in state))
        sizes = least | {"n_enc": 1}
        graphs.append(GraphDefinition(decode_graph(n_steps), module, inputs, outputs, sizes, repeats=n_steps))
    return {graph.name: graph for graph in graphs}


def _specs(dims: ParakeetDims, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Return the graphs' inputs and outputs by name; `new_x` is like x. An output may not be called like an input."""
    name = DTYPE_NAMES[dtype]
    specs = [
        TensorSpec(name="audio", dtype="float32", shape=("batch", "n_samples")),
        TensorSpec(name="features", dtype="float32", shape=("batch", dims.n_mels, "n_frames")),
        TensorSpec(name="frames", dtype=name, shape=("batch", "n_enc", dims.joint_hidden)),
        TensorSpec(name="frame", dtype=name, shape=("batch", dims.joint_hidden)),
        TensorSpec(name="predicted", dtype=name, shape=("batch", dims.joint_hidden)),
        TensorSpec(name="logits", dtype="float32", shape=("batch", dims.n_vocab + 1 + dims.n_durations)),
    ]
    specs += [TensorSpec(name=state, dtype=name, shape=(dims.pred_layers, "batch", dims.pred_hidden)) for state in "hc"]
    integers = ("length", "features_len", "frames_len", "t", "token", "count")
    specs += [TensorSpec(name=integer, dtype="int64", shape=("batch",)) for integer in integers]
    specs += [spec.model_copy(update={"name": f"new_{spec.name}"}) for spec in specs]
    return {spec.name: spec for spec in specs}


def _columns(n_steps: int) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=dtype, shape=("batch", n_steps))
        for name, dtype in (
            ("tokens", "int64"),
            ("at", "int64"),
            ("durations", "int64"),
            ("logit", "float32"),
            ("log_sum_exp", "float32"),
            ("mean_logit", "float32"),
        )
    )
