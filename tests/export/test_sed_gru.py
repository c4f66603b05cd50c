"""The GRU of linears and pointwise operators against torch's own layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from export.families.cnn8rnn.modules import BiGru


def gru_layers(dtype: torch.dtype, n_in: int, n_hidden: int) -> tuple[nn.GRU, BiGru]:
    """Return torch's layer and ours with the same parameters, large enough that gates saturate as trained ones do."""
    torch.manual_seed(1)
    layer = nn.GRU(n_in, n_hidden, bidirectional=True, dtype=dtype).requires_grad_(requires_grad=False)
    for parameter in layer.parameters():
        parameter.mul_(3)
    ours = BiGru(n_in, n_hidden).to(dtype).requires_grad_(requires_grad=False)
    both = {name: [getattr(layer, f"{name}_l0{side}") for side in ("", "_reverse")] for name in ours.state_dict()}
    ours.weight_ih.copy_(torch.cat(both["weight_ih"]))
    ours.bias_ih.copy_(torch.cat(both["bias_ih"]))
    ours.weight_hh.copy_(torch.stack([weight.T for weight in both["weight_hh"]]))
    ours.bias_hh.copy_(torch.stack(both["bias_hh"])[:, None])
    return layer, ours


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_gru_is_torch_s_own(dtype: torch.dtype, limit: float):
    """States and the last of them, at full width and lengths from one step on."""
    layer, ours = gru_layers(dtype, 512, 256)
    for length in (1, 2, 7, 50, 300):
        x = torch.relu(torch.randn(length, 512)).to(dtype)
        h0 = (torch.rand(2, 1, 256) * 2 - 1).to(dtype)
        expected, last = layer(x[:, None], h0)
        states, end = ours.states(ours.gates(x), h0)
        found = torch.cat([states[0], states[1].flip(0)], dim=1)
        assert float((found - expected[:, 0]).abs().max()) <= limit, length
        assert float((end - last).abs().max()) <= limit, length


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1]], ids=["reset and update", "update and new"])
def test_gates_in_another_order_show(order: list[int]):
    layer, ours = gru_layers(torch.float32, 5, 3)
    for name, axis in (("weight_ih", 0), ("bias_ih", 0), ("weight_hh", 2), ("bias_hh", 2)):
        parameter = getattr(ours, name)
        gates = parameter.unflatten(axis, (-1, 3, 3))  # directions, or none; gates; width
        parameter.copy_(gates.index_select(axis + 1, torch.tensor(order)).flatten(axis, axis + 2))
    x, h0 = torch.randn(7, 5), torch.rand(2, 1, 3) * 2 - 1
    states, _ = ours.states(ours.gates(x), h0)
    found = torch.cat([states[0], states[1].flip(0)], dim=1)
    assert float((found - layer(x[:, None], h0)[0][:, 0]).abs().max()) > 1e-2
