"""Speech for training and testing by espeak-ng: many voices, none of them a person's.

Voices of the test sets, and the texts for which `is_held_out` holds, never occur in the training set.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pocket.training.whisper.phrases import LANGUAGES, is_held_out, pick, random_phrase
from runtime.errors import EnvironmentNotFitError, InputError

SAMPLE_RATE = 16000
SHORTEST, LONGEST = 2000, 72000  # samples: 0.125 s to 4.5 s, so that a 6 s window always has room
PEAK, INAUDIBLE = 0.7, 1e-3  # of full scale
SILENCE = 0.02  # of the utterance's peak

ACCENTS = {
    "en": ["en-us", "en-gb", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc"],
    "de": ["de"],
    "es": ["es", "es-419"],
}
_SPEAKERS = (
    "m1 m2 m3 m4 m6 m7 f1 f2 f4 klatt klatt3 Alex Alicia Andrea Andy steph steph2 anika Michael Mike Gene Diogo Hugo "
    "Jacky Lee Marco adam antonio aunty benjamin boris caleb david ed grandma john max michel miguel norbert pablo "
    "quincy rob sandro shelby travis"
)
_UNSEEN_SPEAKERS = "m5 m8 f3 f5 klatt2 klatt4 Annie edward belinda Denis linda paul victor zac Mario pedro"
SPEAKERS, UNSEEN_SPEAKERS = _SPEAKERS.split(), _UNSEEN_SPEAKERS.split()
UNSEEN_ACCENT = "en-gb-scotland"

SEEN = {
    code: [*accents, *(f"{accent}+{who}" for accent in accents for who in SPEAKERS)]
    for code, accents in ACCENTS.items()
}
UNSEEN = {
    code: [f"{accent}+{who}" for accent in accents for who in UNSEEN_SPEAKERS] for code, accents in ACCENTS.items()
}
UNSEEN["en"] += [UNSEEN_ACCENT, *(f"{UNSEEN_ACCENT}+{who}" for who in (*SPEAKERS, *UNSEEN_SPEAKERS))]


@dataclass(frozen=True)
class Utterance:
    """One spoken phrase: `pcm` int16 [n] at 16 kHz, trimmed to the speech; the text and its English translation."""

    pcm: NDArray[np.int16]
    language: str
    text: str
    english: str

    @property
    def audio(self) -> NDArray[np.float32]:
        """The samples as float32 [n] in [-1, 1)."""
        return self.pcm.astype(np.float32) / np.float32(32768)


@dataclass(frozen=True)
class EvaluationSet:
    """Which utterances a test set draws: voices by language, and texts kept from training or not."""

    voices: dict[str, list[str]]
    held_out_texts: bool
    count: int


EVALUATION_SETS = {
    "seen_voice": EvaluationSet(SEEN, held_out_texts=False, count=60),
    "unseen_voice": EvaluationSet(UNSEEN, held_out_texts=False, count=160),
    "unseen_text": EvaluationSet(UNSEEN, held_out_texts=True, count=100),
}
TRAINING_SHARES = {"en": 0.373, "de": 0.372, "es": 0.255}


def find_espeak() -> str:
    """Return the path of espeak-ng.

    Raises
    ------
    EnvironmentNotFitError
        It is not installed.

    """
    path = shutil.which("espeak-ng")
    if path is None:
        msg = "expected the program espeak-ng, found none on PATH; install it (Debian: apt-get install espeak-ng)"
        raise EnvironmentNotFitError(msg)
    return path


def speak(espeak: str, voice: str, text: str, rng: np.random.Generator) -> NDArray[np.int16] | None:
    """Return `text` spoken at a random pace and pitch, int16 [n] at 16 kHz, or None where the voice stays silent."""
    pace, pitch, gap = rng.integers(140, 226), rng.integers(20, 81), rng.integers(5)
    command = [espeak, "-v", voice, "-s", str(pace), "-p", str(pitch), "-g", str(gap), "--stdout", text]
    # No shell is involved, and all arguments come from this module.
    wav = subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603
    audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    audio = np.asarray(soxr.resample(audio, rate, SAMPLE_RATE))
    peak = float(np.abs(audio).max(initial=0))
    if peak < INAUDIBLE:
        return None
    loud = np.flatnonzero(np.abs(audio) > SILENCE * peak)
    audio = audio[loud[0] : loud[-1] + 1] * (PEAK / peak)
    return (np.clip(audio, -1, 1) * 32767).astype(np.int16)


def synthesize(
    count: int, language: str, voices: Sequence[str], *, seed: int, held_out_texts: bool = False
) -> list[Utterance]:
    """Return `count` utterances of random phrases by random voices."""
    espeak, rng, found = find_espeak(), np.random.default_rng(seed), list[Utterance]()
    while len(found) < count:
        phrase = random_phrase(rng)
        if is_held_out(phrase) != held_out_texts:
            continue
        text = phrase[LANGUAGES.index(language)]
        pcm = speak(espeak, pick(rng, voices), text, rng)
        if pcm is not None and SHORTEST < len(pcm) <= LONGEST:
            found.append(Utterance(pcm, language, text, phrase.en))
    return found


def write_utterances(utterances: Sequence[Utterance], file: Path) -> None:
    """Write one set as an .npz file: all samples end to end, and where each utterance ends."""
    np.savez(
        file,
        pcm=np.concatenate([item.pcm for item in utterances]),
        ends=np.cumsum([len(item.pcm) for item in utterances]),
        texts=np.array([(item.language, item.text, item.english) for item in utterances]),
    )


def read_utterances(file: Path) -> list[Utterance]:
    """Read what `write_utterances` wrote.

    Raises
    ------
    InputError
        There is no such file.

    """
    if not file.is_file():
        raise InputError(f"expected the utterances {file}, found no such file; leave --corpus out to make them")
    with np.load(file, allow_pickle=False) as stored:
        parts = np.split(stored["pcm"], stored["ends"][:-1])
        return [Utterance(pcm, *map(str, texts)) for pcm, texts in zip(parts, stored["texts"], strict=True)]


def write_corpus(folder: Path, utterances: int, seed: int, progress: Callable[[str], None] = print) -> None:
    """Make the training set (`utterances` in all) and, scaled alike, the test sets of `EVALUATION_SETS` in `folder`."""
    find_espeak()
    folder.mkdir(parents=True, exist_ok=True)
    training = list[Utterance]()
    for index, (language, share) in enumerate(TRAINING_SHARES.items()):
        count = max(1, round(share * utterances))
        training += synthesize(count, language, SEEN[language], seed=seed + index)
        progress(f"synthesized {count} training utterances, {language}")
    write_utterances(training, folder / "train.npz")
    for index, (name, test) in enumerate(EVALUATION_SETS.items(), start=1):
        items = list[Utterance]()
        for position, language in enumerate(LANGUAGES):
            items += synthesize(
                max(6, min(test.count, utterances // 10)),
                language,
                test.voices[language],
                seed=seed + 100 * index + position,
                held_out_texts=test.held_out_texts,
            )
        write_utterances(items, folder / f"{name}.npz")
        progress(f"synthesized {len(items)} test utterances, {name}")
