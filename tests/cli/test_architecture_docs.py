"""docs/architecture.md, docs/results.md, CONTRIBUTING.md: every path that they name exists, what they say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import export.families
import runtime.families
import verify.families
from runtime.results import SCHEMA_VERSION, AudioInfo, Segment, Transcript

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/architecture.md", "docs/results.md", "CONTRIBUTING.md")
PATH = re.compile(r"(?<![\w/.-])((?:atlasport|export|runtime|verify|tests|docs)/[\w/.-]*)")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").replace("\\_", "_")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = {path.rstrip(".") for path in PATH.findall(text(page))}
    assert paths
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("stage", ["runtime", "export"])
def test_the_files_of_a_new_family_are_those_of_every_family(stage: str) -> None:
    families = {"runtime": runtime.families, "export": export.families}[stage].FAMILIES
    (step,) = re.findall(rf"^\d\. \*\*{stage}/families/NAME/\*\*:(.*?)^\d\. ", text(PAGES[0]), re.MULTILINE | re.DOTALL)
    names = re.findall(r"`(\w+\.py)`", step)
    assert "family.py" in names
    for family in families:
        there = {path.name for path in (ROOT / stage / "families" / family).iterdir()}
        assert set(names) <= there, family


def test_every_family_has_its_row_and_its_module_of_verify() -> None:
    for family in runtime.families.FAMILIES:
        assert f"runtime/families/{family}/recognizer.py" in text(PAGES[0])
        assert (ROOT / f"verify/families/{family}.py").is_file()
    assert set(verify.families.FAMILIES) == set(runtime.families.FAMILIES)


def test_the_json_is_the_one_of_the_page() -> None:
    audio = AudioInfo("a.wav", 1.0, 16000)
    shown = Transcript(model="", variant="", device="", engine="", audio=audio, text="", segments=()).to_json()
    block = text(PAGES[1]).split("```")[1]
    whole, _, segment = block.partition('"segments": [')
    assert re.findall(r'"(\w+)": ', whole) == [name for name in shown if name != "segments"]
    assert set(re.findall(r'"(\w+)": ', segment)) <= set(Segment.__dataclass_fields__)
    assert f'"schema_version": {SCHEMA_VERSION}' in block
