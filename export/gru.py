"""A bidirectional GRU that is captured as one node, for any length.

torch.export runs aten.gru on fake tensors step by step, which turns a length that should stay open into the example's.
So modules call an operator of our own, whose fake is two shapes; ONNX translates it to its GRU, and in a program that
torch runs `lower_gru` puts aten.gru back in its place.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram


@torch.library.custom_op("atlasport::gru", mutates_args=())
def gru(x: torch.Tensor, h0: torch.Tensor, weights: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs [T, B, 2 H] and last states [2, B, H] of one layer that runs in both directions.

    Parameters
    ----------
    x : torch.Tensor
        [T, B, n].
    h0 : torch.Tensor
        [2, B, H]: first states, forward and backward.
    weights : list[torch.Tensor]
        weight_ih [3 H, n], weight_hh [3 H, H], bias_ih [3 H], bias_hh [3 H] as torch.nn.GRU orders them (gates r, z,
        n), first forward, then backward.

    """
    outputs, last = torch.gru(x, h0, weights, *_PLAIN)
    return outputs, last


@gru.register_fake
def _(x: torch.Tensor, h0: torch.Tensor, _weights: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], 2 * h0.shape[2]), torch.empty_like(h0)


# has_biases, num_layers, dropout, train, bidirectional, batch_first
_PLAIN = (True, 1, 0.0, False, True, False)


def lower_gru(program: ExportedProgram) -> None:
    """Replace our operator by aten.gru, so that the program runs where atlasport is not installed."""
    for node in program.graph.nodes:
        if node.target is torch.ops.atlasport.gru.default:
            node.target = torch.ops.aten.gru.input
            node.args = (*node.args, *_PLAIN)
    program.graph_module.recompile()
