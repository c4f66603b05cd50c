"""The models that atlasport knows by name. Imports nothing heavy: the command line lists them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runtime.errors import InputError

REPOSITORY_ROOT = Path(__file__).resolve().parents[1]
# In samples/: real speech.
DEFAULT_RECORDINGS = ("jfk.flac",)


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    `repo` and `revision` name the weights on the hub (revision None: its main branch); `path`, relative to the
    repository's root, is a folder or file with weights that ship with atlasport; with neither there are random weights
    only. `licence` is that of the weights. `parameters` counts the network's weights. `dims` describes the network for
    WEIGHTS=random; the family reads it. `recordings` are files of samples/ whose transcripts become part of the
    artifact. `languages` are those that it writes as they are spoken, where the checkpoint does not say.
    """

    name: str
    repo: str | None
    licence: str
    parameters: int
    dims: Mapping[str, int]
    family: str
    task: str
    revision: str | None = None
    path: str | None = None
    recordings: tuple[str, ...] = DEFAULT_RECORDINGS
    languages: frozenset[str] | None = None


def _whisper_dims(
    width: int, heads: int, layers: tuple[int, int], *, n_mels: int, n_vocab: int, ctx: tuple[int, int] = (1500, 448)
) -> dict[str, int]:
    """Return WhisperDims as a dict; `layers` and `ctx` are those of the encoder and the decoder."""
    sides = (("audio", layers[0], ctx[0]), ("text", layers[1], ctx[1]))
    dims = {"n_mels": n_mels, "n_vocab": n_vocab}
    for side, n_layer, n_ctx in sides:
        dims |= {
            f"n_{side}_ctx": n_ctx,
            f"n_{side}_state": width,
            f"n_{side}_head": heads,
            f"n_{side}_layer": n_layer,
            f"n_{side}_ffn": 4 * width,
        }
    return dims


# OpenAI's multilingual models: 80 mels and 99 languages; from large-v3 on 128 mels and 100 languages.
_V1 = partial(_whisper_dims, n_mels=80, n_vocab=51865)
_V3 = partial(_whisper_dims, n_mels=128, n_vocab=51866)
_DISTIL = _V3(1280, 20, (32, 2))
_POCKET = _whisper_dims(128, 4, (3, 2), n_mels=80, n_vocab=952, ctx=(300, 96))
_POCKET_FOLDER = "pocket/whisper-pocket"
_POCKET_CLIPS = ("short_en.wav", "long_en.wav", "short_de.wav", "short_es.wav", "nospeech.wav")

_SOUND_CLIPS = ("sed_1.flac", "sed_2.flac", "sed_3.flac")


def _cnn8rnn_dims(channels: tuple[int, int, int, int], n_fc: int, n_hidden: int, n_classes: int) -> dict[str, int]:
    """Return Cnn8RnnDims as a dict."""
    blocks = {f"n_channels_{index}": count for index, count in enumerate(channels, 1)}
    return {"n_mels": 64, **blocks, "n_fc": n_fc, "n_hidden": n_hidden, "n_classes": n_classes}


_AUDIOSET = _cnn8rnn_dims((64, 128, 256, 512), 512, 256, 447)
_SED_POCKET = _cnn8rnn_dims((8, 16, 32, 64), 64, 32, 8)

_PARAKEET_CLIPS = ("short_en_2.wav", "short_en_3.wav", "joined_en.wav")


def _parakeet_dims(
    encoder: tuple[int, int, int, int], prediction: tuple[int, int], joint: int, n_vocab: int
) -> dict[str, int]:
    """Return ParakeetDims as a dict.

    `encoder` has layers, width, heads and subsampling channels; `prediction` layers and width.
    """
    n_layers, width, heads, channels = encoder
    return {
        "n_mels": 128,
        "n_layers": n_layers,
        "d_model": width,
        "n_heads": heads,
        "d_ff": 4 * width,
        "conv_kernel": 9,
        "subsampling_factor": 8,
        "subsampling_channels": channels,
        "use_bias": 0,
        "xscaling": 0,
        "pred_hidden": prediction[1],
        "pred_layers": prediction[0],
        "joint_hidden": joint,
        "n_vocab": n_vocab,
        "n_durations": 5,
    }


_TDT_0_6B = partial(_parakeet_dims, (24, 1024, 8, 256), (2, 640), 640)
_PARAKEET_POCKET = _parakeet_dims((4, 112, 4, 32), (2, 96), 128, 192)


def _granite_dims(
    encoder: tuple[int, int, int, int],
    projector: tuple[int, int, int],
    decoder: tuple[int, int, int, int, int],
    *,
    n_ctc: int,
    n_vocab: int,
    tied: int = 0,
    n_ctx: int = 4096,
) -> dict[str, int]:
    """Return GraniteDims as a dict.

    `encoder` has layers, width, heads and the largest distance; `projector` layers, width and heads; `decoder` layers,
    width, feed-forward width, heads and key-value heads.
    """
    enc_layers, enc_dim, enc_heads, enc_max_pos = encoder
    proj_layers, proj_dim, proj_heads = projector
    lm_layers, lm_dim, lm_ffn, lm_heads, lm_kv_heads = decoder
    return {
        "n_mels": 80,
        "enc_layers": enc_layers,
        "enc_dim": enc_dim,
        "enc_heads": enc_heads,
        "enc_head_dim": enc_dim // enc_heads,
        "enc_ffn": 4 * enc_dim,
        "enc_conv_dim": 2 * enc_dim,
        "enc_conv_kernel": 15,
        "enc_context": 200,
        "enc_max_pos": enc_max_pos,
        "n_ctc": n_ctc,
        "proj_layers": proj_layers,
        "proj_dim": proj_dim,
        "proj_heads": proj_heads,
        "proj_ffn": 4 * proj_dim,
        "window": 15,
        "downsample": 5,
        "lm_layers": lm_layers,
        "lm_dim": lm_dim,
        "lm_heads": lm_heads,
        "lm_kv_heads": lm_kv_heads,
        "lm_ffn": lm_ffn,
        "n_vocab": n_vocab,
        "n_ctx": n_ctx,
        "tied": tied,
    }


_GRANITE = partial(_granite_dims, (16, 1024, 8, 512), (2, 1024, 16))
_GRANITE_4 = _GRANITE((40, 2048, 4096, 16, 4), n_ctc=348, n_vocab=100353)
_GRANITE_3_3 = _GRANITE((40, 2048, 8192, 32, 8), n_ctc=256, n_vocab=49160, tied=1, n_ctx=131072)
_GRANITE_POCKET = _granite_dims((3, 96, 4, 256), (2, 96, 4), (3, 128, 256, 8, 2), n_ctc=256, n_vocab=1024)

_Granite = partial(ModelEntry, family="granite_speech", task="automatic-speech-recognition")
_Parakeet = partial(ModelEntry, family="parakeet_tdt", task="automatic-speech-recognition")
_Cnn8Rnn = partial(ModelEntry, family="cnn8rnn", task="sound-event-detection")
_Whisper = partial(ModelEntry, family="whisper", task="automatic-speech-recognition")
# Licences as the hub's model cards state them.
_ENTRIES = (
    _Whisper("whisper-tiny", "openai/whisper-tiny", "apache-2.0", 37_760_640, _V1(384, 6, (4, 4))),
    _Whisper("whisper-base", "openai/whisper-base", "apache-2.0", 72_593_920, _V1(512, 8, (6, 6))),
    _Whisper("whisper-small", "openai/whisper-small", "apache-2.0", 241_734_912, _V1(768, 12, (12, 12))),
    _Whisper("whisper-medium", "openai/whisper-medium", "apache-2.0", 763_857_920, _V1(1024, 16, (24, 24))),
    _Whisper("whisper-large-v3", "openai/whisper-large-v3", "apache-2.0", 1_543_490_560, _V3(1280, 20, (32, 32))),
    _Whisper("whisper-large-v3-turbo", "openai/whisper-large-v3-turbo", "mit", 808_878_080, _V3(1280, 20, (32, 4))),
    _Whisper("kotoba-whisper-v2.0", "kotoba-tech/kotoba-whisper-v2.0", "apache-2.0", 756_405_760, _DISTIL),
    _Whisper("distil-large-v3", "distil-whisper/distil-large-v3", "mit", 756_405_760, _DISTIL),
    _Whisper("whisper-pocket", None, "apache-2.0", 1_376_256, _POCKET, path=_POCKET_FOLDER, recordings=_POCKET_CLIPS),
    _Parakeet("parakeet-tdt-0.6b-v2", "nvidia/parakeet-tdt-0.6b-v2", "cc-by-4.0", 617_825_926, _TDT_0_6B(1024)),
    _Parakeet("parakeet-tdt-0.6b-v3", "nvidia/parakeet-tdt-0.6b-v3", "cc-by-4.0", 627_008_134, _TDT_0_6B(8192)),
    _Parakeet(
        "parakeet-pocket",
        None,
        "apache-2.0",
        1_494_998,
        _PARAKEET_POCKET,
        path="pocket/parakeet-pocket.nemo",
        recordings=_PARAKEET_CLIPS,
    ),
    _Granite("granite-speech-4.1-2b", "ibm-granite/granite-speech-4.1-2b", "apache-2.0", 2_313_141_596, _GRANITE_4),
    _Granite("granite-4.0-1b-speech", "ibm-granite/granite-4.0-1b-speech", "apache-2.0", 2_313_141_596, _GRANITE_4),
    _Granite("granite-speech-3.3-2b", "ibm-granite/granite-speech-3.3-2b", "apache-2.0", 3_009_219_840, _GRANITE_3_3),
    # A small topology for tests and trials; it has no trained weights.
    _Granite("granite-pocket", None, "apache-2.0", 1_830_312, _GRANITE_POCKET),
    _Cnn8Rnn("cnn8rnn-audioset-sed", "wsntxxn/cnn8rnn-audioset-sed", "apache-2.0", 6_360_959, _AUDIOSET),
    _Cnn8Rnn("sed-pocket", None, "apache-2.0", 97_328, _SED_POCKET, path="pocket/sed-pocket", recordings=_SOUND_CLIPS),
)
MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_model(name: str) -> ModelEntry:
    """Return the entry of a model.

    Raises
    ------
    InputError
        No model has this name; the message holds near matches and the list.

    """
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"unknown model {name!r}; {hint}known models: {', '.join(MODELS)}; "
        "for another checkpoint of a known family give WEIGHTS=folder, WEIGHTS=file.nemo or WEIGHTS=owner/repository"
    )
