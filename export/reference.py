"""An artifact's graphs as its checkpoint has them, for a search of where others leave them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from export.pipeline import WEIGHTS_NAME
from export.source_check import Checkpoint
from export.writers.onnx import write_onnx
from export.writers.weights import write_weights
from runtime.artifact import Artifact, open_artifact
from runtime.disk import disk_errors
from runtime.manifest import FileEntry


@contextmanager
def reference_graphs(
    folder: Path, checkpoint: Checkpoint, progress: Callable[[str], None] = lambda _stage: None
) -> Iterator[Artifact]:
    """Yield an artifact with ONNX graphs in fp32, made of a checkpoint anew, in a temporary folder.

    Raises
    ------
    InputError
        No artifact, no checkpoint, or one of another family.
    EnvironmentNotFitError
        The checkpoint cannot be fetched, or there is no room for its weights.

    """
    artifact = open_artifact(folder)
    model = checkpoint.open(artifact.content.model, artifact.content.family)
    temporary = Path(tempfile.gettempdir())
    with disk_errors(temporary, "set TMPDIR"), tempfile.TemporaryDirectory(prefix="atlasport-") as made:
        progress("reference graphs")
        weights = Path(made, WEIGHTS_NAME)
        write_weights(model, torch.float32, weights)
        graphs = model.graphs(torch.float32, None)
        files = write_onnx(graphs, weights, Path(made))
        entry = FileEntry(size=0, sha256="0" * 64)
        content = artifact.content.model_copy(
            update={
                "variant": "fp32",
                "files": dict.fromkeys((WEIGHTS_NAME, *files.values()), entry),
                "graphs": {name: graph.signature({"onnx": files[name]}) for name, graph in graphs.items()},
            }
        )
        yield replace(
            artifact, path=Path(made), manifest=artifact.manifest.model_copy(update={"content": content}), identity=None
        )
