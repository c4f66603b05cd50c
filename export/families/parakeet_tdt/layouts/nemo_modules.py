"""Parakeet-TDT's parts with the inputs and outputs of NeMo's own export, for other packages' decoding loops.

T frames leave the encoder, d wide; H and L are width and layers of the prediction net. One frame and one token at a
time: nothing else is asked for where transducers are decoded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.families.parakeet_tdt.modules import Parakeet
from export.fastconformer.graphs import EncoderBody


class Encoder(EncoderBody):
    """The encoder without the joint net's projection."""

    def forward(self, audio_signal: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames f32 [B, d, T] and their number i64 [B] for features f32 [B, n_mels, n_frames], i64 [B]."""
        rows, live, frames_len = self.encode(audio_signal, length)
        return rows.view(*live.shape, -1).transpose(1, 2), frames_len


class Decoder(nn.Module):
    """The prediction net: one token."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self, targets: torch.Tensor, target_length: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return f32 [B, H, 1], the length as given, states [L, B, H] for i64 [B, 1], i64 [B] and states before."""
        x, h, c = _predicted(self.decoder, targets, h, c)
        return x.unsqueeze(2), target_length + 0, h, c


class Joiner(nn.Module):
    """The joint net: one frame and one prediction."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.joint = model.joint

    def forward(self, encoder_outputs: torch.Tensor, decoder_outputs: torch.Tensor) -> torch.Tensor:
        """Return logits f32 [B, 1, 1, V + 1 + D] for [B, d, 1] and [B, H, 1]."""
        return _joined(self.joint, encoder_outputs[:, :, 0], decoder_outputs[:, :, 0])


class DecoderJoint(nn.Module):
    """The prediction net and the joint net in one."""

    def __init__(self, model: Parakeet) -> None:
        super().__init__()
        self.decoder, self.joint = model.decoder, model.joint

    def forward(
        self,
        encoder_outputs: torch.Tensor,
        targets: torch.Tensor,
        target_length: torch.Tensor,
        h: torch.Tensor,
        c: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return logits f32 [B, 1, 1, V + 1 + D], the length as given, states [L, B, H]; see Decoder and Joiner."""
        x, h, c = _predicted(self.decoder, targets, h, c)
        return _joined(self.joint, encoder_outputs[:, :, 0], x), target_length + 0, h, c


def _predicted(
    decoder: Any, targets: torch.Tensor, h: torch.Tensor, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return outputs [B, H] and states of the prediction net."""
    prediction = decoder.prediction
    x, h, c = prediction.dec_rnn.lstm(prediction.embed(targets[:, 0]), h, c)
    return x, h, c


def _joined(joint: Any, frames: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return logits [B, 1, 1, V + 1 + D] for a frame [B, d] and the prediction net's outputs [B, H]."""
    logits: torch.Tensor = joint.joint_net["2"](F.relu(joint.enc(frames) + joint.pred(outputs)))
    return logits.unsqueeze(1).unsqueeze(2)
