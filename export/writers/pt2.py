"""Writes graphs as exported programs without weights, one .pt2 file a graph.

torch's archive shares no weights between programs (2.13.0: `package_pt2` stores the tensors of each), so the decoder
would be stored once for every prefill length. Here the parameters in a program's state dict lie on the meta device and
are attached when it is loaded, from the artifact's weights.safetensors, where they have the same names:

    module = torch.export.load(file).module()
    module.load_state_dict({name: weights[name] for name in module.state_dict()}, assign=True)
    module.to(device)

The buffers are small constants and have their values in the file; they are not in the module's state dict. Inputs are
positional; the result is a tuple of tensors, or a tensor where the graph has one output.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from export.graphs import GraphDefinition, exported_programs
from export.unroll import unroll_program


def write_pt2(graphs: Mapping[str, GraphDefinition], folder: Path) -> dict[str, str]:
    """Write each graph as `<graph>.pt2`; the same graphs give the same bytes.

    Parameters
    ----------
    graphs : Mapping[str, GraphDefinition]
        By name; parameters may lie on the meta device.
    folder : Path
        Where the files go.

    Returns
    -------
    dict[str, str]
        Graph to file name.

    """
    files: dict[str, str] = {}
    for graph, program in exported_programs(graphs.values()):
        if graph.repeats > 1:
            unroll_program(program, graph)
        for name, buffer in graph.module.named_buffers():
            program.constants[name] = buffer
        files[graph.name] = f"{graph.name}.pt2"
        torch.export.save(program, folder / files[graph.name])
    return files
