"""Times of tokens in encoder frames, by NeMo's rules for TDT models; runtime/fastconformer/timestamps.py has words'.

NeMo: nemo/collections/asr/parts/submodules/rnnt_decoding.py.

1. A token lasts from its frame for its duration.
2. A punctuation mark has no length: it stands at the end of the token before it. It may be emitted long after the
   word, in the pause behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.families.parakeet_tdt.search import Emission
from runtime.fastconformer.confidence import Method, token_confidence
from runtime.fastconformer.timestamps import Span
from runtime.fastconformer.tokenizer import SubwordTokenizer
from runtime.fastconformer.transcript import TimedToken


def token_spans(emissions: Sequence[Emission], tokenizer: SubwordTokenizer) -> list[Span]:
    """Return the times of each token."""
    spans: list[Span] = []
    for emission in emissions:
        if spans and tokenizer.texts[emission.token] in tokenizer.punctuation:
            spans.append(Span(spans[-1].end, spans[-1].end))
        else:
            spans.append(Span(emission.frame, emission.frame + emission.duration))
    return spans


def timed_tokens(emissions: Sequence[Emission], tokenizer: SubwordTokenizer, method: Method) -> list[TimedToken]:
    """Return a recording's tokens with their times, and confidences by `method`."""
    n_tokens = len(tokenizer.pieces) + 1
    return [
        TimedToken(e.token, span, e.logprob, token_confidence(e.logprob, e.entropy, n_tokens, method))
        for e, span in zip(emissions, token_spans(emissions, tokenizer), strict=True)
    ]
