"""Writes references.json: what openai-whisper hears in the recordings, with OpenAI's weights, at temperature 0.

Run in an environment of its own with openai-whisper and its packages, never by the tests:

    python make_references.py tiny.en=FOLDER base=FOLDER

where each FOLDER is a transformers checkpoint of these weights (config.json, model.safetensors). Nothing of atlasport
is imported. `margin` is the smallest gap between the logits of a chosen token and of the next best that was allowed:
another correct implementation may choose otherwise only where it is near zero.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
import whisper
from safetensors.torch import load_file
from whisper.decoding import GreedyDecoder

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parents[1] / "samples"
NAMES = {
    r"layers\.": "blocks.",
    r"self_attn_layer_norm": "attn_ln",
    r"encoder_attn_layer_norm": "cross_attn_ln",
    r"final_layer_norm": "mlp_ln",
    r"self_attn": "attn",
    r"encoder_attn": "cross_attn",
    r"q_proj": "query",
    r"k_proj": "key",
    r"v_proj": "value",
    r"out_proj": "out",
    r"fc1": "mlp.0",
    r"fc2": "mlp.2",
    r"encoder\.layer_norm": "encoder.ln_post",
    r"decoder\.layer_norm": "decoder.ln",
    r"encoder\.embed_positions\.weight": "encoder.positional_embedding",
    r"decoder\.embed_positions\.weight": "decoder.positional_embedding",
    r"embed_tokens": "token_embedding",
}


def load(folder: Path) -> whisper.Whisper:
    config = json.loads((folder / "config.json").read_text())
    dims = whisper.ModelDimensions(
        n_mels=config["num_mel_bins"],
        n_audio_ctx=config["max_source_positions"],
        n_audio_state=config["d_model"],
        n_audio_head=config["encoder_attention_heads"],
        n_audio_layer=config["encoder_layers"],
        n_vocab=config["vocab_size"],
        n_text_ctx=config["max_target_positions"],
        n_text_state=config["d_model"],
        n_text_head=config["decoder_attention_heads"],
        n_text_layer=config["decoder_layers"],
    )
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs = name.removeprefix("model.")
        for pattern, replacement in NAMES.items():
            theirs = re.sub(pattern, replacement, theirs)
        if theirs != "proj_out.weight":
            state[theirs] = tensor
    model = whisper.Whisper(dims)
    model.load_state_dict(state, strict=True)
    return model.eval()


class _Margins(GreedyDecoder):
    """Greedy search that keeps the smallest gap between the two best allowed tokens."""

    smallest = float("inf")

    def update(
        self, tokens: torch.Tensor, logits: torch.Tensor, sum_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, bool]:
        best = torch.topk(logits, 2).values[0]
        if tokens[0, -1] != self.eot:
            _Margins.smallest = min(_Margins.smallest, float(best[0] - best[1]))
        return super().update(tokens, logits, sum_logprobs)


whisper.decoding.GreedyDecoder = _Margins


def heard(model: whisper.Whisper, path: Path, **options: object) -> dict[str, object]:
    _Margins.smallest = float("inf")
    result = model.transcribe(_audio(path), temperature=0.0, fp16=False, condition_on_previous_text=False, **options)
    return {
        "text": result["text"].strip(),
        "language": result["language"],
        "margin": round(_Margins.smallest, 4),
        "segments": [
            {key: segment[key] for key in ("start", "end", "tokens", "avg_logprob", "no_speech_prob")}
            for segment in result["segments"]
        ],
    }


def _audio(path: Path) -> np.ndarray:
    """Return samples at 16 kHz; soundfile and soxr in place of the ffmpeg command."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if rate == 16000 else soxr.resample(mono, rate, 16000).astype("float32")


def main() -> None:
    torch.set_num_threads(1)
    recordings = json.loads((HERE / "recordings.json").read_text(encoding="utf-8"))
    results: dict[str, dict[str, object]] = {}
    for argument in sys.argv[1:]:
        name, _, folder = argument.partition("=")
        model = load(Path(folder))
        for file, known in recordings.items():
            if known["language"] == "ja" and not model.is_multilingual:
                continue
            path = HERE / "audio" / file
            path = path if path.exists() else SAMPLES / file
            variants = {"timestamps": {}, "no_timestamps": {"without_timestamps": True}}
            if known["language"] == "ja":
                variants["translate"] = {"task": "translate"}
            results.setdefault(f"whisper-{name}", {})[file] = {
                variant: heard(model, path, **options) for variant, options in variants.items()
            }
            sys.stderr.write(f"{name} {file}\n")
    text = json.dumps(results, ensure_ascii=False, indent=1)
    # A list of tokens on one line.
    text = re.sub(r"\[\s+((?:\d+,?\s*)+)\]", lambda match: "[" + " ".join(match[1].split()) + "]", text)
    (HERE / "references.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
