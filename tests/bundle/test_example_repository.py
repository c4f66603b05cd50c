"""docs/example-repository is what publish would write of the results that lie in it."""

from __future__ import annotations

import json
import re

import pytest
from example_repository import EXAMPLE, MANIFEST, WRITTEN, manifest_format, rendered
from huggingface_hub import ModelCard

from atlasport.model_repository.consistency import contradiction
from atlasport.model_repository.render import PUBLISHED
from runtime.artifact import Artifact
from runtime.manifest import FORMAT_VERSION, Manifest
from verify.inference import InferenceFile
from verify.results import AccuracyFile
from verify.timings import PerformanceFile

AGAIN = "python tests/bundle/example_repository.py ARTIFACT writes it anew"


# Whoever changes the format has a new example to make, which takes trained weights; until then it says what it is.
same_format = pytest.mark.skipif(manifest_format() != FORMAT_VERSION, reason=f"of another manifest format; {AGAIN}")


@same_format
@pytest.mark.parametrize("name", WRITTEN)
def test_it_is_what_publish_writes_now(name: str) -> None:
    assert (EXAMPLE / name).read_bytes() == rendered()[name], AGAIN


def test_it_is_of_a_real_run_of_trained_weights() -> None:
    """No NPU, no simulated device; results, manifest and READMEs speak of one artifact, and nothing else lies there."""
    manifest = json.loads((EXAMPLE / MANIFEST).read_bytes())
    assert manifest["content"]["model"] == "whisper-tiny.en"
    assert manifest["content"]["source"]["weights"] == "trained"
    results = {path.name: json.loads(path.read_text()) for path in (EXAMPLE / "results").glob("*.json")}
    for name, found in results.items():
        assert found["content_sha256"] == manifest["content_sha256"], name
        assert found["simulated"] is False, name
    accuracy = results["accuracy_eval.json"]
    assert (accuracy["verdict"], accuracy["device"], accuracy["selection"]) == ("pass", "cpu", None)
    there = {str(path.relative_to(EXAMPLE)) for path in EXAMPLE.rglob("*") if path.is_file()}
    assert there == {*WRITTEN, *PUBLISHED.values(), MANIFEST}
    assert sum((EXAMPLE / name).stat().st_size for name in there) < 2**20, "an example, no archive"


@same_format
def test_its_times_and_texts_follow_from_its_runs() -> None:
    def read(name: str) -> bytes:
        return (EXAMPLE / "results" / name).read_bytes()

    artifact = Artifact(EXAMPLE, Manifest.from_bytes((EXAMPLE / MANIFEST).read_bytes(), MANIFEST))
    assert not contradiction(
        artifact,
        PerformanceFile.model_validate_json(read("performance_eval.json")),
        InferenceFile.model_validate_json(read("inference_result.json")),
        AccuracyFile.model_validate_json(read("accuracy_eval.json")),
    )


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_its_pages_are_cards_of_which_every_link_leads_somewhere(name: str) -> None:
    text = (EXAMPLE / name).read_text(encoding="utf-8")
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.eval_results
    assert re.search(rf"(?:manifest format|清单格式) {manifest_format()}\b", text)
    assert re.search(r"Not run on an NPU|未在 NPU 上运行", "\n".join(text.split("---\n", 2)[2].splitlines()[:12]))
    links = [link for link in re.findall(r"\]\(([^()]*)\)", text) if not link.startswith("https://")]
    assert links
    assert all((EXAMPLE / link).is_file() for link in links)
