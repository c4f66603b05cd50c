"""Parakeet's registry entries and random weights."""

from __future__ import annotations

import pytest
import soundfile
import torch
from tokenizers import Tokenizer
from torch import nn

from export.families.parakeet_tdt.graphs import parakeet_graphs
from export.families.parakeet_tdt.modules import Parakeet
from export.families.parakeet_tdt.standin import RandomParakeet
from export.fastconformer.graphs import Constants
from export.fastconformer.standin import standin_tokenizer
from export.registry import MODELS, REPOSITORY_ROOT
from runtime.families.parakeet_tdt.settings import ParakeetDims

_SMALL = ParakeetDims(**MODELS["parakeet-pocket"].dims).model_copy(
    update={"n_layers": 6, "d_model": 192, "d_ff": 768, "subsampling_channels": 64, "n_vocab": 1024}
)


@pytest.fixture(scope="module")
def random_graphs() -> dict[str, nn.Module]:
    checkpoint = RandomParakeet(_SMALL)
    with torch.device("meta"):
        model = Parakeet(_SMALL)
    model.load_state_dict({name: checkpoint.read(name) for name in checkpoint.tensors}, assign=True)
    constants = Constants(checkpoint.window, checkpoint.filters)
    graphs = parakeet_graphs(model, constants, _SMALL, checkpoint.frontend, checkpoint.settings, dtype=torch.float32)
    return {name: graph.module for name, graph in graphs.items()}


def _recordings() -> dict[str, torch.Tensor]:
    def sample(name: str) -> torch.Tensor:
        return torch.from_numpy(soundfile.read(REPOSITORY_ROOT / "samples" / name, dtype="float32")[0])

    noise = 0.1 * torch.randn(160_000, generator=torch.Generator().manual_seed(0))
    return {"joined": sample("joined_en.wav"), "long": sample("long_en.wav"), "noise": noise}


@pytest.mark.parametrize("name", ["joined", "long", "noise"])
def test_random_weights_emit_a_few_tokens_a_second(name: str, random_graphs: dict[str, nn.Module]):
    audio, (step, join) = _recordings()[name], (random_graphs["step"], random_graphs["join"])
    with torch.inference_mode():
        features, n_frames = random_graphs["frontend"](audio[None], torch.tensor([len(audio)]))
        frames, _ = random_graphs["encoder"](features, n_frames)
        assert 0.8 < frames.std() < 1.2
        states = torch.zeros(2, 1, _SMALL.pred_hidden)
        logits, predicted, h, c = step(torch.tensor([_SMALL.blank]), states, states, frames[:, 0])
        tokens: list[int] = []
        at = 0
        while at < frames.shape[1] and len(tokens) < 1000:
            logits = join(frames[:, at], predicted)[0]
            token, duration = int(logits[: _SMALL.n_vocab + 1].argmax()), int(logits[_SMALL.n_vocab + 1 :].argmax())
            if token == _SMALL.blank:
                at += max(duration, 1)
                continue
            tokens.append(token)
            at += duration
            _, predicted, h, c = step(torch.tensor([token]), h, c, frames[:, 0])
    assert 2.5 < len(tokens) * 16000 / len(audio) < 6
    assert len(set(tokens)) > len(tokens) / 3


def test_random_weights_depend_on_the_name_alone():
    first, second = RandomParakeet(_SMALL), RandomParakeet(_SMALL)
    state = {name: first.read(name) for name in first.tensors}
    for name in reversed(list(second.tensors)):
        assert torch.equal(second.read(name), state[name])
        assert tuple(state[name].shape) == second.tensors[name].shape
    assert not state["decoder.prediction.embed.weight"][_SMALL.blank].any()
    assert first.files == ()


@pytest.mark.parametrize("n_vocab", [192, 1024, 8192])
def test_a_standin_tokenizer_has_one_piece_for_each_token(n_vocab: int):
    tokenizer = Tokenizer.from_str(standin_tokenizer(n_vocab).to_str())
    pieces = [tokenizer.id_to_token(number) for number in range(n_vocab)]
    assert len(set(pieces)) == n_vocab == tokenizer.get_vocab_size()
    numbers = [pieces.index("\u2581a"), pieces.index("b"), pieces.index("\u2581c"), pieces.index(".")]
    assert tokenizer.decode(numbers) == "ab c."
