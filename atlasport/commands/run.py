"""`atlasport run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import (
    ARTIFACTS,
    DeviceOption,
    EngineName,
    Precision,
    PrecisionOption,
    RootOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from runtime.results import Transcript


def run(
    artifact: Annotated[str, typer.Argument(help="An artifact's folder, or a model's name.")],
    audio: Annotated[list[Path], typer.Argument(help="Recordings: wav, flac, ogg, opus, mp3; any rate and channels.")],
    precision: PrecisionOption = Precision.FP32,
    device: DeviceOption = "cpu",
    engine: Annotated[EngineName | None, typer.Option(help="Default: the first that the device can run.")] = None,
    threads: ThreadsOption = None,
    language: Annotated[str | None, typer.Option(help="Code or name (en, german); default: detected.")] = None,
    task: Annotated[str, typer.Option(help="transcribe, or translate to English.")] = "transcribe",
    timestamps: Annotated[bool, typer.Option(help="Decode segment times also where the audio fits a window.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Text that the recording might follow: names, style.")] = None,
    condition: Annotated[
        bool, typer.Option(help="Prompt each window of a long recording with the text before it.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per window at most.")] = None,
    clip: Annotated[str | None, typer.Option(metavar="START,END", help="Seconds; END may be left out.")] = None,
    temperatures: Annotated[
        str, typer.Option(help="Tried in turn while a window fails a threshold; 0 alone: greedy only.")
    ] = "0,0.2,0.4,0.6,0.8,1",
    compression_ratio: Annotated[float, typer.Option(help="A window's text above this is a repetition.")] = 2.4,
    logprob: Annotated[float, typer.Option(help="A window with a mean log-probability below this fails.")] = -1.0,
    no_speech: Annotated[float, typer.Option(help="No-speech probability that skips a window below --logprob.")] = 0.6,
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON object a recording.")] = False,
    formats: Annotated[
        str, typer.Option("--format", help="Files to write into --out: txt, srt, vtt, tsv, json; comma-separated.")
    ] = "txt",
    out: Annotated[Path | None, typer.Option(help="Folder for the files of --format.")] = None,
    root: RootOption = ARTIFACTS,
) -> None:
    """Transcribe recordings with an artifact's frozen graphs. Text goes to stdout, speed and progress to stderr."""
    from atlasport.commands.outputs import OutputFiles, parse_clip, parse_numbers
    from runtime.artifact import find_artifact, open_artifact
    from runtime.audio import open_audio
    from runtime.errors import AtlasportError, ExitCode
    from runtime.families import open_recognizer, parse_options
    from runtime.progress import progress

    values = {
        "language": language,
        "task": task,
        "timestamps": timestamps or (out is not None and formats != "txt"),
        "initial_prompt": prompt,
        "condition_on_previous_text": condition,
        "max_new_tokens": max_new_tokens,
        "clip": parse_clip(clip),
        "temperatures": parse_numbers("--temperatures", temperatures),
        "compression_ratio_threshold": compression_ratio,
        "logprob_threshold": logprob,
        "no_speech_threshold": no_speech,
    }
    files = OutputFiles(out, formats, audio)
    opened = open_artifact(find_artifact(artifact, root, precision.value))
    options = parse_options(opened, values)
    recognizer = open_recognizer(opened, engine.value if engine else None, device=device, threads=threads)
    failed: AtlasportError | None = None
    for path in audio:
        try:
            recording = open_audio(path)
            with progress(recording.info.duration_s, path.name) as bar:
                transcript = recognizer.transcribe(recording, options, on_progress=bar.update)
        except AtlasportError as error:
            # The other recordings are still worth transcribing; the exit code tells of this one.
            if len(audio) == 1 or error.exit_code is not ExitCode.BAD_INPUT:
                raise
            typer.echo(f"atlasport: {error}", err=True)
            failed = error
            continue
        _show(transcript, json_lines=json_lines, several=len(audio) > 1)
        files.write(path, transcript)
    if failed:
        raise typer.Exit(failed.exit_code)


def _show(transcript: Transcript, *, json_lines: bool, several: bool) -> None:
    if json_lines:
        typer.echo(json.dumps(transcript.to_json(), ensure_ascii=False))
    elif several:
        typer.echo(f"{transcript.audio.path}: {transcript.text}")
    else:
        typer.echo(transcript.text)
    sys.stdout.flush()
    timings = transcript.timings
    typer.echo(
        f"  {transcript.audio.duration_s:.1f} s of audio in {timings['total_s']:.2f} s (RTF {timings['rtf']:.3f}), "
        f"language {transcript.language}, {transcript.engine} on {transcript.device}, {transcript.variant}",
        err=True,
    )
