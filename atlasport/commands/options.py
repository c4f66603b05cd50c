"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")


class Precision(str, Enum):
    """Variants of an artifact."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class EngineName(str, Enum):
    """What runs a graph."""

    ONNXRUNTIME = "onnxruntime"
    TORCHSCRIPT = "torchscript"
    PT2 = "pt2"


PrecisionOption = Annotated[Precision, typer.Option(help="Variant of the artifact.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda:N or npu:N.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the engine; default: all cores.")]
RootOption = Annotated[Path, typer.Option("--root", help="Folder of the artifacts.")]
