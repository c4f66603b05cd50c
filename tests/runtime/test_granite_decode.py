"""Granite Speech's decode loop on ONNX graphs against transformers' `generate`, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from granite_checkpoints import AUDIO, END_OF_TEXT, INSTRUCTIONS, write_granite_checkpoint
from granite_nets import Original, samples_of, write_artifact
from hypothesis import given
from hypothesis import strategies as st

from runtime.artifact import Artifact, open_artifact
from runtime.engines import open_engine
from runtime.engines.base import BoundGraph, Engine, Floats, Value
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.families.granite_speech.features import log_mel
from runtime.families.granite_speech.prompts import prompt_text
from runtime.families.granite_speech.settings import GraniteDims, GraniteFrontend, GraniteSettings
from runtime.families.granite_speech.speech_lm import Encoded, GraniteSpeechLM, greedy
from runtime.families.granite_speech.tokenizer import GraniteTokenizer
from runtime.repetition import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, loop_start, without_loops

FRAME = 320
NEW_TOKENS = 24
KINDS = (*INSTRUCTIONS, "who speaks, and of what?")
RECORDINGS = ("short_en.wav", "short_de.wav", "jfk.flac")


class Model:
    """An artifact's decoder, and what to give it for a recording."""

    def __init__(self, artifact: Artifact, *, in_buckets: bool | None = None, engine: Engine | None = None) -> None:
        self.engine = engine or OnnxRuntimeEngine(artifact, threads=1)
        self.dims = artifact.part("dims", GraniteDims)
        self.settings = artifact.part("settings", GraniteSettings)
        self.frontend = artifact.part("frontend", GraniteFrontend)
        file = artifact.file(self.settings.tokenizer_file)
        self.tokenizer = GraniteTokenizer(file, self.dims.n_vocab, self.settings.audio_token)
        self.decoder = GraniteSpeechLM(
            self.engine, artifact.content.graphs, self.dims, self.settings, in_buckets=in_buckets
        )

    def asked(self, instruction: str, samples: np.ndarray) -> tuple[tuple[int, ...], Encoded]:
        """Return the prompt and the encoded recording."""
        encoded = self.decoder.encode(log_mel(samples, self.frontend))
        text = prompt_text(instruction, len(encoded.audio_embeds), self.settings)
        return self.tokenizer.encode_prompt(text), encoded

    def tokens(self, instruction: str, samples: np.ndarray, most: int = NEW_TOKENS) -> list[int]:
        """Return the greedy tokens, the end token included where there is one."""
        found = self.decoder.generate(*self.asked(instruction, samples), most)
        assert len(found.logprobs) == len(found.tokens) + (found.finish == "end")
        return [*found.tokens, *([END_OF_TEXT] if found.finish == "end" else [])]


def frames_of(name: str, n_frames: int) -> np.ndarray:
    """Return a recording of as many frames, repeated where it is shorter."""
    return np.resize(samples_of(name), n_frames * FRAME)


@pytest.fixture(scope="module")
def artifact(granite_artifact: Path) -> Artifact:
    return open_artifact(granite_artifact)


@pytest.fixture(scope="module")
def original(granite_checkpoint: Path) -> Original:
    return Original(granite_checkpoint)


@pytest.fixture(scope="module", params=[False, True], ids=["exact", "buckets"])
def model(request: pytest.FixtureRequest, artifact: Artifact) -> Model:
    return Model(artifact, in_buckets=request.param)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("n_frames", [1, 40, 41, 120, 199, 200, 201, 600, 601])
def test_tokens_are_transformers(model: Model, original: Original, name: str, n_frames: int) -> None:
    samples = frames_of(name, n_frames)
    assert model.tokens(INSTRUCTIONS[0], samples) == original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS)


@pytest.mark.parametrize("instruction", KINDS[1:])
@pytest.mark.parametrize(("name", "n_frames"), [("short_en_2.wav", 150), ("short_es.wav", 77)])
def test_tokens_are_transformers_for_every_kind_of_prompt(
    model: Model, original: Original, instruction: str, name: str, n_frames: int
) -> None:
    samples = frames_of(name, n_frames)
    assert model.tokens(instruction, samples) == original.generate(instruction, samples, NEW_TOKENS)


def test_an_emitted_audio_token_stays_and_is_fed_back_as_transformers_does(model: Model, original: Original) -> None:
    samples = frames_of("jfk.flac", 199)
    tokens = model.tokens(INSTRUCTIONS[0], samples)
    place = tokens.index(AUDIO)  # the checkpoint says one here
    assert place < len(tokens) - 2
    assert tokens == original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS)


def test_logits_are_transformers_over_the_scaling(artifact: Artifact, original: Original) -> None:
    model, samples = Model(artifact), frames_of("short_en.wav", 130)
    inputs = original.inputs(INSTRUCTIONS[1], samples)
    taught = [5, 17, 99, 3]
    ids = torch.cat([inputs["input_ids"], torch.tensor([taught])], 1)
    with torch.inference_mode():
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = original.model(**given).logits[0, -len(taught) - 1 :].numpy() / 8.0
    rows: list[Floats] = []

    def choose(logits: Floats) -> tuple[int, float]:
        rows.append(logits)
        return (*taught, 0)[len(rows) - 1], 0.0

    model.decoder.generate(*model.asked(INSTRUCTIONS[1], samples), len(taught) + 1, choose=choose)
    np.testing.assert_allclose(np.stack(rows), expected, atol=1e-4 * np.abs(expected).max())


def test_log_probabilities_are_those_of_the_scaled_logits(artifact: Artifact, original: Original) -> None:
    model, samples = Model(artifact), frames_of("short_de.wav", 60)
    found = model.decoder.generate(*model.asked(INSTRUCTIONS[0], samples), 6)
    inputs = original.inputs(INSTRUCTIONS[0], samples)
    with torch.inference_mode():
        answer = original.model.generate(
            **inputs, do_sample=False, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
        )
    expected = [
        float(torch.log_softmax(logits[0].double() / 8.0, -1)[token])
        for logits, token in zip(answer.logits, found.tokens, strict=True)
    ]
    np.testing.assert_allclose(found.logprobs, expected, atol=1e-4)
    assert found.avg_logprob == pytest.approx(np.mean(expected), abs=1e-4)
    assert (found.finish, found.steps) == ("length", 5)


def test_rules_change_what_may_follow_as_transformers_processors_do(artifact: Artifact, original: Original) -> None:
    model, samples = Model(artifact), frames_of("short_en.wav", 60)
    banned = sorted({*model.tokens(INSTRUCTIONS[0], samples)} - {END_OF_TEXT})[:5]

    def suppress(logits: Floats, _tokens: Sequence[int], /) -> None:
        logits[banned] = -np.inf

    found = model.decoder.generate(*model.asked(INSTRUCTIONS[0], samples), NEW_TOKENS, rules=[suppress])
    expected = original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS, suppress_tokens=banned)
    assert list(found.tokens) == [token for token in expected if token != END_OF_TEXT]


def test_any_of_several_end_tokens_ends_the_text(artifact: Artifact) -> None:
    samples = frames_of("short_en.wav", 60)
    tokens = Model(artifact).tokens(INSTRUCTIONS[0], samples)
    model = Model(artifact)
    model.decoder._settings = model.settings.model_copy(update={"eos": (END_OF_TEXT, tokens[4])})
    heard: list[int] = []
    found = model.decoder.generate(*model.asked(INSTRUCTIONS[0], samples), on_token=heard.append)
    first = tokens.index(tokens[4])
    assert (list(found.tokens), found.finish, found.steps) == (tokens[:first], "end", first)
    assert heard == tokens[:first]
    assert len(found.logprobs) == first + 1


@pytest.mark.parametrize("in_buckets", [False, True])
def test_caches_are_taken_over_by_the_next_recording(artifact: Artifact, *, in_buckets: bool) -> None:
    long, short = frames_of("jfk.flac", 500), frames_of("short_de.wav", 41)
    fresh = Model(artifact, in_buckets=in_buckets).tokens(INSTRUCTIONS[0], short)
    model = Model(artifact, in_buckets=in_buckets)
    model.tokens(INSTRUCTIONS[0], long, 60)
    cache = model.decoder._cache
    assert model.tokens(INSTRUCTIONS[0], short) == fresh
    model.tokens(INSTRUCTIONS[0], long, 60)
    assert model.tokens(INSTRUCTIONS[0], short) == fresh
    # Of one length in buckets, both times; without, each recording has its own.
    assert (model.decoder._cache is cache) == in_buckets


class Recorded:
    """An engine that keeps the shapes that each graph was called with, and may spoil the rows that are written."""

    def __init__(self, engine: Engine, spoil: Callable[[int], int] = lambda at: at) -> None:
        self._engine = engine
        self._spoil = spoil
        self.shapes: dict[str, set[tuple[tuple[int, ...], ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _note(self, graph: str, values: Mapping[str, Value]) -> None:
        shapes = tuple(values[name].shape for name in sorted(values))
        self.shapes.setdefault(graph, set()).add(shapes)

    def run(self, graph: str, inputs: Mapping[str, Value]) -> dict[str, Value]:
        self._note(graph, inputs)
        return self._engine.run(graph, inputs)

    def bind(self, graph: str, fixed: Mapping[str, Value]) -> BoundGraph:
        call = self._engine.bind(graph, fixed)

        def noted(given: Mapping[str, Value]) -> dict[str, Value]:
            self._note(graph, {**fixed, **given})
            return call(given)

        return noted

    def write_rows(self, cache: Value, rows: Value, at: int, count: int) -> None:
        self._engine.write_rows(cache, rows, self._spoil(at), count)


@pytest.mark.parametrize(("in_buckets", "at_most"), [(True, 2), (False, 6)])
def test_a_device_sees_few_shapes(artifact: Artifact, in_buckets: bool, at_most: int) -> None:  # noqa: FBT001
    engine = Recorded(OnnxRuntimeEngine(artifact, threads=1))
    model = Model(artifact, in_buckets=in_buckets, engine=engine)  # type: ignore[arg-type]
    for n_frames in range(400, 700, 50):
        model.tokens(INSTRUCTIONS[0], frames_of("jfk.flac", n_frames), 2)
    assert max(map(len, engine.shapes.values())) <= at_most
    if in_buckets:
        assert len(engine.shapes["decode"]) == 1


def test_a_device_pads_and_the_cpu_does_not(artifact: Artifact) -> None:
    engine = OnnxRuntimeEngine(artifact, threads=1)
    assert not Model(artifact, engine=engine).decoder._in_buckets
    engine.device = "npu:0"
    assert Model(artifact, engine=engine).decoder._in_buckets


def test_a_row_that_is_written_one_late_changes_the_text(artifact: Artifact, original: Original) -> None:
    engine = Recorded(OnnxRuntimeEngine(artifact, threads=1), lambda at: at + 1)
    model, samples = Model(artifact, in_buckets=True, engine=engine), frames_of("jfk.flac", 201)  # type: ignore[arg-type]
    assert model.tokens(INSTRUCTIONS[0], samples) != original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS)


def test_audio_that_is_one_row_off_changes_the_text(artifact: Artifact, original: Original) -> None:
    model, samples = Model(artifact), frames_of("jfk.flac", 201)
    prompt, encoded = model.asked(INSTRUCTIONS[0], samples)
    late = replace(encoded, audio_embeds=np.roll(encoded.audio_embeds, 1, axis=0))
    expected = original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS)
    assert list(model.decoder.generate(prompt, encoded, NEW_TOKENS).tokens) == expected
    assert list(model.decoder.generate(prompt, late, NEW_TOKENS).tokens) != expected


def test_a_longer_answer_than_there_is_room_for_ends_where_the_context_does(artifact: Artifact) -> None:
    model = Model(artifact)
    asked = model.asked("x" * 900, frames_of("short_en.wav", 30))
    room = model.decoder.room(asked[0])
    assert room == model.dims.n_ctx - len(asked[0])

    def on_and_on(logits: Floats, _tokens: Sequence[int], /) -> None:
        logits[END_OF_TEXT] = -np.inf

    found = model.decoder.generate(*asked, 5000, rules=[on_and_on])
    assert (len(found.tokens), found.finish) == (room, "length")


def test_a_prompt_longer_than_the_context_is_refused_in_one_line(artifact: Artifact) -> None:
    model = Model(artifact)
    prompt, encoded = model.asked("x" * 1100, frames_of("short_en.wav", 30))
    with pytest.raises(InputError) as error:
        model.decoder.generate(prompt, encoded)
    assert str(error.value) == (
        f"prompt: expected fewer tokens than 1024, the model's context, found {len(prompt)}, 6 of them audio; "
        "use a smaller --chunk, fewer keywords or a shorter prompt"
    )


def test_a_prompt_with_another_number_of_audio_tokens_is_a_mistake(artifact: Artifact) -> None:
    model = Model(artifact)
    prompt, encoded = model.asked(INSTRUCTIONS[0], frames_of("short_en.wav", 30))
    with pytest.raises(ValueError, match="expected 6 audio tokens, found 7"):
        model.decoder.generate([AUDIO, *prompt], encoded)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    with pytest.raises(EnvironmentNotFitError, match="expected finite logits"):
        greedy(np.array([1.0, bad, 2.0], np.float32))


def loops() -> Iterator[tuple[int, int]]:
    for period in (1, 2, 3, 7, 8, 9, MAX_PERIOD):
        yield period, max(MIN_REPEATS, -(-MIN_TOKENS // period))


@pytest.mark.parametrize(("period", "repeats"), loops())
def test_a_loop_is_seen_at_its_last_token_and_its_first_round_is_kept(period: int, repeats: int) -> None:
    head, phrase = list(range(1000, 1010)), list(range(period))
    text = head + phrase * repeats
    assert [loop_start(text[:count]) for count in range(len(text))] == [None] * len(text)
    assert loop_start(text) == len(head) + period


@given(
    words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=6),
    repeats=st.lists(st.integers(1, 6), min_size=6, max_size=6),
)
def test_a_text_that_repeats_less_is_left_as_it_is(words: list[list[int]], repeats: list[int]) -> None:
    text = [token for word, count in zip(words, repeats, strict=False) for token in [*word * count, 10**6]]
    assert all(loop_start(text[:count]) is None for count in range(len(text) + 1))


def test_the_guard_ends_a_loop_and_changes_nothing_else(artifact: Artifact) -> None:
    model = Model(artifact)
    asked = model.asked(INSTRUCTIONS[0], frames_of("short_en.wav", 60))

    def circle(logits: Floats, tokens: Sequence[int], /) -> None:
        if len(tokens) >= 5:
            logits[[20, 21, 22][len(tokens) % 3]] = 1e3

    looping = model.decoder.generate(*asked, 150, rules=[circle])
    assert (len(looping.tokens), looping.finish) == (150, "length")
    guarded = model.decoder.generate(*asked, 150, rules=[circle], guard=loop_start)
    assert (guarded.tokens, guarded.finish) == (looping.tokens[:8], "repetition")
    assert guarded.logprobs == looping.logprobs[:8]
    assert model.decoder.generate(*asked, 60, guard=loop_start) == model.decoder.generate(*asked, 60)


@pytest.mark.slow
@pytest.mark.parametrize("instruction", KINDS)
def test_tokens_are_transformers_for_every_kind_of_prompt_and_length(
    model: Model, original: Original, instruction: str
) -> None:
    for name in (*RECORDINGS, "short_es.wav", "nospeech.wav"):
        for n_frames in (199, 200, 201, 600, 601):
            samples = frames_of(name, n_frames)
            found = model.tokens(instruction, samples)
            assert found == original.generate(instruction, samples, NEW_TOKENS), (name, n_frames)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_tokens_are_transformers_at_the_real_block_length_on_every_engine(tmp_path: Path, *, tied: bool) -> None:
    """Blocks of 200 frames and units of 600, as on the hub."""
    checkpoint = write_granite_checkpoint(tmp_path / "checkpoint", context_size=200, tied=tied, seed=1)
    artifact = open_artifact(write_artifact(checkpoint, tmp_path / "artifact"))
    original = Original(checkpoint)
    engines = ("onnxruntime", "torchscript", "pt2")
    models = [
        Model(artifact, in_buckets=pads, engine=open_engine(artifact, name))
        for name in engines
        for pads in (False, True)
    ]
    assert (models[0].dims.unit, models[0].dims.tied) == (600, tied)
    for name in RECORDINGS:
        for n_frames in (1, 199, 200, 201, 599, 600, 601, 1201):
            samples = frames_of(name, n_frames)
            expected = original.generate(INSTRUCTIONS[0], samples, NEW_TOKENS)
            for model in models:
                found = model.tokens(INSTRUCTIONS[0], samples)
                assert found == expected, (model.engine.name, name, n_frames)


def test_of_a_loop_its_first_round_is_left() -> None:
    """By hand: a text, 30 rounds of three tokens, a text, a loop of one token, and something repeated seven times."""
    before, between, behind = [5, 6, 7], [8, 1, 9], [4, 3] * 7
    tokens = [*before, *[1, 2, 3] * 30, 1, *between, *[2] * 100, *behind]
    kept = [tokens[place] for place in without_loops(tokens)]
    assert kept == [*before, 1, 2, 3, *between, 2, *behind]
    assert without_loops(behind) == list(range(14))
    assert without_loops([]) == []
