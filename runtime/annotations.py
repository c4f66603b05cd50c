"""What people say is in a recording, from a file beside it: a transcript, or a list of sound events."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.bounded_json import load_json
from runtime.errors import InputError

# Beside a recording: what is in it.
_SIDECARS = (".json", ".txt", ".tsv")
_KEYS = ("text", "language", "events")
_EVENT = ("onset", "offset", "event_label")
# Of a day's transcript or events.
_MAX_BYTES = 16 * 2**20
_MAX_VALUES = 500_000
_LONGEST_S = 1e6


def recordings_in(folder: Path) -> list[Path]:
    """Return the files of a folder, by name, but hidden ones and annotations.

    Raises
    ------
    InputError
        There is none.

    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _SIDECARS
    )
    if not files:
        raise InputError(f"{folder}: expected recordings, found none; give a folder that has some")
    return files


def annotation_of(path: Path) -> dict[str, Any] | None:
    """Return what is known to be in a recording: `text` and `language`, or `events`; None where nothing is.

    Beside it, under its name, lies `.json` with these keys, `.txt` with the text, or `.tsv` with the events as DCASE
    lists them: onset and offset in seconds and event_label, separated by tabs. Its folder may have a samples.json
    instead, with such an object under each file's name.

    Raises
    ------
    InputError
        A file is not what its name says.

    """
    beside = path.with_suffix(".json")
    if beside.is_file():
        return _checked(_object(beside), beside)
    found: dict[str, Any] = {}
    if (beside := path.with_suffix(".txt")).is_file():
        found["text"] = _text(beside).strip()
    if (beside := path.with_suffix(".tsv")).is_file():
        found["events"] = _events(beside, path.name)
    if found:
        return found
    listing = path.with_name("samples.json")
    known = _object(listing).get(path.name) if listing.is_file() else None
    return None if known is None else _checked(known, listing)


def _checked(known: Mapping[str, Any], path: Path) -> dict[str, Any]:
    found = {name: known[name] for name in _KEYS if name in known} if isinstance(known, dict) else {}
    texts = [found[name] for name in ("text", "language") if found.get(name) is not None]
    if not found or not all(isinstance(text, str) for text in texts) or found.get("text", "") is None:
        raise InputError(f"{path}: expected an object with text and language, or events, found another; correct it")
    if "events" in found and not (isinstance(found["events"], list) and all(map(_is_event, found["events"]))):
        raise InputError(f"{path}: expected events with onset, offset (seconds) and label, found others; correct it")
    return found


def _is_event(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("label"), str)
        and all(isinstance(event.get(name), (int, float)) for name in ("onset", "offset"))
        and 0 <= event["onset"] <= event["offset"] <= _LONGEST_S
    )


def _events(path: Path, recording: str) -> list[dict[str, Any]]:
    rows = [row for row in csv.reader(_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if any(row)]
    columns = rows.pop(0) if rows and set(_EVENT) <= set(rows[0]) else list(_EVENT)
    return [event for number, row in enumerate(rows, 1) if (event := _event(path, recording, number, columns, row))]


def _event(path: Path, recording: str, number: int, columns: list[str], row: list[str]) -> dict[str, Any] | None:
    """Return an event, None for a line that names a file and says that it has none."""
    if len(row) != len(columns):
        raise InputError(
            f"{path}: event {number}: expected {', '.join(columns)}, with tabs between them, found {len(row)} of them"
        )
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    name = cells.get("filename", recording)
    if Path(name).name != recording:
        raise InputError(f"{path}: event {number}: expected events of {recording}, found one of {name!r}; take it out")
    if not any(cells[column] for column in _EVENT):
        return None
    try:
        event = {"onset": float(cells["onset"]), "offset": float(cells["offset"]), "label": cells["event_label"]}
    except ValueError:
        event = {}
    if not _is_event(event) or not event["label"]:
        raise InputError(
            f"{path}: event {number}: expected an onset, an offset that is no earlier, both in seconds, and a label; "
            f"found {row}; correct it"
        )
    return event


def _object(path: Path) -> dict[str, Any]:
    try:
        value = load_json(_bytes(path), _MAX_VALUES)
    except ValueError as error:
        raise InputError(f"{path}: expected a JSON file, cannot read it ({error}); correct it") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}; correct it")
    return value


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except ValueError as error:
        what = "events" if path.suffix == ".tsv" else "a transcript"
        raise InputError(f"{path}: expected {what} in UTF-8, cannot read it ({error})") from error


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error}); correct it") from error
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path}: expected at most {_MAX_BYTES} bytes, found more; it is no annotation of a recording")
    return data
