"""Whisper's graphs in every format against transformers' own Whisper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from graph_checks import check_atc_takes, relative_l2
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from export.families.whisper.alignment import Alignment
from export.families.whisper.graphs import whisper_graphs
from export.families.whisper.modules import Whisper
from export.graphs import TORCH_DTYPES, GraphDefinition
from export.safetensors_writer import TensorInfo, write_safetensors
from export.writers.onnx import write_onnx
from export.writers.pt2 import write_pt2
from export.writers.torchscript import write_torchscript
from runtime.families.whisper.settings import WhisperDims, WhisperFrontend

SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"

# Neither the first layer nor all heads of one; tokens that are no text lie before the last ones.
ALIGNMENT = Alignment(((0, 2), (1, 0), (1, 1)), range(280, 290))

Tensors = dict[str, torch.Tensor]
Runner = Callable[[str, Tensors], Tensors]


def whisper_dims(n_mels: int, encoder_layers: int, decoder_layers: int) -> WhisperDims:
    return WhisperDims(
        n_mels=n_mels,
        n_audio_ctx=50,
        n_audio_state=48,
        n_audio_head=3,
        n_audio_layer=encoder_layers,
        n_audio_ffn=96,
        n_vocab=301,
        n_text_ctx=24,
        n_text_state=48,
        n_text_head=3,
        n_text_layer=decoder_layers,
        n_text_ffn=80,
    )


def reference_model(dims: WhisperDims) -> WhisperForConditionalGeneration:
    """Return transformers' model; random weights scaled by fan-in, so that a missing mask or bias shows."""
    config = WhisperConfig(
        num_mel_bins=dims.n_mels,
        max_source_positions=dims.n_audio_ctx,
        d_model=dims.n_audio_state,
        encoder_attention_heads=dims.n_audio_head,
        encoder_layers=dims.n_audio_layer,
        encoder_ffn_dim=dims.n_audio_ffn,
        vocab_size=dims.n_vocab,
        max_target_positions=dims.n_text_ctx,
        decoder_attention_heads=dims.n_text_head,
        decoder_layers=dims.n_text_layer,
        decoder_ffn_dim=dims.n_text_ffn,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    model = WhisperForConditionalGeneration(config).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(dims.n_mels)
    for parameter in model.parameters():
        scale = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


@dataclass(frozen=True)
class Export:
    """One model in every format, and its source."""

    dims: WhisperDims
    reference: WhisperForConditionalGeneration
    graphs: dict[str, GraphDefinition]
    weights: Tensors
    folder: Path


def export(dims: WhisperDims, dtype: torch.dtype, folder: Path) -> Export:
    """Write every format; fp32 alone as .pt2, which holds the same program as TorchScript."""
    reference = reference_model(dims)
    model = Whisper(dims)
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in reference.state_dict().items()
        if name != "proj_out.weight"
    }
    model.load_state_dict(weights, strict=True)
    model = model.to(dtype)
    weights = dict(model.named_parameters())
    frontend = WhisperFrontend(n_mels=dims.n_mels, n_samples=dims.n_frames * 160)
    graphs = whisper_graphs(model, dims, frontend, dtype, ALIGNMENT)
    path = folder / "weights.safetensors"
    write_safetensors(
        path,
        {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()},
        weights.__getitem__,
    )
    write_onnx(graphs, path, folder)
    write_torchscript(graphs, folder / "model.ts")
    if dtype is torch.float32:
        write_pt2(graphs, folder)
    return Export(dims, reference, graphs, weights, folder)


SLOW = pytest.mark.slow
SIZES = [pytest.param((80, 2, 3), id="80 mels"), pytest.param((128, 3, 2), id="128 mels", marks=SLOW)]
HALVES = [pytest.param(torch.float16, id="fp16", marks=SLOW), pytest.param(torch.bfloat16, id="bf16", marks=SLOW)]


@pytest.fixture(scope="module", params=SIZES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(whisper_dims(*request.param), torch.float32, tmp_path_factory.mktemp("fp32"))


@pytest.fixture(scope="module", params=HALVES)
def exported_half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(whisper_dims(80, 2, 3), request.param, tmp_path_factory.mktemp("half"))


def runner(exported: Export, kind: str) -> Runner:
    """Return a function that runs a graph by name in one format."""
    functions: dict[str, Callable[[Tensors], list[torch.Tensor]]] = {}
    script = torch.jit.load(exported.folder / "model.ts") if kind == "torchscript" else None
    for name, graph in exported.graphs.items():
        if kind == "onnx":
            session = onnxruntime.InferenceSession(exported.folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            functions[name] = lambda inputs, session=session: [
                torch.from_numpy(array)
                for array in session.run(None, {key: tensor.numpy() for key, tensor in inputs.items()})
            ]
            continue
        if kind == "torchscript":
            function = getattr(script, name)
        elif kind == "pt2":
            function = torch.export.load(exported.folder / f"{name}.pt2").module()
            function.load_state_dict({key: exported.weights[key] for key in function.state_dict()}, assign=True)
        else:
            function = graph.module
        functions[name] = lambda inputs, function=function: list(_tuple(function(*inputs.values())))

    def run(name: str, inputs: Tensors) -> Tensors:
        graph = exported.graphs[name]
        assert list(inputs) == [spec.name for spec in graph.inputs]
        with torch.inference_mode():
            outputs = functions[name](inputs)
        for spec, tensor in zip(graph.outputs, outputs, strict=True):
            assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, TORCH_DTYPES[spec.dtype]), spec.name
        return {spec.name: tensor for spec, tensor in zip(graph.outputs, outputs, strict=True)}

    return run


def _tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@dataclass(frozen=True)
class Golden:
    """What transformers computes for one window and all positions of the decoder."""

    mel: torch.Tensor
    hidden: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor
    rows: Tensors  # self_k_0, ... [1, H, N, dh]; cross_k_0, ...
    attention: torch.Tensor  # [1, A, N, S], of the alignment heads


def golden(exported: Export) -> Golden:
    dims = exported.dims
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(1, dims.n_mels, dims.n_frames, generator=generator)
    tokens = torch.randint(dims.n_vocab, (1, dims.n_text_ctx), generator=generator)
    with torch.inference_mode():
        exported.reference.set_attn_implementation("eager")
        result = exported.reference(
            input_features=mel, decoder_input_ids=tokens, use_cache=True, output_attentions=True
        )
    rows: Tensors = {}
    cache = result.past_key_values
    for prefix, layers in (("self", cache.self_attention_cache.layers), ("cross", cache.cross_attention_cache.layers)):
        for index, layer in enumerate(layers):
            rows[f"{prefix}_k_{index}"], rows[f"{prefix}_v_{index}"] = layer.keys, layer.values
    attention = torch.stack([result.cross_attentions[layer][:, head] for layer, head in ALIGNMENT.heads], dim=1)
    return Golden(mel, result.encoder_last_hidden_state, tokens, result.logits, rows, attention)


def decode(exported: Export, run: Runner, reference: Golden, limit: float) -> None:
    """Check the encoder, every prefill, and a step at every position that is left, from the format's own outputs."""
    dims = exported.dims
    encoded = run("encoder", {"mel": reference.mel})
    assert relative_l2(encoded["hidden"], reference.hidden) <= limit
    cross = {name: tensor for name, tensor in encoded.items() if name != "hidden"}
    for name, tensor in cross.items():
        assert relative_l2(tensor, reference.rows[name]) <= limit, name

    outputs = run("align", {"tokens": reference.tokens, **cross})
    assert relative_l2(outputs["scores"].float().softmax(-1), reference.attention) <= limit
    text = reference.logits[:, :-1].clone()
    text[..., ALIGNMENT.special] = -torch.inf
    expected = text.softmax(-1).gather(2, reference.tokens[:, 1:, None])[..., 0]
    assert relative_l2(outputs["probabilities"], expected) <= limit

    caches: Tensors = {}
    for length in dims.prefill_lengths:
        for count in (length, length - 3):
            tokens = torch.full((1, length), 7)
            tokens[:, :count] = reference.tokens[:, :count]
            outputs = run(f"prefill_{length}", {"tokens": tokens, "rows": torch.tensor([0, count - 1]), **cross})
            assert relative_l2(outputs["logits"], reference.logits[:, [0, count - 1]]) <= limit
            for name, rows in outputs.items():
                if name != "logits":
                    cached = name.removeprefix("new_")
                    assert relative_l2(rows[:, :, :count], reference.rows[cached][:, :, :count]) <= limit, name
                    if (length, count) == (4, 4):
                        # Large garbage in the rows that must not be read.
                        caches[cached] = torch.full((1, dims.n_text_head, dims.n_text_ctx, dims.head_dim), 1e4).to(rows)
                        caches[cached][:, :, :4] = rows

    for position in range(4, dims.n_text_ctx):
        token = reference.tokens[:, position : position + 1]
        outputs = run("step", {"tokens": token, "pos": torch.tensor([position]), **cross, **caches})
        assert relative_l2(outputs["logits"][:, 0], reference.logits[:, position]) <= limit, position
        for name, row in outputs.items():
            if name != "logits":
                caches[name.removeprefix("new_")][:, :, position : position + 1] = row


@pytest.mark.parametrize("kind", ["eager", "onnx", "torchscript", "pt2"])
def test_graphs_are_transformers_whisper(exported: Export, kind: str) -> None:
    decode(exported, runner(exported, kind), golden(exported), limit=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_half_precision_graphs_stay_near_fp32(exported_half: Export, kind: str) -> None:
    bf16 = exported_half.graphs["encoder"].outputs[0].dtype == "bfloat16"
    if bf16 and kind == "onnx":
        # When this changes, the runtime may stop refusing bf16 ONNX on the CPU.
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match="Could not find"):
            runner(exported_half, kind)
        return
    decode(exported_half, runner(exported_half, kind), golden(exported_half), limit=5e-2 if bf16 else 5e-3)


def check_onnx_graphs(exported: Export) -> None:
    check_atc_takes(exported.graphs, exported.folder)
    for graph in exported.graphs.values():
        assert graph.is_static
        initializers = onnx.load(exported.folder / f"{graph.name}.onnx", load_external_data=False).graph.initializer
        external = {tensor.name for tensor in initializers if tensor.data_location == onnx.TensorProto.EXTERNAL}
        assert external <= exported.weights.keys()


def test_onnx_graphs_are_what_atc_takes(exported: Export) -> None:
    check_onnx_graphs(exported)


def test_half_precision_onnx_graphs_are_what_atc_takes(exported_half: Export) -> None:
    check_onnx_graphs(exported_half)


def test_garbage_rows_are_what_makes_a_step_fail_without_its_mask(exported: Export) -> None:
    """The injected fault of the tests above: without the mask, the same check must fail."""
    step = exported.graphs["step"].module
    positions = step.positions.clone()
    step.positions.fill_(-1)  # every row counts as used
    try:
        with pytest.raises(AssertionError):
            decode(exported, runner(exported, "eager"), golden(exported), limit=1e-5)
    finally:
        step.positions.copy_(positions)


def signals(n_samples: int) -> dict[str, np.ndarray]:
    speech, rate = soundfile.read(SAMPLES / "short_en.wav", dtype="float32")
    assert rate == 16000
    time = np.arange(n_samples) / rate
    one = np.zeros(n_samples, np.float32)
    one[0] = 1.0
    return {
        "speech": np.resize(speech, n_samples),
        "silence": np.zeros(n_samples, np.float32),
        "noise": np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32),
        "tone": (0.9 * np.sin(2 * np.pi * 440 * time)).astype(np.float32),
        "one sample": one,
    }


@pytest.mark.parametrize("kind", ["eager", "onnx", "torchscript", "pt2"])
def test_frontend_is_transformers_feature_extractor(exported: Export, kind: str) -> None:
    dims = exported.dims
    run = runner(exported, kind)
    extractor = WhisperFeatureExtractor(feature_size=dims.n_mels, chunk_length=1)
    for name, audio in signals(extractor.n_samples).items():
        expected = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
        found = run("frontend", {"audio": torch.from_numpy(audio)[None]})["mel"]
        assert float((found - expected).abs().max()) <= 1e-4, name
