"""The command line and the public Python API; docs/python.md shows it.

>>> import atlasport
>>> with atlasport.open("whisper-pocket") as model:  # doctest: +SKIP
...     print(model.transcribe("samples/short_en.wav", timestamps=True).text)
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from runtime.errors import (
    AtlasportError,
    DamagedArtifactError,
    DeviceFailedError,
    EnvironmentNotFitError,
    InputError,
    NoDeviceError,
)

if TYPE_CHECKING:
    from atlasport.model import Model
    from runtime.audio import Audio

__all__ = [
    "AtlasportError",
    "DamagedArtifactError",
    "DeviceFailedError",
    "EnvironmentNotFitError",
    "InputError",
    "NoDeviceError",
    "__version__",
    "open",
    "open_audio",
]

__version__ = version("atlasport")


def open(  # noqa: A001 - reads as atlasport.open(...), like gzip.open
    artifact: str | Path,
    *,
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    engine: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    capture: bool = False,
    deterministic: bool = False,
    root: str | Path = "artifacts",
) -> Model:
    """Open an artifact for recognition.

    Parameters
    ----------
    artifact : str or Path
        An artifact's folder, or a model's name.
    precision : str
        Of a model that is given by its name.
    engine : str, optional
        "onnxruntime", "torchscript" or "pt2"; by default the first that the artifact has and the device can run.
    device : str, optional
        "cpu", "cuda:0", "npu:0", ...; by default the CPU, on a box what the bundle is made for. On an NPU the graphs
        run in a process of their own.
    threads : int, optional
        CPU threads of the engine.
    capture : bool
        On cuda and npu, record each graph once and replay it.
    deterministic : bool
        Ask the device for the same bits each time.
    root : str or Path
        The folder in which models are found by their names, or of a box (`atlasport install --root`).

    Raises
    ------
    DeviceFailedError
        The device failed; later, transcribing raises it too. Open anew to go on.
    AtlasportError
        No such artifact, a damaged one, or an engine that cannot run here.

    """
    from atlasport.model import find_model, model_of
    from runtime.engines.base import EngineSettings
    from runtime.families import family_of, open_recognizer

    opened, made_for = find_model(str(artifact), Path(root), precision)
    settings = EngineSettings(capture, deterministic)
    recognizer = open_recognizer(opened, engine, device or made_for, threads, settings)
    return model_of(recognizer, family_of(opened))


def open_audio(
    recording: str | Path | bytes | IO[bytes] | Any,
    *,
    rate: int | None = None,
    name: str | None = None,
    accept_damaged: bool = False,
) -> Audio:
    """Open a recording: a path, bytes, a binary file object, or an array with its rate; see docs/audio.md.

    Parameters
    ----------
    recording : path, bytes, file object or array
        An array has shape [n] or [n, channels]; floats lie within -1 to 1, integers within the range of their type.
    rate : int, optional
        Sample rate of an array in Hz.
    name : str, optional
        Stands for what is no path in messages and results.
    accept_damaged : bool
        Read what is there of a damaged file; the result's `audio.remark` says what is missing.

    Raises
    ------
    InputError
        It is no recording, damaged, or its numbers are no samples.

    """
    from runtime import audio

    return audio.open_audio(recording, rate=rate, name=name, accept_damaged=accept_damaged)
