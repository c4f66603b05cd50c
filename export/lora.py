"""A LoRA adapter (Hu et al. 2021, arXiv:2106.09685) as peft stores it, merged into the weights as they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import Checkpoint, SafetensorsCheckpoint, TorchCheckpoint
from export.files import ADAPTER_CONFIG, ADAPTERS
from export.json_files import read_json
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError

PREFIX = "base_model.model."
_MERGE = "merge it with peft (merge_and_unload, save_pretrained), where peft can, and give that folder"
_MATRIX = 2
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight")
# What an adapter may hold beside the factors of linears and convolutions.
_OTHERS = {
    "lora_embedding_": "an adapter of an embedding",
    "lora_magnitude_vector": "DoRA",
    "modules_to_save": "a whole module (modules_to_save)",
    "base_layer": "a layer of the base (save_embedding_layers)",
}
# Initialisations that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) change its weights, so that
# the adapter fits no other base than the changed one.
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "eva", "mica", "orthogonal")
# Where the adapter sits, which its tensors say as well, and what only training reads.
_IRRELEVANT = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core peft_version "
    "qalora_group_size revision target_modules task_type"
)
_READ = "alpha_pattern bias init_lora_weights lora_alpha peft_type r rank_pattern use_rslora"


@dataclass
class _Factors:
    """One adapted module: its name in the adapter, and the adapter's names of its factors A and B."""

    module: str
    names: dict[str, str] = field(default_factory=dict)


class AdaptedCheckpoint:
    """A checkpoint with an adapter's changes: W + alpha / r * B A, in float32.

    Parameters
    ----------
    base : Checkpoint
        The weights that the adapter belongs to.
    folder : Path
        Holds adapter_config.json and adapter_model.safetensors or .bin.
    graph_name : Callable[[str], str]
        One name for a tensor of the base and for what the adapter calls it, which may be of another layout.
    tied : Collection[str]
        What `graph_name` calls weights that are one. An adapter of one of them would untie them; it is refused.

    Attributes
    ----------
    tensors, files
        As of a Checkpoint, the adapter's files included.

    Raises
    ------
    InputError
        No adapter, one of another network, or one with options that are not supported; names the option.

    """

    def __init__(
        self, base: Checkpoint, folder: Path, graph_name: Callable[[str], str], tied: Collection[str] = ()
    ) -> None:
        self._base, self._path = base, folder / ADAPTER_CONFIG
        self._config = read_json(self._path)
        self._check_config()
        path = next((folder / name for name in ADAPTERS if (folder / name).is_file()), None)
        if path is None:
            raise InputError(f"{self._path}: expected {' or '.join(ADAPTERS)} beside it, found neither; get both files")
        self._adapter = (SafetensorsCheckpoint if path.suffix == ".safetensors" else TorchCheckpoint)((path,))
        self.files = tuple(dict.fromkeys((*base.files, self._path, *self._adapter.files)))
        self._check_kinds(graph_name, tied)
        stored = {graph_name(name): name for name in base.tensors}
        # By the base's name of a weight.
        self._factors: dict[str, _Factors] = {}
        for name in self._adapter.tensors:
            self._sort(name, stored, graph_name)
        self._check_factors()
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(torch.float32, info.shape) if name in self._factors else info
            for name, info in base.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, by the base's name for it."""
        weight = self._base.read(name)
        if name not in self._factors:
            return weight
        a, b = (self._adapter.read(self._factors[name].names[factor]).float().flatten(1) for factor in "AB")
        return weight.float() + self._scale(name) * (b @ a).view(weight.shape)

    def _sort(self, name: str, stored: Mapping[str, str], graph_name: Callable[[str], str]) -> None:
        """Add one of the adapter's tensors to the factors of the weight that it changes."""
        path = self._adapter.files[0]
        match = _FACTOR.fullmatch(name.removeprefix(PREFIX))
        if not match:
            raise InputError(f"{path}: {name}: expected lora_A or lora_B of a linear or convolution; {_MERGE}")
        ours = graph_name(f"{match['module']}.weight")
        if ours not in stored or len(self._base.tensors[stored[ours]].shape) < _MATRIX:
            raise InputError(
                f"{path}: adapts {ours}, which is no linear or convolution of the network; the adapter is of another "
                "model"
            )
        factors = self._factors.setdefault(stored[ours], _Factors(match["module"])).names
        if match["factor"] in factors:
            raise InputError(
                f"{path}: holds {factors[match['factor']]} and {name}, which are one; get the adapter again"
            )
        factors[match["factor"]] = name

    def _check_kinds(self, graph_name: Callable[[str], str], tied: Collection[str]) -> None:
        """Refuse adapters of weights that are tied, and of others than linears and convolutions."""
        path = self._adapter.files[0]
        for name in self._adapter.tensors:
            match = _FACTOR.fullmatch(name.removeprefix(PREFIX))
            ours = graph_name(f"{match['module']}.weight") if match else None
            if ours in tied:
                other = " and ".join(sorted({*tied} - {ours}))
                raise InputError(
                    f"{path}: adapts {ours}, which is tied to {other}: merged, it would change both or untie them; not "
                    "supported, give another adapter"
                )
        for part, kind in _OTHERS.items():
            name = next((name for name in self._adapter.tensors if part in name), "")
            if name:
                raise InputError(f"{path}: {name}: {kind}, which is not supported; {_MERGE}")

    def _check_config(self) -> None:
        config = self._config
        if config.get("peft_type") != "LORA":
            raise self._refused("peft_type", config.get("peft_type"), "'LORA'")
        if config.get("bias", "none") != "none":
            raise self._refused("bias", config["bias"], "'none'")
        if config.get("init_lora_weights") not in _PLAIN_INITIALISATIONS:
            raise self._refused("init_lora_weights", config["init_lora_weights"], "one that leaves the base as it is")
        # What an option does that is not known here, nobody can say; unused it is false, null or empty.
        for key in sorted(config.keys() - {*_READ.split(), *_IRRELEVANT.split()}):
            if config[key]:
                raise self._refused(key, config[key], "an adapter without it")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            stated = self._config.get(patterns) or {}
            if not isinstance(stated, dict):
                raise self._refused(patterns, stated, "numbers by pattern")
            for value in (self._config.get(key), *stated.values()):
                if type(value) not in (int, float) or not 0 < value < math.inf:
                    raise self._refused(key, value, "a number above 0")
            unread = next((pattern for pattern in stated if not _is_pattern(pattern)), None)
            if unread is not None:
                raise self._refused(patterns, unread, "a regular expression")

    def _check_factors(self) -> None:
        path = self._adapter.files[0]
        if not self._factors:
            raise InputError(f"{path}: expected lora_A and lora_B tensors, found none; get the adapter again")
        for name, factors in self._factors.items():
            if set(factors.names) != {"A", "B"}:
                raise InputError(f"{path}: {name}: expected lora_A and lora_B, found {sorted(factors.names)}")
            infos = [self._adapter.tensors[factors.names[factor]] for factor in "AB"]
            if not all(info.dtype.is_floating_point and info.length for info in infos):
                raise InputError(
                    f"{path}: {name}: expected factors of floating point numbers, found {infos[0].dtype} "
                    f"{infos[0].shape} and {infos[1].dtype} {infos[1].shape}; DeepSpeed's ZeRO-3 leaves out what it "
                    "has not gathered: save the adapter again"
                )
            found = tuple(info.shape for info in infos)
            rank = self._stated("r", "rank_pattern", name)
            n_out, *inputs = self._base.tensors[name].shape
            # B of a convolution has a kernel of one.
            expected = ((rank, *inputs), (n_out, rank, *(1 for _ in inputs[1:])))
            if found != expected:
                raise InputError(
                    f"{path}: {name}: expected shapes {expected}, found {found}; it is of another model, or of a "
                    "convolution in groups, which is not supported"
                )

    def _scale(self, name: str) -> float:
        alpha, rank = (self._stated(*keys, name) for keys in (("lora_alpha", "alpha_pattern"), ("r", "rank_pattern")))
        # Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732).
        return float(alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank))

    def _stated(self, key: str, patterns: str, name: str) -> Any:
        """Return a setting of one module: that of the first pattern that its name ends with, as peft has it."""
        module = self._factors[name].module
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self._config[key]

    def _refused(self, key: str, found: object, supported: str) -> InputError:
        return InputError(f"{self._path}: {key}: found {found!r:.80}, supported is {supported}; {_MERGE}")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
