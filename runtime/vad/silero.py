"""Silero's network (version 6, 16 kHz) in numpy.

A box has ONNX Runtime or torch, maybe not both, and on an NPU either is there for the device. The 1.2 MB of parameters
need neither: 100 s of audio take 0.15 s on one core, a fifth of what ONNX Runtime takes chunk by chunk in silero's own
package, since all but the LSTM goes over many chunks at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from safetensors import SafetensorError, safe_open

from runtime.artifact import Artifact
from runtime.audio import SampleBuffer
from runtime.engines.base import Floats
from runtime.errors import DamagedArtifactError

VAD_NAME = "vad.safetensors"
SAMPLE_RATE = 16_000
CHUNK = 512  # samples that have one probability
# The network sees the end of the chunk before, and as much mirrored behind the chunk's own end.
_CONTEXT = 64
_FFT, _HOP = 256, 128
_BINS = _FFT // 2 + 1
_KERNEL, _PADDING = 3, 1
_STRIDES = (1, 2, 2, 1)
_CHANNELS = (_BINS, 128, 64, 64, 128)
_STATE = _CHANNELS[-1]
_CHUNKS_AT_ONCE = 256
_MAX_BYTES = 2 * 2**20  # of the file; silero's parameters have 1.2 MB

# By silero's names.
SHAPES: dict[str, tuple[int, ...]] = {
    "stft.forward_basis_buffer": (2 * _BINS, 1, _FFT),
    **{f"encoder.{i}.reparam_conv.weight": (m, n, _KERNEL) for i, (n, m) in enumerate(pairwise(_CHANNELS))},
    **{f"encoder.{i}.reparam_conv.bias": (m,) for i, m in enumerate(_CHANNELS[1:])},
    **{f"decoder.rnn.weight_{side}": (4 * _STATE, _STATE) for side in ("ih", "hh")},
    **{f"decoder.rnn.bias_{side}": (4 * _STATE,) for side in ("ih", "hh")},
    "decoder.decoder.2.weight": (1, _STATE, 1),
    "decoder.decoder.2.bias": (1,),
}


@dataclass(frozen=True)
class _Convolution:
    """Weights [kernel * channels, channels of the output], bias and stride of one over [n, time, channels]."""

    weight: Floats
    bias: Floats
    stride: int

    def __call__(self, values: Floats) -> Floats:
        """Return the convolution behind a ReLU, [n, time, channels of the output]."""
        padded = np.pad(values, ((0, 0), (_PADDING, _PADDING), (0, 0)))
        count = (padded.shape[1] - _KERNEL) // self.stride + 1
        taps = [padded[:, tap : tap + (count - 1) * self.stride + 1 : self.stride] for tap in range(_KERNEL)]
        convolved: Floats = np.concatenate(taps, axis=2) @ self.weight + self.bias
        return np.maximum(convolved, 0)


class SileroVad:
    """Tells how likely speech is; one object serves any number of threads.

    Parameters
    ----------
    tensors : dict of str to Floats
        `SHAPES`, f32.

    """

    def __init__(self, tensors: dict[str, Floats]) -> None:
        self._basis: Floats = np.ascontiguousarray(tensors["stft.forward_basis_buffer"][:, 0].T)
        self._encoder = [
            _Convolution(
                # [out, in, kernel] as [kernel * in, out]
                np.ascontiguousarray(tensors[f"encoder.{i}.reparam_conv.weight"].transpose(2, 1, 0)).reshape(-1, size),
                tensors[f"encoder.{i}.reparam_conv.bias"],
                stride,
            )
            for i, (size, stride) in enumerate(zip(_CHANNELS[1:], _STRIDES, strict=True))
        ]
        self._input: Floats = np.ascontiguousarray(tensors["decoder.rnn.weight_ih"].T)
        self._recurrent: Floats = np.ascontiguousarray(tensors["decoder.rnn.weight_hh"].T)
        self._bias: Floats = tensors["decoder.rnn.bias_ih"] + tensors["decoder.rnn.bias_hh"]
        self._last = tensors["decoder.decoder.2.weight"][0, :, 0]
        self._last_bias = tensors["decoder.decoder.2.bias"]

    def probabilities(self, blocks: Iterable[Floats]) -> tuple[Floats, int]:
        """Return the probability of speech in each chunk of a recording, and how many samples it has.

        Parameters
        ----------
        blocks : iterable of Floats
            The recording at 16 kHz, f32 [n] each; its last chunk is filled with zeros.

        Returns
        -------
        tuple of Floats and int
            f32 [ceil(samples / 512)].

        """
        buffer = SampleBuffer(blocks)
        found: list[Floats] = []
        samples, state = 0, np.zeros((2, _STATE), np.float32)
        context = np.zeros(_CONTEXT, np.float32)
        while len(part := buffer.between(samples, samples + _CHUNKS_AT_ONCE * CHUNK)):
            samples += len(part)
            padded = np.concatenate([context, part, np.zeros(-len(part) % CHUNK, np.float32)])
            context = padded[-_CONTEXT:]
            chunks = np.lib.stride_tricks.sliding_window_view(padded, _CONTEXT + CHUNK)[::CHUNK]
            hidden = self._recur(self._encoded(chunks), state)
            found.append(_sigmoid(np.maximum(hidden, 0) @ self._last + self._last_bias))
        return np.concatenate([np.zeros(0, np.float32), *found]), samples

    def _encoded(self, chunks: Floats) -> Floats:
        """Return [n, 128] of chunks [n, 576]: a spectrogram of four frames that convolutions make one."""
        mirrored = np.pad(chunks, ((0, 0), (0, _CONTEXT)), "reflect")
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, _FFT, axis=1)[:, ::_HOP]
        spectrum = frames @ self._basis
        values: Floats = np.sqrt(spectrum[..., :_BINS] ** 2 + spectrum[..., _BINS:] ** 2)
        for convolution in self._encoder:
            values = convolution(values)
        return values[:, 0]

    def _recur(self, encoded: Floats, state: Floats) -> Floats:
        """Return the LSTM's outputs [n, 128]; `state` [2, 128], hidden and cell, goes on from chunk to chunk."""
        gates = encoded @ self._input + self._bias
        hidden = np.empty_like(encoded)
        for row, own in enumerate(gates):
            opened = own + state[0] @ self._recurrent
            enter, keep, leave = _sigmoid(opened.reshape(4, _STATE)[[0, 1, 3]])
            state[1] = keep * state[1] + enter * np.tanh(opened[2 * _STATE : 3 * _STATE])
            state[0] = hidden[row] = leave * np.tanh(state[1])
        return hidden


def _sigmoid(values: Floats) -> Floats:
    # Not 1 / (1 + exp(-x)), which overflows.
    half: Floats = np.float32(0.5) * values
    return np.float32(0.5) * (1 + np.tanh(half))


def open_vad(artifact: Artifact) -> SileroVad | None:
    """Return the artifact's VAD, None where it has none.

    Raises
    ------
    DamagedArtifactError
        The file holds something else.

    """
    if VAD_NAME not in artifact.content.files:
        return None
    path = artifact.file(VAD_NAME)
    if (size := path.stat().st_size) > _MAX_BYTES:  # a header costs many times its size, before it can be refused
        raise DamagedArtifactError(f"{path}: expected at most {_MAX_BYTES} bytes, found {size}; export the model again")
    try:
        with safe_open(str(path), framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
            tensors = {name: file.get_tensor(name) for name in SHAPES} if shapes == SHAPES else {}
    except SafetensorError as error:
        raise DamagedArtifactError(f"{path}: expected a safetensors file ({error}); export the model again") from error
    if not tensors or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise DamagedArtifactError(f"{path}: expected the f32 parameters of silero's VAD, found others; export again")
    return SileroVad(tensors)
