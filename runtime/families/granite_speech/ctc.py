"""A draft of the text from the encoder alone: its own output characters, by greedy CTC.

The encoder was trained to spell what it hears (connectionist temporal classification, Graves et al., 2006). Its draft
has no punctuation and no knowledge of the language, but comes without a single step of the language model and follows
the audio: where the two texts are far apart, the language model made something up.
"""

from __future__ import annotations

from runtime.ctc import greedy_ctc
from runtime.engines.base import Floats
from runtime.errors import InputError
from runtime.results import Draft

BLANK = 0
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def ctc_draft(logits: Floats, characters: str) -> Draft:
    """Return the draft of one recording or chunk.

    A character's confidence is its probability by `greedy_ctc`; the draft's is the mean over its characters.

    Parameters
    ----------
    logits : Floats
        f32 [n_frames, n_ctc], of the frames of the recording only; id 0 is the blank.
    characters : str
        The character of each id, that of the blank included; ids beyond give U+FFFD.

    """
    ids, probabilities = greedy_ctc(logits, BLANK)
    text = "".join(characters[id_] if id_ < len(characters) else _UNKNOWN for id_ in ids)
    return Draft(text, float(probabilities.mean()) if len(ids) else None)


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
