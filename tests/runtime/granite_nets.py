"""Artifacts of small Granite Speech checkpoints without golden outputs, and transformers' answers to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from granite_features import use_torchaudio_standin
from toy_artifact import content, seal_content

from export.families.granite_speech.model import GraniteModel
from export.weights import Weights
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from export.writers.weights import write_weights
from runtime.audio import open_audio

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def write_artifact(checkpoint: Path, folder: Path) -> Path:
    """Write weights, tokenizer and the graphs of a checkpoint in fp32, in all formats."""
    model = GraniteModel(Weights("granite-test", None, checkpoint, str(checkpoint), None, None, "Apache-2.0"))
    folder.mkdir(parents=True)
    weights = folder / "weights.safetensors"
    write_weights(model, torch.float32, weights)
    for name, data in model.side_files.items():
        (folder / name).write_bytes(data)
    definitions = model.graphs(torch.float32, None)
    onnx = write_onnx(definitions, weights, folder)
    torchscript = write_torchscript(model.graphs(torch.float32, weights), folder / "model.ts")
    pt2 = write_pt2(model.graphs(torch.float32, weights), folder)
    graphs = {
        name: graph.signature({"onnx": onnx[name], "torchscript": torchscript[name], "pt2": pt2[name]})
        for name, graph in definitions.items()
    }
    parts = {
        "family": "granite_speech",
        "dims": model.dims,
        "frontend": model.frontend,
        "settings": model.settings,
    }
    seal_content(folder, content({}, graphs).model_copy(update=parts))
    return folder


def samples_of(name: str, count: int | None = None) -> np.ndarray:
    """Return the first samples of a recording at 16 kHz, f32."""
    whole = np.concatenate(list(open_audio(SAMPLES / name).blocks(16000)))
    return whole[:count]


class Original:
    """transformers' processor and model of a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        use_torchaudio_standin()
        self.processor = transformers.AutoProcessor.from_pretrained(checkpoint)
        self.model = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(checkpoint).eval()

    def inputs(self, instruction: str, samples: np.ndarray) -> Any:
        """Return the processor's inputs of a chat with one message, as the model's card makes them."""
        chat = [{"role": "user", "content": f"<|audio|>{instruction}"}]
        text = self.processor.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return self.processor(text, torch.from_numpy(samples), return_tensors="pt")

    def generate(self, instruction: str, samples: np.ndarray, max_new_tokens: int, **options: Any) -> list[int]:
        """Return the greedy tokens after the prompt, the end token included."""
        inputs = self.inputs(instruction, samples)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, **options
            )
        return tokens[0, inputs["input_ids"].shape[1] :].tolist()
