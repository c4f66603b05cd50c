"""A LoRA adapter (Hu et al. 2021, arXiv:2106.09685) as peft stores it, merged into the weights as they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import SafetensorsCheckpoint, TorchCheckpoint, read_json
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_LINEAR = 2
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
# Options of peft that change what an adapter computes, and the values that mean that they are not used.
_UNUSED: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}


class LoraAdapter:
    """What an adapter's files add to a network's linears.

    Parameters
    ----------
    folder : Path
        Holds adapter_config.json and adapter_model.safetensors.
    graph_name : Callable[[str], str]
        Our name of a tensor that the checkpoint calls by another.
    tensors : Mapping[str, TensorInfo]
        The network's tensors under our names.

    Attributes
    ----------
    files : tuple[Path, ...]
        What was read.
    adapted : frozenset[str]
        Our names of the weights that it changes.

    Raises
    ------
    InputError
        No adapter, one of another network, or one with options that are not supported; names the option.

    """

    def __init__(self, folder: Path, graph_name: Callable[[str], str], tensors: Mapping[str, TensorInfo]) -> None:
        self._path = folder / CONFIG
        config = read_json(self._path)
        self._check(config)
        self._config = config
        path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if path is None:
            raise InputError(f"{self._path}: expected {' or '.join(WEIGHTS)} beside it, found neither; get both files")
        self._weights = (SafetensorsCheckpoint if path.suffix == ".safetensors" else TorchCheckpoint)((path,))
        self.files = (self._path, *self._weights.files)
        # Our name of a weight to the adapter's names of its factors A and B.
        self._factors: dict[str, dict[str, str]] = {}
        for stored in self._weights.tensors:
            self._sort(stored, graph_name)
        self._check_tensors(tensors)
        self.adapted = frozenset(self._factors)

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight with the adapter merged: W + alpha / r * B A in float32; others as they are."""
        if name not in self._factors:
            return weight
        a, b = (self._weights.read(self._factors[name][factor]).float() for factor in "AB")
        return weight.float() + self._scale(name, a.shape[0]) * (b @ a)

    def _sort(self, stored: str, graph_name: Callable[[str], str]) -> None:
        match = _FACTOR.fullmatch(stored.removeprefix(_PREFIX))
        if not match:
            raise InputError(
                f"{self._weights.files[0]}: {stored}: expected lora_A or lora_B of a linear; not supported"
            )
        self._factors.setdefault(graph_name(f"{match['module']}.weight"), {})[match["factor"]] = stored

    def _check(self, config: Mapping[str, Any]) -> None:
        if config.get("peft_type") != "LORA":
            raise self._refused("peft_type", config.get("peft_type"), "'LORA'")
        for key, unused in _UNUSED.items():
            if config.get(key, unused[0]) not in unused:
                raise self._refused(key, config[key], repr(unused[0]))
        for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            stated = config.get(patterns) or {}
            for value in (config.get(key), *(stated.values() if isinstance(stated, dict) else (stated,))):
                if type(value) not in (int, float) or not 0 < value < math.inf:
                    raise self._refused(key, value, "a number above 0")

    def _check_tensors(self, tensors: Mapping[str, TensorInfo]) -> None:
        path = self._weights.files[0]
        if not self._factors:
            raise InputError(f"{path}: expected lora_A and lora_B tensors, found none; get the adapter again")
        unknown = [name for name in self._factors if name not in tensors or len(tensors[name].shape) != _LINEAR]
        if unknown:
            raise InputError(
                f"{path}: adapts {unknown[0]}, which is no linear of the network; the adapter is of another model"
            )
        for name, factors in self._factors.items():
            if set(factors) != {"A", "B"}:
                raise InputError(f"{path}: {name}: expected lora_A and lora_B for a linear, found {sorted(factors)}")
            a, b = (self._weights.tensors[factors[factor]].shape for factor in "AB")
            rank = self._stated("r", "rank_pattern", name)
            n_out, n_in = tensors[name].shape
            if (a, b) != ((rank, n_in), (n_out, rank)):
                raise self._misshapen(name, (a, b), ((rank, n_in), (n_out, rank)))

    def _scale(self, name: str, rank: int) -> float:
        alpha = float(self._stated("lora_alpha", "alpha_pattern", name))
        # Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732).
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    def _stated(self, key: str, patterns: str, name: str) -> Any:
        """Return a setting of one module: that of the first pattern that its name ends with, as peft has it."""
        module = name.removesuffix(".weight")
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self._config[key]

    def _misshapen(self, name: str, found: object, expected: object) -> InputError:
        return InputError(
            f"{self._weights.files[0]}: {name}: expected shapes {expected}, found {found}; it is of another model"
        )

    def _refused(self, key: str, found: object, supported: str) -> InputError:
        return InputError(f"{self._path}: {key}: found {found!r:.80}, supported is {supported}; give another adapter")
