"""Alignment heads: the decoder's cross-attention heads that look where the speech is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pocket.training.whisper.batches import LogMel
from pocket.training.whisper.evaluate import place
from pocket.training.whisper.synthesize import Utterance
from pocket.training.whisper.tokenizer import POSITIONS_PER_S, Tokens
from pocket.training.whisper.train import Pocket

MOST_HEADS = 3
NO_PATH = -1e9


def forced_alignment(log_probs: NDArray[np.float32], tokens: Sequence[int], blank: int) -> NDArray[np.float64]:
    """Return the mean frame of each token on the best CTC path (Viterbi over tokens with blanks between).

    Parameters
    ----------
    log_probs : array, f32 [frames, vocabulary]
        Needs at least as many frames as tokens, and one more for each token that repeats the one before.
    tokens : sequence of int
        The text.
    blank : int
        The blank's id.

    Returns
    -------
    array, f64 [tokens]

    """
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    # A blank between two tokens may be passed over unless they are the same.
    may_skip = np.zeros(len(states), dtype=bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), NO_PATH)
    score[:2] = log_probs[0, states[:2]]
    came_from = np.zeros((len(log_probs), len(states)), dtype=int)
    for frame, row in enumerate(log_probs[1:], start=1):
        stay, move, skip = score, np.full_like(score, NO_PATH), np.full_like(score, NO_PATH)
        move[1:] = score[:-1]
        skip[2:] = np.where(may_skip[2:], score[:-2], NO_PATH)
        choices = np.stack([stay, move, skip])
        came_from[frame] = choices.argmax(0)
        score = choices.max(0) + row[states]
    state = len(states) - 1 if score[-1] > score[-2] else len(states) - 2
    path = np.empty(len(log_probs), dtype=int)
    for frame in range(len(log_probs) - 1, -1, -1):
        path[frame] = state
        state -= came_from[frame, state]
    return np.array([np.flatnonzero(path == 2 * index + 1).mean() for index in range(len(tokens))])


@torch.no_grad()
def head_errors(folder: Path, model: Pocket, utterances: Sequence[Utterance]) -> dict[tuple[int, int], float]:
    """Return for every (layer, head) the mean distance in seconds between its peak and the CTC head's alignment."""
    tokens, log_mel = Tokens.read(folder), LogMel(folder)
    # Only this implementation returns attention weights.
    model.whisper.set_attn_implementation("eager")
    errors = dict[tuple[int, int], list[float]]()
    for window in place(utterances, snr_db=30, seed=3):
        spoken = window.spoken[0]
        text = tokens.encode(spoken.text)
        hidden = model.encode(log_mel(torch.from_numpy(window.audio)[None]))
        frames = forced_alignment(model.ctc(hidden)[0].log_softmax(-1).numpy(), text, tokens.eot)
        language = tokens.languages[str(window.language)]
        prompt = [tokens.sot, language, tokens.tasks["transcribe"], tokens.no_timestamps]
        output = model.whisper(
            encoder_outputs=(hidden,), decoder_input_ids=torch.tensor([prompt + text]), output_attentions=True
        )
        # Row i of the attention belongs to the step that emits token i + 1.
        rows = slice(len(prompt) - 1, len(prompt) - 1 + len(text))
        for layer, weights in enumerate(output.cross_attentions):
            peaks = weights[0, :, rows].argmax(-1).numpy()
            for head, peak in enumerate(peaks):
                errors.setdefault((layer, head), []).extend(np.abs(peak - frames) / POSITIONS_PER_S)
    return {head: float(np.mean(values)) for head, values in errors.items()}


def write_alignment_heads(folder: Path, errors: dict[tuple[int, int], float]) -> list[list[int]]:
    """Write the best heads, up to three and none 1.5 times worse than the first, into generation_config.json."""
    ranked = sorted(errors.items(), key=lambda item: item[1])
    best = [list(head) for head, error in ranked if error <= 1.5 * ranked[0][1]][:MOST_HEADS]
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["alignment_heads"] = sorted(best)
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sorted(best)
