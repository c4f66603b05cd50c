"""A whole export of a Granite Speech: what is in the folder, that it repeats, and that a wrong one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from granite_checkpoints import AUDIO, END_OF_TEXT, write_granite_checkpoint
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from export.families.granite_speech.checkpoint import GraniteCheckpoint
from export.families.granite_speech.model import GraniteModel
from export.families.granite_speech.source import TransformersGranite
from export.golden import Golden
from export.parity import source_parity
from export.pipeline import export_model
from export.registry import REPOSITORY_ROOT
from runtime import golden as runtime_golden
from runtime.artifact import open_artifact
from runtime.engines.base import Array
from runtime.errors import GateError, InputError
from runtime.manifest import Case, Content, Recording

SHORT = REPOSITORY_ROOT / "samples" / "short_en.wav"
GRAPHS = {"encode_project", "embed", "prefill", "decode"}
UNIT, SCALING = 120, 8.0
SOUNDS = ["speech", "silence", "noise", "shortest", "odd", "unit", "unit_and_one", "garbage", "recording_short_en"]


@pytest.fixture(scope="module")
def content(granite_artifact: Path) -> Content:
    return open_artifact(granite_artifact).content


@pytest.fixture(scope="module")
def arrays(granite_artifact: Path) -> dict[str, Array]:
    return load_file(granite_artifact / "golden.safetensors")


@pytest.fixture(scope="module")
def model(granite_checkpoint: Path) -> transformers.GraniteSpeechForConditionalGeneration:
    return transformers.GraniteSpeechForConditionalGeneration.from_pretrained(granite_checkpoint).eval()


@pytest.fixture
def source(granite_artifact: Path, granite_checkpoint: Path) -> TransformersGranite:
    """The source of the checkpoint, for a test to change."""
    weights = granite_artifact / "weights.safetensors"
    return TransformersGranite(granite_checkpoint, weights, GraniteCheckpoint(granite_checkpoint))


def _cases(content: Content, graph: str) -> list[Case]:
    return [case for case in content.cases if case.graph == graph]


def _distance(found: Array, expected: torch.Tensor) -> float:
    reference = expected.detach().numpy().astype(np.float64)
    assert found.shape == reference.shape
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def test_the_manifest_describes_graphs_of_open_length(content: Content, granite_checkpoint: Path):
    assert (content.family, content.task) == ("granite_speech", "automatic-speech-recognition")
    assert (content.source.weights, content.source.origin) == ("trained", "granite")
    hashed = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert hashed <= content.source.files.keys()
    for name, digest in content.source.files.items():
        assert digest == hashlib.sha256((granite_checkpoint / name).read_bytes()).hexdigest()
    shapes = {
        graph: {spec.name: (spec.dtype, spec.shape) for spec in (*signature.inputs, *signature.outputs)}
        for graph, signature in content.graphs.items()
    }
    assert shapes == {
        "encode_project": {
            "features": ("float32", ("n_units", UNIT, 160)),
            "length": ("int64", (1,)),
            "encoder_out": ("float32", ("n_units", UNIT, 64)),
            "audio_embeds": ("float32", ("n_units", 24, 96)),
            "ctc_logits": ("float32", ("n_units", UNIT, 48)),
        },
        "embed": {"tokens": ("int64", (1, "n_tokens")), "embeds": ("float32", (1, "n_tokens", 96))},
        "prefill": {
            "embeds": ("float32", (1, "n_prompt", 96)),
            "length": ("int64", (1,)),
            "logits": ("float32", (1, 384)),
            "new_k": ("float32", (2, 2, "n_prompt", 16)),
            "new_v": ("float32", (2, 2, "n_prompt", 16)),
        },
        "decode": {
            "tokens": ("int64", (1, 1)),
            "pos": ("int64", (1,)),
            "k": ("float32", (2, 2, "n_cache", 16)),
            "v": ("float32", (2, 2, "n_cache", 16)),
            "logits": ("float32", (1, 384)),
            "new_k": ("float32", (2, 2, 1, 16)),
            "new_v": ("float32", (2, 2, 1, 16)),
        },
    }


def test_golden_cases_cover_every_graph_and_are_the_source_s(content: Content, arrays: dict[str, Array]):
    names = {graph: [case.name for case in _cases(content, graph)] for graph in GRAPHS}
    assert names == {
        "encode_project": SOUNDS,
        "embed": ["embed_prompt"],
        "prefill": ["prefill_speech", "prefill_shortest", "prefill_full", "prefill_padded"],
        "decode": ["decode_first", "decode_middle", "decode_last"],
    }
    stored = {stored.key for case in content.cases for stored in (*case.inputs.values(), *case.outputs.values())}
    assert stored | {run.logits for run in content.teacher_forced} == set(arrays)
    assert content.parity.implementation.startswith("transformers ")
    assert "divided by logits_scaling" in content.parity.implementation
    assert len(content.parity.outputs) == sum(len(case.outputs) for case in content.cases)
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 5e-5
    others = ("translate", "keywords", "prompt", "chunks")
    assert content.parity.results_equal == dict.fromkeys(["short_en", *(f"short_en_{name}" for name in others)], True)
    assert len(content.recordings[-1].result["segments"]) > 2, "chunks"


def test_sounds_are_what_their_names_say(content: Content, arrays: dict[str, Array]):
    features = {name: arrays[f"{name}/features"] for name in SOUNDS}
    frames = {name: int(arrays[f"{name}/length"][0]) for name in SOUNDS}
    units = {name: len(array) for name, array in features.items()}
    assert (frames["shortest"], frames["unit"], frames["unit_and_one"]) == (1, UNIT, UNIT + 1)
    assert (units["shortest"], units["unit"], units["unit_and_one"]) == (1, 1, 2)
    assert frames["odd"] % 40
    assert frames["odd"] % 15
    assert frames["speech"] == 150
    flat = {name: array.reshape(-1, 160) for name, array in features.items()}
    for name, rows in flat.items():
        beyond = 3.0 if name == "garbage" else 0.0
        assert (rows[frames[name] :] == beyond).all(), name
    odd = frames["odd"]
    assert np.array_equal(flat["garbage"][:odd], flat["odd"][:odd])
    # What stands beyond the end changes nothing.
    for output in ("encoder_out", "audio_embeds", "ctc_logits"):
        np.testing.assert_allclose(arrays[f"garbage/{output}"], arrays[f"odd/{output}"], atol=1e-6)
    assert np.ptp(flat["silence"][: frames["silence"]]) == 0.0
    # Encoder cases of pocket size are stored whole.
    assert {stored.stride for case in _cases(content, "encode_project") for stored in case.outputs.values()} == {1}


def test_cache_rows_that_must_not_be_read_hold_garbage(granite_artifact: Path, arrays: dict[str, Array]):
    artifact = open_artifact(granite_artifact)
    golden = runtime_golden.Golden(artifact)
    unread = {}
    for case in _cases(artifact.content, "decode"):
        position = int(arrays[case.inputs["pos"].key][0])
        inputs = golden.inputs(case)
        for name in "kv":
            assert arrays[case.inputs[name].key].shape[2] == position
            assert (inputs[name][:, :, position:] == 1e4).all()
            assert inputs[name].shape[2] % 64 == 0
            unread[case.name] = inputs[name].shape[2] - position
    assert unread["decode_first"] == 63
    assert unread["decode_last"] == 1
    assert (arrays["prefill_padded/embeds"][0, int(arrays["prefill_padded/length"][0]) :] == 3.0).all()
    np.testing.assert_allclose(arrays["prefill_padded/logits"], arrays["prefill_speech/logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["forced_transcribe", "forced_translate"])
def test_teacher_forced_logits_are_transformers_on_the_whole_text(
    name: str,
    content: Content,
    arrays: dict[str, Array],
    model: transformers.GraniteSpeechForConditionalGeneration,
):
    """Along another path than export's own comparison: no cache, audio spliced by transformers."""
    run = next(run for run in content.teacher_forced if run.name == name)
    case = next(case for case in content.cases if case.name == run.encoder_case)
    frames = int(arrays[f"{case.name}/length"][0])
    features = torch.from_numpy(arrays[f"{case.name}/features"].reshape(1, -1, 160)[:, :frames])
    tokens = torch.tensor([run.tokens[:-1]])
    assert int((tokens[0, : run.prompt] == AUDIO).sum()) == -(-frames // 15) * 3
    # Said by the model itself: transformers embeds id 0 for it, but in a pass over all of the text looks for audio.
    tokens[0, run.prompt :][tokens[0, run.prompt :] == AUDIO] = 0
    with torch.inference_mode():
        logits = model(input_ids=tokens, input_features=features).logits[0, run.prompt - 1 :] / SCALING
    assert _distance(arrays[run.logits], logits) < 1e-4
    greedy = logits.argmax(dim=1).tolist()
    assert greedy == list(run.tokens[run.prompt :])
    assert len(greedy) == 32 or greedy[-1] == END_OF_TEXT


def test_random_text_depends_on_prompt_and_sound(content: Content):
    """Otherwise parity of the text would say little."""
    texts = [run.tokens[run.prompt :] for run in content.teacher_forced]
    texts += [tuple(recording.result["segments"][0]["tokens"]) for recording in content.recordings]
    assert len({text[:16] for text in texts}) == len(texts)
    assert min(len(set(text)) for text in texts) > 4


def _swap(first: torch.Tensor, second: torch.Tensor) -> None:
    first[:], second[:] = second.clone(), first.clone()


def _wrong_distances(source: TransformersGranite) -> None:
    encoder = source.model.model.encoder
    encoder.attention_dists = encoder.attention_dists + 1


def _wrong_fold(source: TransformersGranite) -> None:
    source.model.model.encoder.layers[1].conv.batch_norm.eps = 1e-3


def _wrong_query(source: TransformersGranite) -> None:
    query = source.model.model.projector.query
    _swap(query[0, 0], query[0, 1])


def _wrong_window(source: TransformersGranite) -> None:
    source.model.model.projector.register_forward_pre_hook(lambda _module, inputs: inputs[0].roll(1, dims=1))


def _wrong_multiplier(source: TransformersGranite) -> None:
    source.model.model.language_model.embedding_multiplier = 11.0


def _wrong_rope(source: TransformersGranite) -> None:
    rotary = source.model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq * 1.01


def _wrong_scaling(source: TransformersGranite) -> None:
    scales = source._settings.scales.model_copy(update={"logits_scaling": 1.0})
    source._settings = source._settings.model_copy(update={"scales": scales})


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (_wrong_distances, "output (encoder_out|audio_embeds|ctc_logits)"),
        (_wrong_fold, "output (encoder_out|audio_embeds|ctc_logits)"),
        (_wrong_query, "output audio_embeds"),
        (_wrong_window, "output audio_embeds"),
        (_wrong_multiplier, "case (prefill|decode)_.*, output (logits|new_.)"),
        (_wrong_rope, "case (prefill|decode)_.*, output (logits|new_.)"),
        (_wrong_scaling, "case (prefill|decode)_.*, output logits"),
    ],
)
def test_parity_finds_a_difference(
    content: Content,
    arrays: dict[str, Array],
    source: TransformersGranite,
    fault: Callable[[TransformersGranite], None],
    where: str,
):
    golden = Golden(arrays=arrays, cases=list(content.cases))
    fault(source)
    with pytest.raises(GateError, match=where) as caught:
        source_parity(golden, source, [], "small")
    assert "\n" not in str(caught.value)


def _with_segment(change: Callable[[dict[str, Any]], None]) -> Callable[[Recording], Recording]:
    def apply(recording: Recording) -> Recording:
        changed = Recording.model_validate_json(recording.model_dump_json())
        change(changed.result["segments"][0])
        return changed

    return apply


@pytest.mark.parametrize(
    "change",
    [
        _with_segment(lambda segment: segment["tokens"].append(1)),
        _with_segment(lambda segment: segment["tokens"].__setitem__(3, 1)),
        _with_segment(lambda segment: segment.update(finish="end")),
        lambda recording: recording.model_copy(update={"options": {**recording.options, "to": "German"}}),
    ],
    ids=["longer", "token", "ended", "prompt"],
)
def test_the_source_disagrees_with_another_result(
    content: Content, source: TransformersGranite, change: Callable[[Recording], Recording]
):
    recording = content.recordings[1]
    assert recording.result["segments"][0]["finish"] == "length"
    assert not source.agrees(SHORT, change(recording))


class _WithoutShift(GraniteModel):
    """The means of a normalisation forgotten when it is folded."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return torch.zeros_like(tensor) if name == "encoder.layers.1.conv.depth_conv.conv.bias" else tensor


class _WithSwappedHalves(GraniteModel):
    """Keys and values taken for each other."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return tensor.roll(len(tensor) // 2, dims=0) if name == "encoder.layers.0.attn.to_kv.weight" else tensor


class _Faulty(GraniteModel):
    """A weight of the language model off by a hundredth."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return tensor * 1.01 if name == "language_model.model.layers.1.mlp.down_proj.weight" else tensor


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_WithoutShift, _WithSwappedHalves, _Faulty])
def test_graphs_that_do_not_compute_what_the_source_does_are_not_exported(
    fault: type[GraniteModel], granite_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("export.families.granite_speech.model.GraniteModel", fault)
    with pytest.raises(GateError, match=r"relative L2 .* limit 0\.0001"):
        export_model("mine", weights=str(granite_checkpoint), formats=("onnx",), out=tmp_path, recordings=[SHORT])
    assert not list((tmp_path / "mine").glob("*"))


class _Overflowing(GraniteModel):
    """A weight that fp16 cannot hold."""

    def read(self, name: str) -> torch.Tensor:
        tensor = super().read(name)
        return tensor + 7e4 if name == "projector.linear.bias" else tensor


def test_a_weight_that_fp16_cannot_hold_is_refused(
    granite_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("export.families.granite_speech.model.GraniteModel", _Overflowing)
    with pytest.raises(InputError, match=r"projector\.linear\.bias leaves the range of torch\.float16"):
        export_model(
            "mine",
            weights=str(granite_checkpoint),
            variant="fp16",
            formats=("onnx",),
            out=tmp_path,
            recordings=[SHORT],
        )
    assert not list((tmp_path / "mine").glob("*"))


LAYOUTS: dict[str, dict[str, Any]] = {
    "new names, in parts": {"new_names": True, "shards": 3},
    "tied head, bf16": {"tied": True, "dtype": torch.bfloat16},
    "other blocks, four layers": {"encoder_layers": 4, "context_size": 25},
    "adapter": {"adapter": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_other_layouts(layout: str, unjudged: Path, tmp_path: Path):
    folder = write_granite_checkpoint(tmp_path / "checkpoint", **LAYOUTS[layout])
    target = export_model(
        "my-granite", weights=str(folder), formats=("onnx",), out=tmp_path / "out", recordings=[unjudged]
    )
    content = open_artifact(target).content
    assert (content.model, content.family) == ("my-granite", "granite_speech")
    assert max(parity.relative_l2 for parity in content.parity.outputs) < 5e-5
    assert set(content.parity.results_equal.values()) == {True}
    heads = [name for name in load_tensors(target / "weights.safetensors") if "lm_head" in name]
    assert len(heads) == (0 if content.dims["tied"] else 1)
