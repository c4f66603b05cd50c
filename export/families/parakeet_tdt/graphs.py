"""Parakeet-TDT's graphs: log-mel `frontend`, `encoder`, `step`, `join` and N steps of greedy search, `decode_N`.

B (recordings) and all lengths are open. d is the encoder's width, J the joint net's, L and H layers and width of the
prediction net, V the number of pieces and the id of the blank, D the number of durations.
"""

from __future__ import annotations

import torch
from torch import nn

from export.families.parakeet_tdt.modules import Parakeet
from export.fastconformer.graphs import Constants, EncoderBody, encoder_graph, frontend_graph
from export.graphs import DTYPE_NAMES, GraphDefinition
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings, decode_graph
from runtime.fastconformer.settings import FastConformerFrontend
from runtime.manifest import TensorSpec


class EncoderGraph(EncoderBody):
    """Features to frames that the joint net adds to its predictions."""

    def __init__(self, model: Parakeet, dims: ParakeetDims) -> None:
        super().__init__(model.encoder, dims)
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
    frontend: FastConformerFrontend,
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
    dims, frontend, settings : ParakeetDims, FastConformerFrontend, ParakeetSettings
        The network, its front-end and its decoding.
    dtype : torch.dtype
        Of weights, frames and states. Audio, features and logits are float32.

    """
    model = model.eval().requires_grad_(requires_grad=False)
    spec = _specs(dims, dtype)
    least = {"batch": 1}
    mel = frontend_graph(constants, dims, frontend)
    encoder = encoder_graph(EncoderGraph(model, dims), dims, spec["frames"])
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
        TensorSpec(name="frames", dtype=name, shape=("batch", "n_enc", dims.joint_hidden)),
        TensorSpec(name="frame", dtype=name, shape=("batch", dims.joint_hidden)),
        TensorSpec(name="predicted", dtype=name, shape=("batch", dims.joint_hidden)),
        TensorSpec(name="logits", dtype="float32", shape=("batch", dims.n_vocab + 1 + dims.n_durations)),
    ]
    specs += [TensorSpec(name=state, dtype=name, shape=(dims.pred_layers, "batch", dims.pred_hidden)) for state in "hc"]
    integers = ("frames_len", "t", "token", "count")
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
