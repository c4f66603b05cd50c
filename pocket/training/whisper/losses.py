"""The two losses: the decoder's cross-entropy, and CTC on the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from pocket.training.whisper.batches import IGNORED
from pocket.training.whisper.tokenizer import N_POSITIONS

LABEL_SMOOTHING = 0.03
# A time stamp one or two positions off is nearly right: shares of the target's mass at -2 ... +2 positions.
STAMP_OFFSETS = (-2, -1, 0, 1, 2)
STAMP_SHARES = (0.08, 0.20, 0.44, 0.20, 0.08)


def token_loss(logits: torch.Tensor, labels: torch.Tensor, timestamp_begin: int) -> torch.Tensor:
    """Return the mean cross-entropy of `logits` [B, T, V] against `labels` [B, T].

    Text labels are smoothed over the vocabulary, time stamps over their neighbours.
    """
    kept = labels != IGNORED
    log_probs, label = logits[kept].log_softmax(-1), labels[kept]
    is_stamp = label >= timestamp_begin
    near = (label[:, None] + torch.tensor(STAMP_OFFSETS)).clamp(timestamp_begin, timestamp_begin + N_POSITIONS)
    near = torch.where(is_stamp[:, None], near, label[:, None])
    stamp = (log_probs.gather(1, near) * torch.tensor(STAMP_SHARES)).sum(1)
    own = log_probs.gather(1, label[:, None])[:, 0]
    text = (1 - LABEL_SMOOTHING) * own + LABEL_SMOOTHING * log_probs.mean(1)
    return -torch.where(is_stamp, stamp, text).mean()


def ctc_loss(logits: torch.Tensor, targets: Sequence[Sequence[int]], blank: int) -> torch.Tensor:
    """Return the CTC loss of `logits` [B, S, V] over the examples with a target; 0 where there is none."""
    used = [row for row, target in enumerate(targets) if target]
    if not used:
        return logits.new_zeros(())
    return functional.ctc_loss(
        logits[used].log_softmax(-1).transpose(0, 1),
        torch.tensor([token for row in used for token in targets[row]]),
        torch.full((len(used),), logits.shape[1]),
        torch.tensor([len(targets[row]) for row in used]),
        blank=blank,
        zero_infinity=True,
    )
