"""Random Cnn8Rnn checkpoints in the hub's layout, small; made with torch's own layers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

CHANNELS = (6, 10, 12, 20)
N_FC, N_HIDDEN, N_CLASSES = 24, 9, 11


def sed_state(*, channels: tuple[int, ...] = CHANNELS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a state dict under the hub's names; fan-in scaled, with normalisations far from neutral."""
    generator = torch.Generator().manual_seed(seed)
    layers: dict[str, nn.Module] = {"bn0": nn.BatchNorm2d(64)}
    for index, (n_in, n_out) in enumerate(zip((1, *channels), channels, strict=False), 1):
        block = f"conv_block{index}"
        layers[f"{block}.conv1"] = nn.Conv2d(n_in, n_out, 3, bias=False)
        layers[f"{block}.conv2"] = nn.Conv2d(n_out, n_out, 3, bias=False)
        layers[f"{block}.bn1"], layers[f"{block}.bn2"] = nn.BatchNorm2d(n_out), nn.BatchNorm2d(n_out)
    layers["fc1"] = nn.Linear(channels[-1], N_FC)
    layers["rnn"] = nn.GRU(N_FC, N_HIDDEN, bidirectional=True)
    layers["fc_audioset"] = nn.Linear(2 * N_HIDDEN, N_CLASSES)
    state: dict[str, torch.Tensor] = {}
    for layer, module in layers.items():
        for name, tensor in module.state_dict().items():
            full = f"{layer}.{name}"
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "num_batches_tracked":
                state[full] = torch.tensor(7)
            elif name == "running_var":
                state[full] = (400 if layer == "bn0" else 1) * (0.5 + noise.abs())
            elif name == "running_mean" and layer == "bn0":
                state[full] = -30 + 8 * noise
            elif tensor.dim() > 1:
                state[full] = 1.4 * noise * tensor[0].numel() ** -0.5
            else:
                state[full] = 0.3 * noise + (1 if ".bn" in f".{layer}" and name == "weight" else 0)
    state["melspec_extractor.spectrogram.window"] = torch.hann_window(1024)
    state["melspec_extractor.mel_scale.fb"] = _triangles()
    return state


def write_sed_checkpoint(folder: Path, state: dict[str, torch.Tensor], kind: str = "model.safetensors") -> Path:
    """Write `state` into `folder` as the file `kind`, with the hub's config.json and a classes.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind.endswith(".safetensors"):
        save_file(state, folder / kind, {"format": "pt"})
    else:
        torch.save(state, folder / kind)
    classes = state["fc_audioset.bias"].shape[0]
    config = {"architectures": ["Cnn8RnnSoundEventDetection"], "classes_num": classes, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "classes.txt").write_text("".join(f"Sound, no. {index}\n" for index in range(classes)))
    return folder


def _triangles() -> torch.Tensor:
    """Return mel filters [513, 64] that no formula gives: the checkpoint's own are what counts."""
    edges = torch.linspace(2, 21, 66) ** 2  # bins 4 to 441
    bins = torch.arange(513.0)[:, None]
    rising = (bins - edges[:-2]) / edges.diff()[:-1]
    falling = (edges[2:] - bins) / edges.diff()[1:]
    return torch.minimum(rising, falling).clamp(min=0) / (edges[2:] - edges[:-2])
