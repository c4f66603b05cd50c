"""A Parakeet-CTC checkpoint under the names of our modules: FastConformer-CTC, or the CTC head of a hybrid."""

from __future__ import annotations

import torch

from export.families.parakeet_ctc.modules import ParakeetCtc
from export.fastconformer.checkpoint import FastConformerCheckpoint
from export.fastconformer.nemo_config import FastConformerConfig, Section
from export.fastconformer.transformers_folder import ENCODER_NAMES, TOKENIZER_FILE, FastConformerFolder
from runtime.fastconformer.settings import FastConformerDims, FastConformerSettings

# What NeMo calls the two; in a hybrid the CTC head stands beside a transducer's nets.
_CTC, _HYBRID = "EncDecCTCModelBPE", "EncDecHybridRNNTCTCBPEModel"
_HEAD = "decoder.decoder_layers.0"
_SEARCHES = ("greedy", "greedy_batch")
_DECODER = Section(
    "ConvASRDecoder", "_target_ feat_in num_classes vocabulary", "init_mode", {"add_blank": (True, (True,))}
)


class NemoConfig(FastConformerConfig):
    """The model_config.yaml of a FastConformer with a CTC head."""

    @property
    def _prefix(self) -> str:
        return "aux_ctc." if self.target == _HYBRID else ""

    def decoder_sections(self) -> dict[str, Section]:
        """See FastConformerConfig."""
        if self.target not in (_CTC, _HYBRID):
            raise self._refused("target", self.target, f"a model with a CTC head ({_CTC} or {_HYBRID})")
        if self.target == _HYBRID:
            self._notes.append("hybrid model: its CTC head is exported, its transducer is left out")
        return {f"{self._prefix}decoder": _DECODER}

    def read_settings(self) -> FastConformerSettings:
        """Note a search that NeMo has and the runtime has not."""
        key = f"{self._prefix}decoding"
        strategy = self._section(key, {}).get("strategy", _SEARCHES[0])
        if strategy not in _SEARCHES:
            self._notes.append(f"{key}.strategy {strategy!r:.80} is not honoured: the search is greedy")
        return FastConformerSettings()

    def read_dims(self) -> FastConformerDims:
        """See FastConformerConfig. A head that states no classes has those of its vocabulary, as in NeMo."""
        key = f"{self._prefix}decoder"
        decoder = self._section(key)
        classes, vocabulary = decoder.get("num_classes"), decoder.get("vocabulary")
        if classes in (None, -1) and isinstance(vocabulary, list):
            classes = len(vocabulary)
        dims = FastConformerDims(**self._encoder_dims(), n_vocab=self._positive(f"{key}.num_classes", classes))
        self._check_equal(f"{key}.feat_in", decoder.get("feat_in"), dims.d_model, "encoder.d_model")
        return dims

    def name_of(self, stored: str) -> str | None:
        """Return the network's name; of a hybrid the nets of the transducer are left out."""
        if self.target != _HYBRID:
            return stored
        if stored.startswith("ctc_decoder."):
            return stored.removeprefix("ctc_")
        return None if stored.startswith(("decoder.", "joint.")) else stored


class TransformersFolder(FastConformerFolder):
    """A Parakeet-CTC of transformers."""

    feature_extractor = "ParakeetFeatureExtractor"
    names = ENCODER_NAMES | {r"ctc_head\.": f"{_HEAD}."}

    def read_settings(self) -> FastConformerSettings:
        """See FastConformerFolder."""
        return FastConformerSettings(tokenizer_file=TOKENIZER_FILE)

    def read_dims(self) -> FastConformerDims:
        """See FastConformerFolder."""
        return FastConformerDims(**self._encoder_dims(), n_vocab=self._n_vocab("pad_token_id"))


class CtcCheckpoint(FastConformerCheckpoint):
    """A checkpoint's tensors; RandomCtc has the same attributes. See FastConformerCheckpoint."""

    config_type, folder_type, network = NemoConfig, TransformersFolder, ParakeetCtc

    def stored_as(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the tensors that hold a parameter; the head is a convolution of one frame."""
        return {name: (*shape, 1)} if name == f"{_HEAD}.weight" else super().stored_as(name, shape)

    def read(self, name: str) -> torch.Tensor:
        """Return one parameter, float32."""
        tensor = super().read(name)
        return tensor[:, :, 0] if name == f"{_HEAD}.weight" else tensor
