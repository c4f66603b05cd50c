"""What transcription does around the tokens: fallback, earlier text, clip, several files, options, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from whisper_reference import RATE, samples, stretches

from runtime.artifact import open_artifact
from runtime.audio import open_audio
from runtime.errors import InputError
from runtime.families import FAMILIES, family_of, open_recognizer
from runtime.families.whisper.encoder_decoder import Decoding
from runtime.families.whisper.languages import LANGUAGES, language_code
from runtime.families.whisper.options import WhisperOptions
from runtime.families.whisper.recognizer import WhisperRecognizer
from runtime.families.whisper.windows import judge, likeliest
from runtime.results import Transcript

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LONG, SHORT = SAMPLES / "long_en.wav", SAMPLES / "short_en.wav"


@pytest.fixture(scope="module")
def pocket(pocket_artifact: Path) -> WhisperRecognizer:
    return open_recognizer(open_artifact(pocket_artifact), threads=1)


@pytest.fixture(scope="module")
def english(english_artifact: Path) -> WhisperRecognizer:
    return open_recognizer(open_artifact(english_artifact), threads=1)


def transcribe(recognizer: WhisperRecognizer, path: Path, **options: object) -> Transcript:
    return recognizer.recognize(open_audio(path), WhisperOptions.parse(options))


def test_speech_is_understood(pocket: WhisperRecognizer) -> None:
    """The trained model, defaults, against what was spoken."""
    spoken = json.loads((SAMPLES / "samples.json").read_text())
    for name, language in (("short_en.wav", "en"), ("short_de.wav", "de"), ("short_es.wav", "es")):
        found = transcribe(pocket, SAMPLES / name)
        words, wanted = found.text.split(), spoken[name]["text"].split()
        assert found.language == language
        assert sum(a == b for a, b in zip(words, wanted, strict=False)) >= len(wanted) - 1


# --- thresholds and fallback ---


@pytest.mark.parametrize(
    ("logprob", "no_speech", "ratio", "thresholds", "accepted", "silence"),
    [
        (-0.5, 0.1, 1.0, {}, True, False),
        (-1.5, 0.1, 1.0, {}, False, False),
        (-0.5, 0.1, 3.0, {}, False, False),
        (-1.5, 0.7, 1.0, {}, True, True),
        (-1.5, 0.7, 3.0, {}, True, True),
        (-0.5, 0.7, 1.0, {}, True, False),
        (-0.5, 0.7, 3.0, {}, False, False),
        (-1.5, 0.7, 1.0, {"no_speech_threshold": None}, False, False),
        (-1.5, 0.1, 3.0, {"logprob_threshold": None}, False, False),
        (-0.5, 0.7, 1.0, {"logprob_threshold": None}, True, True),
        (-9.0, 0.1, 9.0, {"logprob_threshold": None, "compression_ratio_threshold": None}, True, False),
    ],
)
def test_thresholds(
    logprob: float, no_speech: float, ratio: float, thresholds: dict, *, accepted: bool, silence: bool
) -> None:
    judged = judge(Decoding((), logprob, no_speech), 0.2, ratio, WhisperOptions(**thresholds))
    assert (judged.accepted, judged.is_silence) == (accepted, silence)


def test_temperature_rises_until_a_result_is_accepted(pocket: WhisperRecognizer) -> None:
    def temperatures(threshold: float) -> set[float]:
        found = transcribe(pocket, LONG, logprob_threshold=threshold, temperatures=(0, 0.4, 0.8))
        return {segment.temperature for segment in found.segments}

    assert temperatures(-100.0) == {0.0}
    assert temperatures(100.0) >= {0.0, 0.4}
    usual = transcribe(pocket, LONG, temperatures=(0, 0.4, 0.8), best_of=5)
    greedy = transcribe(pocket, LONG, temperatures=(0,))
    assert {segment.temperature for segment in usual.segments} > {0.0}
    assert min(s.avg_logprob for s in greedy.segments) < -1
    assert min(s.avg_logprob for s in usual.segments) > min(s.avg_logprob for s in greedy.segments)


def test_repetition_is_tried_again(pocket: WhisperRecognizer) -> None:
    usual = transcribe(pocket, SHORT, temperatures=(0,))
    ratio = usual.segments[0].compression_ratio
    options = {"compression_ratio_threshold": ratio - 0.001, "logprob_threshold": None, "temperatures": (0, 3.0)}
    found = [transcribe(pocket, SHORT, best_of=1, seed=seed, **options).segments[0] for seed in range(8)]
    sampled = [segment for segment in found if segment.temperature == 3.0]
    assert sampled
    assert all(segment.compression_ratio < ratio for segment in sampled)
    assert all(segment.text == usual.text for segment in found if segment.temperature == 0)


def test_the_likeliest_of_several_samples_counts(pocket: WhisperRecognizer) -> None:
    """Samples come in one row from the seed: each further one can only be likelier."""
    options = {"temperatures": (3.0,), "logprob_threshold": None, "compression_ratio_threshold": None}
    found = [transcribe(pocket, SHORT, best_of=n, **options) for n in range(1, 7)]
    means = [transcript.segments[0].avg_logprob for transcript in found]
    assert means == sorted(means)
    assert means[-1] > means[0]
    usual = transcribe(pocket, SHORT, **options)
    assert usual.segments == found[0].segments  # the default of openai-whisper's `transcribe`


@pytest.mark.parametrize(
    ("tried", "kept"),
    [
        # (mean log-probability, compression ratio) of each temperature's result; faster-whisper's rule by hand.
        ([(-1.2, 1.0), (-3.0, 1.0), (-2.0, 1.0)], 0),
        ([(-3.4, 1.0), (-1.1, 1.3), (-5.1, 1.0)], 1),
        ([(-0.3, 9.0), (-1.4, 1.1), (-1.2, 2.5)], 1),
        ([(-0.3, 9.0), (-0.2, 2.5), (-1.2, 3.0)], 1),
    ],
)
def test_of_failed_temperatures_the_likeliest_text_is_kept(tried: list[tuple[float, float]], kept: int) -> None:
    judged = [judge(Decoding((), mean, 0.0), 0.2, ratio, WhisperOptions()) for mean, ratio in tried]
    assert not any(result.accepted for result in judged)
    assert likeliest(judged) is judged[kept]


def test_of_failed_temperatures_it_is_not_the_last_sample(pocket: WhisperRecognizer) -> None:
    """Japanese to English by whisper-base: -3.4 to -5.1 where faster-whisper has -1 to -1.5."""
    alone = [transcribe(pocket, SHORT, logprob_threshold=None, temperatures=(t,)) for t in (0, 1.5)]
    together = transcribe(pocket, SHORT, logprob_threshold=100.0, temperatures=(0, 1.5))
    best = max(alone, key=lambda transcript: transcript.segments[0].avg_logprob)
    assert together.segments == best.segments
    assert best is alone[0]


def test_samples_are_seeded(pocket: WhisperRecognizer) -> None:
    first, again, other = (transcribe(pocket, LONG, temperatures=(1.0,), seed=seed).text for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_known_difference_3_hot_text_is_never_a_prompt(pocket: WhisperRecognizer) -> None:
    """At 0.8 nothing is handed on, so conditioning changes nothing; at 0.4 it does."""

    def texts(temperature: float) -> list[str]:
        return [
            transcribe(pocket, LONG, temperatures=(temperature,), condition_on_previous_text=condition).text
            for condition in (True, False)
        ]

    assert len(set(texts(0.8))) == 1
    assert len(set(texts(0.4))) == 2


# --- times, clip, progress, several files ---


def test_one_segment_without_timestamps(pocket: WhisperRecognizer) -> None:
    found = transcribe(pocket, SHORT)
    duration = len(samples(SHORT)) / RATE
    assert [(segment.start, segment.end) for segment in found.segments] == [(0, pytest.approx(duration, abs=1e-5))]
    assert found.segments[0].text == found.text


def test_clip_is_a_recording_of_its_own(pocket: WhisperRecognizer, tmp_path: Path) -> None:
    start, end = 5.0, 21.5
    cut = tmp_path / "cut.wav"
    soundfile.write(cut, samples(LONG)[int(start * RATE) : int(end * RATE)], RATE, subtype="FLOAT")
    found = transcribe(pocket, LONG, clip=(start, end))
    expected = transcribe(pocket, cut)
    assert found.text == expected.text
    moved = [(a + start, b + start, tokens) for a, b, tokens in stretches(expected.segments)]
    assert [s[2] for s in stretches(found.segments)] == [s[2] for s in moved]
    np.testing.assert_allclose([s[:2] for s in stretches(found.segments)], [s[:2] for s in moved], atol=1e-5)
    assert all(start <= segment.start <= segment.end <= end for segment in found.segments)


def test_duration_and_speed_are_of_the_clip(pocket: WhisperRecognizer) -> None:
    found = transcribe(pocket, LONG, clip=(5.0, 8.0))
    assert found.audio.duration_s == 3
    assert found.timings["rtf"] == pytest.approx(found.timings["total_s"] / 3)
    open_end = transcribe(pocket, LONG, clip=(26.0, 99.0))
    assert open_end.audio.duration_s == pytest.approx(len(samples(LONG)) / RATE - 26)


def test_a_prompt_that_is_cut_says_so(pocket: WhisperRecognizer) -> None:
    most = pocket.dims.n_text_ctx // 2 - 1
    words = "turn on the light " * most
    found = transcribe(pocket, SHORT, initial_prompt=words)
    count = len(pocket.tokenizer.encode_prompt(words))
    assert f"prompt cut to its last {most} of {count} tokens" in found.remark
    assert words.strip().endswith(found.prompt)
    assert len(pocket.tokenizer.encode_prompt(found.prompt)) in {most, most + 1}  # it may begin within a word
    whole = transcribe(pocket, SHORT, initial_prompt="turn on the light")
    assert (whole.prompt, whole.remark) == ("turn on the light", "language en")
    assert transcribe(pocket, SHORT).prompt is None


def test_clip_to_the_end(pocket: WhisperRecognizer) -> None:
    found = transcribe(pocket, LONG, clip=(26.0, None))
    assert found.segments[0].start >= 26
    with pytest.raises(InputError, match=r"start within its 29\.25 s"):
        transcribe(pocket, LONG, clip=(30.0, None))


def test_recordings_do_not_leave_anything_behind(pocket: WhisperRecognizer) -> None:
    first = [transcribe(pocket, path) for path in (SHORT, LONG, SAMPLES / "short_de.wav")]
    again = [transcribe(pocket, path) for path in (SAMPLES / "short_de.wav", LONG, SHORT)]
    for one, other in zip(first, reversed(again), strict=True):
        assert (one.text, one.language) == (other.text, other.language)
        assert stretches(one.segments) == stretches(other.segments)


def test_progress_and_timings(pocket: WhisperRecognizer) -> None:
    told: list[tuple[float, float]] = []
    found = pocket.recognize(open_audio(LONG), on_progress=lambda done, total: told.append((done, total)))
    duration = len(samples(LONG)) / RATE
    done = [seconds for seconds, _ in told]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(duration, abs=0.011)
    assert {total for _, total in told} == {duration}
    stages = ("frontend_s", "encoder_s", "prefill_s", "step_s")
    assert set(found.timings) == {"load_s", *stages, "total_s", "rtf"}
    assert 0 < sum(found.timings[stage] for stage in stages) <= found.timings["total_s"]
    assert found.timings["rtf"] == pytest.approx(found.timings["total_s"] / duration)


def test_one_sample(pocket: WhisperRecognizer, tmp_path: Path) -> None:
    path = tmp_path / "one.wav"
    soundfile.write(path, np.array([0.1], np.float32), RATE)
    found = transcribe(pocket, path, timestamps=True)
    assert all(segment.end <= 1 / RATE for segment in found.segments)


# --- options and errors ---


def test_options_survive_json() -> None:
    options = WhisperOptions(language="de", clip=(1.0, None), temperatures=(0.0, 0.5), suppress_tokens=(1, 2))
    assert WhisperOptions.parse(json.loads(json.dumps(options.model_dump(mode="json")))) == options
    assert WhisperOptions.parse({}) == WhisperOptions()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "summarise"}, "option task: .*'transcribe' or 'translate'.*'summarise'"),
        ({"beam": 5}, "option beam: "),
        ({"temperatures": ()}, "option temperatures: "),
        ({"temperatures": (-1.0,)}, "option temperatures.0: "),
        ({"logprob_threshold": math.nan}, "option logprob_threshold: "),
        ({"max_new_tokens": 0}, "option max_new_tokens: "),
        ({"clip": (3.0, 2.0)}, "option clip: .*START < END"),
        ({"clip": (-1.0, 2.0)}, "option clip: .*START < END"),
        ({"clip": (0.0, math.inf)}, "option clip: .*START < END"),
        ({"seed": -1}, "option seed: "),
        ({"best_of": 0}, "option best_of: "),
    ],
)
def test_bad_option(pocket_artifact: Path, values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        family_of(open_artifact(pocket_artifact)).options.parse(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "--language 'klingon': .* it knows de, en, es"),
        ({"language": "germann"}, "did you mean german"),
        ({"language": "fr"}, "--language 'fr': "),
        ({"initial_prompt": "hello <|endoftext|>"}, "--prompt: .*<|endoftext|>"),
        ({"suppress_tokens": (952,)}, "suppress_tokens: expected ids below 952, found 952"),
    ],
)
def test_what_the_model_cannot_do(pocket: WhisperRecognizer, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        transcribe(pocket, SHORT, **options)
    assert "\n" not in str(caught.value)


def test_english_only_model(english: WhisperRecognizer) -> None:
    for language in (None, "en", "English"):
        assert transcribe(english, SHORT, language=language, max_new_tokens=5).language == "en"
    with pytest.raises(InputError, match="--language 'de': expected one that the model knows; it knows en"):
        transcribe(english, SHORT, language="de")
    with pytest.raises(InputError, match="--task translate: expected transcribe"):
        transcribe(english, SHORT, task="translate")


def test_languages_by_code_and_name() -> None:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    known = dict.fromkeys(LANGUAGES, 0)
    for name, code in TO_LANGUAGE_CODE.items():
        assert language_code(name, known) == code
        assert language_code(f" {code.upper()} ", known) == code
    assert set(LANGUAGES) == set(TO_LANGUAGE_CODE.values())


def test_language_names_reach_the_prompt(pocket: WhisperRecognizer) -> None:
    path = SAMPLES / "short_de.wav"
    by_name, by_code = (transcribe(pocket, path, language=language) for language in ("German", "de"))
    assert by_name.language == by_code.language == "de"
    assert stretches(by_name.segments) == stretches(by_code.segments)


def test_suppressed_tokens_do_not_appear(pocket: WhisperRecognizer) -> None:
    usual = transcribe(pocket, SHORT, temperatures=(0.0,))
    banned = usual.segments[0].tokens[:2]
    found = transcribe(pocket, SHORT, temperatures=(0.0,), suppress_tokens=banned)
    assert not set(banned) & set(found.segments[0].tokens)


def test_unknown_family(pocket_artifact: Path) -> None:
    artifact = open_artifact(pocket_artifact)
    foreign = artifact.content.model_copy(update={"family": "wav2vec2"})
    changed = type(artifact)(artifact.path, artifact.manifest.model_copy(update={"content": foreign}))
    assert "wav2vec2" not in FAMILIES
    with pytest.raises(InputError, match="family 'wav2vec2'"):
        open_recognizer(changed)
