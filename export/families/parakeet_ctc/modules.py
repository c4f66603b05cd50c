"""The network of Parakeet-CTC: a FastConformer encoder and one linear layer over its frames."""

from __future__ import annotations

from torch import nn

from export.fastconformer.modules import Encoder
from runtime.fastconformer.settings import FastConformerDims


class CtcHead(nn.Module):
    """What NeMo calls the decoder: a convolution of one frame, here a linear. Logits of V pieces, then of the blank."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        self.decoder_layers = nn.ModuleList([nn.Linear(dims.d_model, dims.n_vocab + 1)])


class ParakeetCtc(nn.Module):
    """The parameters of the network; export/families/parakeet_ctc/graphs.py says what is computed with them."""

    def __init__(self, dims: FastConformerDims) -> None:
        super().__init__()
        self.encoder = Encoder(dims)
        self.decoder = CtcHead(dims)
