"""What the tests of published model repositories share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlasport.model_repository.folder import publish_repository
from runtime.manifest import MANIFEST_NAME, Manifest

ROOT = Path(__file__).resolve().parents[2]
# A device that was not there: no result of these tests is one of an NPU.
NOT_RUN = {"README.md": "> **Not run on an NPU.**", "README.zh-CN.md": "> **未在 NPU 上运行"}


def publish(artifact: Path, out: Path, **options: Any) -> Path:
    return publish_repository(artifact, out, wheel=False, **options).path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")


def edit_all(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    for path in (folder / "results").glob("*.json"):
        edit(path, change)


def change_source(own: Path, **changes: str) -> None:
    """Change what an artifact says of its source, and its results to be of it."""
    manifest = Manifest.from_bytes((own / MANIFEST_NAME).read_bytes(), "")
    source = manifest.content.source.model_copy(update=changes)
    changed = Manifest.create(manifest.content.model_copy(update={"source": source}), manifest.export)
    (own / MANIFEST_NAME).write_bytes(changed.to_bytes())
    edit_all(own, lambda found: found.update(content_sha256=changed.content_sha256))


def tables(text: str) -> list[list[list[str]]]:
    """All Markdown tables: rows of cells, without the rule."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("| "):
            found[-1].append([cell.strip().replace("\\", "") for cell in line[1:-1].split(" |")])
        elif not line.startswith("|-") and found[-1]:
            found.append([])
    return [table for table in found if table]


def table(text: str, *headers: str) -> list[dict[str, str]]:
    """The rows of the one table that has these headers, by header."""
    [rows] = [rows for rows in tables(text) if set(headers) <= set(rows[0])]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
