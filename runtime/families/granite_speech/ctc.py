"""A draft of the text from the encoder alone: its own output characters, by greedy CTC.

The encoder was trained to spell what it hears (connectionist temporal classification, Graves et al., 2006). Its draft
has no punctuation and no knowledge of the language, but comes without a single step of the language model and follows
the audio: where the two texts are far apart, the language model made something up.
"""

from __future__ import annotations

import numpy as np

from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.results import Draft

BLANK = 0
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def ctc_draft(logits: Floats, characters: str) -> Draft:
    """Return the draft of one recording or chunk.

    Greedy CTC: the likeliest id of each frame, runs of one id taken once, then blanks dropped. A character's
    confidence is the highest probability that it has in its run; the draft's is the mean over its characters.

    Parameters
    ----------
    logits : Floats
        f32 [n_frames, n_ctc], of the frames of the recording only; id 0 is the blank.
    characters : str
        The character of each id, that of the blank included; ids beyond give U+FFFD.

    """
    if not len(logits):
        return Draft("", None)
    ids = logits.argmax(axis=1)
    largest = logits.max(axis=1, keepdims=True)
    probabilities = 1 / np.exp(logits.astype(np.float64) - largest).sum(axis=1)  # of `ids`, by softmax
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    best, ids = np.maximum.reduceat(probabilities, starts), ids[starts]
    emitted = ids != BLANK
    if not emitted.any():
        return Draft("", None)
    text = "".join(characters[id_] if id_ < len(characters) else _UNKNOWN for id_ in ids[emitted])
    return Draft(text, float(best[emitted].mean()))


def require_characters(characters: str) -> None:
    """Refuse a draft where the artifact does not say what the encoder's outputs stand for.

    Raises
    ------
    InputError
        It does not.

    """
    if not characters:
        raise InputError(
            "--draft: expected the characters of the encoder's outputs in the artifact's manifest, found none; "
            "leave it out"
        )
