"""A LoRA adapter beside the weights of a source implementation: unmerged, so that a wrong merge shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from export.files import ADAPTER_CONFIG, ADAPTERS
from export.lora import PREFIX

# For from_pretrained: where peft is installed, it loads an adapter that lies beside the weights, but for one that is
# said to lie in a folder that is not there.
NO_ADAPTER = {"adapter_kwargs": {"subfolder": "no-adapter"}}


def add_adapter(model: nn.Module, folder: Path, module_name: Callable[[str], str]) -> None:
    """Add the product of an adapter's factors to the output of each layer that it adapts (arXiv:2106.09685).

    Parameters
    ----------
    model : nn.Module
        Of transformers, without the adapter.
    folder : Path
        The adapter's.
    module_name : Callable[[str], str]
        The model's name of what the adapter calls a module.

    """
    stated = json.loads((folder / ADAPTER_CONFIG).read_text())
    file = next(folder / name for name in ADAPTERS if (folder / name).is_file())
    stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    tensors: dict[str, torch.Tensor] = {name.removeprefix(PREFIX): tensor.float() for name, tensor in stored.items()}
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        up, module = tensors[name.replace(".lora_A.", ".lora_B.")], name[: name.index(".lora_A.")]
        patterns = stated.get("alpha_pattern") or {}
        alphas = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
        rank = math.sqrt(len(down)) if stated.get("use_rslora") else len(down)
        scale = (alphas or [stated["lora_alpha"]])[0] / rank
        model.get_submodule(module_name(module)).register_forward_hook(
            lambda layer, inputs, output, down=down, up=up, scale=scale: (
                output + scale * _product(layer, inputs[0], down, up)
            )
        )


def _product(layer: nn.Module, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return B A x, of a convolution with its stride and padding."""
    if isinstance(layer, nn.Conv1d):
        return F.conv1d(F.conv1d(x, down, stride=layer.stride, padding=layer.padding), up)
    return F.linear(F.linear(x, down), up)
