"""Tables in narrow terminals: names stay whole, columns give way in their order."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from atlasport.commands.models import GIVE_WAY, HEADERS, _cells, _rows
from atlasport.commands.tables import print_table
from export.registry import MODELS

ARTIFACTS = [
    (
        "parakeet-pocket/fp32",
        "onnxruntime, torchscript, pt2",
        "2.5 MiB",
        "12.5 MiB",
        "4 fixed; free: encoder, frontend",
    ),
    ("granite-speech-4.1-2b/bf16", "torchscript", "4.3 GiB", "1.1 GiB", "5 fixed"),
]


def printed(
    width: int,
    headers: tuple[str, ...],
    rows: list[tuple[str, ...]],
    wrapping: tuple[str, ...],
    give_way: tuple[str, ...],
) -> list[str]:
    stream = io.StringIO()
    print_table(Console(file=stream, width=width, highlight=False), headers, rows, wrapping, give_way)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (50, ["artifact", "engines", "weights"]),
        (60, ["artifact", "engines", "weights", "state"]),
        (80, ["artifact", "engines", "weights", "state", "shapes"]),
        (120, ["artifact", "engines", "weights", "state", "shapes"]),
    ],
)
def test_artifacts(width: int, columns: list[str]) -> None:
    headers = ("artifact", "engines", "weights", "state", "shapes")
    lines = printed(width, headers, ARTIFACTS, ("engines", "shapes"), ("shapes", "state", "engines", "weights"))
    assert lines[0].split() == columns
    for name, *_ in ARTIFACTS:
        assert [line.split()[0] for line in lines].count(name) == 1
    text = "\n".join(lines)
    for _, engines, *sizes in ARTIFACTS:
        assert all(word in text.split() for word in engines.split())
        assert all(size in text for size in sizes[: len(columns) - 2][:2])
    assert any(line.startswith("left out: shapes") for line in lines) == (width < 80)


@pytest.mark.parametrize(("width", "kept"), [(30, 0), (40, 1), (60, 2), (80, 3), (120, 4), (160, 5)])
def test_models(width: int, kept: int, tmp_path: Path) -> None:
    """A line a model where nothing is exported, and as many columns beside its name as fit."""
    rows = [_cells(row) for row in _rows(tmp_path)]
    lines = printed(width, HEADERS, rows, HEADERS[-1:], GIVE_WAY)
    table = [line for line in lines if line.split() and line.split()[0] in MODELS]
    assert [line.split()[0] for line in table] == list(MODELS)
    left_out = set(GIVE_WAY[: len(GIVE_WAY) - kept])
    for line, cells in zip(table, rows, strict=True):
        assert (
            line.split()
            == " ".join(cell for name, cell in zip(HEADERS, cells, strict=True) if name not in left_out).split()
        )


def test_text_in_brackets_is_text() -> None:
    lines = printed(30, ("name", "what"), [("[my models]", "[red]")], (), ("what",))
    assert lines[1].split("  ")[0] == "[my models]"
    assert lines[1].rstrip().endswith("[red]")
