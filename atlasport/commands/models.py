"""`atlasport models`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlasport.commands.options import ARTIFACTS, RootOption
from atlasport.commands.tables import print_table

if TYPE_CHECKING:
    from verify.results import AccuracyFile

NOT_RUN = "not run"
START, END = "<!-- models: written by `make readme` -->", "<!-- end of models -->"


@dataclass(frozen=True)
class ModelRow:
    """What is known of a model on this machine; `verified` maps an exported variant to its verdict or "not run"."""

    name: str
    task: str
    parameters: int | None
    licence: str
    weights: str
    verified: dict[str, str]


def models(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object a model.")] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Write the table between the marks of this Markdown file.")
    ] = None,
    root: RootOption = ARTIFACTS,
) -> None:
    """List the models: task, size, licence, and what is exported and verified here."""
    rows = _rows(root)
    if json_output:
        for row in rows:
            typer.echo(json.dumps(asdict(row)))
    elif readme:
        _write_readme(readme, rows)
    else:
        _print_table(rows)


def _rows(root: Path) -> list[ModelRow]:
    from export.registry import MODELS

    exported = {model.name: _verdicts(model) for model in sorted({path.parents[1] for path in _manifests(root)})}
    rows = [
        ModelRow(
            entry.name,
            entry.task,
            entry.parameters,
            entry.licence,
            entry.repo or entry.path or "random",
            exported.pop(entry.name, {}),
        )
        for entry in MODELS.values()
    ]
    return rows + [_own_model(root / name, verified) for name, verified in exported.items()]


def _manifests(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/manifest.json"))


def _verdicts(model: Path) -> dict[str, str]:
    return {path.parent.name: _verdict(path) for path in sorted(model.glob("*/manifest.json"))}


def _verdict(path: Path) -> str:
    """Return the verdict of the last verify of the artifact with this manifest; listing hashes no other file."""
    from pydantic import ValidationError

    from runtime.errors import DamagedArtifactError, OtherFormatError
    from runtime.manifest import Manifest
    from verify.results import AccuracyFile

    try:
        manifest = Manifest.from_bytes(path.read_bytes(), str(path))
        accuracy = AccuracyFile.model_validate_json((path.parent / "results" / "accuracy.json").read_bytes())
    except OtherFormatError:
        return "export again: of another version of atlasport"
    except DamagedArtifactError:
        return "damaged"
    except (FileNotFoundError, ValidationError):
        return NOT_RUN
    if accuracy.content_sha256 != manifest.content_sha256:
        return NOT_RUN
    remarks = [
        ", ".join(engine.engine for engine in accuracy.engines if engine.verdict == accuracy.verdict),
        *(["some cases only"] if accuracy.selection else []),
        "random weights" if accuracy.weights == "random" else "trained",
        *_error_rates(accuracy),
        *(["simulated"] if accuracy.simulated else []),
    ]
    return f"{accuracy.verdict} ({'; '.join(remarks)})"


def _error_rates(accuracy: AccuracyFile) -> list[str]:
    """Return word and character error rate against what was spoken, of the engine that does worst."""
    found = [engine.error_rates for engine in accuracy.engines]
    worst = {kind: max(rates[kind] for rates in found if kind in rates) for rates in found for kind in rates}
    return [f"{kind} {rate:.1%}" for kind, rate in sorted(worst.items(), reverse=True)]


def _own_model(model: Path, verified: dict[str, str]) -> ModelRow:
    """Return the row of a model that the registry does not know, from its first readable manifest."""
    from runtime.errors import DamagedArtifactError
    from runtime.manifest import Manifest

    for path in _manifests(model.parent):
        if path.parents[1] == model:
            try:
                content = Manifest.from_bytes(path.read_bytes(), str(path)).content
            except DamagedArtifactError:
                continue
            return ModelRow(model.name, content.task, None, content.source.licence, content.source.origin, verified)
    return ModelRow(model.name, "damaged", None, "damaged", "damaged", verified)


def _cells(row: ModelRow) -> tuple[str, ...]:
    size = f"{row.parameters / 1e6:,.1f} M" if row.parameters else "not counted"
    verified = "; ".join(f"{variant}: {verdict}" for variant, verdict in row.verified.items()) or NOT_RUN
    return row.name, row.task, size, row.licence, row.weights, verified


HEADERS = ("model", "task", "parameters", "licence", "weights", "exported and verified here")
# In a narrow terminal the first goes first; nearly all models have one task.
GIVE_WAY = ("weights", "task", "licence", "parameters", HEADERS[-1])


def _print_table(rows: list[ModelRow]) -> None:
    from rich.console import Console

    cells = [_cells(replace(row, task=row.task.replace("-", " "))) for row in rows]
    print_table(Console(highlight=False), HEADERS, cells, wrapping=HEADERS[-1:], give_way=GIVE_WAY)


def _write_readme(path: Path, rows: list[ModelRow]) -> None:
    from runtime.errors import InputError

    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"{path}: expected the marks {START!r} and {END!r}, found none; add them where the table goes")
    lines = [HEADERS, ("---",) * len(HEADERS), *map(_cells, rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")
