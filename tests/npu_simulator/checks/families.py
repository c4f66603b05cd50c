"""What is checked of each family on the simulated device, and what is expected there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npu_simulator import ROOT

SAMPLES = ROOT / "samples"
MATMULS = "aten::(matmul|mm|bmm|addmm|linear)"
# A recurrence's own operator is a legacy one, which no NPUGraph holds: networks have theirs made of linears.
RECURRENT = "lstm|gru|rnn"
# Make tensors out of nothing, on a device that they have to be told.
FACTORIES = r"\baten(::|\.)(arange|zeros|ones|full|empty|scalar_tensor|eye|tensor|linspace)(\.|$)"


@dataclass(frozen=True)
class Checked:
    """A family's checks.

    Attributes
    ----------
    recording, other : Path
        Two in which different things are heard.
    options : dict
        Of every recognition: one window, few tokens, so that what is counted is known.
    ways : dict
        Further options by name, each of which makes the same result on another way.
    never : str
        A pattern of operators that no graph holds.
    denied : dict
        Options by an operator that the device is to lack, with which a recognition runs it.
    above : list
        Numeric faults, each an operator's pattern, a kind and an amount, and the gate that it fails.
    below : list
        Numeric faults within tolerance.

    """

    recording: Path = SAMPLES / "short_en.wav"
    other: Path = SAMPLES / "short_de.wav"
    options: dict[str, Any] = field(default_factory=dict)
    ways: dict[str, dict[str, Any]] = field(default_factory=lambda: {"usual": {}})
    never: str = RECURRENT
    denied: dict[str, dict[str, Any]] = field(default_factory=dict)
    above: list[tuple[str, str, float, str]] = field(default_factory=list)
    below: list[tuple[str, str, float]] = field(default_factory=list)


SEARCHES: dict[str, dict[str, Any]] = {"host": {}, "device": {"decode": "device", "decode_steps": 32}}
# Of the sounds, in the recurrence alone; and in every call of it once a step.
TANH = "aten::tanh"

FAMILIES = {
    "whisper": Checked(
        options={"language": "en", "temperatures": (0.0,), "max_new_tokens": 24},
        above=[
            (MATMULS, "fp16", 0.0, "structure"),
            (MATMULS, "bf16", 0.0, "structure"),
            (MATMULS, "hf32", 0.0, "structure"),
            ("aten::convolution", "hf32", 0.0, "structure"),
            ("aten::scaled_dot_product_attention", "bf16", 0.0, "structure"),
            ("aten::log10", "hf32", 0.0, "structure"),
            ("aten::gelu", "gain", 1.1, "structure"),
            ("aten::embedding", "gain", 1.001, "structure"),
            ("aten::softmax", "nan", 0.0, "overflow"),
        ],
        below=[
            (MATMULS, "gain", 1 + 1e-6),
            ("aten::gelu", "gain", 1 + 1e-6),
            ("aten::native_layer_norm", "gain", 1 - 1e-6),
        ],
    ),
    "cnn8rnn": Checked(
        SAMPLES / "sed_1.flac",
        SAMPLES / "sed_2.flac",
        denied={TANH: {}},
        above=[
            (TANH, "gain", 1.1, "structure"),
            (TANH, "fp16", 0.0, "structure"),
            ("aten::convolution", "hf32", 0.0, "structure"),
            (TANH, "nan", 0.0, "overflow"),
        ],
        below=[(TANH, "gain", 1 + 1e-6)],
    ),
    "parakeet_tdt": Checked(
        SAMPLES / "short_en_2.wav",
        SAMPLES / "joined_en.wav",
        ways=SEARCHES,
        denied={"aten::glu": {}, "aten::argmax": SEARCHES["device"]},  # of the encoder, and of the search
        above=[
            ("aten::convolution", "hf32", 0.0, "structure"),
            (MATMULS, "hf32", 0.0, "structure"),
            (MATMULS, "fp16", 0.0, "structure"),
            ("aten::glu", "gain", 1.01, "structure"),
            ("aten::native_layer_norm", "nan", 0.0, "overflow"),
            ("aten::sigmoid", "gain", 1.01, "structure"),
        ],
        below=[("aten::glu", "gain", 1 + 1e-6)],
    ),
    "parakeet_ctc": Checked(),
    "granite_speech": Checked(
        options={"max_new_tokens": 8, "repetition_guard": False},
        never=f"{RECURRENT}|{FACTORIES}",
        denied={"aten::glu": {}, "aten::rsqrt": {}},  # of the encoder, and of the language model
        above=[
            ("aten::convolution", "gain", 1.01, "structure"),
            (MATMULS, "hf32", 0.0, "structure"),
            (MATMULS, "fp16", 0.0, "structure"),
            ("aten::rsqrt", "gain", 1.001, "structure"),
            ("aten::silu", "gain", 1.01, "structure"),
            ("aten::native_layer_norm", "nan", 0.0, "overflow"),
            ("aten::(softmax|_softmax)", "nan", 0.0, "overflow"),
        ],
        below=[("aten::rsqrt", "gain", 1 + 1e-6)],
    ),
}


def never_in(family: str) -> re.Pattern[str]:
    """What no graph of the family calls."""
    return re.compile(FAMILIES[family].never, re.IGNORECASE)
