"""`atlasport run`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from runtime.audio import Audio
    from runtime.errors import AtlasportError
    from runtime.options import RecognitionOptions
    from runtime.results import Result

STDIN = Path("-")


def run(
    context: typer.Context,
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
    batch: Annotated[
        int, typer.Option(min=1, help="Recordings that go through the graphs together, where the family can.")
    ] = 1,
    profile: Annotated[
        Path | None,
        typer.Option(help="Chrome trace to write (.json) of what the graphs did; its sums by operator go to stderr."),
    ] = None,
) -> None:
    """Recognise speech or sound events with an artifact's frozen graphs. Results go to stdout, speed to stderr."""
    from atlasport.commands.outputs import OutputFiles
    from atlasport.commands.profile import TraceFile
    from atlasport.model import find_model
    from atlasport.restarting import RestartingRecognizer
    from runtime.engines.base import EngineSettings
    from runtime.errors import InputError
    from runtime.families import family_of, open_recognizer

    trace = TraceFile(profile) if profile else None
    opened, made_for = find_model(artifact, root, precision.value)
    device = device or made_for
    family = family_of(opened)
    if batch > 1 and not family.in_batches:
        raise InputError(f"--batch: expected 1, found {batch}; {opened.content.family} takes one recording at a time")
    if batch > 1 and STDIN in audio:
        raise InputError("--batch: expected 1 where a recording comes from stdin (-)")
    files = OutputFiles(out, formats, family, audio)
    options = family.options_for(context.obj, files.formats)
    settings = EngineSettings(capture=capture, deterministic=deterministic, profile=trace is not None)
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
    if trace:
        trace.write(recognizer.engine.take_profile())
    if run_all.failed:
        raise typer.Exit(run_all.failed.exit_code)


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
    remarks = "".join(f"{remark}, " for remark in (result.remark, result.audio.remark) if remark)
    typer.echo(
        f"  {result.audio.duration_s:.1f} s of audio in {timings['total_s']:.2f} s (RTF {timings['rtf']:.3f}), "
        f"{remarks}{result.engine} on {result.device}, {result.variant}"
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
        options: RecognitionOptions,
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
