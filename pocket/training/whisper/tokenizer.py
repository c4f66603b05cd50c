"""Tokenizer and configuration in the layout of OpenAI's multilingual Whisper vocabulary.

Byte-level BPE, then end of text, start of transcript, languages, translate, transcribe, start of LM, start of previous
text, no speech, no timestamps, and one token for every 0.02 s of the window (one encoder position each).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, ByteLevelBPETokenizer, Tokenizer

from pocket.training.whisper.phrases import LANGUAGES, random_phrase

WINDOW_S = 6
POSITIONS_PER_S = 50
N_POSITIONS = WINDOW_S * POSITIONS_PER_S
N_TEXT_POSITIONS = 96
N_BPE = 640
N_TEXTS = 30000

STEERING = ("translate", "transcribe", "startoflm", "startofprev", "nospeech")
SPECIAL = ("startoftranscript", *LANGUAGES, *STEERING, "notimestamps")
# Tokens that are notation, never speech.
SYMBOLS = '"#()*+/:;<=>@[\\]^_`{|}~'


@dataclass(frozen=True)
class Tokens:
    """Ids of the special tokens, and the tokenizer."""

    tokenizer: Tokenizer
    eot: int
    sot: int
    sot_prev: int
    no_speech: int
    no_timestamps: int
    timestamp_begin: int
    languages: dict[str, int]
    tasks: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> Tokens:
        """Read the tokenizer of a model folder."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

        def special(name: str) -> int:
            return id_of(tokenizer, f"<|{name}|>")

        return cls(
            tokenizer=tokenizer,
            eot=special("endoftext"),
            sot=special("startoftranscript"),
            sot_prev=special("startofprev"),
            no_speech=special("nospeech"),
            no_timestamps=special("notimestamps"),
            timestamp_begin=special("0.00"),
            languages={code: special(code) for code in LANGUAGES},
            tasks={task: special(task) for task in ("transcribe", "translate")},
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as it stands inside a transcript, after a space."""
        return list(self.tokenizer.encode(f" {text}", add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of those `ids` that are text."""
        return str(self.tokenizer.decode([token for token in ids if token < self.eot])).strip()

    def timestamp(self, seconds: float) -> int:
        """Return the token of a time in the window."""
        return self.timestamp_begin + min(N_POSITIONS, round(seconds * POSITIONS_PER_S))


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that the vocabulary holds."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def write_tokenizer(folder: Path, seed: int) -> None:
    """Write tokenizer, feature extractor, config.json and generation_config.json of an untrained model."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperProcessor

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(seed)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    # Also as a file of its own, the place that readers without WhisperProcessor look at.
    extractor.save_pretrained(folder)

    tokens = Tokens.read(folder)
    steering = [id_of(tokens.tokenizer, f"<|{name}|>") for name in ("startoftranscript", *STEERING)]
    rules = {
        "suppress_tokens": sorted(id_of(tokens.tokenizer, symbol) for symbol in SYMBOLS) + steering,
        "begin_suppress_tokens": [id_of(tokens.tokenizer, "Ġ"), tokens.eot],
        "pad_token_id": tokens.eot,
        "bos_token_id": tokens.eot,
        "eos_token_id": tokens.eot,
        "decoder_start_token_id": tokens.sot,
    }
    WhisperConfig(
        vocab_size=tokens.tokenizer.get_vocab_size(),
        num_mel_bins=80,
        d_model=128,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        max_source_positions=N_POSITIONS,
        max_target_positions=N_TEXT_POSITIONS,
        dropout=0.0,
        architectures=["WhisperForConditionalGeneration"],
        **rules,
    ).save_pretrained(folder)
    GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": token for code, token in tokens.languages.items()},
        task_to_id=tokens.tasks,
        no_timestamps_token_id=tokens.no_timestamps,
        prev_sot_token_id=tokens.sot_prev,
        max_initial_timestamp_index=N_POSITIONS,
        max_length=N_TEXT_POSITIONS,
        return_timestamps=False,
        forced_decoder_ids=[[1, None], [2, tokens.tasks["transcribe"]]],
        alignment_heads=[[0, 0], [1, 0]],
        **rules,
    ).save_pretrained(folder)


def _train_tokenizer(seed: int) -> object:
    """Return a transformers WhisperTokenizer trained on random phrases of the domain."""
    from transformers import WhisperTokenizer

    rng = np.random.default_rng(seed)
    bpe = ByteLevelBPETokenizer()
    texts = (f" {text}" for _ in range(N_TEXTS) for text in random_phrase(rng))
    bpe.train_from_iterator(texts, vocab_size=N_BPE, min_frequency=1, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    vocab = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]])
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<|{name}|>" for name in SPECIAL]})
    times = [f"<|{position / POSITIONS_PER_S:.2f}|>" for position in range(N_POSITIONS + 1)]
    tokenizer.add_tokens([AddedToken(time, special=False, normalized=False) for time in times])
    tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    return tokenizer
