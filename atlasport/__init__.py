"""The command line and the public Python API.

>>> import atlasport
>>> recognizer = atlasport.open("whisper-pocket")  # doctest: +SKIP
>>> audio = atlasport.open_audio("samples/short_en.wav")  # doctest: +SKIP
>>> recognizer.recognize(audio, recognizer.options(timestamps=True)).text  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.audio import Audio
    from runtime.family import Recognizer

__all__ = ["open", "open_audio"]


def open(  # noqa: A001 - reads as atlasport.open(...), like gzip.open
    artifact: str | Path,
    *,
    engine: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    capture: bool = False,
    deterministic: bool = False,
) -> Recognizer[Any, Any]:
    """Open an artifact for recognition; `options` of what it returns makes those that the model's family has.

    Parameters
    ----------
    artifact : str or Path
        An artifact's folder, or a model's name (its fp32 variant under artifacts/).
    engine : str, optional
        "onnxruntime", "torchscript" or "pt2"; by default the first that the artifact has and the device can run.
    device : str
        "cpu", "cuda:0", "npu:0", ... On an NPU the graphs run in a process of their own.
    threads : int, optional
        CPU threads of the engine.
    capture : bool
        On cuda and npu, record each graph once and replay it.
    deterministic : bool
        Ask the device for the same bits each time.

    Raises
    ------
    runtime.errors.DeviceFailedError
        The device failed; later, transcribing raises it too. Open anew to go on.
    runtime.errors.AtlasportError
        No such artifact, a damaged one, or an engine that cannot run here.

    """
    from runtime.artifact import find_artifact, open_artifact
    from runtime.engines.base import EngineSettings
    from runtime.families import open_recognizer

    opened = open_artifact(find_artifact(str(artifact), Path("artifacts")))
    return open_recognizer(opened, engine, device, threads, EngineSettings(capture, deterministic))


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
    runtime.errors.InputError
        It is no recording, damaged, or its numbers are no samples.

    """
    from runtime import audio

    return audio.open_audio(recording, rate=rate, name=name, accept_damaged=accept_damaged)
