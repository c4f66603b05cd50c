"""Granite Speech's graphs in every format against transformers, at lengths around blocks, windows and units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from granite_checkpoints import write_granite_checkpoint
from graph_checks import check_atc_takes, relative_l2
from parakeet_small import Runner, Tensors, runner

from export.families.granite_speech import graphs as graphs_module
from export.families.granite_speech import modules
from export.families.granite_speech.checkpoint import GraniteCheckpoint
from export.families.granite_speech.graphs import granite_graphs
from export.families.granite_speech.modules import Granite
from export.graphs import GraphDefinition
from export.safetensors_writer import TensorInfo, write_safetensors
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.families.granite_speech.settings import DECODE, EMBED, ENCODE_PROJECT, PREFILL, GraniteDims

FORMATS = ["eager", "onnx", "torchscript", pytest.param("pt2", marks=pytest.mark.slow)]
NEVER = ("ScatterND", "NonZero", "Range")
_FILES = {"onnx": "embed.onnx", "torchscript": "model.ts", "pt2": "embed.pt2"}
# Around windows of 15, blocks of 40 and units of 120 frames.
LENGTHS = [1, 2, 15, 16, 39, 40, 41, 80, 119, 120, 121, 200, 240, 361]
# Around blocks of 200 and units of 600.
LONG_LENGTHS = [1, 199, 200, 201, 400, 599, 600, 601]


class Oracle:
    """transformers' Granite Speech on one recording, or one sequence, without padding."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.GraniteSpeechForConditionalGeneration.from_pretrained(folder).eval()

    @torch.no_grad()
    def encoded(self, features: torch.Tensor) -> Tensors:
        """Return the outputs of encode_project for `features` [T, 160], without a batch and without units."""
        frames = self.model.model.encoder(features[None]).last_hidden_state
        embeds = self.model.model.projector(frames)
        return {
            "encoder_out": frames[0],
            "audio_embeds": embeds[0],
            "ctc_logits": self.model.model.encoder.out(frames)[0],
        }

    @torch.no_grad()
    def prefilled(self, embeds: torch.Tensor, cache: Any = None) -> tuple[torch.Tensor, Any]:
        """Return the last row's logits [1, V] and the cache behind `embeds` [1, S, d]."""
        outputs = self.model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        # transformers' Granite divides its logits, its Granite Speech forgets to.
        scaling = self.model.config.text_config.logits_scaling
        return self.model.lm_head(outputs.last_hidden_state[:, -1]) / scaling, outputs.past_key_values

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.model.get_input_embeddings()(tokens).detach()
        return embeds


@dataclass(frozen=True)
class Made:
    """A small checkpoint's graphs and what they are to equal."""

    graphs: dict[str, GraphDefinition]
    oracle: Oracle
    dims: GraniteDims
    folder: Path


def made(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Made:
    write_granite_checkpoint(folder / "checkpoint", **options)
    checkpoint = GraniteCheckpoint(folder / "checkpoint")
    tensors = {name: checkpoint.read(name).to(dtype) for name in checkpoint.tensors}
    infos = {name: TensorInfo(dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(folder / "weights.safetensors", infos, tensors.__getitem__)
    with torch.device("meta"):
        model = Granite(checkpoint.dims, checkpoint.settings.scales).to(dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    graphs = granite_graphs(model, checkpoint.dims, checkpoint.settings, dtype)
    return Made(graphs, Oracle(folder / "checkpoint"), checkpoint.dims, folder)


def write(small: Made, kinds: list[str], graphs: dict[str, GraphDefinition]) -> None:
    if "onnx" in kinds:
        write_onnx(graphs, small.folder / "weights.safetensors", small.folder)
    if "torchscript" in kinds:
        write_torchscript(graphs, small.folder / "model.ts")
    if "pt2" in kinds:
        write_pt2(graphs, small.folder)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Blocks of 40 frames."""
    return made(tmp_path_factory.mktemp("formats"))


def opened(small: Made, kind: str) -> Runner:
    """Return a function that runs the graphs in one format, written at the first call for it."""
    if kind in _FILES and not (small.folder / _FILES[kind]).exists():
        write(small, [kind], small.graphs)
    return runner(small.graphs, kind, small.folder)


@pytest.fixture(
    scope="module",
    params=["eager", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FORMATS if kind != "eager")],
)
def long_blocks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, str]:
    """Blocks of 200 frames, as in the real network, in one format."""
    small = made(tmp_path_factory.mktemp("long"), context_size=200)
    write(small, [request.param], {ENCODE_PROJECT: small.graphs[ENCODE_PROJECT]})
    return small, request.param


def recording(n_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    # The range of the features: log-mel, normalised.
    return 0.5 + 0.4 * torch.randn(n_frames, 160, generator=generator)


def in_units(features: torch.Tensor, dims: GraniteDims, spare: int, garbage: float) -> Tensors:
    """Return the inputs of encode_project: `features` behind which `garbage` fills the last unit and `spare` more."""
    n_units = -(-len(features) // dims.unit) + spare
    padded = torch.full((n_units * dims.unit, features.shape[1]), garbage)
    padded[: len(features)] = features
    return {"features": padded.view(n_units, dims.unit, -1), "length": torch.tensor([len(features)])}


def encode_errors(run: Runner, small: Made, n_frames: int, spare: int = 0, garbage: float = 0.0) -> dict[str, float]:
    """Return the relative error of each output of encode_project, after a check of what stands behind the length."""
    features = recording(n_frames, seed=n_frames)
    outputs = run(ENCODE_PROJECT, **in_units(features, small.dims, spare, garbage))
    expected, found = small.oracle.encoded(features), {}
    for name, tensor in outputs.items():
        rows = tensor.flatten(0, 1).float()
        assert torch.isfinite(rows).all(), name
        count = small.dims.n_embeds(n_frames) if name == "audio_embeds" else n_frames
        if name != "audio_embeds":
            assert not rows[count:].any(), name
        found[name] = relative_l2(rows[:count], expected[name])
    return found


def check_encoded(run: Runner, small: Made, lengths: list[int]) -> None:
    for n_frames in lengths:
        for spare, garbage in ((0, 0.0), (1, torch.nan), (2, 1e4)):
            errors = encode_errors(run, small, n_frames, spare, garbage)
            assert max(errors.values()) <= 1e-5, (n_frames, spare, errors)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_encoder_and_projector_are_transformers_at_every_length(formats: Made, kind: str):
    check_encoded(opened(formats, kind), formats, LENGTHS)


def test_blocks_as_long_as_the_real_ones(long_blocks: tuple[Made, str]):
    small, kind = long_blocks
    check_encoded(runner(small.graphs, kind, small.folder), small, LONG_LENGTHS)


@pytest.mark.parametrize("options", [{"encoder_layers": 1}, {"encoder_layers": 3, "tied": True}], ids=["one", "tied"])
def test_other_topologies(tmp_path: Path, options: dict[str, Any]):
    small = made(tmp_path, **options)
    run = runner(small.graphs, "eager", tmp_path)
    check_encoded(run, small, [41, 121])
    check_prefill(run, small, 9, 9)
    check_decode(run, small, 5, 8, 16)


def prompt(small: Made, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(small.dims.n_vocab - 1, (1, length), generator=torch.Generator().manual_seed(seed))


def prefill_errors(run: Runner, small: Made, length: int, padded: int, garbage: float = torch.nan) -> dict[str, float]:
    embeds = run(EMBED, tokens=prompt(small, length, length))["embeds"]
    dtype = embeds.dtype
    expected, cache = small.oracle.prefilled(small.oracle.embedded(prompt(small, length, length)))
    behind = torch.full((1, padded - length, small.dims.lm_dim), garbage, dtype=dtype)
    outputs = run(PREFILL, embeds=torch.cat([embeds, behind], dim=1), length=torch.tensor([length]))
    found = {"logits": relative_l2(outputs["logits"], expected)}
    for name, rows in kv_cache(cache).items():
        assert torch.isfinite(outputs[f"new_{name}"]).all()
        found[name] = relative_l2(outputs[f"new_{name}"][:, :, :length].float(), rows)
    return found


def kv_cache(cache: Any) -> Tensors:
    """Return keys and values [layers, heads, S, dh] of transformers' cache."""
    keys, values = ([getattr(layer, kind)[0] for layer in cache.layers] for kind in ("keys", "values"))
    return {"k": torch.stack(keys), "v": torch.stack(values)}


def check_prefill(run: Runner, small: Made, length: int, padded: int) -> None:
    errors = prefill_errors(run, small, length, padded)
    assert max(errors.values()) <= 1e-5, (length, padded, errors)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_prompt_of_any_length_is_transformers(formats: Made, kind: str):
    run = opened(formats, kind)
    for length in (*range(1, 20), 63, 64, 65, 200):
        check_prefill(run, formats, length, length)
        check_prefill(run, formats, length, -(-length // 32) * 32)


def decode_errors(
    run: Runner, small: Made, n_prompt: int, n_steps: int, n_cache: int, *, garbage: float
) -> list[float]:
    """Return the relative errors of all outputs of each step, on a cache whose unused rows hold `garbage`."""
    tokens = prompt(small, n_prompt + n_steps, seed=3)
    embeds = small.oracle.embedded(tokens)
    _, cache = small.oracle.prefilled(embeds[:, :n_prompt]) if n_prompt else (None, None)
    dims, dtype = small.dims, run(EMBED, tokens=tokens)["embeds"].dtype
    held = {
        name: torch.full((dims.lm_layers, dims.lm_kv_heads, n_cache, dims.head_dim), garbage).to(dtype) for name in "kv"
    }
    if cache is not None:
        for name, rows in kv_cache(cache).items():
            held[name][:, :, :n_prompt] = rows.to(dtype)
    errors = []
    for pos in range(n_prompt, n_prompt + n_steps):
        outputs = run(DECODE, tokens=tokens[:, pos : pos + 1], pos=torch.tensor([pos]), **held)
        expected, cache = small.oracle.prefilled(embeds[:, pos : pos + 1], cache)
        errors.append(relative_l2(outputs["logits"], expected))
        for name, rows in kv_cache(cache).items():
            errors.append(relative_l2(outputs[f"new_{name}"][:, :, 0].float(), rows[:, :, pos]))
            held[name][:, :, pos : pos + 1] = outputs[f"new_{name}"][:, :, : n_cache - pos]
    return errors


def check_decode(run: Runner, small: Made, n_prompt: int, n_steps: int, n_cache: int) -> None:
    for garbage in (0.0, 1e4):
        errors = decode_errors(run, small, n_prompt, n_steps, n_cache, garbage=garbage)
        assert max(errors) <= 1e-5, (n_prompt, n_cache, errors)


@pytest.mark.parametrize("kind", FORMATS)
def test_tokens_one_by_one_are_transformers_with_its_cache(formats: Made, kind: str):
    run = opened(formats, kind)
    # From an empty cache, on the smallest one, on a full one, on one with room.
    for n_prompt, n_steps, n_cache in ((0, 1, 1), (1, 1, 1), (0, 6, 6), (7, 4, 64), (63, 3, 128)):
        check_decode(run, formats, n_prompt, n_steps, n_cache)


@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [
        pytest.param(torch.float16, ["eager"], id="fp16"),
        pytest.param(torch.float16, ["onnx", "torchscript", "pt2"], id="fp16-formats", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, ["eager", "torchscript", "pt2"], id="bf16", marks=pytest.mark.slow),
    ],
)
def test_half_precision_stays_near_fp32(tmp_path: Path, dtype: torch.dtype, kinds: list[str]):
    limit = {torch.float16: 0.01, torch.bfloat16: 0.08}[dtype]
    small = made(tmp_path, dtype)
    write(small, kinds, small.graphs)
    for kind in kinds:
        run = runner(small.graphs, kind, tmp_path)
        errors = encode_errors(run, small, 121, spare=1, garbage=1e30)
        errors |= prefill_errors(run, small, 20, 32, garbage=1e4)
        errors["decode"] = max(decode_errors(run, small, 7, 4, 16, garbage=1e4))
        assert max(errors.values()) <= limit, (kind, errors)
    if dtype is torch.bfloat16:  # ONNX Runtime has none on the CPU
        write(small, ["onnx"], small.graphs)
        kinds = ["onnx"]
    if "onnx" in kinds:
        check_atc_takes(small.graphs, tmp_path, never=NEVER)


def test_onnx_graphs_are_what_atc_takes(formats: Made):
    opened(formats, "onnx")
    check_atc_takes(formats.graphs, formats.folder, never=NEVER)


def test_graphs_hold_the_parameters_that_they_use(formats: Made):
    held = {
        name: {key.partition(".")[0] for key in graph.module.state_dict()} for name, graph in formats.graphs.items()
    }
    assert held[ENCODE_PROJECT] == {"encoder", "projector"}
    assert list(formats.graphs[EMBED].module.state_dict()) == ["language_model.model.embed_tokens.weight"]


def _unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MASKED", 0.0)
    monkeypatch.setattr(graphs_module, "MASKED", 0.0)


def _distances_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = modules.relative_positions
    monkeypatch.setattr(graphs_module, "relative_positions", lambda dims: right(dims) + 1)


def _positions_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = graphs_module.rope_rotation
    monkeypatch.setattr(graphs_module, "rope_rotation", lambda positions, *rest: right(positions + 1, *rest))


Fault = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("fault", "graph"),
    [
        (_unmasked, ENCODE_PROJECT),
        (_unmasked, PREFILL),
        (_unmasked, DECODE),
        (_distances_off_by_one, ENCODE_PROJECT),
        (_positions_off_by_one, DECODE),
    ],
)
def test_a_fault_is_not_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, graph: str):
    """The tests above would see each of these: the random weights do not hide it."""
    fault(monkeypatch)
    small = made(tmp_path)
    run = runner(small.graphs, "eager", tmp_path)
    if graph == ENCODE_PROJECT:
        error = min(encode_errors(run, small, 41).values())
    elif graph == PREFILL:
        error = prefill_errors(run, small, 9, 16, garbage=0.0)["logits"]
    else:
        error = max(decode_errors(run, small, 7, 2, 16, garbage=0.0))
    assert error > 1e-2
