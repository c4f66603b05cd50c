"""Granite Speech's registry entries and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from granite_checkpoints import CHAT_TEMPLATE
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.families import open_model
from export.families.granite_speech.graphs import granite_graphs
from export.families.granite_speech.modules import Granite
from export.families.granite_speech.standin import RandomGranite, standin_tokenizer
from export.golden import read_samples
from export.registry import MODELS, REPOSITORY_ROOT
from export.weights import resolve_weights
from runtime.errors import InputError
from runtime.families.granite_speech.features import log_mel
from runtime.families.granite_speech.settings import DECODE, EMBED, ENCODE_PROJECT, PREFILL, GraniteDims, GraniteScales

GRANITES = [name for name, entry in MODELS.items() if entry.family == "granite_speech"]
POCKET = GraniteDims(**MODELS["granite-pocket"].dims)


def dims_of(name: str) -> GraniteDims:
    return GraniteDims(**MODELS[name].dims)


@pytest.mark.parametrize("name", GRANITES)
def test_an_entry_describes_the_network_that_transformers_builds(name: str):
    dims = dims_of(name)
    config = transformers.GraniteSpeechConfig(
        audio_token_index=dims.n_vocab - 1,
        has_lora_adapter=False,
        window_size=dims.window,
        downsample_rate=dims.downsample,
        tie_word_embeddings=bool(dims.tied),
        encoder_config={
            "input_dim": 2 * dims.n_mels,
            "num_layers": dims.enc_layers,
            "hidden_dim": dims.enc_dim,
            "num_heads": dims.enc_heads,
            "dim_head": dims.enc_head_dim,
            "feedforward_mult": dims.enc_ffn // dims.enc_dim,
            "output_dim": dims.n_ctc,
            "context_size": dims.enc_context,
            "max_pos_emb": dims.enc_max_pos,
            "conv_kernel_size": dims.enc_conv_kernel,
            "conv_expansion_factor": dims.enc_conv_dim // dims.enc_dim,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": dims.proj_dim,
            "num_hidden_layers": dims.proj_layers,
            "num_attention_heads": dims.proj_heads,
            "intermediate_size": dims.proj_ffn,
            "encoder_hidden_size": dims.enc_dim,
            "cross_attention_frequency": 1,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": dims.n_vocab,
            "hidden_size": dims.lm_dim,
            "intermediate_size": dims.lm_ffn,
            "num_hidden_layers": dims.lm_layers,
            "num_attention_heads": dims.lm_heads,
            "num_key_value_heads": dims.lm_kv_heads,
            "tie_word_embeddings": bool(dims.tied),
        },
    )
    with torch.device("meta"):
        model = transformers.GraniteSpeechForConditionalGeneration(config)
    model.tie_weights()
    assert MODELS[name].parameters == model.num_parameters()


def test_4_1_has_the_parameters_that_the_facts_state():
    assert MODELS["granite-speech-4.1-2b"].parameters == 2_313_141_596
    assert dims_of("granite-speech-4.1-2b").unit == 600


def test_random_weights_depend_on_the_name_alone_and_come_one_at_a_time():
    dims = dims_of("granite-speech-4.1-2b")
    first, again = RandomGranite(dims), RandomGranite(dims)
    names = ["encoder.layers.15.conv.depth_conv.conv.weight", "language_model.model.layers.39.self_attn.k_proj.weight"]
    for name in names:
        tensor = first.read(name)
        assert tuple(tensor.shape) == first.tensors[name].shape
        assert torch.equal(tensor, again.read(name))
    assert first.files == ()
    assert first.settings.scales == GraniteScales()


def test_the_constants_of_3_3_are_its_own():
    scales = RandomGranite(dims_of("granite-speech-3.3-2b")).settings.scales
    assert (scales.rope_theta, scales.attention_multiplier) == (1e7, 1 / 64)


@pytest.mark.parametrize(("n_vocab", "pad"), [(100353, 100256), (1024, 1021)])
def test_a_standin_tokenizer_has_granite_4_s_layout(n_vocab: int, pad: int):
    tokenizer = standin_tokenizer(n_vocab)
    assert tokenizer.get_vocab_size() == n_vocab
    assert [tokenizer.token_to_id(text) for text in ("<|pad|>", "<|end_of_text|>", "<|audio|>")] == [
        pad,
        pad + 1,
        n_vocab - 1,
    ]
    ids = tokenizer.encode("USER: <|audio|><|audio|>Straße, 5 €!\n ASSISTANT:").ids
    assert ids.count(n_vocab - 1) == 2
    assert tokenizer.decode(ids) == "USER: Straße, 5 €!\n ASSISTANT:"
    words = tokenizer.decode(list(range(256, pad, 97)))
    assert words.replace(" ", "").isalpha()
    assert words.islower()


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(InputError, match="a vocabulary of 200 leaves no room for 256 bytes"):
        standin_tokenizer(200)


def test_the_prompt_is_granite_4_s():
    settings = RandomGranite(POCKET).settings
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=standin_tokenizer(1024), eos_token="<|end_of_text|>"
    )
    message = [{"role": "user", "content": "<|audio|>x"}]
    expected = tokenizer.apply_chat_template(message, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert f"{settings.prompt_prefix}<|audio|>x{settings.prompt_suffix}" == expected


def test_random_weights_are_recorded_as_such():
    family, model = open_model(resolve_weights("granite-pocket", "random"))
    assert (family, model.seed, model.dims) == ("granite_speech", 0, dict(MODELS["granite-pocket"].dims))
    assert json.dumps(model.settings)


class _Listener:
    """Greedy answers through the graphs, in torch."""

    def __init__(self, dims: GraniteDims) -> None:
        self.checkpoint, self.dims = RandomGranite(dims), dims
        with torch.device("meta"):
            model = Granite(dims, self.checkpoint.settings.scales)
        state = {name: self.checkpoint.read(name) for name in self.checkpoint.tensors}
        model.load_state_dict(state, assign=True)
        built = granite_graphs(model, dims, self.checkpoint.settings, torch.float32)
        self.graphs = {name: graph.module for name, graph in built.items()}
        self.tokenizer = Tokenizer.from_str(self.checkpoint.tokenizer_json.decode())
        self.spread: dict[str, float] = {}

    @torch.inference_mode()
    def answer(self, samples: NDArray[np.float32], n_tokens: int) -> tuple[int, ...]:
        features = torch.from_numpy(log_mel(samples, self.checkpoint.frontend))
        n_frames, n_units = len(features), -(-len(features) // self.dims.unit)
        padded = torch.zeros(n_units, self.dims.unit, features.shape[1])
        padded.view(-1, features.shape[1])[:n_frames] = features
        hidden, sound, _ = self.graphs[ENCODE_PROJECT](padded, torch.tensor([n_frames]))
        sound = sound.flatten(0, 1)[: self.dims.n_embeds(n_frames)]
        settings = self.checkpoint.settings
        before, behind = (
            self.graphs[EMBED](torch.tensor([self.tokenizer.encode(text).ids]))
            for text in (settings.prompt_prefix, f"transcribe{settings.prompt_suffix}")
        )
        embeds = torch.cat([before, sound[None], behind], 1)
        logits, keys, values = self.graphs[PREFILL](embeds, torch.tensor([embeds.shape[1]]))
        self.spread = {"hidden": float(hidden.flatten(0, 1)[:n_frames].std()), "logits": float(logits.std())}
        self.spread["sound / text"] = float(sound.std() / before.std())
        tokens = [int(logits.argmax())]
        while len(tokens) < n_tokens:
            position = torch.tensor([keys.shape[2]])
            logits, key, value = self.graphs[DECODE](torch.tensor([tokens[-1:]]), position, keys, values)
            keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            tokens.append(int(logits.argmax()))
        return tuple(tokens)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="pocket"),
        pytest.param({"tied": 1}, id="tied"),
        pytest.param({"enc_layers": 16, "lm_layers": 40}, id="deep", marks=pytest.mark.slow),
    ],
)
def test_what_random_weights_say_depends_on_the_sound_and_on_the_words_before(changes: dict[str, int]):
    listener = _Listener(POCKET.model_copy(update=changes))
    samples = REPOSITORY_ROOT / "samples"
    clips = [
        read_samples(Path(samples / name), 16000)[: 3 * 16000] for name in ("jfk.flac", "short_en.wav", "short_de.wav")
    ]
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    answers = [listener.answer(clip, 12) for clip in (*clips, noise)]
    assert len(set(answers)) == len(answers)
    assert all(len(set(answer)) > 6 for answer in answers)
    assert 0.5 < listener.spread["hidden"] < 2
    assert 1 < listener.spread["logits"] < 4
    if not changes.get("tied"):
        assert 0.5 < listener.spread["sound / text"] < 3
