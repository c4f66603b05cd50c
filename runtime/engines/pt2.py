"""Exported programs (.pt2), whose parameters lie in the artifact's weights.safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from safetensors import safe_open

from runtime.engines.torch import TorchEngine, opening

WEIGHTS = "weights.safetensors"


class ExportedProgramEngine(TorchEngine):
    """Runs exported programs, one file a graph; all graphs share one copy of the weights.

    A program comes without values of its parameters, which have the names of weights.safetensors (see
    export/writers/pt2.py). On the CPU they are the file's mapped pages.
    """

    name = "pt2"

    def _load(self, graph: str, device: str) -> Callable[..., Any]:
        path = self._artifact.file(self._artifact.content.graphs[graph].files["pt2"])
        with opening(path, device):
            module = torch.export.load(path).module()
            names = list(module.state_dict())
            shared = self._shared.setdefault(device, {})
            shared |= self._read((name for name in names if name not in shared), device)
            module.load_state_dict({name: shared[name] for name in names}, assign=True)
            return module.to(device)

    def _operators(self, graph: str) -> list[torch.FunctionSchema]:
        module: Any = self._functions[graph]
        targets = (node.target for node in module.graph.nodes if node.op == "call_function")
        return [target._schema for target in targets if str(target).startswith("aten.")]  # noqa: SLF001 - no other way

    def _read(self, names: Iterable[str], device: str) -> dict[str, torch.Tensor]:
        with safe_open(self._artifact.file(WEIGHTS), framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in names}
