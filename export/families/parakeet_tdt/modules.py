"""The network of Parakeet-TDT (FastConformer encoder, LSTM prediction net, joint net) as modules that trace.

Parameter names are NeMo's, but for what export/fastconformer/modules.py says of the encoder; the two biases of an LSTM
layer are one, their sum. H is the prediction net's width, J the joint net's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.fastconformer.modules import Encoder
from runtime.families.parakeet_tdt.settings import ParakeetDims

_GATES = 4


class Lstm(nn.Module):
    """LSTM layers for one token, with torch.nn.LSTM's weights (gates i, f, g, o) and the sum of its biases.

    As linears: ATC's and torch_npu's LSTM is a legacy operator, and one token took 1.4 instead of 6.4 ms on a CPU.
    """

    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        self.n_layers = dims.pred_layers
        hidden = dims.pred_hidden
        for layer in range(dims.pred_layers):
            for name, shape in (("weight_ih", (hidden,)), ("weight_hh", (hidden,)), ("bias", ())):
                parameter = nn.Parameter(torch.empty(_GATES * hidden, *shape))
                self.register_parameter(f"{name}_l{layer}", parameter)

    def forward(
        self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return output [B, H] and states h, c [layers, B, H] for `x` [B, H] and the states before it."""
        states: list[torch.Tensor] = []
        cells: list[torch.Tensor] = []
        for layer in range(self.n_layers):
            gates = F.linear(x, self.get_parameter(f"weight_ih_l{layer}"), self.get_parameter(f"bias_l{layer}"))
            gates = gates + F.linear(h[layer], self.get_parameter(f"weight_hh_l{layer}"))
            inward, forget, new, outward = gates.chunk(_GATES, dim=1)
            cell = torch.sigmoid(forget) * c[layer] + torch.sigmoid(inward) * torch.tanh(new)
            x = torch.sigmoid(outward) * torch.tanh(cell)
            states.append(x)
            cells.append(cell)
        return x, torch.stack(states), torch.stack(cells)


class _Rnn(nn.Module):
    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        self.lstm = Lstm(dims)


class _PredictionNet(nn.Module):
    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        # The last row is the blank's, which NeMo's padding_idx keeps zero.
        self.embed = nn.Embedding(dims.n_vocab + 1, dims.pred_hidden)
        self.dec_rnn = _Rnn(dims)


class Decoder(nn.Module):
    """What NeMo calls the decoder: the prediction net."""

    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        self.prediction = _PredictionNet(dims)


class Joint(nn.Module):
    """The joint net: linears of frames and predictions, ReLU of their sum, a linear to logits."""

    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        self.enc = nn.Linear(dims.d_model, dims.joint_hidden)
        self.pred = nn.Linear(dims.pred_hidden, dims.joint_hidden)
        # NeMo's sequence of ReLU, dropout and linear.
        outputs = dims.n_vocab + 1 + dims.n_durations
        self.joint_net = nn.ModuleDict({"2": nn.Linear(dims.joint_hidden, outputs)})

    def forward(self, frame: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return logits [B, V + 1 + D] f32 for `frame` and `predicted` [B, J], which went through the linears."""
        logits: torch.Tensor = self.joint_net["2"](F.relu(frame + predicted))
        return logits.float()


class Parakeet(nn.Module):
    """The parameters of the network; export/families/parakeet_tdt/graphs.py says what is computed with them."""

    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)
        self.joint = Joint(dims)
