"""One contestant in a process of its own: opens the model, transcribes whole recordings, and writes what that took.

`python -m bench.whisper_worker convert|transcribe JOB RESULT`, both files JSON. It runs in the peers' environments too,
so nothing but the standard library is imported before the clock runs: what a contestant imports is part of its loading.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

STARTED = time.perf_counter()
RATE = 16_000


@dataclass(frozen=True)
class Job:
    """What a contestant is to do.

    `artifact` is the folder of ours, `checkpoint` a transformers folder with its weights, `converted` the folder for
    what the contestant makes of that. `language` is a code; None in an English-only model.
    """

    contestant: str
    artifact: str
    checkpoint: str
    converted: str
    threads: int
    language: str | None
    recordings: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What one process took: seconds, bytes, and the text of each recording.

    `load_s` and `load_cpu_s` are from the process's start to the opened model, `first_text_s` to the first piece of
    the first recording's text; that recording is then transcribed again with all others in `wall_s` and `cpu_s`.
    """

    load_s: float
    load_cpu_s: float
    first_text_s: float
    wall_s: float
    cpu_s: float
    peak_bytes: int
    texts: tuple[str, ...]
    versions: dict[str, str]


class Contestant:
    """Transcribes greedily, with times, each window by itself; silence is skipped by the usual thresholds."""

    # Its environment: the one that the benchmark runs in, or the peers' own.
    own_environment: ClassVar[bool] = False
    packages: tuple[str, ...]
    settings: str

    @classmethod
    def convert(cls, job: Job) -> None:
        """Write the weights as the contestant reads them, where the checkpoint's folder is not what it reads."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def transcribe(self, recording: str, on_text: Callable[[str], object]) -> str:
        """Return the text of a recording; `on_text` is called with each piece as soon as it is there."""
        raise NotImplementedError


class _Ours(Contestant):
    engine: ClassVar[str]

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        from runtime.artifact import open_artifact
        from runtime.families import open_recognizer

        self._recognizer = open_recognizer(
            open_artifact(Path(job.artifact), to_run=True), self.engine, "cpu", job.threads
        )

    def transcribe(self, recording: str, on_text: Callable[[str], object]) -> str:
        from runtime.audio import open_audio
        from runtime.families.whisper.options import WhisperOptions
        from runtime.families.whisper.recognizer import WhisperRecognizer

        assert isinstance(self._recognizer, WhisperRecognizer)
        options = WhisperOptions(language=self.job.language, temperatures=(0.0,), timestamps=True)
        audio = open_audio(recording)
        return self._recognizer.recognize(audio, options, on_segment=lambda segment: on_text(segment.text)).text


class OnnxRuntime(_Ours):
    """Ours on ONNX Runtime."""

    engine = "onnxruntime"
    packages = ("atlasport", "onnxruntime", "numpy")
    settings = "float32"


class TorchScript(_Ours):
    """Ours on torch."""

    engine = "torchscript"
    packages = ("atlasport", "torch", "numpy")
    settings = "float32"


class _FasterWhisper(Contestant):
    packages = ("faster-whisper", "ctranslate2")
    precision: ClassVar[str]

    @classmethod
    def convert(cls, job: Job) -> None:
        import shutil

        from ctranslate2.converters import TransformersConverter

        TransformersConverter(job.checkpoint).convert(job.converted, quantization=cls.precision)
        # Without them it fetches a tokenizer from the hub, and takes 80 mels.
        for name in ("tokenizer.json", "preprocessor_config.json"):
            shutil.copy(Path(job.checkpoint, name), job.converted)

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            job.converted, device="cpu", compute_type=self.precision, cpu_threads=job.threads, num_workers=1
        )

    def transcribe(self, recording: str, on_text: Callable[[str], object]) -> str:
        segments, _ = self._model.transcribe(
            recording,
            language=self.job.language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        texts = list[str]()
        for segment in segments:
            texts.append(segment.text)
            on_text(segment.text)
        return "".join(texts)


class FasterWhisperFloat32(_FasterWhisper):
    """faster-whisper (CTranslate2) in float32."""

    precision = "float32"
    settings = "compute_type float32, beam_size 1"


class FasterWhisperInt8(_FasterWhisper):
    """faster-whisper (CTranslate2) with 8-bit weights."""

    precision = "int8"
    settings = "compute_type int8, beam_size 1"


class Transformers(Contestant):
    """transformers' own `generate`."""

    packages: tuple[str, ...] = ("transformers", "torch")
    settings = "float32, sdpa attention, generate with num_beams 1"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        import torch
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        torch.set_num_threads(job.threads)
        self._model = self._open()
        if not job.language:
            # It would detect one of none; CTranslate2's converter wants the entry.
            vars(self._model.generation_config).pop("lang_to_id", None)
        self._extract = WhisperFeatureExtractor.from_pretrained(job.checkpoint)
        self._tokenizer = Tokenizer.from_file(str(Path(job.checkpoint, "tokenizer.json")))

    def _open(self) -> Any:
        import torch
        from transformers import WhisperForConditionalGeneration

        return WhisperForConditionalGeneration.from_pretrained(self.job.checkpoint, dtype=torch.float32).eval()

    def transcribe(self, recording: str, on_text: Callable[[str], object]) -> str:
        """Return the text of a recording, of which `on_text` gets all at once."""
        import torch

        samples = _samples(recording)
        long = len(samples) > self._extract.n_samples
        features = self._extract(
            samples,
            sampling_rate=RATE,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=not long,
            padding="longest" if long else "max_length",
        )
        with torch.inference_mode():
            tokens = self._model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                return_timestamps=True,
                num_beams=1,
                temperature=(0.0,),
                logprob_threshold=-1.0,
                no_speech_threshold=0.6,
                condition_on_prev_tokens=False,
                **({"language": self.job.language, "task": "transcribe"} if self.job.language else {}),
            )
        end = self._model.generation_config.eos_token_id
        text: str = self._tokenizer.decode([token for token in tokens[0].tolist() if token < end])
        on_text(text)
        return text


class OptimumOnnx(Transformers):
    """optimum-onnx: its graphs on ONNX Runtime under transformers' `generate`."""

    own_environment = True
    packages = ("optimum-onnx", "transformers", "onnxruntime")
    settings = "float32, generate with num_beams 1"

    @classmethod
    def convert(cls, job: Job) -> None:
        """Export the checkpoint by optimum."""
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        ORTModelForSpeechSeq2Seq.from_pretrained(job.checkpoint, export=True).save_pretrained(job.converted)

    def _open(self) -> Any:
        from onnxruntime import SessionOptions
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        options = SessionOptions()
        options.intra_op_num_threads = self.job.threads
        return ORTModelForSpeechSeq2Seq.from_pretrained(self.job.converted, session_options=options)


class WhisperCpp(Contestant):
    """whisper.cpp by pywhispercpp."""

    own_environment = True
    packages = ("pywhispercpp",)
    settings = "matrices float16, greedy"

    @classmethod
    def convert(cls, job: Job) -> None:
        """Write the weights as ggml."""
        from bench.ggml import write_ggml

        write_ggml(Path(job.checkpoint), Path(job.converted, "ggml.bin"))

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        from pywhispercpp.model import Model

        self._model = Model(
            str(Path(job.converted, "ggml.bin")),
            n_threads=job.threads,
            language=job.language or "en",
            no_context=True,
            temperature=0.0,
            temperature_inc=0.0,
            print_progress=False,
            print_realtime=False,
        )

    def transcribe(self, recording: str, on_text: Callable[[str], object]) -> str:
        """Return the text of a recording."""
        found = self._model.transcribe(_samples(recording), new_segment_callback=lambda segment: on_text(segment.text))
        return " ".join(segment.text for segment in found)


CONTESTANTS: dict[str, type[Contestant]] = {
    "atlasport onnxruntime": OnnxRuntime,
    "atlasport torchscript": TorchScript,
    "faster-whisper float32": FasterWhisperFloat32,
    "faster-whisper int8": FasterWhisperInt8,
    "transformers": Transformers,
    "optimum-onnx": OptimumOnnx,
    "whisper.cpp": WhisperCpp,
}


def _samples(recording: str) -> Any:
    """Return samples f32 [n] at RATE, the channels' mean, for those who take no file."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(recording, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, RATE)


def transcribe(job: Job) -> Outcome:
    """Open the contestant, transcribe the first recording, then all of them."""
    contestant = CONTESTANTS[job.contestant](job)
    load_s, load_cpu_s = time.perf_counter() - STARTED, time.process_time()
    said = list[float]()

    def on_text(text: str) -> None:
        if text.strip():
            said.append(time.perf_counter() - STARTED)

    contestant.transcribe(job.recordings[0], on_text)
    said.append(time.perf_counter() - STARTED)  # where nothing was said
    wall, cpu = time.perf_counter(), time.process_time()
    texts = tuple(contestant.transcribe(recording, lambda text: text) for recording in job.recordings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    versions = {name: version(name) for name in contestant.packages}
    return Outcome(load_s, load_cpu_s, said[0], wall, cpu, _peak_bytes(), texts, versions)


def _peak_bytes() -> int:
    """Return this process's peak resident memory, which its parent's does not count in (VmHWM of proc(5))."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def main(action: str, job_file: str, result_file: str) -> None:
    """Do one job."""
    written = json.loads(Path(job_file).read_text(encoding="utf-8"))
    job = Job(**{**written, "recordings": tuple(written["recordings"])})
    if action == "convert":
        CONTESTANTS[job.contestant].convert(job)
        return
    Path(result_file).write_text(json.dumps(asdict(transcribe(job))), encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # all weights are here
    main(*sys.argv[1:])
