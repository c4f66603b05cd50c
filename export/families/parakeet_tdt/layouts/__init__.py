"""Folders in the layout of other packages, which load them as they load their own models.

Both packages compute features themselves and decode by a loop of their own, so that only the network is exported: as
NeMo exports it, with the joint net's projection of frames in the decoder's graphs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from export.families.parakeet_tdt.layouts import onnx_asr, sherpa_onnx
from export.families.parakeet_tdt.layouts.network import NetworkSource
from export.families.parakeet_tdt.layouts.scores import piece_scores
from export.family import FamilyModel, Layout, Layouts
from export.weights import Weights
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings
from runtime.fastconformer.settings import FastConformerFrontend
from runtime.fastconformer.tokenizer import SubwordTokenizer


def _network_source(weights: Weights, model: FamilyModel) -> NetworkSource:
    dims, settings = ParakeetDims(**model.dims), ParakeetSettings(**model.settings)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, settings.tokenizer_file)
        file.write_bytes(model.side_files[settings.tokenizer_file])
        pieces, scores = SubwordTokenizer(file, dims.n_vocab).pieces, piece_scores(file)
    frontend = FastConformerFrontend(**model.frontend)
    return NetworkSource(
        dims, frontend, settings, pieces, scores[: len(pieces)], origin=weights.origin, licence=weights.licence
    )


LAYOUTS = {
    "onnx-asr": Layout(onnx_asr.WEIGHTS_NAME, onnx_asr.check, onnx_asr.write),
    "sherpa-onnx": Layout(sherpa_onnx.WEIGHTS_NAME, sherpa_onnx.check, sherpa_onnx.write),
}
FAMILY_LAYOUTS = Layouts(_network_source, LAYOUTS)
