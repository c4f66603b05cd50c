"""Reads a Whisper folder of CTranslate2 (faster-whisper): model.bin, config.json, vocabulary and tokenizer.

model.bin is written by CTranslate2's python/ctranslate2/specs/model_spec.py: version, name and revision of the
specification, the variables, each with its name, shape, dtype and data, then pairs of an alias and what it stands for.
Numbers are little-endian; strings end in a zero byte that their length counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tokenizers import Tokenizer

from export.checkpoint import check_tensors, read_stored
from export.families.whisper.alignment import stated_heads
from export.families.whisper.checkpoint import parameter_shapes, whisper_frontend
from export.families.whisper.generation import whisper_settings
from export.families.whisper.openai_vocabulary import MAX_INITIAL_TIMESTAMP_INDEX
from export.families.whisper.tokenizer import GPT2_TOKENS, read_tokenizer, tokenizer_files
from export.json_files import read_json
from export.safetensors_writer import StoredTensor, TensorInfo
from runtime.errors import InputError
from runtime.families.whisper.settings import WhisperDims, WhisperSettings

MODEL_FILE = "model.bin"
_CONFIG = "config.json"
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
_FRONTENDS = ("preprocessor_config.json", "processor_config.json")
_SPECIFICATION = "WhisperSpec"
# Version 6 has config.json beside it, its file is that of version 5. Whisper's revisions differ in an enumeration.
_VERSIONS, _REVISIONS = (5, 6), (1, 2, 3)
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
# whisper-large has 1,070.
_MOST_VARIABLES = 4096
_HEAD_DIM = 64
_EMBEDDING, _PROJECTION = "decoder/embeddings/weight", "decoder/projection/weight"
_GELU = {1: 1, 2: 1, 3: 3}
# Scalars that another value of would make another network, and those that say nothing of it.
_PLAIN = {
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "decoder/embeddings/multiply_by_sqrt_depth": 0,
}
_ACTIVATION = "decoder/activation"
_HEADS = {side: f"{side}/num_heads" for side in ("encoder", "decoder")}
_UNUSED = {
    "decoder/alignment_heads",
    "decoder/alignment_layer",
    "decoder/alibi_use_positive_positions",
    "decoder/scale_alibi",
}
_VARIABLE = re.compile(r"(?P<side>encoder|decoder)/(?:layer_(?P<layer>\d+)/)?(?P<module>.+)/(?P<kind>\w+)")
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
_SELF, _CROSS = "self_attn", "encoder_attn"
# CTranslate2's modules to ours; linears of one input are one there, their outputs one after the other.
_MODULES: dict[str, tuple[str, ...]] = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "position_encodings": ("embed_positions",),
    "embeddings": ("embed_tokens",),
    "layer_norm": ("layer_norm",),
}
_LAYER_MODULES: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": (f"{_SELF}_layer_norm",),
    "self_attention/linear_0": tuple(f"{_SELF}.{kind}_proj" for kind in "qkv"),
    "self_attention/linear_1": (f"{_SELF}.out_proj",),
    "attention/layer_norm": (f"{_CROSS}_layer_norm",),
    "attention/linear_0": (f"{_CROSS}.q_proj",),
    "attention/linear_1": tuple(f"{_CROSS}.{kind}_proj" for kind in "kv"),
    "attention/linear_2": (f"{_CROSS}.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def is_ctranslate2(folder: Path) -> bool:
    """Return whether a folder is CTranslate2's: it has a model.bin, and a config.json that names no model_type."""
    config = folder / _CONFIG
    return (folder / MODEL_FILE).is_file() and config.is_file() and "model_type" not in read_json(config)


class CTranslate2Whisper:
    """A folder's tensors under the names of our modules; the attributes are those of WhisperCheckpoint.

    Parameters
    ----------
    folder : Path
        As CTranslate2's converters write it, with a tokenizer beside.
    tokenizer : Path or None
        Folder whose tokenizer counts in place of the one beside.

    Raises
    ------
    InputError
        No complete Whisper of CTranslate2 in float32, float16 or bfloat16; the message says what is wrong with it.

    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        self._path = folder / MODEL_FILE
        self._variables, revision = read_variables(self._path)
        self._check_scalars(revision)
        self._places = self._parameters()
        self.tensors: Mapping[str, TensorInfo] = self._places
        self.dims = self._dims()
        check_tensors(self.tensors, parameter_shapes(self.dims), str(self._path))
        # Newer conversions have a copy of the preprocessor_config.json.
        self.frontend = whisper_frontend(folder, self.dims)
        self.tokenizer_folder = tokenizer or folder
        read = read_tokenizer(self.tokenizer_folder)
        self.tokenizer_json = read.to_str().encode()
        self.settings = self._settings(folder, read)
        config = folder / _CONFIG
        self.alignment_heads = stated_heads(read_json(config).get("alignment_heads"), self.dims, str(config))
        side = (folder / name for name in (_CONFIG, *_FRONTENDS, *_VOCABULARIES))
        self.files = (
            *(file for file in side if file.is_file()),
            *tokenizer_files(self.tokenizer_folder),
            self._path,
        )

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by our modules' name for it."""
        return read_stored(self._path, name, self._places[name])

    def _scalar(self, variable: str) -> int | None:
        """Return the value of a scalar variable, taking it out; None where there is none."""
        place = self._variables.pop(variable, None)
        if place is None:
            return None
        if place.shape or place.dtype.is_floating_point:
            raise InputError(
                f"{self._path}: expected {variable} to be a whole number; the file is damaged, get it again"
            )
        return int(read_stored(self._path, variable, place))

    def _check_scalars(self, revision: int) -> None:
        for variable, expected in (_PLAIN | {_ACTIVATION: _GELU[revision]}).items():
            found = self._scalar(variable)
            if found not in (None, expected):
                raise InputError(f"{self._path}: expected {variable} {expected}, found {found}; it is no plain Whisper")
        for variable in _UNUSED & set(self._variables):
            del self._variables[variable]
        self._heads = {side: self._scalar(variable) for side, variable in _HEADS.items()}

    def _parameters(self) -> dict[str, StoredTensor]:
        """Return where each parameter lies."""
        places: dict[str, StoredTensor] = {}
        for variable, place in self._variables.items():
            if not place.dtype.is_floating_point:
                raise InputError(
                    f"{self._path}: expected float32, float16 or bfloat16 weights, found {variable} in "
                    f"{str(place.dtype).removeprefix('torch.')}; quantised weights are not exported: give a conversion "
                    "with --quantization float16, or the checkpoint that it was made from"
                )
            match = _VARIABLE.fullmatch(variable)
            layer = match and match["layer"]
            modules = (_MODULES if layer is None else _LAYER_MODULES).get(match["module"]) if match else None
            if match is None or modules is None or match["kind"] not in _KINDS:
                places[variable] = place  # check_tensors names it
                continue
            stem = match["side"] if layer is None else f"{match['side']}.layers.{layer}"
            names = [f"{stem}.{module}.{_KINDS[match['kind']]}" for module in modules]
            for name, part in zip(names, self._parts(variable, place, len(names)), strict=True):
                if name in places:
                    raise InputError(f"{self._path}: holds {name} twice; the file is damaged, get it again")
                places[name] = part
        self._leave_out_bias(places)
        self._untie(places)
        return places

    def _parts(self, variable: str, place: StoredTensor, count: int) -> list[StoredTensor]:
        """Return the places of linears that lie one after the other."""
        rows, rest = divmod(place.shape[0] if place.shape else 1, count)
        if rest:
            raise InputError(f"{self._path}: {variable}: expected {count} equal parts, found {list(place.shape)}")
        if count == 1:
            return [place]
        part = StoredTensor(place.dtype, (rows, *place.shape[1:]), place.offset)
        return [StoredTensor(part.dtype, part.shape, place.offset + i * part.length) for i in range(count)]

    def _leave_out_bias(self, places: dict[str, StoredTensor]) -> None:
        """Leave out the keys' biases: Whisper has none, and CTranslate2 writes zeros in their place."""
        for name in [name for name in places if name.endswith(".k_proj.bias")]:
            if read_stored(self._path, name, places[name]).any():
                raise InputError(f"{self._path}: expected keys without a bias, found {name}; it is no plain Whisper")
            del places[name]

    def _untie(self, places: dict[str, StoredTensor]) -> None:
        """Leave out the vocabulary projection, which has to be the token embedding."""
        projection, embedding = places.pop(_PROJECTION, None), self._variables.get(_EMBEDDING)
        if projection is None or embedding is None or projection == embedding:
            return
        ours, theirs = (
            read_stored(self._path, name, place) for name, place in ((_PROJECTION, projection), (_EMBEDDING, embedding))
        )
        if ours.shape != theirs.shape or not torch.equal(ours.to(theirs.dtype), theirs):
            raise InputError(
                f"{self._path}: expected {_PROJECTION} to be tied to {_EMBEDDING}, found other values; not supported"
            )

    def _dims(self) -> WhisperDims:
        """Return the network that the shapes tell."""
        conv, positions = self._shape("encoder.conv1.weight", 3), self._shape("encoder.embed_positions.weight", 2)
        text, vocabulary = (
            self._shape("decoder.embed_positions.weight", 2),
            self._shape("decoder.embed_tokens.weight", 2),
        )
        heads = {side: found or conv[0] // _HEAD_DIM for side, found in self._heads.items()}
        for side, count in heads.items():
            if count < 1 or conv[0] % count:
                raise InputError(
                    f"{self._path}: expected {_HEADS[side]} to divide the width {conv[0]}, found {count}; not supported"
                )
        return WhisperDims(
            n_mels=conv[1],
            n_audio_ctx=positions[0],
            n_audio_state=conv[0],
            n_audio_head=heads["encoder"],
            n_audio_layer=self._layers("encoder"),
            n_audio_ffn=self._shape("encoder.layers.0.fc1.weight", 2)[0],
            n_vocab=vocabulary[0],
            n_text_ctx=text[0],
            n_text_state=conv[0],
            n_text_head=heads["decoder"],
            n_text_layer=self._layers("decoder"),
            n_text_ffn=self._shape("decoder.layers.0.fc1.weight", 2)[0],
        )

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        if name not in self._places or len(self._places[name].shape) != rank:
            raise InputError(f"{self._path}: expected a tensor {name} of {rank} dimensions, found none; get it again")
        return self._places[name].shape

    def _layers(self, side: str) -> int:
        """Return how many layers have a tensor: their numbers may be any, and check_tensors compares them."""
        found = (re.match(rf"{side}\.layers\.(\d+)\.", name) for name in self._places)
        return len({match[1] for match in found if match})

    def _settings(self, folder: Path, tokenizer: Tokenizer) -> WhisperSettings:
        config, where = read_json(folder / _CONFIG), str(folder / _CONFIG)
        ids: dict[str, list[int]] = {}
        for key in ("suppress_ids", "suppress_ids_begin", "lang_ids"):
            ids[key] = config.get(key) or []
            if not isinstance(ids[key], list) or not all(isinstance(number, int) for number in ids[key]):
                raise InputError(
                    f"{where}: expected {key} to be token ids, found {str(config[key])[:80]!r}; get it again"
                )
        values: dict[str, Any] = {
            "suppress_tokens": ids["suppress_ids"],
            "begin_suppress_tokens": ids["suppress_ids_begin"],
            "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP_INDEX,
        }
        if tokenizer.token_to_id("<|endoftext|>") != GPT2_TOKENS:
            # Older conversions list special tokens behind the languages, too.
            start, end = (tokenizer.token_to_id(f"<|{name}|>") or 0 for name in ("startoftranscript", "translate"))
            languages = {tokenizer.id_to_token(number): number for number in ids["lang_ids"] if start < number < end}
            values["lang_to_id"] = languages
        settings = whisper_settings(values, self.dims, tokenizer, where)
        self._check_vocabulary(folder, settings)
        return settings

    def _check_vocabulary(self, folder: Path, settings: WhisperSettings) -> None:
        """Compare special tokens with CTranslate2's own list of tokens: the tokenizer may be of another model."""
        path = next((folder / name for name in _VOCABULARIES if (folder / name).is_file()), None)
        if path is None:
            return
        try:
            text = path.read_text(encoding="utf-8")
            tokens = json.loads(text) if path.suffix == ".json" else text.split("\n")
            places = {token: number for number, token in enumerate(tokens)}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: expected a list of tokens, cannot read it ({error}); get it again") from error
        expected = {"<|endoftext|>": settings.eot, "<|startoftranscript|>": settings.sot}
        for token, number in (expected | {"<|notimestamps|>": settings.no_timestamps}).items():
            if places.get(token) != number:
                raise InputError(
                    f"{path}: expected {token} at {number}, as the tokenizer says, found it at {places.get(token)}; "
                    "the tokenizer is another model's; give the right one by --tokenizer FOLDER or hub id"
                )


def read_variables(path: Path) -> tuple[dict[str, StoredTensor], int]:
    """Return where each variable of a model.bin lies, and the revision of its specification.

    Nothing but names and sizes is read. An alias lies where the variable does that it stands for.

    Raises
    ------
    InputError
        Not a Whisper of CTranslate2, of a version that is not known, cut off, or damaged.

    """
    try:
        with path.open("rb") as file:
            return _Header(path, file).variables()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


class _Header:
    """The fields of a model.bin, read one after the other, never outside of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        file.seek(0)

    def variables(self) -> tuple[dict[str, StoredTensor], int]:
        version = self._number(4)
        if version not in _VERSIONS:
            known = " or ".join(map(str, _VERSIONS))
            raise InputError(f"{self._path}: expected version {known} of CTranslate2's format, found {version}")
        name, revision = self._text(), self._number(4)
        if name != _SPECIFICATION or revision not in _REVISIONS:
            raise InputError(
                f"{self._path}: expected {_SPECIFICATION} of revision {_REVISIONS[0]} to {_REVISIONS[-1]}, "
                f"found {name[:40]!r} of revision {revision}; give a Whisper model"
            )
        found: dict[str, StoredTensor] = {}
        for _ in range(self._count()):
            self._add(found, self._text(), self._place())
        for _ in range(self._count()):
            alias, variable = self._text(), self._text()
            if variable not in found:
                raise self._damaged(f"an alias of {variable[:80]!r}, which is not there")
            self._add(found, alias, found[variable])
        if self._file.tell() != self._size:
            raise self._damaged(f"{self._size - self._file.tell()} bytes after the end")
        return found, revision

    def _add(self, found: dict[str, StoredTensor], name: str, place: StoredTensor) -> None:
        if name in found:
            raise self._damaged(f"{name[:80]!r} twice")
        found[name] = place

    def _place(self) -> StoredTensor:
        """Return shape, dtype and place of the next variable, and go on behind its data."""
        shape = tuple(self._number(4) for _ in range(self._number(1)))
        code, length = self._number(1), self._number(4)
        if code >= len(_DTYPES):
            raise self._damaged(f"a dtype of number {code}")
        place = StoredTensor(_DTYPES[code], shape, self._file.tell())
        if 0 in shape or place.length != length or place.offset + length > self._size:
            raise self._damaged(f"{length} bytes for a tensor of shape {list(shape[:8])}")
        self._file.seek(length, 1)
        return place

    def _count(self) -> int:
        count = self._number(4)
        if count > _MOST_VARIABLES:
            raise self._damaged(f"{count} variables, where Whisper has at most {_MOST_VARIABLES}")
        return count

    def _text(self) -> str:
        text = self._bytes(self._number(2)).decode(errors="replace").removesuffix("\0")
        # Names are parts of messages.
        if not text.isprintable() or "\ufffd" in text:
            raise self._damaged("a name that is no text")
        return text

    def _number(self, length: int) -> int:
        return int.from_bytes(self._bytes(length), "little")

    def _bytes(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise InputError(f"{self._path}: ends within its list of variables; the file is damaged, get it again")
        return data

    def _damaged(self, found: str) -> InputError:
        return InputError(f"{self._path}: found {found}; the file is damaged or no model.bin, get it again")
