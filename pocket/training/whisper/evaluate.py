"""Measure a whisper-pocket folder as a user would load it (transformers' generate), on voices and texts it never heard.

`python -m pocket.training.whisper.evaluate pocket/whisper-pocket --corpus FOLDER` prints the results as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jiwer
import numpy as np
import torch
import typer

from pocket.training.whisper.batches import Spoken, Window
from pocket.training.whisper.phrases import LANGUAGES
from pocket.training.whisper.synthesize import SAMPLE_RATE, Utterance, read_utterances
from pocket.training.whisper.tokenizer import POSITIONS_PER_S, WINDOW_S, Tokens

WINDOW = WINDOW_S * SAMPLE_RATE
BATCH = 50
NO_SPEECH_THRESHOLD = 0.6
NEAR_S = 0.1
GAP_S = (0.4, 1.2)


def place(utterances: Sequence[Utterance], *, snr_db: float | None, seed: int, per_window: int = 1) -> list[Window]:
    """Return 6 s windows with `per_window` utterances each (one or two); those that do not fit are left out.

    White noise lies `snr_db` below the speech; None means digital silence around it.
    """
    rng, windows = np.random.default_rng(seed), list[Window]()
    for first in range(0, len(utterances) - per_window + 1, per_window):
        items = utterances[first : first + per_window]
        audio, spoken, end = np.zeros(WINDOW, np.float32), list[Spoken](), 0
        for item in items:
            low, high = GAP_S if spoken else (0.05, 0.9)
            begin = end + int(rng.uniform(low, high) * SAMPLE_RATE)
            end = begin + len(item.pcm)
            if end > WINDOW:
                break
            audio[begin:end] = 0.8 * item.audio
            spoken.append(Spoken(begin / SAMPLE_RATE, end / SAMPLE_RATE, item.text, item.english))
        if len(spoken) < per_window:
            continue
        if snr_db is not None:
            level = float(np.sqrt(np.mean(np.square(audio[audio != 0]))))
            audio += (rng.standard_normal(WINDOW) * level * 10 ** (-snr_db / 20)).astype(np.float32)
        windows.append(Window(audio, items[0].language, tuple(spoken)))
    return windows


class Evaluator:
    """A model folder, opened by transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

        self._extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self._model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self._tokens = Tokens.read(folder)

    def texts(self, windows: Sequence[Window], task: str) -> list[str]:
        """Return the text of every window; all are in the first one's language."""
        return [self._tokens.decode(ids) for ids in self._generate(windows, task=task)]

    def times(self, windows: Sequence[Window]) -> list[list[float]]:
        """Return the time stamps of every window in seconds."""
        begin = self._tokens.timestamp_begin
        return [
            [(token - begin) / POSITIONS_PER_S for token in ids if token >= begin]
            for ids in self._generate(windows, task="transcribe", return_timestamps=True)
        ]

    @torch.no_grad()
    def first_step(self, windows: Sequence[Window]) -> tuple[list[str], list[float]]:
        """Return the language that is heard in every window, and the probability of no speech."""
        heard, no_speech = list[str](), list[float]()
        for mel in self._features(windows):
            start = torch.full((len(mel), 1), self._tokens.sot)
            probs = self._model(input_features=mel, decoder_input_ids=start).logits[:, 0].softmax(-1)
            best = probs[:, list(self._tokens.languages.values())].argmax(-1).tolist()
            heard += [LANGUAGES[index] for index in best]
            no_speech += probs[:, self._tokens.no_speech].tolist()
        return heard, no_speech

    def _features(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        audio = [window.audio for window in windows]
        parts = [audio[first : first + BATCH] for first in range(0, len(audio), BATCH)]
        return [self._extractor(part, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features for part in parts]

    @torch.no_grad()
    def _generate(self, windows: Sequence[Window], **options: Any) -> list[list[int]]:
        ids = list[list[int]]()
        for mel in self._features(windows):
            ids += self._model.generate(
                mel, num_beams=1, do_sample=False, language=windows[0].language, **options
            ).tolist()
        return ids


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    """Return the word error rate over all texts."""
    return round(float(jiwer.wer(list(references), list(texts))), 4)


def evaluate_language(evaluator: Evaluator, sets: dict[str, list[Utterance]]) -> dict[str, Any]:
    """Return word error rates, translation, language and time-stamp figures of one language's test sets."""
    conditions = {
        "unseen_voice_clean": place(sets["unseen_voice"], snr_db=None, seed=1),
        "unseen_voice_10dB": place(sets["unseen_voice"], snr_db=10, seed=2),
        "unseen_voice_unseen_text_clean": place(sets["unseen_text"], snr_db=None, seed=3),
        "seen_voice_clean": place(sets["seen_voice"], snr_db=None, seed=4),
    }
    results = dict[str, Any]()
    for name, windows in conditions.items():
        spoken = [window.spoken[0] for window in windows]
        results[f"n_{name}"] = len(windows)
        results[f"wer_{name}"] = word_error_rate([item.text for item in spoken], evaluator.texts(windows, "transcribe"))
        heard, no_speech = evaluator.first_step(windows)
        results[f"lid_{name}"] = _share(code == windows[0].language for code in heard)
        results[f"speech_kept_{name}"] = _share(probability <= NO_SPEECH_THRESHOLD for probability in no_speech)
        if windows[0].language != "en":
            english = [item.english for item in spoken]
            translated = evaluator.texts(windows, "translate")
            results[f"translate_wer_{name}"] = word_error_rate(english, translated)
            results[f"translate_exact_{name}"] = _share(a == b for a, b in zip(english, translated, strict=True))
    for name, per_window in (("single", 1), ("pair", 2)):
        windows = place(sets["unseen_voice"], snr_db=None, seed=5, per_window=per_window)
        results |= {f"ts_{name}_{key}": value for key, value in _time_errors(evaluator, windows).items()}
    return results


def _time_errors(evaluator: Evaluator, windows: list[Window]) -> dict[str, float | None]:
    errors, complete = list[float](), 0
    for window, times in zip(windows, evaluator.times(windows), strict=True):
        expected = [time for spoken in window.spoken for time in (spoken.begin, spoken.end)]
        if len(times) == len(expected):
            complete += 1
            errors += [abs(a - b) for a, b in zip(times, expected, strict=True)]
    return {
        "right_number_of_segments": round(complete / len(windows), 4),
        "median_s": round(float(np.median(errors)), 3) if errors else None,
        "within_0.1s": _share(error <= NEAR_S for error in errors) if errors else None,
    }


def silent_windows(count: int, seed: int = 77) -> list[Window]:
    """Return windows without speech: digital silence in one of ten, else white noise at -70 to -14 dB."""
    rng = np.random.default_rng(seed)
    levels = [0.0 if index % 10 == 0 else 10 ** rng.uniform(-3.5, -0.7) for index in range(count)]
    return [Window((rng.standard_normal(WINDOW) * level).astype(np.float32), None, ()) for level in levels]


def _share(flags: Any) -> float:
    return round(float(np.mean(list(flags))), 4)


def evaluate(model: Path, corpus: Path) -> dict[str, Any]:
    """Return all figures for the model folder `model` on the test sets in the folder `corpus`."""
    evaluator = Evaluator(model)
    sets = {name: read_utterances(corpus / f"{name}.npz") for name in ("unseen_voice", "unseen_text", "seen_voice")}
    results = dict[str, Any]()
    for code in LANGUAGES:
        own = {name: [item for item in items if item.language == code] for name, items in sets.items()}
        results[code] = evaluate_language(evaluator, own)
    _, no_speech = evaluator.first_step(silent_windows(150))
    detected = _share(probability > NO_SPEECH_THRESHOLD for probability in no_speech)
    return {**results, "nospeech": {"threshold": NO_SPEECH_THRESHOLD, "n": len(no_speech), "detected": detected}}


def quiet_transformers() -> None:
    """Keep transformers' progress bars and advice on `generate` out of the output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def main(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    corpus: Annotated[Path, typer.Option(help="Folder with the test sets that `make pocket` made.")],
) -> None:
    """Print the model's figures as JSON."""
    torch.set_num_threads(1)
    quiet_transformers()
    print(json.dumps(evaluate(model, corpus), indent=1))


if __name__ == "__main__":
    typer.run(main)
