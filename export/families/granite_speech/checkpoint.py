"""Reads a Granite Speech checkpoint in the layout of the hub under the names of the graphs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer

from export.checkpoint import Checkpoint, check_tensors, open_checkpoint
from export.families.granite_speech.chat import prompt_frame, read_tokenizer
from export.families.granite_speech.config import (
    GraniteConfig,
    ctc_characters,
    granite_frontend,
    padded_lengths,
)
from export.families.granite_speech.modules import parameter_shapes
from export.files import ADAPTER_CONFIG, ADAPTERS
from export.lora import AdaptedCheckpoint
from export.safetensors_writer import TensorInfo
from runtime.errors import InputError
from runtime.families.granite_speech.settings import GraniteSettings

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
# transformers 5's names to the hub's.
_NAMES = {
    r"model\.language_model\.": "language_model.model.",
    r"model\.(encoder|projector)\.": r"\1.",
    r"lm_head\.": "language_model.lm_head.",
}
# Of no use here: counters of training steps, tables that code computes, and the head that drafts BPE tokens.
_LEFT_OUT = re.compile(
    r".*\.num_batches_tracked|.*\.rotary_emb\.\w+|encoder\.attention_dists|encoder\.out_bpe\.(weight|bias)"
)
# torch.nn.BatchNorm1d's default, which transformers keeps.
_EPSILON = 1e-5
_DEPTHWISE = re.compile(r"(?P<conv>.*\.conv)\.depth_conv\.conv\.(?P<kind>weight|bias)")
_POINTWISE = re.compile(r".*\.conv\.(up|down)_conv\.weight")


class GraniteCheckpoint:
    """A folder with config.json, tensors, tokenizer and chat template; RandomGranite has the same attributes.

    Parameters
    ----------
    folder : Path
        The checkpoint.
    tokenizer : Path or None
        Folder whose tokenizer and chat template, if it has one, are taken in place of the checkpoint's.
    adapter : Path or None
        Folder of a LoRA adapter to merge into the weights.
    whole : bool
        The folder has all that there is of the checkpoint, as a download of a repository has: without an adapter's
        files it has no adapter, whatever config.json says.

    Attributes
    ----------
    dims, frontend, settings : GraniteDims, GraniteFrontend, GraniteSettings
        What its files say.
    tensors : Mapping[str, TensorInfo]
        The parameters of export/families/granite_speech/modules.py.
    tokenizer_json : bytes
        tokenizer.json.
    files : tuple[Path, ...]
        What was read.
    notes : tuple[str, ...]
        What was assumed, a line each.

    Raises
    ------
    InputError
        The folder holds no complete checkpoint of the family, or one that is not supported; says what is wrong.

    """

    def __init__(
        self, folder: Path, *, tokenizer: Path | None = None, adapter: Path | None = None, whole: bool = False
    ) -> None:
        self._folder = folder
        config = GraniteConfig(folder)
        self.dims = config.dims
        frontend_file, self.frontend = granite_frontend(folder, self.dims)
        tokenizer_folder = tokenizer or folder
        tokenizer_files, self.tokenizer_json, known = read_tokenizer(tokenizer_folder)
        audio_text = _audio_text(tokenizer_folder, known, config)
        template_file, prefix, suffix = prompt_frame(folder, tokenizer_folder, audio_text)
        self.settings = GraniteSettings(
            audio_token=config.audio_token,
            audio_text=audio_text,
            eos=config.eos,
            prompt_prefix=prefix,
            prompt_suffix=suffix,
            scales=config.scales,
            ctc_characters=ctc_characters(self.dims.n_ctc),
            **padded_lengths(self.dims.n_ctx),
        )
        self.notes: tuple[str, ...] = ()
        if config.has_adapter and adapter is None:
            self.notes = (_merged(folder, whole=whole),)
        self.tensors = self._open(folder, adapter)
        files = (*config.files, frontend_file, template_file, *tokenizer_files, *self._checkpoint.files)
        self.files = tuple(dict.fromkeys(files))

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter.

        The convolution's BatchNorm is folded into its depthwise convolution (float32), its pointwise convolutions are
        linears, and an adapter is merged (float32).
        """
        if match := _DEPTHWISE.fullmatch(name):
            return self._folded(match["conv"], match["kind"])
        tensor = self._checkpoint.read(self._names[name])
        return tensor[:, :, 0] if _POINTWISE.fullmatch(name) else tensor

    def _open(self, folder: Path, adapter: Path | None) -> Mapping[str, TensorInfo]:
        """Return the graphs' parameters as the checkpoint stores them."""
        self._checkpoint: Checkpoint = open_checkpoint(folder)
        if adapter is not None:
            tied = (EMBEDDING, HEAD) if self.dims.tied else ()
            self._checkpoint = AdaptedCheckpoint(self._checkpoint, adapter, graph_name, tied)
        self._names: dict[str, str] = {}
        for stored in self._checkpoint.tensors:
            name = graph_name(stored)
            if name in self._names:
                raise InputError(
                    f"{folder}: holds {self._names[name]} and {stored}, which are one; get the files again"
                )
            self._names[name] = stored
        self._names = {name: stored for name, stored in self._names.items() if not _LEFT_OUT.fullmatch(name)}
        if self.dims.tied:
            self._untie(folder)
        found = {name: self._checkpoint.tensors[stored] for name, stored in self._names.items()}
        # Only now: the number of layers that config.json states may be any.
        if self.dims.enc_layers + self.dims.proj_layers + self.dims.lm_layers > len(found):
            raise InputError(f"{folder}: config.json states more layers than the checkpoint has tensors; get it again")
        shapes = parameter_shapes(self.dims)
        check_tensors(found, stored_shapes(shapes), str(folder))
        return {
            name: TensorInfo(torch.float32 if _DEPTHWISE.fullmatch(name) else found[name].dtype, shape)
            for name, shape in shapes.items()
        }

    def _untie(self, folder: Path) -> None:
        """Leave out the head where it repeats the embedding; refuse another."""
        if HEAD not in self._names or EMBEDDING not in self._names:
            return
        head, embedding = (self._checkpoint.read(self._names[name]) for name in (HEAD, EMBEDDING))
        if head.shape != embedding.shape or not torch.equal(head.to(embedding.dtype), embedding):
            raise InputError(
                f"{folder}: expected {HEAD} to repeat {EMBEDDING}, as tie_word_embeddings says, found other values; "
                "set tie_word_embeddings to false if the head is a weight of its own"
            )
        del self._names[HEAD]

    def _folded(self, conv: str, kind: str) -> torch.Tensor:
        """Return weight or bias, float32, of a depthwise convolution with the BatchNorm behind it, in evaluation."""
        norm = f"{conv}.batch_norm"
        scale, bias, mean, variance = (
            self._checkpoint.read(self._names[f"{norm}.{part}"]).double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if not torch.isfinite(variance).all() or variance.min() < 0:
            raise InputError(f"{self._folder}: {norm}.running_var: expected variances from 0 on; it is damaged")
        gain = scale / torch.sqrt(variance + _EPSILON)
        if kind == "bias":
            return (bias - mean * gain).float()
        weight = self._checkpoint.read(self._names[f"{conv}.depth_conv.conv.weight"]).double()
        return (weight * gain[:, None, None]).float()


def _merged(folder: Path, *, whole: bool) -> str:
    """Return the note on an adapter that config.json states and that is not there; refuse where it may be lost."""
    if not whole or (folder / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{folder}: expected {ADAPTER_CONFIG} and {ADAPTERS[0]}, as has_lora_adapter says (without its adapter it "
            "hears nothing), found not both; if the adapter is merged into the weights, set has_lora_adapter to false "
            "in config.json, else get both files from the model's repository on the hub"
        )
    return (
        f"config.json states has_lora_adapter and the repository has no {ADAPTER_CONFIG}: the adapter is taken to be "
        "merged into the weights"
    )


def graph_name(name: str) -> str:
    """Return our name, the hub's, of a tensor that transformers 5 may call otherwise."""
    for theirs, ours in _NAMES.items():
        if match := re.match(theirs, name):
            return match.expand(ours) + name[match.end() :]
    return name


def stored_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a checkpoint for the graphs' parameters: BatchNorm apart, 1x1 convolutions as such."""
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        match = _DEPTHWISE.fullmatch(name)
        if match and match["kind"] == "bias":
            parts = ("weight", "bias", "running_mean", "running_var")
            stored |= {f"{match['conv']}.batch_norm.{part}": shape for part in parts}
        else:
            stored[name] = (*shape, 1) if _POINTWISE.fullmatch(name) else shape
    return stored


def _audio_text(folder: Path, tokenizer: Tokenizer, config: GraniteConfig) -> str:
    """Return the text of the audio token."""
    texts = {token: tokenizer.id_to_token(token) for token in (config.audio_token, *config.eos)}
    for token, known in texts.items():
        if known is None:
            raise InputError(
                f"{folder}: expected tokenizer.json to have token {token}, which config.json names, found "
                f"{tokenizer.get_vocab_size()} tokens; the files are of different models"
            )
    largest = max(token for token in tokenizer.get_vocab().values() if token != config.audio_token)
    if largest >= config.dims.n_vocab:
        raise InputError(
            f"{folder}: expected token ids below the network's {config.dims.n_vocab}, found {largest}; the tokenizer "
            "is of another model"
        )
    text = str(texts[config.audio_token])
    if config.audio_token not in tokenizer.get_added_tokens_decoder():
        raise InputError(
            f"{folder}: expected token {config.audio_token}, the audio token of config.json, to be a token that "
            f"tokenizer.json adds, found the piece {text!r:.80}; the files are of different models"
        )
    return text
