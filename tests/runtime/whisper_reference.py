"""What transformers' generate says of a recording, in the form of our segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from runtime.audio import open_audio
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.tokenizer import WhisperTokenizer
from runtime.results import Segment

RATE = 16000

# Start and end in seconds, tokens.
Stretch = tuple[float, float, tuple[int, ...]]


@dataclass(frozen=True)
class Expected:
    """A reference transcription. `first_window` holds the first window's tokens, uncut, without the end token."""

    stretches: list[Stretch]
    language: str
    first_window: tuple[int, ...]
    first_avg_logprob: float
    first_no_speech_prob: float


class Reference:
    """A checkpoint opened by transformers."""

    def __init__(self, checkpoint: Path) -> None:
        transformers.logging.set_verbosity_error()
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
        config = self.model.generation_config
        self.begin = config.no_timestamps_token_id + 1
        self.multilingual = config.is_multilingual
        n_positions = self.model.config.max_source_positions
        self.tokenizer = WhisperTokenizer(
            checkpoint / "tokenizer.json", range(config.eos_token_id, self.begin + n_positions + 1)
        )
        self.n_frames = 2 * n_positions

    def features(self, audio: np.ndarray) -> torch.Tensor:
        """Short form: padded to a window with zero samples. Long form: the whole recording's features."""
        whole = {"truncation": False, "padding": "longest"} if self.is_long(audio) else {}
        return self.extractor(audio, sampling_rate=RATE, return_tensors="pt", **whole).input_features

    def is_long(self, audio: np.ndarray) -> bool:
        return len(audio) // 160 > self.n_frames

    def transcribe(self, path: Path, options: WhisperOptions) -> Expected:
        """Greedy generate with the thresholds of `options`, as a user of transformers would call it."""
        audio = samples(path)
        features = self.features(audio)
        config = self.model.generation_config
        kwargs = {"language": options.language, "task": options.task or "transcribe"} if self.multilingual else {}
        if options.initial_prompt is not None:
            ids = self.tokenizer.encode_prompt(options.initial_prompt)
            kwargs["prompt_ids"] = torch.tensor([config.prev_sot_token_id, *ids])
        with torch.inference_mode():
            output = self.model.generate(
                features,
                **kwargs,
                return_timestamps=options.timestamps or self.is_long(audio),
                condition_on_prev_tokens=options.condition_on_previous_text,
                temperature=options.temperatures,
                compression_ratio_threshold=None,
                logprob_threshold=options.logprob_threshold,
                no_speech_threshold=options.no_speech_threshold,
                max_new_tokens=options.max_new_tokens,
                return_segments=True,
            )
        segments = output["segments"][0]
        result = segments[0]["result"] if segments else None
        first: list[int] = []
        logprob = no_speech = float("nan")
        if result is not None:
            sequence = result["sequences"]
            prompt = len(sequence) - len(result["scores"])
            generated = sequence[prompt:]
            logprob = float(self.model._retrieve_avg_logprobs(result["scores"], generated, 0.0))
            first = [token for token in generated.tolist() if token != config.eos_token_id]
            no_speech = self._no_speech(features, sequence[:prompt])
        return Expected(
            [self._stretch(segment) for segment in segments], self._language(features), tuple(first), logprob, no_speech
        )

    def _no_speech(self, features: torch.Tensor, prompt: torch.Tensor) -> float:
        config = self.model.generation_config
        with torch.inference_mode():
            logits = self.model(features[:, :, : self.n_frames], decoder_input_ids=prompt[None]).logits[0]
        row = prompt.tolist().index(config.decoder_start_token_id)
        return float(logits[row].softmax(-1)[config.no_timestamps_token_id - 1])

    def _language(self, features: torch.Tensor) -> str:
        if not self.multilingual:
            return "en"
        codes = {number: code.strip("<|>") for code, number in self.model.generation_config.lang_to_id.items()}
        detected = self.model.detect_language(features, num_segment_frames=self.n_frames)
        return codes[int(detected)]

    def _stretch(self, segment: dict) -> Stretch:
        tokens = segment["tokens"].tolist()
        if len(tokens) > 2 and min(tokens[-2:]) >= self.begin:
            tokens.pop()  # transformers keeps both timestamps of a window's last pair
        return float(segment["start"]), float(segment["end"]), tuple(tokens)


def samples(path: Path) -> np.ndarray:
    return np.concatenate(list(open_audio(path).blocks(RATE)))


def stretches(segments: tuple[Segment, ...]) -> list[Stretch]:
    return [(segment.start, segment.end, segment.tokens) for segment in segments]
