"""Write word_fits_of_openai_whisper.json: what openai-whisper's add_word_timestamps makes of made-up alignments.

Run by hand, with a Python that has openai-whisper (20250625): python tests/runtime/make_word_fits.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import whisper.timing
from whisper.timing import WordTiming

TARGET = Path(__file__).with_name("word_fits_of_openai_whisper.json")
# With the space before it, where a word has one; token 0 and so on are text.
PIECES = (" a", " word", " and", "word", ".", ",", "?", ' "', " (", ")", '"', "\u4eca", "\u3002", " -", "!")
DURATIONS = (0.0, 0.04, 0.1, 0.2, 0.3, 0.5, 0.9, 2.4, 4.0)
EOT, STAMP = 100, 101


class _Tokenizer:
    eot = EOT


def case(dice: random.Random) -> dict[str, Any]:
    seek, last = dice.choice((0, 137, 2740)), 0.0
    time, words, segments = dice.choice((0.0, 0.3, 3.0)), [], []
    for _ in range(dice.randint(1, 4)):
        tokens = []
        begin = time
        for _ in range(dice.randint(1, 6)):
            own = [dice.randrange(EOT) for _ in range(dice.randint(1, 2))]
            end = time + dice.choice(DURATIONS)
            words.append([dice.choice(PIECES), own, round(time, 2), round(end, 2), 0.5])
            tokens += own
            time = end
        start, stop = (seek / 100 + moment + dice.choice((-0.7, -0.1, 0.0, 0.1, 0.7)) for moment in (begin, time))
        segments.append([round(start, 2), round(stop, 2), [STAMP, *tokens, STAMP]])
    last = dice.choice((0.0, seek / 100))
    return {
        "seek": seek,
        "last_speech": last,
        "words": words,
        "segments": segments,
        "fit": fit(words, segments, seek, last),
    }


def fit(words: list[Any], segments: list[Any], seek: int, last: float) -> list[Any]:
    whisper.timing.find_alignment = lambda *_, **__: [
        WordTiming(text, list(tokens), start, end, probability) for text, tokens, start, end, probability in words
    ]
    dicts = [{"seek": seek, "start": start, "end": end, "tokens": tokens} for start, end, tokens in segments]
    whisper.timing.add_word_timestamps(
        segments=dicts, model=None, tokenizer=_Tokenizer, mel=None, num_frames=0, last_speech_timestamp=last
    )
    return [
        [segment["start"], segment["end"], [[word["word"], word["start"], word["end"]] for word in segment["words"]]]
        for segment in dicts
    ]


if __name__ == "__main__":
    dice = random.Random(0)
    cases = ",\n".join(json.dumps(case(dice), ensure_ascii=False) for _ in range(60))
    TARGET.write_text(f"[\n{cases}\n]\n", encoding="utf-8")
