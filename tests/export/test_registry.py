"""The registry, and weights that it describes."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch
import transformers
from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS_MULTI
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from export.families import open_model
from export.families.whisper.alignment import Alignment
from export.families.whisper.graphs import whisper_graphs
from export.families.whisper.modules import Whisper
from export.families.whisper.standin import RandomWhisper, standin_settings, standin_tokenizer
from export.registry import MODELS, REPOSITORY_ROOT, find_model
from export.weights import resolve_weights
from runtime.errors import ExitCode, InputError
from runtime.families.parakeet_tdt.settings import ParakeetDims
from runtime.families.whisper.settings import WhisperDims

_TRANSFORMERS_NAMES = {
    "n_mels": "num_mel_bins",
    "n_vocab": "vocab_size",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_audio_ffn": "encoder_ffn_dim",
    "n_text_ctx": "max_target_positions",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
    "n_text_ffn": "decoder_ffn_dim",
}

# Models without trained weights.
RANDOM_ONLY = ("granite-pocket",)


@pytest.mark.parametrize("name", MODELS)
def test_an_entry_names_its_weights_and_recordings(name: str):
    entry = MODELS[name]
    assert entry.name == name
    assert entry.repo or name in RANDOM_ONLY or (REPOSITORY_ROOT / str(entry.path)).exists()
    assert all((REPOSITORY_ROOT / "samples" / file).is_file() for file in entry.recordings)


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.family == "whisper"])
def test_an_entry_describes_the_network_that_transformers_builds(name: str):
    entry = MODELS[name]
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    sizes = {theirs: entry.dims[ours] for ours, theirs in _TRANSFORMERS_NAMES.items()}
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes, **ends))
    assert entry.parameters == model.num_parameters()


# One of each size: several models have the same.
@pytest.mark.parametrize(
    "name", {tuple(entry.dims.values()): name for name, entry in MODELS.items() if entry.family == "whisper"}.values()
)
def test_random_weights_of_a_model_are_the_network_s(name: str):
    _, model = open_model(resolve_weights(name, "random"))
    assert sum(prod(info.shape) for info in model.tensors.values()) == MODELS[name].parameters
    assert model.dims == dict(MODELS[name].dims)


@pytest.mark.parametrize(
    ("name", "as_registered"),
    [
        ("whisper-tiny.en", True),
        ("whisper-tiny", True),
        # Recordings that fill 30 s say little in windows of 6.
        ("whisper-pocket", False),
    ],
)
def test_a_checkpoint_that_nobody_knows_is_heard_as_one_of_its_kind(name: str, as_registered: bool):  # noqa: FBT001
    _, model = open_model(resolve_weights(name, "random"))
    assert model.recordings == (MODELS[name].recordings if as_registered else ("jfk.flac",))


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.family.startswith("parakeet")])
def test_a_parakeet_s_recordings_make_a_batch(name: str):
    assert len(MODELS[name].recordings) > 1


@pytest.mark.parametrize(
    ("name", "file_size"),
    # Of the .nemo files, as the hub shows them; those of hybrid models hold a CTC head, too.
    [
        ("parakeet-tdt-0.6b-v2", None),
        ("parakeet-tdt-0.6b-v3", None),
        ("parakeet-tdt-1.1b", 4.28e9),
        ("parakeet-tdt_ctc-110m", 459e6),
        ("parakeet-tdt_ctc-0.6b-ja", 2.49e9),
    ],
)
def test_a_parakeet_is_as_large_as_its_file_and_as_the_network_of_transformers(name: str, file_size: float | None):
    entry = MODELS[name]
    dims = ParakeetDims(**entry.dims)
    encoder = {
        "num_mel_bins": dims.n_mels,
        "num_hidden_layers": dims.n_layers,
        "hidden_size": dims.d_model,
        "num_attention_heads": dims.n_heads,
        "intermediate_size": dims.d_ff,
        "conv_kernel_size": dims.conv_kernel,
        "subsampling_conv_channels": dims.subsampling_channels,
        "attention_bias": bool(dims.use_bias),
        "convolution_bias": bool(dims.use_bias),
    }
    config = transformers.ParakeetTDTConfig(
        vocab_size=dims.n_vocab + 1,
        blank_token_id=dims.blank,
        decoder_hidden_size=dims.pred_hidden,
        num_decoder_layers=dims.pred_layers,
        durations=list(range(dims.n_durations)),
        encoder_config=encoder,
    )
    with torch.device("meta"):
        network = transformers.ParakeetForTDT(config)
    assert entry.parameters == network.num_parameters()
    ctc_head = (dims.n_vocab + 1) * (dims.d_model + 1) if "ctc" in name else 0
    assert file_size is None or 4 * (entry.parameters + ctc_head) == pytest.approx(file_size, rel=2e-3)
    assert dims.joint_hidden == dims.pred_hidden
    _, model = open_model(resolve_weights(name, "random"))
    assert model.dims == dict(entry.dims)
    # Batch normalisation is folded into the convolution before it, the two biases of an LSTM are one.
    folded = dims.n_layers * dims.d_model * (1 + dims.use_bias) + dims.pred_layers * 4 * dims.pred_hidden
    assert sum(prod(info.shape) for info in model.tensors.values()) == entry.parameters - folded


@pytest.mark.parametrize(
    ("name", "near"), [("whisper-tinny", "whisper-tiny"), ("kotoba-whisper", "kotoba-whisper-v2.2"), ("zzz", "")]
)
def test_an_unknown_model_is_told_with_near_matches_and_the_list(name: str, near: str):
    with pytest.raises(InputError) as caught:
        find_model(name)
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert (f"did you mean {near}" in message) == bool(near)
    assert all(model in message for model in MODELS)
    assert "\n" not in message


def test_the_registry_imports_nothing_heavy():
    heavy = ("torch", "transformers", "onnxruntime", "numpy")
    code = f"import sys, export.registry; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY_ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("vocabulary", "sot", "transcribe", "no_timestamps", "languages"),
    # FACTS.md; openai/whisper's tokenizers have the same.
    [(51864, 50257, None, 50362, 0), (51865, 50258, 50359, 50363, 99), (51866, 50258, 50360, 50364, 100)],
)
def test_a_standin_tokenizer_has_openai_s_layout(
    vocabulary: int, sot: int, transcribe: int | None, no_timestamps: int, languages: int
):
    dims = WhisperDims(**MODELS["whisper-tiny"].dims).model_copy(update={"n_vocab": vocabulary})
    tokenizer = standin_tokenizer(dims)
    settings = standin_settings(dims, tokenizer)
    assert tokenizer.get_vocab_size() == vocabulary
    assert (settings.sot, settings.eot, settings.no_timestamps) == (sot, sot - 1, no_timestamps)
    assert settings.tasks.get("transcribe") == transcribe
    assert list(settings.languages) == list(LANGUAGES)[:languages]
    assert tokenizer.id_to_token(vocabulary - 1) == "<|30.00|>"
    assert tokenizer.decode(tokenizer.encode(" Straße, 5 €!").ids) == " Straße, 5 €!"
    if vocabulary == 51865:
        special = {token for token in NON_SPEECH_TOKENS_MULTI if token >= 50257}
        assert special <= set(settings.suppress_tokens)
        assert [t for t in settings.suppress_tokens if t < 94] == [t for t in NON_SPEECH_TOKENS_MULTI if t < 94]
        assert settings.begin_suppress_tokens == (220, 50257)


def test_random_weights_keep_activations_near_unit_size_and_depend_on_the_name_alone():
    dims = WhisperDims(**MODELS["whisper-tiny"].dims)
    random, again = RandomWhisper(dims), RandomWhisper(dims)
    state = {name: random.read(name) for name in random.tensors}
    for name in reversed(list(again.tensors)):
        assert torch.equal(again.read(name), state[name])
    assert not torch.equal(state["encoder.layers.0.fc1.bias"], state["encoder.layers.1.fc1.bias"])
    model = Whisper(dims)
    model.load_state_dict(state)
    alignment = Alignment(random.alignment_heads, random.settings.special)
    graphs = whisper_graphs(model, dims, random.frontend, torch.float32, alignment)
    with torch.inference_mode():
        hidden, *cross = graphs["encoder"].module(torch.rand(1, dims.n_mels, dims.n_frames))
        tokens = torch.tensor([[50258, 50259, 50359, 50363]])
        logits, *rows = graphs["prefill_4"].module(tokens, torch.tensor([0, 3]), *cross)
    for tensor in (hidden, *cross, *rows):
        assert 0.5 < tensor.std() < 2
    assert 1 < logits.std() < 4


def test_random_weights_need_a_model_of_the_registry():
    with pytest.raises(InputError, match="unknown model"):
        resolve_weights("my-whisper", "random")


@pytest.mark.parametrize("name", RANDOM_ONLY)
def test_a_model_without_trained_weights_says_so(name: str):
    with pytest.raises(InputError, match=f"{name}: has no trained weights; give WEIGHTS=random"):
        resolve_weights(name, None)


def test_random_weights_are_recorded_as_such():
    _, model = open_model(resolve_weights("whisper-pocket", "random"))
    assert model.seed == 0
    assert model.dims == dict(MODELS["whisper-pocket"].dims)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a@b", "a b"])
def test_a_model_name_that_is_no_folder_name_is_refused(name: str):
    with pytest.raises(InputError, match="model name"):
        resolve_weights(name, "random")
