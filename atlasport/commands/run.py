"""`atlasport run`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlasport.commands.options import (
    ARTIFACTS,
    AcceptDamagedOption,
    CaptureOption,
    DeterministicOption,
    EngineName,
    Precision,
    PrecisionOption,
    RestartOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from atlasport.commands.outputs import OutputFiles
    from atlasport.restarting import RestartingRecognizer
    from runtime.artifact import Artifact
    from runtime.audio import Audio
    from runtime.errors import AtlasportError
    from runtime.families import Options
    from runtime.manifest import Variant
    from runtime.results import Result

STDIN = Path("-")
SPEECH = "Speech (several families)"
WHISPER = "Speech (Whisper)"
GRANITE = "Speech (Granite Speech)"
PARAKEET = "Speech (Parakeet)"
SOUNDS = "Sound events (Cnn8Rnn)"


def _speech(description: str, **settings: Any) -> Any:
    return typer.Option(help=description, rich_help_panel=SPEECH, **settings)


def _whisper(description: str, **settings: Any) -> Any:
    return typer.Option(help=description, rich_help_panel=WHISPER, **settings)


def _granite(description: str, **settings: Any) -> Any:
    return typer.Option(help=description, rich_help_panel=GRANITE, **settings)


def _parakeet(description: str, **settings: Any) -> Any:
    return typer.Option(help=description, rich_help_panel=PARAKEET, **settings)


def _sounds(description: str, **settings: Any) -> Any:
    return typer.Option(help=description, rich_help_panel=SOUNDS, **settings)


def run(
    artifact: Annotated[str, typer.Argument(help="An artifact's folder, or a model's name.")],
    audio: Annotated[list[Path], typer.Argument(help="Recordings: wav, flac, ogg, opus, mp3; - for stdin.")],
    precision: PrecisionOption = Precision.FP32,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:N or npu:N; default: cpu, on a box what the bundle is made for.")
    ] = None,
    engine: Annotated[EngineName | None, typer.Option(help="Default: the first that the device can run.")] = None,
    threads: ThreadsOption = None,
    capture: CaptureOption = False,
    deterministic: DeterministicOption = False,
    restart: RestartOption = False,
    clip: Annotated[str | None, typer.Option(metavar="START,END", help="Seconds; END may be left out.")] = None,
    accept_damaged: AcceptDamagedOption = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object a recording.")] = False,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Files to write into --out, comma-separated. Speech: txt, srt, vtt, tsv, json. Sound events: tsv, "
            "json, audacity, npz, csv, html.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files of --format.")] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder of the artifacts, or of a box.")] = ARTIFACTS,
    task: Annotated[
        str | None,
        _speech(
            "transcribe, translate (Whisper: to English; Granite: --to), punctuate (Granite); default: what the "
            "checkpoint is set to (mostly transcribe)."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        _speech("Whisper: text that the recording might follow (names, style). Granite: what to do, in your words."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, _speech("Whisper, Granite: tokens per window or chunk at most.", min=1)
    ] = None,
    chunk: Annotated[
        float | None, _speech("Parakeet: seconds of a window that are transcribed. Granite: of a chunk at most. [30]")
    ] = None,
    language: Annotated[
        str | None,
        _whisper("Code or name (en, german), or auto: detected; default: what the checkpoint is set to (mostly auto)."),
    ] = None,
    timestamps: Annotated[bool | None, _whisper("Decode segment times also where the audio fits a window.")] = None,
    condition: Annotated[bool | None, _whisper("Prompt each window with the text before it.")] = None,
    temperatures: Annotated[
        str | None,
        _whisper("Tried in turn while a window fails a threshold. [0,0.2,0.4,0.6,0.8,1]"),
    ] = None,
    compression_ratio: Annotated[float | None, _whisper("A window's text above this is a repetition. [2.4]")] = None,
    logprob: Annotated[float | None, _whisper("A window with a mean log-probability below this fails. [-1]")] = None,
    no_speech: Annotated[float | None, _whisper("No-speech probability that skips a window. [0.6]")] = None,
    to: Annotated[str | None, _granite("Language to translate to, code or name (de, french).")] = None,
    punctuation: Annotated[bool | None, _granite("Translate with punctuation and capitals.")] = None,
    keywords: Annotated[str | None, _granite("Names and terms to listen for, with commas between them.")] = None,
    repetition_guard: Annotated[
        bool | None, _granite("End a chunk's text where it goes round in circles (default).")
    ] = None,
    draft: Annotated[bool | None, _granite("Give the encoder's own reading too, and how sure it is.")] = None,
    batch: Annotated[int, _parakeet("Recordings that go through the graphs together.", min=1)] = 1,
    decode: Annotated[str | None, _parakeet("Search for tokens on the host (default), or on the device.")] = None,
    decode_steps: Annotated[
        int | None, _parakeet("Steps in one call on the device; default: the most there are.", min=1)
    ] = None,
    confidence: Annotated[str | None, _parakeet("Confidence by max_prob (default) or entropy.")] = None,
    aggregation: Annotated[str | None, _parakeet("Of the tokens' confidences: mean (default), min or prod.")] = None,
    segment_gap: Annotated[float | None, _parakeet("Begin a segment also after a pause of so many seconds.")] = None,
    hotwords: Annotated[
        Path | None, _parakeet("Phrases to prefer: a file of one a line, or phrase, tab, weight.")
    ] = None,
    hotword: Annotated[
        list[str] | None, _parakeet("A phrase to prefer, or phrase:weight; may be given several times.")
    ] = None,
    hotword_weight: Annotated[float | None, _parakeet("Weight of hotwords that have none. [1]")] = None,
    attention: Annotated[
        str | None, _parakeet("full, windows, or auto (default): full up to the limit, windows beyond.")
    ] = None,
    full_attention_limit: Annotated[float | None, _parakeet("Seconds; default: the artifact's, see doctor.")] = None,
    left_context: Annotated[float | None, _parakeet("Seconds of a window before them. [10]")] = None,
    right_context: Annotated[float | None, _parakeet("Seconds of a window behind them. [2]")] = None,
    top_k: Annotated[int | None, _sounds("Tags to give, best first. [10]", min=1)] = None,
    high: Annotated[float | None, _sounds("An event's score must exceed this somewhere. [0.75]")] = None,
    low: Annotated[float | None, _sounds("An event lasts while its score exceeds this; default: high / 3.")] = None,
    thresholds: Annotated[
        Path | None, _sounds("Thresholds of single classes: a JSON or TSV file of label, high and low.")
    ] = None,
    median: Annotated[int | None, _sounds("Median filter over so many scores of 40 ms. [1]", min=1)] = None,
    gap: Annotated[float | None, _sounds("Merge events of a class that are at most so many seconds apart. [0]")] = None,
    min_duration: Annotated[float | None, _sounds("Drop events shorter than so many seconds. [0]")] = None,
    labels: Annotated[str | None, _sounds("Only these classes, with ';' between them.")] = None,
) -> None:
    """Recognise speech or sound events with an artifact's frozen graphs. Results go to stdout, speed to stderr."""
    from atlasport.commands.outputs import OutputFiles, parse_clip, parse_numbers
    from atlasport.restarting import RestartingRecognizer
    from runtime.engines.base import EngineSettings
    from runtime.errors import InputError
    from runtime.families import family_of, open_recognizer

    given = {
        "clip": parse_clip(clip),
        "language": language,
        "task": task,
        "timestamps": timestamps,
        "prompt": prompt,
        "condition_on_previous_text": condition,
        "max_new_tokens": max_new_tokens,
        "temperatures": parse_numbers("--temperatures", temperatures),
        "compression_ratio_threshold": compression_ratio,
        "logprob_threshold": logprob,
        "no_speech_threshold": no_speech,
        "to": to,
        "punctuation": punctuation,
        "keywords": keywords,
        "repetition_guard": repetition_guard,
        "draft": draft,
        "decode": decode,
        "decode_steps": decode_steps,
        "confidence": confidence,
        "aggregation": aggregation,
        "segment_gap_s": segment_gap,
        "hotwords": _hotwords(hotwords, hotword),
        "hotword_weight": hotword_weight,
        "attention": attention,
        "full_attention_s": full_attention_limit,
        "chunk_s": chunk,
        "left_s": left_context,
        "right_s": right_context,
        "top_k": top_k,
        "high": high,
        "low": low,
        "thresholds": thresholds,
        "median": median,
        "gap_s": gap,
        "min_duration_s": min_duration,
        "labels": labels.split(";") if labels else None,
    }
    opened, made_for = _open(artifact, root, precision.value)
    device = device or made_for
    family = family_of(opened)
    if batch > 1 and not family.in_batches:
        raise InputError(f"--batch: expected 1, found {batch}; {opened.content.family} takes one recording at a time")
    if batch > 1 and STDIN in audio:
        raise InputError("--batch: expected 1 where a recording comes from stdin (-)")
    files = OutputFiles(out, formats, family.formats, audio)
    named = {family.own_names.get(name, name): value for name, value in given.items() if value is not None}
    options = family.parse_options({**files.options, **named})
    settings = EngineSettings(capture=capture, deterministic=deterministic)
    recognizer = RestartingRecognizer(
        lambda: open_recognizer(opened, engine.value if engine else None, device, threads, settings),
        restarts=1 if restart else 0,
    )
    # A reader of the terminal sees the text as it comes, a program only the finished one.
    aloud = family.streams and not json_lines and sys.stdout.isatty()
    run_all = _Run(
        recognizer,
        options,
        files,
        accept_damaged=accept_damaged,
        json_lines=json_lines,
        several=len(audio) > 1,
        aloud=aloud,
    )
    if batch > 1:
        run_all.in_batches(audio, batch)
    else:
        for path in audio:
            run_all.one(path)
    if run_all.failed:
        raise typer.Exit(run_all.failed.exit_code)


def _hotwords(path: Path | None, phrases: Sequence[str] | None) -> list[Any] | None:
    """Return the hotwords of a file and those given one by one; None where neither is given."""
    from runtime.families.parakeet_tdt.hotwords import read_hotwords

    if path is None and not phrases:
        return None
    return [*(read_hotwords(path) if path else ()), *(phrases or ())]


def _open(name: str, root: Path, precision: Variant) -> tuple[Artifact, str]:
    """Return the artifact that a user named, or the active version of a model on a box, and its device by default."""
    from runtime.artifact import find_artifact, open_artifact
    from runtime.box.requirements import default_device
    from runtime.box.root import Box
    from runtime.box.versions import open_active

    if not Box(root).exists():
        return open_artifact(find_artifact(name, root, precision)), "cpu"
    artifact, manifest = open_active(root, name)
    return artifact, default_device(manifest.profile)


def _show(result: Result, *, json_lines: bool, several: bool) -> None:
    if json_lines:
        typer.echo(json.dumps(result.to_json(), ensure_ascii=False))
    elif several:
        separator = "\n" if "\n" in result.summary else " "
        typer.echo(f"{result.audio.path}:{separator}{result.summary}")
    else:
        typer.echo(result.summary)
    sys.stdout.flush()


def _show_speed(result: Result) -> None:
    timings = result.timings
    remarks = ", ".join(filter(None, (result.remark, result.audio.remark)))
    typer.echo(
        f"  {result.audio.duration_s:.1f} s of audio in {timings['total_s']:.2f} s (RTF {timings['rtf']:.3f}), "
        f"{remarks}, {result.engine} on {result.device}, {result.variant}"
        f"{', simulated: these are not times of the device' if result.simulated else ''}",
        err=True,
    )


@contextmanager
def _aloud(label: str) -> Iterator[_Aloud]:
    """Write a text to a terminal while it is made, behind a label; its line is ended whatever happens."""
    typer.echo(label, nl=False)
    writer = _Aloud()
    try:
        yield writer
    finally:
        typer.echo()


class _Aloud:
    """Writes pieces of a text to stdout as they come."""

    def __init__(self) -> None:
        self._said = ""

    def say(self, piece: str) -> None:
        """Write a piece."""
        self._said += piece
        typer.echo(piece, nl=False)
        sys.stdout.flush()

    def finish(self, summary: str) -> None:
        """Write what the result has beyond the pieces, or all of it where it is not what they said."""
        begins = summary.startswith(self._said)
        self.say(summary[len(self._said) :] if begins else f"\n{summary}")


class _Run:
    """Recognises recordings, shows and writes each result, and goes on after one that cannot be read.

    `failed` is the last error of such a recording. With a single one the error is raised.
    """

    def __init__(
        self,
        recognizer: RestartingRecognizer,
        options: Options,
        files: OutputFiles,
        *,
        accept_damaged: bool,
        json_lines: bool,
        several: bool,
        aloud: bool,
    ) -> None:
        self.failed: AtlasportError | None = None
        self._accept_damaged = accept_damaged
        self._recognizer = recognizer
        self._options = options
        self._files = files
        self._json_lines = json_lines
        self._several = several
        self._aloud = aloud

    def one(self, path: Path) -> None:
        """Recognise one recording."""
        from runtime.errors import AtlasportError, ExitCode

        try:
            result = self._recognize(self._open(path))
        except AtlasportError as error:
            # The other recordings are still worth hearing; the exit code tells of this one.
            if not self._several or error.exit_code is not ExitCode.BAD_INPUT:
                raise
            typer.echo(f"atlasport: {error}", err=True)
            self.failed = error
            return
        self._finish(path, result, told=self._aloud)

    def _open(self, path: Path) -> Audio:
        from runtime.audio import open_audio

        if path == STDIN:
            return open_audio(sys.stdin.buffer, name=str(STDIN), accept_damaged=self._accept_damaged)
        return open_audio(path, accept_damaged=self._accept_damaged)

    def _recognize(self, recording: Audio) -> Result:
        from runtime.progress import progress

        if self._aloud:
            # No bar beside it: both would write to the same line.
            with _aloud(f"{recording.path}: " if self._several else "") as writer:
                result = self._recognizer.recognize(recording, self._options, None, writer.say)
                writer.finish(result.summary)
            return result
        with progress(recording.info.duration_s, recording.path.name) as bar:
            return self._recognizer.recognize(recording, self._options, bar.update)

    def in_batches(self, paths: Sequence[Path], size: int) -> None:
        """Recognise `size` recordings at a time; one by one where any of them cannot be read, which tells which."""
        from runtime.errors import InputError

        for start in range(0, len(paths), size):
            batch = paths[start : start + size]
            try:
                results = self._recognizer.recognize_batch([self._open(path) for path in batch], self._options)
            except InputError:
                for path in batch:
                    self.one(path)
                continue
            for path, result in zip(batch, results, strict=True):
                self._finish(path, result)

    def _finish(self, path: Path, result: Result, *, told: bool = False) -> None:
        if not told:
            _show(result, json_lines=self._json_lines, several=self._several)
        _show_speed(result)
        self._files.write(path, result)
