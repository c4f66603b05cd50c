"""No file outside a family's own folders and the dicts of families names a family."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import export.families
import runtime.families
import verify.families
from runtime.families import family_named

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = runtime.families.FAMILIES
# A family's name without what tells it from its relatives, parakeet of parakeet_tdt; whisper.cpp is a program.
NAMES = re.compile(f"({'|'.join(sorted({name.partition('_')[0] for name in FAMILIES}))})(?!\\.cpp)", re.IGNORECASE)
# The dicts, and the models that export knows.
MAY = {
    *(f"{stage}/families/__init__.py" for stage in ("runtime", "export", "verify")),
    "export/registry.py",
}


def shared_files() -> list[Path]:
    files = [path for stage in ("atlasport", "runtime", "export", "verify") for path in (ROOT / stage).rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    return [ROOT / name for name in names if "/families/" not in name]


def named(source: str) -> Iterator[str]:
    """What a module imports, calls and says, but for its docstrings and comments: those may tell of measurements."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield text
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.alias(name=text) | ast.arg(arg=text):
                yield text
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.keyword(arg=str(text)):
                yield text
            case ast.ImportFrom(module=str(text)):
                yield text


def test_shared_code_names_no_family() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): text
        for path in shared_files()
        for text in named(path.read_text(encoding="utf-8"))
        if NAMES.search(text)
    }
    assert set(found) <= MAY, found


def test_templates_name_no_family() -> None:
    for path in (
        path for stage in ("atlasport", "runtime", "export", "verify") for path in (ROOT / stage).rglob("*.j2")
    ):
        assert not NAMES.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "source", ["from runtime.families.whisper.options import X", "x = 'a Parakeet'", "granite.y()"]
)
def test_the_search_sees_a_name(source: str) -> None:
    assert any(NAMES.search(text) for text in named(source))


def test_a_family_is_its_folders_and_a_line_in_each_dict(tmp_path: Path) -> None:
    """Without those and the registry's lines Parakeet-CTC, the last that came, is gone, and the rest runs."""
    family = "parakeet_ctc"
    ignored = shutil.ignore_patterns(family, f"{family}.py", "__pycache__")
    for stage in ("atlasport", "runtime", "export", "verify"):
        shutil.copytree(ROOT / stage, tmp_path / stage, ignore=ignored)
    for stage in ("runtime", "export", "verify"):
        dict_file = tmp_path / stage / "families" / "__init__.py"
        lines = dict_file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if family not in line]
        assert len(lines) - len(kept) == 1
        dict_file.write_text("".join(kept), encoding="utf-8")
    registry = tmp_path / "export" / "registry.py"
    entries = re.compile(r"^_ParakeetCtc = .*\n|^    _ParakeetCtc\((.*\n)+?    \),\n", re.MULTILINE)
    text, count = entries.subn("", registry.read_text(encoding="utf-8"))
    assert count == 2
    registry.write_text(text, encoding="utf-8")
    for path in tmp_path.rglob("*.py"):
        assert not re.search("parakeet.?ctc", path.read_text(encoding="utf-8"), re.IGNORECASE), path

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "atlasport", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    assert "--hotwords" in run("run", "--help")
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    found = run("export", "mine", "--weights", str(ROOT / "pocket" / "parakeet-pocket.nemo"), "--head", "ctc")
    assert found == "atlasport: --head: expected one of tdt, found 'ctc'\n"


def test_every_stage_knows_every_family() -> None:
    assert set(FAMILIES) == set(export.families.FAMILIES) == set(verify.families.FAMILIES)
    for name in FAMILIES:
        assert family_named(name).title
        assert export.families.family_named(name).checkpoints
