"""Stand-ins for WEIGHTS=random: tensors of sane size, a vocabulary of made-up words, a few tokens a second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from export.checkpoint import RandomCheckpoint
from export.families.parakeet_ctc.modules import ParakeetCtc
from export.fastconformer.modules import parameter_shapes
from export.fastconformer.standin import BLANK_GAIN, TOKENS_PER_SECOND, blank_bias, centred, mean_and_std
from export.fastconformer.standin import standin_tokenizer as tokenizer_of
from export.fastconformer.transformers_folder import TOKENIZER_FILE, filters, hann_window
from export.safetensors_writer import TensorInfo
from runtime.fastconformer.settings import FastConformerDims, FastConformerFrontend, FastConformerSettings

_HEAD = "decoder.decoder_layers.0"
# The standard deviation of a logit: the encoder's frames have one of 1.
_LOGIT_STD = 2.0


class RandomCtc:
    """A Parakeet-CTC of the given dims with random weights; the same dims give the same bytes."""

    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, dims: Mapping[str, int]) -> None:
        # Of a hybrid's dims those of encoder and vocabulary.
        self.dims = FastConformerDims(**{name: dims[name] for name in FastConformerDims.model_fields})
        self.frontend = FastConformerFrontend(n_mels=self.dims.n_mels)
        self.settings = FastConformerSettings(tokenizer_file=TOKENIZER_FILE)
        self.tokenizer = tokenizer_of(self.dims.n_vocab).to_str().encode()
        shapes = parameter_shapes(lambda: ParakeetCtc(self.dims))
        self._checkpoint = RandomCheckpoint(shapes, partial(mean_and_std, gains={_HEAD: _LOGIT_STD}))
        self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors
        self.window = hann_window(self.frontend)
        self.filters = filters(self.frontend)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        tensor = centred(self._checkpoint.read(name))
        if name == f"{_HEAD}.weight":
            tensor[self.dims.blank] *= BLANK_GAIN
        elif name == f"{_HEAD}.bias":
            frames_a_second = self.frontend.sample_rate / self.frontend.hop_length / self.dims.subsampling_factor
            tensor[self.dims.blank] = blank_bias(self.dims.n_vocab, TOKENS_PER_SECOND / frames_a_second, _LOGIT_STD)
        return tensor
