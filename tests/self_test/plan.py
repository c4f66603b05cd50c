"""What is run: artifacts to export, correct builds to verify, faults to put in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runtime.manifest import Variant
from self_test.catalogue import catalogue
from verify import environment

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "samples"
VARIANTS: tuple[Variant, ...] = ("fp32", "fp16", "bf16")
Group = Literal["pocket", "trained"]

# Processes held to AVX2, as those that export measures floors in. ONNX Runtime has no switch for instruction sets.
KERNELS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
# Of trained models: all but the long recordings and those in fast speech or another language, which take minutes.
SHORT = "s*,p*,n*,o*,forced_*,jfk*"


@dataclass(frozen=True)
class Model:
    """A model and how its artifacts are exported: what --weights is given ("ctc": a file that tests make), and more."""

    name: str
    group: Group
    weights: str | None = None
    options: tuple[str, ...] = ()


MODELS = (
    Model("whisper-pocket", "pocket"),
    Model("parakeet-pocket", "pocket"),
    Model("sed-pocket", "pocket"),
    Model("ctc-random", "pocket", "ctc", ("--head", "ctc")),
    # Its texts end before they depend on rounding.
    Model("granite-pocket", "pocket", "random", ("--recordings", str(SAMPLES / "short_en.wav"))),
    Model("whisper-tiny.en", "trained", "pypi"),
    Model("whisper-base", "trained", "pypi"),
)
BY_NAME = {model.name: model for model in MODELS}


def formats(variant: Variant) -> str:
    """Return the formats to export: ONNX Runtime has no bfloat16 on the CPU."""
    return "torchscript" if variant == "bf16" else "onnx,torchscript"


@dataclass(frozen=True)
class Setting:
    """One run. A clean one has an engine, threads and kernels; `cases` are patterns, all where there are none.

    A faulty one names its fault; the engine is what the fault is put into.
    """

    model: str
    variant: Variant
    engine: str = ""
    threads: int = 1
    kernels: str = "native"
    cases: str = ""
    fault: str = ""
    device: str = "cpu"

    @property
    def label(self) -> str:
        """The run as a line says it."""
        if self.fault:
            return f"{self.model} {self.variant}, {self.fault}"
        return f"{self.model} {self.variant}, {self.engine}, {self.threads} threads, {self.kernels}"


def settings(only: str = "") -> list[Setting]:
    """Return every run, those of one artifact one after the other; `only` a group's, or those whose label has it."""
    return [
        setting
        for model in MODELS
        for variant in VARIANTS
        for setting in (*_clean(model, variant), *_faulty(model, variant))
        if only == model.group or only in setting.label
    ]


def _clean(model: Model, variant: Variant) -> Iterator[Setting]:
    ways = [("torchscript", kernels) for kernels in KERNELS]
    if variant != "bf16":
        ways.insert(0, ("onnxruntime", "native"))
    for engine, kernels in ways:
        for threads in (1, 2):
            whole = model.group == "pocket" or (threads == 2 and (engine, kernels) == ways[0])
            yield Setting(model.name, variant, engine, threads, kernels, "" if whole else SHORT)


def _faulty(model: Model, variant: Variant) -> Iterator[Setting]:
    for fault in catalogue():
        if (fault.model, fault.variant) == (model.name, variant):
            yield Setting(model.name, variant, fault=fault.name, device=fault.device)


# In this folder: what a fault is and how it is judged, not how runs are listed.
_JUDGING = (
    "runtime",
    "verify",
    *(f"tests/self_test/{name}.py" for name in ("edits", "known_fault", "one_process", "subject")),
)


def code(*parts: str) -> str:
    """Return a hash of Python files and of those in folders of the repository."""
    digest = hashlib.sha256()
    for part in parts:
        place = REPOSITORY / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    said = [*parts, environment.cpu_model(), environment.instruction_sets(), environment.versions()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True)
class Code:
    """Hashes of what a run's answer depends on beside the artifact, and of what the artifact does.

    Processor and versions of packages count for both.
    """

    judging: str = field(default_factory=lambda: _digest(code(*_JUDGING)))
    exporting: str = field(default_factory=lambda: _digest(code("runtime", "export")))


def key_of(content_sha256: str, setting: Setting, judging: str) -> str:
    """Return what a finished run is found by."""
    said: dict[str, Any] = {"artifact": content_sha256, "code": judging, **vars(setting)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
