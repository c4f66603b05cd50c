"""docs/example-repository: what publish writes of a trained whisper-tiny.en, without graphs, scripts and wheel.

    python tests/bundle/example_repository.py artifacts/whisper-tiny.en/fp32

writes it of a verified artifact; without an argument it is rendered anew from the results that lie in it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from atlasport.model_repository.evidence import _run
from atlasport.model_repository.folder import publish_repository
from atlasport.model_repository.gather import repository_of
from atlasport.model_repository.kept import Language
from atlasport.model_repository.render import PUBLISHED, repository_files
from export.freeze.licences import licence_of
from runtime.artifact import Artifact
from runtime.manifest import MANIFEST_NAME, Manifest

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "example-repository"
# What stands in it apart from verify's files and the manifest. requirements.txt names versions of the host.
WRITTEN = ("README.md", "README.zh-CN.md", "LICENSE", "NOTICE", "assets/gates.svg", "assets/latency.svg")
WRITTEN += ("logs/env_check.log", "logs/inference.log", "results/summary.json")
MANIFEST = f"model/{MANIFEST_NAME}"
# ruff: noqa: RUF001 - full-width punctuation belongs to Chinese


def words(number: int) -> dict[Language, dict[str, str]]:
    """Return what people may write in it, which says here what this folder is and when it was made."""
    return {
        "en": {
            "introduction": "An example, written by atlasport's `make publish` of an artifact in manifest format "
            f"{number}. Of `model/` only the manifest is here; the graphs, `wheels/`, requirements.txt and the "
            "scripts (`atlasport/model_repository/scripts`) are left out. "
            "[docs/publish.md](../publish.md) says how one is made."
        },
        "zh": {
            "introduction": f"atlasport 的示例，由 `make publish` 写出，清单格式 {number}。"
            "`model/` 中只留了清单；计算图、`wheels/`、requirements.txt "
            "与脚本（`atlasport/model_repository/scripts`）未放入。"
            "做法见 [docs/publish.md](../publish.md)。"
        },
    }


def manifest_format() -> int:
    """Return the format of the example's manifest: another version of atlasport may not read it any more."""
    return int(json.loads((EXAMPLE / MANIFEST).read_bytes())["format_version"])


def rendered() -> dict[str, bytes]:
    """Return what publish makes of the results and the manifest that lie in the example."""

    def read(name: str) -> bytes:
        return (EXAMPLE / PUBLISHED[name]).read_bytes()

    artifact = Artifact(EXAMPLE, Manifest.from_bytes((EXAMPLE / MANIFEST).read_bytes(), MANIFEST))
    repository = repository_of(artifact, [_run(artifact, read, str(EXAMPLE))], licence_of(artifact.content))
    files = repository_files(repository, words(manifest_format()))
    return {name: files[name] for name in WRITTEN}


def main() -> None:
    if sys.argv[1:]:
        whole = publish_repository(Path(sys.argv[1]), EXAMPLE.with_name(".example-repository"), wheel=False).path
        shutil.rmtree(EXAMPLE, ignore_errors=True)
        for name in (*WRITTEN, *PUBLISHED.values(), MANIFEST):
            (EXAMPLE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(whole / name, EXAMPLE / name)
        shutil.rmtree(whole)
    for name, data in rendered().items():
        (EXAMPLE / name).write_bytes(data)


if __name__ == "__main__":
    main()
