"""The pocket model's tokenizer, and transcripts by hand: pieces with frames and durations."""

from __future__ import annotations

import tarfile
import tempfile
from functools import cache
from pathlib import Path

from parakeet_nets import NEMO

from runtime.families.parakeet_tdt.search import Emission
from runtime.fastconformer.tokenizer import SubwordTokenizer


@cache
def model_bytes() -> bytes:
    with tarfile.open(NEMO) as tar:
        name = next(name for name in tar.getnames() if name.endswith("tokenizer.model"))
        return tar.extractfile(name).read()


@cache
def pocket_tokenizer() -> SubwordTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(model_bytes())
        return SubwordTokenizer(file, 192)


def emissions(*rows: tuple[str, int, int], logprob: float = -0.1, entropy: float = 0.2) -> list[Emission]:
    """Emissions of pieces, written with a space for U+2581, each with its frame and duration."""
    pieces = pocket_tokenizer().pieces
    return [
        Emission(pieces.index(piece.replace(" ", "\u2581")), frame, duration, logprob, entropy)
        for piece, frame, duration in rows
    ]
