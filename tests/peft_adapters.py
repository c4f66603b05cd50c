"""Adapters that peft writes over a model of transformers, with factors that are not peft's zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import transformers


def write_peft_adapter(model: transformers.PreTrainedModel, folder: Path, **options: Any) -> peft.PeftModel:
    """Write a random adapter of `model` into `folder`; return the adapted model, which peft can merge."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 * fan_in**-0.5)
    adapted.save_pretrained(folder)
    return adapted
