"""What a profile keeps of an artifact, and what a box needs for it."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement

from runtime.artifact import Artifact
from runtime.ascend import CANN_OF_TORCH_NPU, SOC_FAMILIES
from runtime.bundle.manifest import Profile, Requirements, SelfTest
from runtime.engines import ENGINES
from runtime.errors import InputError
from runtime.manifest import Content, Format
from runtime.needs import artifact_need

FORMATS: dict[Profile, tuple[Format, ...]] = {"npu": ("torchscript", "pt2"), "cpu": ("onnx",), "om": ("onnx",)}
_WEIGHTS = "weights.safetensors"
_DEVICE: dict[Profile, str] = {"npu": "npu", "cpu": "cpu", "om": "cpu"}
# Graphs written by torch 2.13 run on 2.9 and the reverse (FACTS.md: six models, TorchScript and .pt2).
_TORCH = ">=2.9,<2.14"
# Resident memory of a process with its engine imported and the smallest model loaded, rounded up.
_PROCESS_BYTES = {"onnx": 256 * 2**20, "torchscript": 512 * 2**20, "pt2": 512 * 2**20}


def profile_engines(profile: Profile, content: Content) -> tuple[str, ...]:
    """Return the engines that run all graphs of an artifact in a profile's formats."""
    return tuple(
        name
        for name, entry in ENGINES.items()
        if entry.format in FORMATS[profile] and all(entry.format in graph.files for graph in content.graphs.values())
    )


def reduced_content(artifact: Artifact, profile: Profile) -> Content:
    """Return what the artifact holds without the formats that the profile leaves out.

    Raises
    ------
    InputError
        The artifact has none of the profile's formats for all of its graphs.

    """
    content = artifact.content
    engines = profile_engines(profile, content)
    if not engines:
        wanted = " or ".join(FORMATS[profile])
        raise InputError(
            f"{artifact.path}: expected graphs as {wanted} for the profile {profile}, found none; "
            f"export it with --formats {FORMATS[profile][0]}"
        )
    kept = [ENGINES[name].format for name in engines]
    graphs = {
        name: graph.model_copy(update={"files": {f: file for f, file in graph.files.items() if f in kept}})
        for name, graph in content.graphs.items()
    }
    needed = {file for graph in graphs.values() for file in graph.files.values()}
    dropped = {file for graph in content.graphs.values() for file in graph.files.values()} - needed
    # TorchScript has the weights in it; the other formats share this file.
    if set(kept) == {"torchscript"}:
        dropped.add(_WEIGHTS)
    files = {name: entry for name, entry in content.files.items() if name not in dropped}
    return content.model_copy(update={"graphs": graphs, "files": files})


def requirements(path: Path, content: Content, profile: Profile) -> Requirements:
    """Return what a box needs for the artifact with this (reduced) content."""
    formats = [ENGINES[name].format for name in profile_engines(profile, content)]
    packages = _packages({ENGINES[name].extra for name in profile_engines(profile, content)})
    on_npu = profile == "npu"
    if on_npu:
        packages["torch"] = _TORCH
    need = artifact_need(path, content, _DEVICE[profile])
    return Requirements(
        python=_in_order(str(metadata("atlasport")["Requires-Python"])),
        packages=dict(sorted(packages.items())),
        torch_npu=f">={min(CANN_OF_TORCH_NPU, key=_numbers)},<2.14" if on_npu else None,
        cann=f">={min(CANN_OF_TORCH_NPU.values(), key=_numbers)}" if on_npu else None,
        socs=_socs(profile, content),
        # The file's pages and a copy of the weights, laid out for speed or for the device.
        memory_bytes=2 * need.weights_bytes + need.state_bytes + max(_PROCESS_BYTES[name] for name in formats),
    )


def self_test(content: Content, differing: Collection[str] = ()) -> SelfTest:
    """Return the first case of each graph, which export makes from real audio, and the first recording.

    Of recordings the first that is not among the `differing`: in which a sound engine goes another way than golden.
    """
    first = {case.graph: case.name for case in reversed(content.cases)}
    names = {case.name: None for case in content.cases if case.name in first.values()}
    heard = sorted((recording.name for recording in content.recordings), key=lambda name: name in differing)
    return SelfTest(cases=tuple(names), recording=heard[0] if heard else None)


def _socs(profile: Profile, content: Content) -> tuple[str, ...]:
    if profile == "cpu":
        return ()
    # ATC makes float16 of the float32 that a matrix unit lacks; torch_npu does not run the artifact there.
    computed = {"fp16", "fp32"} if profile == "om" else {"fp16"}
    return tuple(
        sorted(
            name
            for name, family in SOC_FAMILIES.items()
            if (family.torch_npu or profile == "om")
            and (content.variant in computed or getattr(family, content.variant))
        )
    )


def _packages(extras: set[str]) -> dict[str, str]:
    """Return the packages of these extras of atlasport, as its own metadata has them."""
    found = [Requirement(text) for text in requires("atlasport") or ()]
    return {
        wanted.name: _in_order(str(wanted.specifier))
        for wanted in found
        if wanted.marker and any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
    }


def _in_order(specifier: str) -> str:
    """Return a specifier with its lower bound first."""
    return ",".join(sorted(specifier.split(","), reverse=True))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
