"""What golden outputs are compared with: torch.stft and transformers' ParakeetForCTC, nothing folded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import torch
import transformers

from export.families.parakeet_ctc.checkpoint import CtcCheckpoint, TransformersFolder
from export.families.parakeet_ctc.standin import RandomCtc
from export.fastconformer.source import (
    EncoderWeights,
    SourceFrontend,
    cleaned,
    encoder_config,
    give_frequencies,
    load_weights,
)
from export.golden import read_samples
from export.parity import arrays_of, tensors_of
from runtime.engines.base import Array
from runtime.fastconformer.settings import FRONTEND, FastConformerDims
from runtime.manifest import Recording


class SourceCtc:
    """The unfolded network in fp32 with the tensors of a checkpoint, or with random ones from `weights`."""

    def __init__(self, checkpoint: CtcCheckpoint | RandomCtc, weights: Path) -> None:
        self.implementation = (
            f"transformers {transformers.__version__}: ParakeetForCTC; torch {torch.__version__}: stft"
        )
        self._blank, self._rate = checkpoint.dims.blank, checkpoint.frontend.sample_rate
        self.front = SourceFrontend(checkpoint.frontend, checkpoint.window, checkpoint.filters)
        self.network = _network(checkpoint.dims)
        self._dtype = torch.float32
        unfolded = checkpoint.stored if isinstance(checkpoint, CtcCheckpoint) else _FoldedWeights(weights)
        names = {name: TransformersFolder.nemo_name(name) for name in self.network.state_dict()}
        load_weights(self.network, names, unfolded.read)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the network computes where `graph` does."""
        tensors = tensors_of(inputs, torch.float32 if graph == FRONTEND else self._dtype)
        with torch.inference_mode():
            outputs = self.front.features(**tensors) if graph == FRONTEND else self._logits(**tensors)
        return arrays_of(outputs)

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, all but the front-end."""
        self.network.to(dtype)
        self._dtype = dtype

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether equal ids in a row, taken once and without blanks, are the golden run's tokens."""
        samples = torch.from_numpy(read_samples(path, self._rate))[None]
        with torch.inference_mode():
            features = self.front.features(samples, torch.tensor([samples.shape[1]]))
            ids = self._logits(**features)["logits"][0].argmax(dim=1).tolist()
        tokens = [token for token, _ in groupby(ids) if token != self._blank]
        return tokens == [token for segment in recording.result["segments"] for token in segment["tokens"]]

    def _logits(self, features: torch.Tensor, features_len: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits, zero where there are no frames."""
        clean, live = cleaned(features, features_len)
        outputs = self.network.encoder(input_features=clean, attention_mask=live)
        logits, mask = self.network.ctc_head(outputs.last_hidden_state), outputs.attention_mask.bool()
        return {"logits": logits.masked_fill(~mask[:, :, None], 0.0), "frames_len": mask.sum(dim=1)}


class _FoldedWeights(EncoderWeights):
    """A weights.safetensors as a checkpoint holds it; its head is a convolution of one frame."""

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by NeMo's name."""
        tensor = super().read(name)
        return tensor[:, :, None] if name.startswith("decoder.") and name.endswith(".weight") else tensor


def _network(dims: FastConformerDims) -> transformers.ParakeetForCTC:
    """Return transformers' network on the meta device."""
    config = transformers.ParakeetCTCConfig(
        vocab_size=dims.n_vocab + 1,
        pad_token_id=dims.blank,
        encoder_config=encoder_config(dims),
        attn_implementation="eager",
    )
    with torch.device("meta"):
        network = transformers.ParakeetForCTC(config)
    give_frequencies(network.encoder)
    return network
