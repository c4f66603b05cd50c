"""Greedy CTC by NeMo's rules (nemo/collections/asr/parts/submodules/ctc_decoding.py), with its times.

1. A token is a run of frames whose likeliest id is the same one and not the blank; a blank parts two equal tokens.
2. NeMo takes a token to last from the first frame of the token before it to its own first frame, where its spike is;
   the recording's first token begins one frame before its own. Words follow each other without a gap, therefore.
3. A punctuation mark has no length but where it comes first: it stands where the token before it has its first frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.ctc import ctc_runs
from runtime.engines.base import Floats
from runtime.fastconformer.confidence import AGGREGATIONS, token_confidence
from runtime.fastconformer.options import FastConformerOptions
from runtime.fastconformer.timestamps import Span
from runtime.fastconformer.tokenizer import SubwordTokenizer
from runtime.fastconformer.transcript import TimedToken


@dataclass(frozen=True)
class FrameChoice:
    """A frame's likeliest id, its natural log-probability, and the entropy of all ids in nats."""

    token: int
    logprob: float
    entropy: float


def frame_choices(logits: Floats) -> list[FrameChoice]:
    """Return what is likeliest in each frame of logits f32 [n_frames, V + 1]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1)
    entropies = np.log(totals) - (exponentials * shifted).sum(axis=1) / totals
    return list(map(FrameChoice, logits.argmax(axis=1).tolist(), (-np.log(totals)).tolist(), entropies.tolist()))


def ctc_tokens(
    choices: Sequence[FrameChoice], tokenizer: SubwordTokenizer, options: FastConformerOptions
) -> list[TimedToken]:
    """Return a recording's tokens.

    A token's confidence is that of its frames, aggregated as a word's is of its tokens (NeMo's with blanks excluded);
    its log-probability is the highest of them.
    """
    blank = len(tokenizer.pieces)
    runs = ctc_runs(np.array([choice.token for choice in choices], np.int64), blank)
    tokens = [choices[run.start].token for run in runs]
    found = []
    for place, (token, run) in enumerate(zip(tokens, runs, strict=True)):
        frames = [choices[frame] for frame in run]
        confidences = [token_confidence(f.logprob, f.entropy, blank + 1, options.confidence) for f in frames]
        start = runs[place - 1].start if place else max(run.start - 1, 0)
        is_mark = place > 0 and tokenizer.texts[token][:1] in tokenizer.punctuation
        found.append(
            TimedToken(
                token,
                Span(start, start if is_mark else run.start),
                max(frame.logprob for frame in frames),
                AGGREGATIONS[options.aggregation](confidences),
                between=True,
            )
        )
    return found
