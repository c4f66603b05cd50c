"""`atlasport verify --cases FOLDER`: a user's recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from verify.cases import CasesResult


def own_recordings(cases: str | None) -> Path | None:
    """Return the folder that `--cases` names, None where it names cases of the artifact.

    Raises
    ------
    InputError
        It is written as a path, and there is no such folder.

    """
    from runtime.errors import InputError

    if not cases:
        return None
    folder = Path(cases)
    if folder.is_dir():
        return folder
    if "/" in cases:
        raise InputError(f"--cases {cases}: expected a folder of recordings or names of cases, found neither")
    return None


def show_cases(artifact: Path, result: CasesResult) -> None:
    """Print the rates of every engine; what could not be read goes to stderr."""
    from verify.case_results import in_words

    cases = result.cases
    heard = len(cases.recordings) - len(cases.unreadable)
    typer.echo(f"{artifact}: {heard} recordings of {cases.folder}; {cases.method}")
    for engine in cases.engines:
        rates = [in_words(name, found) for name, found in engine.rates.items()]
        line = f"  {engine.title}: {', '.join(rates) or 'nothing to count'}"
        if engine.changes:
            above = ", ".join(in_words(name, found, change=True) for name, found in engine.changes.items())
            line += f"; above the reference {above}"
        typer.echo(f"  {engine.title}: blocked, {engine.blocked}" if engine.blocked else line)
    if not cases.has_reference:
        typer.echo("  no reference: neither the artifact nor its fp32 variant beside it has ONNX graphs")
    if cases.unannotated:
        typer.echo(f"  heard and not counted, for nothing says what is in them: {', '.join(cases.unannotated)}")
    if cases.simulated:
        typer.echo("  simulated device: no figure of it is one of the real device")
    for recording in cases.unreadable:
        typer.echo(f"atlasport: {recording.unreadable}", err=True)
    typer.echo(f"report: {result.report}")
