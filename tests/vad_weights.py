"""Parameters in the layout of silero's network that are not silero's: random ones, and a detector of loudness."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from runtime.artifact import sha256_of
from runtime.manifest import MANIFEST_NAME, FileEntry, Manifest
from runtime.vad.silero import SHAPES, VAD_NAME

Tensors = dict[str, np.ndarray]


def random_tensors(seed: int) -> Tensors:
    """Return parameters of a scale at which probabilities are neither all 0 nor all 1."""
    rng = np.random.default_rng(seed)
    return {
        name: (2 * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def loudness_tensors() -> Tensors:
    """Return a network that takes a chunk for speech where it has a root mean square above some -46 dB of full scale.

    The encoder's first channel is the mean magnitude of the spectrum; the LSTM's first cell forgets what was before.
    """
    tensors = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    phases = 2 * np.pi * np.outer(np.arange(129), np.arange(256)) / 256
    tensors["stft.forward_basis_buffer"][:, 0] = np.concatenate([np.cos(phases), -np.sin(phases)])
    for layer in range(4):
        tensors[f"encoder.{layer}.reparam_conv.weight"][0, 0, 1] = 1
    tensors["encoder.0.reparam_conv.weight"][0, :, 1] = 1 / 129
    enter, keep, new, leave = (128 * gate for gate in range(4))
    bias = tensors["decoder.rnn.bias_ih"]
    bias[[enter, leave]], bias[keep] = 20, -20
    tensors["decoder.rnn.weight_ih"][new, 0] = 5
    tensors["decoder.decoder.2.weight"][0, 0] = 20
    tensors["decoder.decoder.2.bias"][:] = -5
    return tensors


def with_vad(artifact: Path, target: Path, tensors: Tensors | None = None) -> Path:
    """Return a copy of an artifact with a VAD, that of loudness by default."""
    shutil.copytree(artifact, target)
    path = target / VAD_NAME
    save_file(tensors or loudness_tensors(), path)
    manifest = Manifest.from_bytes((target / MANIFEST_NAME).read_bytes(), str(target))
    files = {**manifest.content.files, VAD_NAME: FileEntry(size=path.stat().st_size, sha256=sha256_of(path))}
    sealed = Manifest.create(manifest.content.model_copy(update={"files": files}), manifest.export)
    (target / MANIFEST_NAME).write_bytes(sealed.to_bytes())
    return target
