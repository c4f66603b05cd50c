"""Checkpoints with a CTC head for tests: a small random ParakeetForCTC, and the pocket model made a hybrid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from parakeet_checkpoints import changed_nemo

from export.fastconformer.standin import standin_tokenizer

N_VOCAB = 64
HYBRID = "nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"
CTC = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"


# A small encoder, as transformers' configurations have it.
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 80,
    "scale_input": True,
}


def randomise(network: torch.nn.Module) -> None:
    """Give a network of transformers random weights by fan-in, and normalisations that are none of their defaults."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            fan_in = math.prod(tensor.shape[1:]) if tensor.dim() > 1 else 1
            tensor.normal_(1.0 if "norm" in name and tensor.dim() == 1 else 0.0, 0.3 if fan_in == 1 else fan_in**-0.5)
            if "running_var" in name:
                tensor.abs_()


def random_network(seed: int = 1, *, scale_input: bool = True) -> transformers.ParakeetForCTC:
    """A small random network of transformers."""
    torch.manual_seed(seed)
    encoder = ENCODER | {"scale_input": scale_input}
    config = transformers.ParakeetCTCConfig(vocab_size=N_VOCAB + 1, pad_token_id=N_VOCAB, encoder_config=encoder)
    network = transformers.ParakeetForCTC(config).eval()
    randomise(network)
    # Some blanks, some tokens that last for several frames.
    network.ctc_head.weight.data *= 2
    network.ctc_head.bias.data[N_VOCAB] += 3
    return network


def write_folder(folder: Path, network: transformers.ParakeetForCTC | None = None) -> Path:
    """Write a checkpoint in transformers' layout."""
    (network or random_network()).save_pretrained(folder)
    transformers.ParakeetFeatureExtractor(feature_size=80).save_pretrained(folder)
    standin_tokenizer(N_VOCAB).save(str(folder / "tokenizer.json"))
    return folder


def ctc_head(seed: int = 0) -> dict[str, torch.Tensor]:
    """A random head for the pocket model's encoder: what NeMo calls it without its prefix."""
    torch.manual_seed(seed)
    bias = torch.zeros(193)
    bias[192] = 6.0
    return {"decoder_layers.0.weight": torch.randn(193, 112, 1) * 0.3, "decoder_layers.0.bias": bias}


def _head_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 112,
        "num_classes": 192,
        "vocabulary": [*config["joint"]["vocabulary"]],
    }


def hybrid_nemo(path: Path, **decoder: Any) -> Path:
    """Write the pocket model with a CTC head beside its own, as parakeet-tdt_ctc-110m has one."""

    def hybrid(config: dict[str, Any]) -> None:
        config["target"] = HYBRID
        config["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": _head_config(config) | decoder,
            "decoding": {"strategy": "greedy_batch"},
        }

    return changed_nemo(
        path, hybrid, lambda state: state.update({f"ctc_decoder.{name}": t for name, t in ctc_head().items()})
    )


def ctc_nemo(path: Path) -> Path:
    """Write the pocket model's encoder with a CTC head alone, as parakeet-ctc-0.6b is."""

    def alone(config: dict[str, Any]) -> None:
        config["target"], config["decoder"] = CTC, _head_config(config)
        config["decoding"] = {"strategy": "greedy"}
        del config["joint"], config["loss"]

    def head(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if name.startswith(("decoder.", "joint."))]:
            del state[name]
        state.update({f"decoder.{name}": tensor for name, tensor in ctc_head().items()})

    return changed_nemo(path, alone, head)
