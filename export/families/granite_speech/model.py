"""Granite Speech as the export pipeline sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from export.checkpoint import is_plain
from export.families.granite_speech.checkpoint import GraniteCheckpoint
from export.families.granite_speech.graphs import granite_graphs
from export.families.granite_speech.modules import Granite
from export.families.granite_speech.standin import RandomGranite
from export.family import FamilyModel
from export.golden import Clip, Golden
from export.graphs import GraphDefinition
from export.parity import SourceModel
from export.weights import Weights
from runtime.artifact import Artifact
from runtime.engines.base import Engine
from runtime.families.granite_speech.languages import HEARD
from runtime.families.granite_speech.settings import ENCODE_PROJECT, GraniteDims


class GraniteModel(FamilyModel):
    """A Granite Speech checkpoint, or random weights."""

    encoders = frozenset({ENCODE_PROJECT})
    logits = frozenset({"logits", "ctc_logits"})

    def __init__(self, weights: Weights) -> None:
        self._folder, self._adapter = weights.path, weights.adapter
        made: GraniteCheckpoint | RandomGranite
        if weights.path is None:
            made = RandomGranite(GraniteDims(**weights.sizes))
        else:
            made = GraniteCheckpoint(
                weights.path, tokenizer=weights.tokenizer, adapter=weights.adapter, whole=weights.revision is not None
            )
        self._checkpoint, settings = made, made.settings
        super().__init__(
            weights,
            made,
            side_files={settings.tokenizer_file: made.tokenizer_json},
            taken=(
                f"tokenizer of {made.dims.n_vocab} tokens; hears {', '.join(HEARD)}",
                f"prompt template begins {settings.prompt_prefix!r:.60}",
            ),
            languages=frozenset(HEARD),
        )

    def network(self, dtype: torch.dtype) -> Granite:
        """Return the network; see FamilyModel."""
        return Granite(self._checkpoint.dims, self._checkpoint.settings.scales).to(dtype)

    def graphs_of(self, network: Granite, dtype: torch.dtype) -> dict[str, GraphDefinition]:
        """Return encode_project, embed, prefill and decode; see export/families/granite_speech/graphs.py."""
        return granite_graphs(network, self._checkpoint.dims, self._checkpoint.settings, dtype)

    def golden(self, artifact: Artifact, engine: Engine, clips: Sequence[Clip]) -> Golden:
        """Return the cases of export/families/granite_speech/cases.py."""
        from export.families.granite_speech.cases import granite_golden

        return granite_golden(artifact, engine, clips, trained=self.seed is None)

    def source(self, weights: Path) -> SourceModel:
        """Return transformers' Granite Speech."""
        from export.families.granite_speech.source import TransformersGranite

        # What transformers does not read itself is given to its network.
        folder = self._folder if self._folder is not None and is_plain(self._folder) else None
        return TransformersGranite(folder, weights, self._checkpoint, adapter=self._adapter)
