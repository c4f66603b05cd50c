"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")
# Holds the passphrase of a private key where nobody can be asked.
KEY_VARIABLE = "ATLASPORT_KEY_PASSPHRASE"


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
CaptureOption = Annotated[
    bool, typer.Option("--capture", help="On cuda and npu: record each graph once and replay it; checked first.")
]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="Ask the device for the same bits each time.")
]
RestartOption = Annotated[
    bool, typer.Option("--restart", help="After a failure of the device try once more, in a fresh process.")
]
AcceptDamagedOption = Annotated[
    bool, typer.Option("--accept-damaged", help="Read what is there of a damaged recording; the result says so.")
]
RootOption = Annotated[Path, typer.Option("--root", help="Folder of the artifacts.")]


def artifact_folders(names: list[str], root: Path) -> list[Path]:
    """Return the folders of the artifacts that a user named, with all variants of a model; without names every one.

    Raises
    ------
    InputError
        There is no such artifact, or none at all.

    """
    from runtime.artifact import artifacts_in, find_artifact
    from runtime.errors import InputError

    there = artifacts_in(root)
    if not names and not there:
        raise InputError(f"{root} holds no artifact; `atlasport export MODEL` writes one")
    folders = there if not names else []
    for name in names:
        variants = [folder for folder in there if folder.parent == root / name]
        folders += variants or [find_artifact(name, root)]
    return folders
