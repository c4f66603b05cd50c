"""The scores of a tokenizer's pieces, which say in what order they are merged."""

from __future__ import annotations

import json
from pathlib import Path


def piece_scores(file: Path) -> tuple[float, ...]:
    """Return the score of each piece by its id: log-probability, or in byte-pair encoding the merge's place, negated.

    `file` is a tokenizer.json where the name ends so, otherwise a SentencePiece model.
    """
    if file.suffix != ".json":
        from sentencepiece import SentencePieceProcessor

        model = SentencePieceProcessor(model_proto=file.read_bytes())
        return tuple(map(model.get_score, range(model.get_piece_size())))
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    if "merges" not in model:
        return tuple(float(score) for _, score in model["vocab"])
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merged = {"".join(pair): -float(place) for place, pair in reversed(list(enumerate(merges)))}
    by_id = sorted(model["vocab"], key=model["vocab"].get)
    return tuple(merged.get(piece, -float(len(merges))) for piece in by_id)
