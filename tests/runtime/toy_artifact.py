"""A small artifact of two graphs with a cache, in all formats."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from export.graphs import GraphDefinition
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.manifest import (
    MANIFEST_NAME,
    Content,
    ExportRecord,
    FileEntry,
    Graph,
    Manifest,
    Rule,
    Source,
    SourceParity,
    TensorSpec,
    Tolerances,
)

_RULES = {"relative_l2": Rule(constant=1e-4, k=3), "max_relative": Rule(constant=1e-4, k=3)}
TOLERANCES = Tolerances(
    rules=dict.fromkeys(("fp32", "fp16", "bf16"), _RULES), floors={}, implementations=(), decisions={}
)
VOCABULARY, ROWS, DIM = 7, 6, 4


def content(files: dict[str, FileEntry], graphs: dict[str, Graph], variant: str = "fp32") -> Content:
    return Content(
        model="toy",
        family="whisper",
        variant=variant,
        task="speech recognition",
        source=Source(weights="random", origin="toy", repo=None, revision=None, seed=0, licence="Apache-2.0", files={}),
        dims={"n_mels": 80},
        frontend={"sample_rate": 16000, "window": "hann", "floor": 1e-10},
        settings={"languages": {"日本語": 1}, "deep": [[1, 2.5, None, True]]},
        graphs=graphs,
        cases=(),
        teacher_forced=(),
        recordings=(),
        parity=SourceParity(implementation="none", limit_relative_l2=1e-4, outputs=(), results_equal={}),
        tolerances=TOLERANCES,
        versions={"torch": "2"},
        files=files,
    )


def seal(folder: Path, graphs: dict[str, Graph] | None = None, variant: str = "fp32") -> Manifest:
    """Write the manifest of the files that lie in `folder`."""
    return seal_content(folder, content({}, graphs or {}, variant))


def seal_content(folder: Path, its_content: Content) -> Manifest:
    """Write a manifest with `its_content` and the files that lie in `folder`."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        entry = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        files[path.relative_to(folder).as_posix()] = entry
    record = ExportRecord(created="2026-01-01T00:00:00Z", host="here", stages=())
    manifest = Manifest.create(its_content.model_copy(update={"files": files}), record)
    (folder / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    return manifest


class Encoder(nn.Module):
    """x [1, 3, 4] -> hidden [1, 3, 4], cross [1, 2, 3, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.linear(x))
        return hidden, torch.stack((hidden, 2 * hidden), 1)


class Step(nn.Module):
    """tokens [1, 1], pos [1], cross [1, 2, 3, 4], self_k [1, 2, 6, 4] -> logits [1, 1, 7], new_self_k [1, 2, 1, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, DIM)
        self.register_buffer("positions", torch.arange(ROWS), persistent=False)

    def forward(
        self, tokens: torch.Tensor, pos: torch.Tensor, cross: torch.Tensor, self_k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(tokens)  # [1, 1, DIM]
        new = torch.stack((x, -x), 1)
        seen = (self.positions < pos)[None, None, :, None].to(x.dtype)
        x = x + cross.mean((1, 2)) + (self_k * seen).sum((1, 2))
        return torch.nn.functional.linear(x, self.embed.weight).float(), new


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = {"weight": (DIM, DIM), "bias": (DIM,), "embed": (VOCABULARY, DIM)}
    # Eighths are exact in bfloat16 as well.
    return {name: rng.integers(-8, 8, shape).astype(np.float32) / 8 for name, shape in shapes.items()}


def expected_encoder(x: np.ndarray) -> np.ndarray:
    given = weights()
    return np.tanh(x @ given["weight"].T + given["bias"])


def expected_logits(token: int, pos: int, cross: np.ndarray, self_k: np.ndarray) -> np.ndarray:
    embed = weights()["embed"]
    x = embed[token] + cross[0].mean((0, 1)) + self_k[0, :, :pos].sum((0, 1))
    return (embed @ x)[None, None]


def write_toy(folder: Path, dtype: str = "float32") -> Path:
    """Write the artifact in all three formats."""
    torch_dtype = getattr(torch, dtype)
    encoder, step = Encoder().eval(), Step().eval()
    given = {name: torch.from_numpy(value) for name, value in weights().items()}
    encoder.load_state_dict({"linear.weight": given["weight"], "linear.bias": given["bias"]})
    step.load_state_dict({"embed.weight": given["embed"]})
    modules: dict[str, nn.Module] = {"encoder": encoder.to(torch_dtype), "step": step.to(torch_dtype)}
    hidden, cross, cache, row = (1, 3, DIM), (1, 2, 3, DIM), (1, 2, ROWS, DIM), (1, 2, 1, DIM)
    specs = {
        "encoder": ([("x", dtype, hidden)], [("hidden", dtype, hidden), ("cross", dtype, cross)]),
        "step": (
            [("tokens", "int64", (1, 1)), ("pos", "int64", (1,)), ("cross", dtype, cross), ("self_k", dtype, cache)],
            [("logits", "float32", (1, 1, VOCABULARY)), ("new_self_k", dtype, row)],
        ),
    }
    definitions = {
        name: GraphDefinition(
            name,
            modules[name],
            tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in inputs),
            tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in outputs),
        )
        for name, (inputs, outputs) in specs.items()
    }
    folder.mkdir(parents=True)
    parameters = {name: value for module in modules.values() for name, value in module.named_parameters()}
    save_file({name: value.detach() for name, value in parameters.items()}, folder / "weights.safetensors")
    if dtype == "bfloat16":  # refused before it is opened
        onnx = dict.fromkeys(definitions, "none.onnx")
        (folder / "none.onnx").write_bytes(b"")
    else:
        onnx = write_onnx(definitions, folder / "weights.safetensors", folder)
    torchscript = write_torchscript(definitions, folder / "model.ts")
    pt2 = write_pt2(definitions, folder)
    graphs = {
        name: definition.signature({"onnx": onnx[name], "torchscript": torchscript[name], "pt2": pt2[name]})
        for name, definition in definitions.items()
    }
    seal(folder, graphs, {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype])
    return folder
