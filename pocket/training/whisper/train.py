"""Training in three phases of a fixed number of steps; the same seed, corpus and versions give the same weights.

Beside the decoder's cross-entropy an auxiliary CTC head, thrown away later, teaches the encoder alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pocket.training.whisper.batches import Batch, LogMel, Sampler
from pocket.training.whisper.losses import ctc_loss, token_loss
from pocket.training.whisper.synthesize import SAMPLE_RATE, Utterance
from pocket.training.whisper.tokenizer import N_POSITIONS, WINDOW_S, Tokens

FULL_WINDOW = WINDOW_S * SAMPLE_RATE
SHORT_WINDOW = 44800  # samples, 2.8 s: cheaper steps while most is still to be learned
WARM_UP_STEPS = 150
STAMP_SCALE = 0.085

# What one part of training draws: (until this share of the schedule, probability of a full window).
FullWindowShares = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Phase:
    """One run of the optimiser: `steps` of a cosine schedule that would take `schedule_steps`.

    `hardness` is (at the start, rise per share of the schedule); batch sizes are for the two window lengths.
    """

    steps: int
    schedule_steps: int
    peak_rate: float
    short_batch: int
    full_batch: int
    full_windows: FullWindowShares
    hardness: tuple[float, float]
    ctc_weight: tuple[float, float]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: warm-up, then half a cosine down to 1 %."""
        cosine = 0.5 * (1 + np.cos(np.pi * self.progress(step)))
        return float(self.peak_rate * min(1, (step + 1) / WARM_UP_STEPS) * (0.01 + 0.99 * cosine))

    def progress(self, step: int) -> float:
        """Return the share of the schedule that is over."""
        return step / self.schedule_steps

    def shortened(self, share: float) -> Phase:
        """Return the phase with that share of its steps."""
        schedule = max(1, round(self.schedule_steps * share))
        return replace(self, steps=max(1, round(self.steps * share)), schedule_steps=schedule)


# The shipped weights came from phases of 15 (of a schedule of 39), 28.5 and 5.2 minutes; the steps are what one core
# of an AMD EPYC 9005 does in that time. Small batches from the second phase on: the number of steps limits progress,
# not the audio in each.
PHASES = (
    Phase(
        steps=2500,
        schedule_steps=6500,
        peak_rate=1.5e-3,
        short_batch=24,
        full_batch=16,
        full_windows=((0.15, 0.1), (1.0, 0.35)),
        hardness=(0.0, 1 / 0.3),
        ctc_weight=(0.5, 0.05),
    ),
    Phase(
        steps=9000,
        schedule_steps=9000,
        peak_rate=1.3e-3,
        short_batch=10,
        full_batch=8,
        full_windows=((0.25, 0.15), (0.5, 0.35), (0.8, 0.7), (1.0, 0.9)),
        hardness=(0.3, 1.4),
        ctc_weight=(0.5, 0.05),
    ),
    Phase(
        steps=1600,
        schedule_steps=1600,
        peak_rate=6e-4,
        short_batch=10,
        full_batch=8,
        full_windows=((1.0, 0.6),),
        hardness=(1.0, 0.0),
        ctc_weight=(0.1, 0.1),
    ),
)
TOTAL_STEPS = sum(phase.steps for phase in PHASES)


class Pocket(nn.Module):
    """transformers' Whisper and the CTC head, of which the blank is the end-of-text token."""

    def __init__(self, folder: Path, tokens: Tokens) -> None:
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        super().__init__()
        config = WhisperConfig.from_pretrained(folder)
        self.whisper = WhisperForConditionalGeneration(config)
        self.ctc = nn.Linear(config.d_model, tokens.eot + 1)
        self._initialise(tokens)

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """Return hidden [B, S, d] of `mel` [B, 80, 2 S] for any S up to the model's: training uses short windows."""
        encoder = self.whisper.model.encoder
        hidden = functional.gelu(encoder.conv2(functional.gelu(encoder.conv1(mel)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return torch.as_tensor(encoder.layer_norm(hidden))

    def decode(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [B, T, V] of `tokens` [B, T] after `hidden` [B, S, d]."""
        return torch.as_tensor(
            self.whisper(encoder_outputs=(hidden,), decoder_input_ids=tokens, use_cache=False).logits
        )

    @torch.no_grad()
    def _initialise(self, tokens: Tokens) -> None:
        # With transformers' init_std of 0.02 the convolutions are some 20 times quieter than the positions that are
        # added to them, and for a long time the model hears nothing.
        for module in self.whisper.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and module is not self.whisper.proj_out:
                nn.init.xavier_uniform_(module.weight)
        embedding = self.whisper.model.decoder.embed_tokens.weight
        nn.init.normal_(embedding, std=0.06)
        # A time stamp starts out looking like the encoder position that it names.
        positions = STAMP_SCALE * self.whisper.model.encoder.embed_positions.weight
        first, last = tokens.timestamp_begin, tokens.timestamp_begin + N_POSITIONS
        embedding[first:last] = positions
        embedding[last] = positions[-1]


def train_phase(model: Pocket, sampler: Sampler, tokens: Tokens, phase: Phase, progress: Callable[[str], None]) -> None:
    """Run one phase on `model` in place, with a fresh optimiser."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=phase.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(phase.steps):
        done = phase.progress(step)
        for group in optimiser.param_groups:
            group["lr"] = phase.rate(step)
        probability = next(share for until, share in phase.full_windows if done < until)
        full = sampler.rng.random() < probability
        start, rise = phase.hardness
        batch = sampler.batch(
            phase.full_batch if full else phase.short_batch,
            FULL_WINDOW if full else SHORT_WINDOW,
            min(1.0, start + rise * done),
        )
        text, aligned = _losses(model, batch, tokens)
        highest, lowest = phase.ctc_weight
        optimiser.zero_grad()
        torch.autograd.backward(text + max(lowest, highest * (1 - 1.2 * done)) * aligned)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            progress(f"step {step + 1} of {phase.steps}: cross-entropy {text.item():.3f}, CTC {aligned.item():.3f}")


def _losses(model: Pocket, batch: Batch, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.encode(batch.mel)
        logits = model.decode(hidden, batch.tokens)
        ctc_logits = model.ctc(hidden)
    text = token_loss(logits.float(), batch.labels, tokens.timestamp_begin)
    return text, ctc_loss(ctc_logits.float(), batch.ctc, tokens.eot)


def train(
    folder: Path,
    utterances: Sequence[Utterance],
    *,
    steps: int = TOTAL_STEPS,
    seed: int = 7,
    progress: Callable[[str], None] = print,
) -> Pocket:
    """Train the model whose tokenizer and configuration lie in `folder`; the weights are saved there.

    The result is the mean of the weights after the second and the third phase, which is better than either. Uses
    one thread: with more, sums come in another order and the weights are no longer the same twice.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    tokens, log_mel = Tokens.read(folder), LogMel(folder)
    model = Pocket(folder, tokens)
    model.train()
    kept = list[dict[str, torch.Tensor]]()
    for index, phase in enumerate(PHASES):
        progress(f"phase {index + 1} of {len(PHASES)}")
        sampler = Sampler(utterances, tokens, log_mel, seed + index)
        train_phase(model, sampler, tokens, phase.shortened(steps / TOTAL_STEPS), progress)
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
    second, third = kept[-2:]
    model.load_state_dict({name: (value + third[name]) / 2 for name, value in second.items()})
    model.eval()
    save(model, folder)
    return model


def save(model: Pocket, folder: Path) -> None:
    """Write the weights, without the CTC head, with the generation settings that lie in `folder`."""
    from transformers import GenerationConfig

    model.whisper.generation_config = GenerationConfig.from_pretrained(folder)
    model.whisper.save_pretrained(folder)
