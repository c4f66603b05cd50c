"""Writes word_references.json: the words and their times that openai-whisper finds, with OpenAI's weights and heads.

Run as make_references.py is, never by the tests:

    python make_word_references.py tiny.en=FOLDER base=FOLDER

At temperature 0, without the text before a window. A segment is [start, end, words], a word [text, start, end,
probability]; `guarded` is with a hallucination_silence_threshold of 2 s.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import whisper
from make_references import HERE, SAMPLES, _audio, _Margins, load

# Several windows, beside the recordings of recordings.json.
LONG = ("long_en.wav",)
GUARDED = ("silero_test.opus", "speech_commands_noise.wav", *LONG)


def timed(model: whisper.Whisper, path: Path, **options: object) -> dict[str, object]:
    _Margins.smallest = float("inf")
    result = model.transcribe(
        _audio(path),
        temperature=0.0,
        fp16=False,
        condition_on_previous_text=False,
        word_timestamps=True,
        **options,
    )
    return {
        "language": result["language"],
        "margin": round(_Margins.smallest, 4),
        "segments": [
            [round(float(segment["start"]), 2), round(float(segment["end"]), 2), [
                [word["word"], round(float(word["start"]), 2), round(float(word["end"]), 2),
                 round(float(word["probability"]), 4)]
                for word in segment["words"]
            ]]
            for segment in result["segments"] if segment["words"]
        ],
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    recordings = json.loads((HERE / "recordings.json").read_text(encoding="utf-8"))
    results: dict[str, Any] = {}
    for argument in sys.argv[1:]:
        name, _, folder = argument.partition("=")
        model = load(Path(folder))
        model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
        for file in (*recordings, *LONG):
            if recordings.get(file, {}).get("language") == "ja" and not model.is_multilingual:
                continue
            path = HERE / "audio" / file
            path = path if path.exists() else SAMPLES / file
            heard = results.setdefault(f"whisper-{name}", {})[file] = {"words": timed(model, path)}
            if file in GUARDED:
                heard["guarded"] = timed(model, path, hallucination_silence_threshold=2.0)
            sys.stderr.write(f"{name} {file}\n")
            write(results)


def write(results: dict[str, Any]) -> None:
    text = json.dumps(results, ensure_ascii=False, indent=1)
    # A word on one line.
    text = re.sub(r"\[\s+(\"[^\n]*\",)\s+([-\d.]+,)\s+([-\d.]+,)\s+([-\d.]+)\s+\]", r"[\1 \2 \3 \4]", text)
    (HERE / "word_references.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
