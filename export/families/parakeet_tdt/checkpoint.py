"""A Parakeet-TDT checkpoint under the names of our modules."""

from __future__ import annotations

import re

import torch

from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.nemo_config import NemoConfig
from export.families.parakeet_tdt.transformers_folder import TransformersFolder
from export.fastconformer.checkpoint import FastConformerCheckpoint
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings

_LSTM_BIAS = re.compile(r"(?P<lstm>.*\.lstm)\.bias_l(?P<layer>\d+)")


class ParakeetCheckpoint(FastConformerCheckpoint):
    """A checkpoint's tensors; RandomParakeet has the same attributes. See FastConformerCheckpoint."""

    dims: ParakeetDims
    settings: ParakeetSettings
    config_type, folder_type, network = NemoConfig, TransformersFolder, Parakeet

    @property
    def n_layers(self) -> int:
        """Those of the encoder and of the prediction net."""
        return self.dims.n_layers + self.dims.pred_layers

    def stored_as(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the tensors that hold a parameter; torch gives an LSTM layer two biases."""
        if match := _LSTM_BIAS.fullmatch(name):
            return {f"{match['lstm']}.bias_{side}_l{match['layer']}": shape for side in ("ih", "hh")}
        return super().stored_as(name, shape)

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter, float32; the two biases of an LSTM layer are summed."""
        if match := _LSTM_BIAS.fullmatch(name):
            lstm, layer = match["lstm"], match["layer"]
            return self._float(f"{lstm}.bias_ih_l{layer}") + self._float(f"{lstm}.bias_hh_l{layer}")
        return super().read(name)
