"""Reads Parakeet-TDT in transformers' layout."""

from __future__ import annotations

from pydantic import ValidationError

from export.fastconformer.transformers_folder import ENCODER_NAMES, TOKENIZER_FILE, FastConformerFolder
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings


class TransformersFolder(FastConformerFolder):
    """A Parakeet-TDT of transformers."""

    settings: ParakeetSettings
    dims: ParakeetDims
    feature_extractor = "ParakeetFeatureExtractor"
    names = ENCODER_NAMES | {
        r"decoder\.embedding\.": "decoder.prediction.embed.",
        r"decoder\.lstm\.": "decoder.prediction.dec_rnn.lstm.",
        r"encoder_projector\.": "joint.enc.",
        r"decoder\.decoder_projector\.": "joint.pred.",
        r"joint\.head\.": "joint.joint_net.2.",
    }

    def read_settings(self) -> ParakeetSettings:
        """Return durations and the most symbols of a frame."""
        durations = self._config.get("durations", [0, 1, 2, 3, 4])
        try:
            settings = ParakeetSettings(
                durations=durations,
                max_symbols=self._config.get("max_symbols_per_step", 10),
                tokenizer_file=TOKENIZER_FILE,
            )
        except ValidationError as error:
            first = error.errors()[0]
            key = {"max_symbols": "max_symbols_per_step"}.get(str(first["loc"][0]), str(first["loc"][0]))
            raise self._refused(key, first["input"], first["msg"]) from error
        if not any(settings.durations) or len(set(settings.durations)) != len(settings.durations):
            raise self._refused("durations", durations, "different frames, not only 0")
        return settings

    def read_dims(self) -> ParakeetDims:
        """See FastConformerFolder."""
        self._check_supported(self._config, {"hidden_act": ("relu", "relu")})
        hidden = self._positive(self._config, "decoder_hidden_size")
        return ParakeetDims(
            **self._encoder_dims(),
            pred_hidden=hidden,
            pred_layers=self._positive(self._config, "num_decoder_layers"),
            joint_hidden=hidden,
            n_vocab=self._n_vocab("blank_token_id"),
            n_durations=len(self.settings.durations),
        )
