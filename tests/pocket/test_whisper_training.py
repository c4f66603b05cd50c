from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from pocket.training.whisper.batches import IGNORED
from pocket.training.whisper.heads import forced_alignment, head_errors, write_alignment_heads
from pocket.training.whisper.losses import ctc_loss, token_loss
from pocket.training.whisper.synthesize import Utterance
from pocket.training.whisper.tokenizer import write_tokenizer
from pocket.training.whisper.train import PHASES, TOTAL_STEPS, train

STEPS = 3


def trained(folder: Path, utterances: list[Utterance], seed: int) -> dict[str, torch.Tensor]:
    write_tokenizer(folder, seed=1)
    train(folder, utterances, steps=STEPS, seed=seed, progress=lambda _: None)
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.state_dict()


def test_training_is_deterministic_and_its_folder_loads_strictly(tmp_path: Path, utterances: list[Utterance]) -> None:
    first, again, other = (
        trained(tmp_path / name, utterances, seed) for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert files[0] == files[1]

    processor = WhisperProcessor.from_pretrained(tmp_path / "first")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "first")
    features = processor(utterances[0].audio, sampling_rate=16000, return_tensors="pt").input_features
    generated = model.generate(features, language="en", task="transcribe", max_new_tokens=4)
    assert generated.shape[0] == 1


def test_alignment_heads_land_in_the_generation_config(tmp_path: Path, utterances: list[Utterance]) -> None:
    write_tokenizer(tmp_path, seed=1)
    model = train(tmp_path, utterances, steps=STEPS, progress=lambda _: None)
    errors = head_errors(tmp_path, model, utterances[:3])
    config = model.whisper.config
    assert set(errors) == set(itertools.product(range(config.decoder_layers), range(config.decoder_attention_heads)))
    heads = write_alignment_heads(tmp_path, {**errors, (1, 2): 0.0})
    assert heads == [[1, 2]]
    assert json.loads((tmp_path / "generation_config.json").read_text())["alignment_heads"] == heads


def test_the_text_loss_is_label_smoothed_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 40, generator=generator)
    labels = torch.tensor([[3, IGNORED, 7, 1, 9], [IGNORED, 2, 2, 4, 11]])
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=0.03
    )
    torch.testing.assert_close(token_loss(logits, labels, timestamp_begin=30), expected)


def test_a_stamp_one_position_off_costs_less_than_one_far_off() -> None:
    losses = []
    for guess in (100, 101, 150):
        logits = torch.zeros(1, 1, 400)
        logits[0, 0, guess] = 12.0
        losses.append(float(token_loss(logits, torch.tensor([[100]]), timestamp_begin=50)))
    assert losses[0] < losses[1] < losses[2]


def test_ctc_leaves_out_examples_without_a_target() -> None:
    logits = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.ctc_loss(
        logits[1:2].log_softmax(-1).transpose(0, 1),
        torch.tensor([[1, 2, 2]]),
        torch.tensor([20]),
        torch.tensor([3]),
        blank=5,
    )
    torch.testing.assert_close(ctc_loss(logits, [[], [1, 2, 2], []], blank=5), expected)
    assert float(ctc_loss(logits, [[], [], []], blank=5)) == 0


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [0, 2, 0]])
def test_forced_alignment_is_the_best_of_all_paths(tokens: list[int]) -> None:
    blank, frames = 3, 6
    log_probs = np.log(np.random.default_rng(len(tokens)).dirichlet(np.ones(4), frames)).astype(np.float32)

    def collapsed(path: tuple[int, ...]) -> list[int]:
        return [token for token, _ in itertools.groupby(path) if token != blank]

    paths = [path for path in itertools.product(range(4), repeat=frames) if collapsed(path) == tokens]
    best = max(paths, key=lambda path: sum(log_probs[frame, token] for frame, token in enumerate(path)))
    runs = [
        (token, [frame for frame, _ in group]) for token, group in itertools.groupby(enumerate(best), lambda x: x[1])
    ]
    expected = [np.mean(where) for token, where in runs if token != blank]
    assert forced_alignment(log_probs, tokens, blank).tolist() == pytest.approx(expected)


def test_the_schedule_counts_steps() -> None:
    assert sum(phase.steps for phase in PHASES) == TOTAL_STEPS
    for phase in PHASES:
        rates = [phase.rate(step) for step in range(phase.steps)]
        assert max(rates) <= phase.peak_rate
        assert rates[0] < 0.01 * phase.peak_rate
        assert rates[-1] < rates[phase.steps // 2]
    # The first phase stops early in its schedule, the others run to the end of theirs.
    assert [phase.steps < phase.schedule_steps for phase in PHASES] == [True, False, False]
