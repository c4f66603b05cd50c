"""Hotwords: the tree by hand, the search by hand, and recall on the pocket model in noise."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from parakeet_nets import (
    ITEMS,
    REFERENCE,
    Nets,
    counting,
    dims_of,
    padded,
    plain_search,
    pocket_frames,
    pocket_nets,
    random_nets,
    triples,
)

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import open_recognizer
from runtime.families.parakeet_tdt.hotwords import (
    ROOT,
    Hotword,
    HotwordChooser,
    HotwordTree,
    hotword_from_text,
    hotword_tree,
    read_hotwords,
)
from runtime.families.parakeet_tdt.options import ParakeetOptions
from runtime.families.parakeet_tdt.recognizer import ParakeetRecognizer
from runtime.families.parakeet_tdt.search import Emission, HostSearch
from runtime.families.parakeet_tdt.settings import ParakeetSettings

RATE = 16000
A, B, C, D, X = range(5)


def gains(tree: HotwordTree, tokens: Sequence[int]) -> dict[int, float]:
    """What each token gains after `tokens`, over one that matches nothing."""
    state = ROOT
    for token in tokens:
        state = tree.advance(state, token)
    ids, values = tree.bonuses(state)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


# --- the tree ---


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], {A: 2, B: 1}),
        ([X], {A: 2, B: 1}),
        # Going on gains the token's weight and keeps what `a` gained; a and b begin anew, for what they gain alone.
        ([A], {B: 4, A: 2}),
        # `a b` begins one phrase, its suffix `b` the other: c continues the longer one, d the shorter one.
        ([A, B], {C: 6, D: 2, A: 2, B: 1}),
        # A completed phrase holds its gain: leaving it costs nothing, and nothing is gained by it any more.
        ([A, B, C], {A: 2, B: 1}),
        ([B, D], {A: 2, B: 1}),
        ([A, B, D], {A: 2, B: 1}),
    ],
)
def test_gains(tokens: list[int], expected: dict[int, float]) -> None:
    tree = HotwordTree([([A, B, C], 2.0), ([B, D], 1.0)])
    assert gains(tree, tokens) == expected


def test_a_phrase_that_goes_on_behind_another_is_boosted_by_its_rest_only() -> None:
    tree = HotwordTree([([A, B], 2.0), ([A, B, C, D], 2.0)])
    assert gains(tree, [A, B]) == {C: 2, A: 2}
    assert gains(tree, [A, B, C]) == {D: 4, A: 2}


def test_the_highest_weight_counts_where_phrases_share_a_beginning() -> None:
    for phrases in ([([A, B], 1.0), ([A, C], 3.0)], [([A, C], 3.0), ([A, B], 1.0)]):
        assert gains(HotwordTree(phrases), [A]) == {B: 4, C: 6, A: 3}


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(0, 4), max_size=12),
)
def test_the_state_is_the_longest_suffix_that_begins_a_phrase(phrases: list[list[int]], tokens: list[int]) -> None:
    tree = HotwordTree([(phrase, 1.0) for phrase in phrases])
    beginnings = {tuple(phrase[:count]) for phrase in phrases for count in range(1, len(phrase) + 1)}
    suffixes = [tuple(tokens[start:]) for start in range(len(tokens) + 1)]
    longest = next(suffix for suffix in suffixes if suffix in beginnings or not suffix)

    def gain(token: int) -> float | None:
        for start in range(len(longest) + 1):
            path = longest[start:]
            if (*path, token) in beginnings:
                held = max((count for count in range(len(path) + 1) if list(path[:count]) in phrases), default=0)
                return len(path) + 1 - held
        return None

    assert gains(tree, tokens) == {token: gain(token) for token in range(5) if gain(token) is not None}


# --- the search ---


def nets_of(out_b: list[float], **settings: int) -> Nets:
    """Nets whose logits are the frame's own (four tokens, blank, one duration: 1): nothing hidden in them."""
    dims = dims_of(n_vocab=4, n_durations=1, pred_hidden=1, pred_layers=1, joint_hidden=6)
    zeros = {"embed": (5, 1), "ih0": (4, 1), "hh0": (4, 1), "b0": (4,), "pred": (6, 1), "pred_b": (6,)}
    weights = {name: np.zeros(shape) for name, shape in zeros.items()} | {"out": np.eye(6), "out_b": np.array(out_b)}
    return Nets(weights, dims, ParakeetSettings(durations=(1,), **settings))


def search(nets: Nets, frames: np.ndarray, tree: HotwordTree | None) -> list[Emission]:
    host = HostSearch(counting(nets), nets.dims, nets.settings, "float32")
    batch, lengths = padded([frames])
    choosers = [HotwordChooser(tree, nets.dims.blank)] if tree else []
    return host.run(batch, lengths, host.start(1), choosers)[0][0]


BY_HAND = np.array(
    [
        # a b c d blank, duration
        [5.0, 5.5, 0, 0, 1, 0],  # b by 0.5
        [0, 4.0, 0, 5.5, 1, 0],  # d by 1.5
        [0, 0, 3.0, 6.5, 1, 0],  # d by 3.5
        [0, 0, 4.9, 0, 5, 0],  # the blank by 0.1
        [0.5, 6.0, 0, 0, 1, 0],  # b by 5.5; a is less likely than the blank
    ],
    np.float32,
)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.4, [B, D, D, B]),
        # a wins by 5 + 1 > 5.5; then b has 4 + 1 and what a gained, 1: 6 > 5.5; then c has 3 + 3 < 6.5: d.
        (1.0, [A, B, D, B]),
        # c: 3 + 3 * 1.2 = 6.6 > 6.5. The blank stays where it is, and a stays behind it.
        (1.2, [A, B, C, B]),
        (100.0, [A, B, C, B]),
    ],
)
def test_by_hand(weight: float, expected: list[int]) -> None:
    tree = HotwordTree([([A, B, C], weight)])
    found = search(nets_of([0.0] * 6), BY_HAND, tree)
    assert [emission.token for emission in found] == expected
    assert [emission.frame for emission in found] == [0, 1, 2, 4]
    for emission in found:  # the network's own, of the token that was chosen
        logits = BY_HAND[emission.frame, :5].astype(np.float64)
        assert emission.logprob == pytest.approx(logits[emission.token] - np.log(np.exp(logits).sum()), abs=1e-5)


def test_completed_phrases_go_free() -> None:
    frames = np.array([[5, 0, 0, 0, 1, 0], [0, 5.0, 5.5, 0, 1, 0], [0, 5.0, 5.5, 0, 1, 0]], np.float32)
    nets = nets_of([0.0] * 6)
    assert [e.token for e in search(nets, frames, HotwordTree([([A], 1.0)]))] == [A, C, C]
    # b continues a phrase once, not for ever.
    assert [e.token for e in search(nets, frames, HotwordTree([([A, B], 1.0)]))] == [A, B, C]


@given(st.integers(0, 2**32), st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), max_size=4))
def test_neutral_lists_change_nothing(seed: int, phrases: list[list[int]]) -> None:
    """Bit for bit: no list; a list of weight 0; a chooser beside one that has a list."""
    rng = np.random.default_rng(seed)
    nets = random_nets(rng, (0, 1, 2), max_symbols=3, eagerness=1.0, haste=0.5)
    frames = rng.standard_normal((9, 6)).astype(np.float32)
    plain = search(nets, frames, None)
    assert triples(plain) == plain_search(nets, frames)
    assert search(nets, frames, HotwordTree([(phrase, 0.0) for phrase in phrases])) == plain
    host = HostSearch(counting(nets), nets.dims, nets.settings, "float32")
    boosted = HotwordChooser(HotwordTree([(phrase, 3.0) for phrase in phrases]), nets.dims.blank)
    batch, lengths = padded([frames, frames])
    found = host.run(batch, lengths, host.start(2), [boosted, None])[0]
    assert triples(found[1]) == triples(plain)
    alone = search(nets, frames, HotwordTree([(phrase, 3.0) for phrase in phrases]))
    assert triples(found[0]) == triples(alone)


def test_an_empty_list_is_no_list() -> None:
    assert hotword_tree([], 1.0, lambda text: [len(text)], None) is None
    nets, frames = pocket_nets(), pocket_frames("t3")
    assert [triple[0] for triple in triples(search(nets, frames, None))] == ITEMS["t3"]["token_ids"]
    assert search(nets, frames, HotwordTree([])) == search(nets, frames, None)


# --- the pocket model ---

# A word of each recording that noise hides from it; all of them are hotwords for all recordings.
WORDS = {"t1": ["bird"], "t2": ["radio", "window"], "t3": ["Peter", "music"], "t4": ["gate", "alarm"]}
HOTWORDS = tuple(Hotword(word) for words in WORDS.values() for word in words)


@pytest.fixture(scope="module")
def pocket(parakeet_artifact: Path) -> ParakeetRecognizer:
    return open_recognizer(open_artifact(parakeet_artifact), threads=1)


def texts(
    recognizer: ParakeetRecognizer, recordings: Sequence[np.ndarray], hotwords: Sequence[Hotword], weight: float = 1.0
) -> list[str]:
    tokenizer, decoder = recognizer.tokenizer, recognizer.model
    tree = hotword_tree(hotwords, weight, tokenizer.encode, tokenizer.unknown)
    choosers = [HotwordChooser(tree, decoder.dims.blank) if tree else None for _ in recordings]
    found = decoder.decode(decoder.encode(recordings), None, choosers)
    return [tokenizer.decode([emission.token for emission in emissions]) for emissions in found]


def in_noise(name: str, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    speech = soundfile.read(REFERENCE / f"{name}.wav", dtype="float32")[0]
    level = np.sqrt(np.mean(speech**2)) * 10 ** (-snr_db / 20)
    return (speech + level * rng.standard_normal(len(speech))).astype(np.float32)


def test_recall_in_noise(pocket: ParakeetRecognizer) -> None:
    """15 takes of 4 recordings at -5 dB: with hotwords more of their 7 words are found, hardly more where not said."""
    rng = np.random.default_rng(0)
    names = [name for name in WORDS for _ in range(15)]
    recordings = [in_noise(name, rng, -5) for name in names]

    def count(hotwords: Sequence[Hotword]) -> tuple[int, int]:
        heard = [re.findall(r"\w+", text) for text in texts(pocket, recordings, hotwords)]
        said = [(word, name) for name, words in WORDS.items() for word in words]
        found = [
            (word, words, word in WORDS[name])
            for (word, _), (name, words) in product(said, zip(names, heard, strict=True))
        ]
        hits = sum(word in words for word, words, was_said in found if was_said)
        return hits, sum(word in words for word, words, was_said in found if not was_said)

    hits, false = count(())
    boosted_hits, boosted_false = count(HOTWORDS)
    assert boosted_hits >= hits + 5
    assert boosted_false <= false + 2
    others = [Hotword(word) for word in ("Ingrid", "Oliver", "toaster", "Wolfgang")]
    assert count(others)[0] >= hits - 2


def test_in_silence_and_noise_nothing_is_added(pocket: ParakeetRecognizer) -> None:
    """The pocket model invents sentences on noise; hotwords add none, and do not show up where it is silent."""
    rng = np.random.default_rng(1)
    levels = [0.0] + [level for level in (1e-4, 1e-3, 1e-2, 0.1) for _ in range(5)]
    recordings = [(level * rng.standard_normal(2 * RATE)).astype(np.float32) for level in levels]
    plain = texts(pocket, recordings, ())
    assert plain.count("") > 5
    rare = [Hotword(word) for word in ("Ingrid", "Oliver", "toaster", "Wolfgang")]
    for hotwords, weight in product((HOTWORDS, rare), (1.0, 3.0)):
        found = texts(pocket, recordings, hotwords, weight)
        assert [text for text, before in zip(found, plain, strict=True) if not before] == [""] * plain.count("")
        assert sum(len(text.split()) for text in found) <= sum(len(text.split()) for text in plain) + 2
    heard = " ".join(texts(pocket, recordings, rare))
    assert not any(hotword.text in heard for hotword in rare)


def test_by_options(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    """A clip in which noise hides the word; the batch gives the same, and an empty list the same bits as none."""
    rng = np.random.default_rng(0)
    paths = []
    for name, count in (("t1", 8), ("t4", 1)):
        for take in range(count):
            paths.append(tmp_path / f"{name}_{take}.wav")
            soundfile.write(paths[-1], in_noise(name, rng, -5), RATE, subtype="FLOAT")
    audios = [open_audio(path) for path in paths]
    plain = pocket.recognize_batch(audios, ParakeetOptions.parse({}))
    empty = pocket.recognize_batch(audios, ParakeetOptions.parse({"hotwords": [], "hotword_weight": 5.0}))
    assert [result.segments for result in empty] == [result.segments for result in plain]
    boosted = ParakeetOptions.parse({"hotwords": ["bird:2", ("gate", 1.5)]})
    results = pocket.recognize_batch(audios, boosted)
    assert sum("bird" in r.text for r in results) > sum("bird" in r.text for r in plain)
    assert [pocket.recognize(audio, boosted).text for audio in audios] == [result.text for result in results]
    file = tmp_path / "words.txt"
    file.write_text("bird\t2\ngate\t1.5\n")
    from_file = pocket.recognize_batch(audios, ParakeetOptions.parse({"hotwords": file}))
    assert [result.segments for result in from_file] == [result.segments for result in results]


def test_in_windows_the_state_goes_on(pocket: ParakeetRecognizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.concatenate([in_noise(name, rng, 0) for name in (*WORDS, *WORDS)]), RATE)
    options = {"hotwords": [word.text for word in HOTWORDS], "attention": "windows", "chunk_s": 4, "right_s": 1}
    plain = pocket.recognize(open_audio(path), ParakeetOptions.parse(options | {"hotwords": []}))
    found = pocket.recognize(open_audio(path), ParakeetOptions.parse(options))
    said = [word for words in WORDS.values() for word in words] * 2
    assert sum(word in found.text for word in said) >= sum(word in plain.text for word in said)


# --- what users write ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kubernetes", Hotword("Kubernetes")),
        ("Kubernetes:3", Hotword("Kubernetes", 3.0)),
        (" New  York : 2.5", Hotword("New York", 2.5)),
        ("10:30:2", Hotword("10:30", 2.0)),
        ("note: this", Hotword("note: this")),
    ],
)
def test_hotwords_from_text(text: str, expected: Hotword) -> None:
    assert hotword_from_text(text) == expected


def test_a_file_of_hotwords(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffKubernetes\n\nZürich\t2.5\r\nNew York\n".encode())
    assert read_hotwords(file) == (Hotword("Kubernetes"), Hotword("Zürich", 2.5), Hotword("New York"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a\nb\tmuch\n", r"words.txt:2: expected a phrase, or phrase, tab, weight, found 'b\\tmuch'"),
        (b"a\t0\n", "words.txt:1: expected a weight above 0 and up to 100, found 0"),
        (b"\t2\n", "words.txt:1: expected a phrase before the weight"),
        (b"\xff\xfe", "expected a text file of hotwords, found bytes that are not UTF-8"),
        (None, "expected a text file of hotwords, found No such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        ParakeetOptions.parse({"hotwords": file})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hotwords": ["a"], "decode": "device"}, "option hotwords: .*device takes no hotwords; expected none, or"),
        ({"hotwords": "Kubernetes"}, "option hotwords: .*expected a sequence of phrases"),
        ({"hotwords": ["a:nan"]}, "expected a weight above 0 and up to 100, found nan"),
        ({"hotwords": [":3"]}, "expected a phrase"),
        ({"hotwords": [("a", 1, 2)]}, "option hotwords"),
        ({"hotword_weight": 0}, "option hotword_weight"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        ParakeetOptions.parse(options)
    assert "\n" not in str(error.value)


def test_characters_that_the_tokenizer_lacks(pocket: ParakeetRecognizer) -> None:
    options = ParakeetOptions.parse({"hotwords": ["Zürich"]})
    with pytest.raises(InputError, match="hotword 'Zürich': the model's tokenizer lacks some of its characters"):
        pocket.recognize(open_audio(REFERENCE / "t1.wav"), options)


def test_by_the_command_line(parakeet_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("bird\t2\n")
    run = [sys.executable, "-m", "atlasport", "run", str(parakeet_artifact), str(REFERENCE / "t1.wav")]
    options = ["--hotwords", str(file), "--hotword", "green:1.5", "--hotword", "gate", "--hotword-weight", "2"]
    done = subprocess.run([*run, *options], capture_output=True, text=True, check=True)
    assert done.stdout == "Is the bird green?\n"
    refused = subprocess.run([*run, *options, "--decode", "device"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "the search on the device takes no hotwords" in refused.stderr
