"""A Parakeet-TDT checkpoint under the names of our modules, each tensor checked against the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor

from export.checkpoint import Checkpoint, check_tensors
from export.families.parakeet_tdt.modules import parameter_shapes
from export.families.parakeet_tdt.nemo import NemoArchive
from export.families.parakeet_tdt.nemo_config import NemoConfig
from export.families.parakeet_tdt.standin import RandomParakeet
from export.families.parakeet_tdt.transformers_folder import FILTERS, WINDOW, TransformersFolder
from export.safetensors_writer import TensorInfo
from export.weights import Weights
from runtime.errors import InputError
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetFrontend, ParakeetSettings

# Of no use here: a hybrid model's CTC head, counters of training steps.
_LEFT_OUT = re.compile(r"ctc_decoder\..*|.*\.num_batches_tracked")
# torch.nn.BatchNorm1d's default, which NeMo and transformers keep.
_EPSILON = 1e-5
_DEPTHWISE = re.compile(r"(?P<conv>.*\.conv)\.depthwise_conv\.(?P<kind>weight|bias)")
_POINTWISE = re.compile(r".*\.conv\.pointwise_conv[12]\.weight")
_LSTM_BIAS = re.compile(r"(?P<lstm>.*\.lstm)\.bias_l(?P<layer>\d+)")


class ParakeetCheckpoint:
    """A checkpoint's tensors under the names of our modules; RandomParakeet has the same attributes.

    Parameters
    ----------
    stored : Checkpoint
        The tensors under NeMo's names.
    where : str
        The checkpoint, for errors.
    notes : tuple[str, ...]
        What it states that the artifact does otherwise, a line each.

    Attributes
    ----------
    tensors : Mapping[str, TensorInfo]
        The parameters of export/families/parakeet_tdt/modules.py, all float32.
    window, filters : torch.Tensor
        Of the front-end: f32 [win_length], f32 [n_mels, n_fft // 2 + 1].
    tokenizer : bytes
        The file that `settings.tokenizer_file` names.

    Raises
    ------
    InputError
        A tensor is missing, unexpected, or of another shape than the configuration says.

    """

    seed: int | None = None

    def __init__(
        self,
        stored: Checkpoint,
        dims: ParakeetDims,
        frontend: ParakeetFrontend,
        settings: ParakeetSettings,
        *,
        tokenizer: bytes,
        files: tuple[Path, ...],
        where: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.dims, self.frontend, self.settings = dims, frontend, settings
        self.tokenizer, self.files, self.notes = tokenizer, files, notes
        self.stored, self._where = stored, where
        found = {name: info for name, info in stored.tensors.items() if not _LEFT_OUT.fullmatch(name)}
        # Only now: the number of layers that a configuration states may be any.
        if dims.n_layers + dims.pred_layers > len(found):
            raise InputError(f"{where}: its configuration states more layers than it has tensors; get it again")
        shapes = parameter_shapes(dims)
        check_tensors(found, stored_shapes(dims, frontend), where)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(torch.float32, shape) for name, shape in shapes.items()
        }
        self.window = self._constant(WINDOW)
        self.filters = self._constant(FILTERS)[0]

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter, float32.

        The convolution module's normalisation is folded into its depthwise convolution, its pointwise convolutions are
        linears, and the two biases that torch gives an LSTM layer are summed.
        """
        if match := _DEPTHWISE.fullmatch(name):
            return self._folded(match["conv"], match["kind"])
        if match := _LSTM_BIAS.fullmatch(name):
            lstm, layer = match["lstm"], match["layer"]
            return self._float(f"{lstm}.bias_ih_l{layer}") + self._float(f"{lstm}.bias_hh_l{layer}")
        tensor = self._float(name)
        return tensor[:, :, 0] if _POINTWISE.fullmatch(name) else tensor

    def _folded(self, conv: str, kind: str) -> torch.Tensor:
        """Return weight or bias of a depthwise convolution followed by its BatchNorm, in evaluation."""
        norm = f"{conv}.batch_norm"
        variance = self._float(f"{norm}.running_var")
        if not torch.isfinite(variance).all() or variance.min() < 0:
            raise InputError(f"{self._where}: {norm}.running_var: expected variances from 0 on; it is damaged")
        scale = self._float(f"{norm}.weight") / torch.sqrt(variance + _EPSILON)
        if kind == "weight":
            return self._float(f"{conv}.depthwise_conv.weight") * scale[:, None, None]
        shift = -self._float(f"{norm}.running_mean")
        if self.dims.use_bias:
            shift = shift + self._float(f"{conv}.depthwise_conv.bias")
        return shift * scale + self._float(f"{norm}.bias")

    def _float(self, name: str) -> torch.Tensor:
        return self.stored.read(name).float()

    def _constant(self, name: str) -> torch.Tensor:
        values = self._float(name)
        if not torch.isfinite(values).all() or not values.any():
            raise InputError(f"{self._where}: {name}: expected finite values, not all 0; the checkpoint is damaged")
        return values


def stored_shapes(dims: ParakeetDims, frontend: ParakeetFrontend) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a checkpoint, under NeMo's names."""
    shapes: dict[str, tuple[int, ...]] = {
        WINDOW: (frontend.win_length,),
        FILTERS: (1, frontend.n_mels, frontend.n_fft // 2 + 1),
    }
    for name, shape in parameter_shapes(dims).items():
        if match := _LSTM_BIAS.fullmatch(name):
            shapes |= {f"{match['lstm']}.bias_{side}_l{match['layer']}": shape for side in ("ih", "hh")}
        elif (match := _DEPTHWISE.fullmatch(name)) and match["kind"] == "bias":
            norm = f"{match['conv']}.batch_norm"
            shapes |= {f"{norm}.{part}": shape for part in ("weight", "bias", "running_mean", "running_var")}
            if dims.use_bias:
                shapes[name] = shape
        else:
            shapes[name] = (*shape, 1) if _POINTWISE.fullmatch(name) else shape
    return shapes


def from_nemo(path: Path) -> ParakeetCheckpoint:
    """Open a .nemo file."""
    archive = NemoArchive(path)
    config = NemoConfig(archive.config, str(path))
    tokenizer = archive.read(config.tokenizer_member)
    _check_sentencepiece(tokenizer, config.dims.n_vocab, f"{path}: {config.tokenizer_member}")
    return ParakeetCheckpoint(
        archive.checkpoint(),
        config.dims,
        config.frontend,
        config.settings,
        tokenizer=tokenizer,
        files=(path,),
        where=str(path),
        notes=config.notes,
    )


def from_transformers(path: Path, *, tokenizer: Path | None = None, adapter: Path | None = None) -> ParakeetCheckpoint:
    """Open a folder in transformers' layout, with the tokenizer of another folder and a LoRA adapter where given."""
    folder = TransformersFolder(path, tokenizer=tokenizer or path, adapter=adapter)
    return ParakeetCheckpoint(
        folder,
        folder.dims,
        folder.frontend,
        folder.settings,
        tokenizer=folder.tokenizer,
        files=folder.files,
        where=str(path),
    )


def open_checkpoint(weights: Weights) -> ParakeetCheckpoint | RandomParakeet:
    """Open a checkpoint: a .nemo file, a folder in transformers' layout, or random weights.

    Raises
    ------
    InputError
        A damaged or partial checkpoint, one of a network that is not supported, or a .nemo file with an adapter or a
        tokenizer beside it.

    """
    if weights.path is None:
        assert weights.entry is not None
        return RandomParakeet(ParakeetDims(**weights.entry.dims))
    if not weights.path.is_file():
        return from_transformers(weights.path, tokenizer=weights.tokenizer, adapter=weights.adapter)
    if weights.adapter is not None:
        raise InputError(
            f"{weights.adapter}: a PEFT adapter, and peft adapts no .nemo file as {weights.path.name} is; give the "
            "base in transformers' layout"
        )
    if weights.tokenizer is not None:
        raise InputError(
            f"{weights.tokenizer}: a tokenizer, and {weights.path.name} has one of its own; give the .nemo file alone"
        )
    return from_nemo(weights.path)


def _check_sentencepiece(model: bytes, n_vocab: int, where: str) -> None:
    try:
        found = SentencePieceProcessor(model_proto=model).get_piece_size()
    except Exception as error:  # the library raises what it likes
        raise InputError(f"{where}: expected a SentencePiece model, cannot open it; get the file again") from error
    if found != n_vocab:
        raise InputError(f"{where}: expected {n_vocab} pieces, found {found}; the file is damaged, get it again")
