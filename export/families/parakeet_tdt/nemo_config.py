"""What a NeMo model_config.yaml says of a FastConformer-TDT; refuses by name what the graphs do not compute."""

from __future__ import annotations

from export.fastconformer.nemo_config import FastConformerConfig, Section, short
from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetSettings

# A transducer over SentencePiece, alone or (hybrid) with a CTC head beside it, which is left out.
_MODELS = ("EncDecRNNTBPEModel", "EncDecHybridRNNTCTCBPEModel")
# For models without a limit of symbols: a frame with so many would never end.
_NO_LIMIT = 1000
_SECTIONS = {
    "decoder": Section(
        "RNNTDecoder",
        "_target_ prednet vocab_size",
        "random_state_sampling",
        {"normalization_mode": (None, (None,)), "blank_as_pad": (True, (True,))},
    ),
    "decoder.prednet": Section(
        None,
        "pred_hidden pred_rnn_layers",
        "t_max dropout forget_gate_bias weights_init_scale hidden_hidden_bias_scale",
        {"rnn_hidden_size": (-1, (None, -1, 0))},
    ),
    "joint": Section(
        "RNNTJoint",
        "_target_ jointnet num_classes num_extra_outputs vocabulary",
        "log_softmax preserve_memory fuse_loss_wer fused_batch_size experimental_fuse_loss_wer masking_prob",
    ),
    "joint.jointnet": Section(
        None, "joint_hidden encoder_hidden pred_hidden", "dropout", {"activation": ("relu", ("relu",))}
    ),
}
_SEARCHES = ("greedy_batch", "greedy")
_PHRASES = ("model_path", "key_phrases_file", "key_phrases_list", "key_phrase_items_list")


class NemoConfig(FastConformerConfig):
    """The model_config.yaml of a FastConformer-TDT."""

    settings: ParakeetSettings
    dims: ParakeetDims

    def decoder_sections(self) -> dict[str, Section]:
        """See FastConformerConfig."""
        if self.target not in _MODELS:
            kind = "a CTC model" if "CTC" in self.target and "Hybrid" not in self.target else self.target
            raise self._refused("target", kind, f"a TDT model ({' or '.join(_MODELS)})")
        if self.target == _MODELS[1]:
            self._notes.append("hybrid model: its TDT head is exported, its CTC head is left out")
        return _SECTIONS

    def name_of(self, stored: str) -> str | None:
        """Leave out a hybrid model's CTC head."""
        return None if stored.startswith("ctc_decoder.") else stored

    def read_settings(self) -> ParakeetSettings:
        """Return durations and the most symbols of a frame."""
        self._check_search()
        decoding, loss = self._section("decoding", {}), self._section("loss", {})
        # As NeMo: the loss decides, or durations that decoding states; model_type is a word that it does not read.
        stated = loss.get("loss_name") == "tdt" or decoding.get("durations")
        kind = "tdt" if stated else decoding.get("model_type", loss.get("loss_name", "rnnt"))
        extra = self._section("joint").get("num_extra_outputs", 0)
        if kind != "tdt" or not extra:
            what = f"{kind} with {short(extra)} duration outputs (joint.num_extra_outputs)"
            raise self._refused("decoding.model_type", what, "tdt, with durations")
        places = {
            "decoding.durations": decoding.get("durations"),
            "loss.tdt_kwargs.durations": self._section("loss.tdt_kwargs", {}).get("durations"),
            "model_defaults.tdt_durations": self._section("model_defaults", {}).get("tdt_durations"),
        }
        # An empty list is NeMo's default for a model whose loss states them.
        found = {place: value for place, value in places.items() if value is not None and value != []}
        place, durations = next(iter(found.items()), ("decoding.durations", None))
        if not isinstance(durations, list) or not all(type(frames) is int and frames >= 0 for frames in durations):
            raise self._refused(place, durations, "a list of frames")
        for other, value in found.items():
            if value != durations:
                raise self._refused(other, value, f"{short(durations)} as in {place}")
        if len(durations) != extra:
            raise self._refused("joint.num_extra_outputs", extra, f"{len(durations)}, one for each duration")
        if len(set(durations)) != len(durations) or not any(durations):
            raise self._refused(place, durations, "different frames, not only 0")
        return ParakeetSettings(durations=tuple(durations), max_symbols=self._max_symbols())

    def _check_search(self) -> None:
        """Note what NeMo's search has and ours has not."""
        decoding, greedy = self._section("decoding", {}), self._section("decoding.greedy", {})
        strategy = decoding.get("strategy", _SEARCHES[0])
        if strategy not in _SEARCHES:
            self._notes.append(f"decoding.strategy {short(strategy)} is not honoured: the search is greedy")
        boosted = self._section("decoding.greedy.boosting_tree", {})
        if greedy.get("ngram_lm_model"):
            self._notes.append("decoding.greedy.ngram_lm_model is not honoured: no language model is fused")
        if any(boosted.get(key) for key in _PHRASES):
            self._notes.append("decoding.greedy.boosting_tree is not honoured; give hotwords at run time")

    def _max_symbols(self) -> int:
        """Return how many symbols a frame may emit.

        Where none is stated, NeMo's batched search takes 10, but for one without CUDA graphs or for the search of one
        recording at a time, which have no limit (NeMo 3.0.0, label_looping_base.py and rnnt_greedy_decoding.py).
        """
        greedy = self._section("decoding.greedy", {})
        values = [greedy[key] for key in ("max_symbols", "max_symbols_per_step") if greedy.get(key) is not None]
        if values:
            return self._positive("decoding.greedy.max_symbols", values[0])
        alone = self._section("decoding", {}).get("strategy") == _SEARCHES[1]
        if not alone and greedy.get("use_cuda_graph_decoder", True):
            return 10
        self._notes.append(f"decoding.greedy.max_symbols is null, no limit: here a frame may emit {_NO_LIMIT} symbols")
        return _NO_LIMIT

    def read_dims(self) -> ParakeetDims:
        """See FastConformerConfig."""
        prednet, jointnet = self._section("decoder.prednet"), self._section("joint.jointnet")
        dims = ParakeetDims(
            **self._encoder_dims(),
            pred_hidden=self._positive("decoder.prednet.pred_hidden", prednet.get("pred_hidden")),
            pred_layers=self._positive("decoder.prednet.pred_rnn_layers", prednet.get("pred_rnn_layers")),
            joint_hidden=self._positive("joint.jointnet.joint_hidden", jointnet.get("joint_hidden")),
            n_vocab=self._positive("decoder.vocab_size", self._section("decoder").get("vocab_size")),
            n_durations=len(self.settings.durations),
        )
        for key, value, expected, owner in (
            ("joint.num_classes", self._section("joint").get("num_classes"), dims.n_vocab, "decoder.vocab_size"),
            ("joint.jointnet.encoder_hidden", jointnet.get("encoder_hidden"), dims.d_model, "encoder.d_model"),
            ("joint.jointnet.pred_hidden", jointnet.get("pred_hidden"), dims.pred_hidden, "decoder.prednet"),
        ):
            self._check_equal(key, value, expected, owner)
        return dims
