"""Compares a bundle's requirements with the machine, before anything of the bundle is loaded."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from runtime.ascend import ascend_facts, installed
from runtime.bundle.manifest import Profile, Requirements
from runtime.device_check import check_device
from runtime.engines import check_device_name
from runtime.errors import DamagedArtifactError, EnvironmentNotFitError
from runtime.findings import binary_size
from runtime.memory import available_memory

# For folders, the state and the self-test's result, and so that the disk is not filled to its last block.
DISK_MARGIN = 32 * 2**20

_DEVICES: dict[Profile, str] = {"npu": "npu:0", "cpu": "cpu", "om": "cpu"}


def default_device(profile: Profile) -> str:
    """Return the device that bundles of a profile are made for; graphs of `om` still run as ONNX here, on the CPU."""
    return _DEVICES[profile]


def check_requirements(requirements: Requirements, device: str, *, memory: bool = True) -> None:
    """Check that this machine and device have what a bundle needs.

    `memory` is left out where the model may be loaded already.

    Raises
    ------
    InputError
        There is no such kind of device.
    EnvironmentNotFitError
        Something is missing; the message lists everything that is, with what was found and what is needed.

    """
    check_device_name(device)
    if not memory:
        requirements = requirements.model_copy(update={"memory_bytes": 0})
    problems = _software(requirements)
    problems += _npu(requirements, device) if device.startswith("npu") else _host_memory(requirements, device)
    if problems:
        raise EnvironmentNotFitError(f"this machine does not fit: {'; '.join(problems)}")


def check_disk(root: Path, needed: int) -> None:
    """Check that the disk of `root` has room for `needed` bytes and a margin.

    Raises
    ------
    EnvironmentNotFitError
        It has not; both sizes are in the message.

    """
    free = shutil.disk_usage(root).free
    if free < needed + DISK_MARGIN:
        raise EnvironmentNotFitError(
            f"{root}: disk: found {binary_size(free)} free, needed {binary_size(needed + DISK_MARGIN)}; "
            "`atlasport remove` old versions, then `atlasport gc`"
        )


def _software(requirements: Requirements) -> list[str]:
    problems = [_outside("Python", platform.python_version(), requirements.python)]
    problems += [_outside(name, installed(name), wanted) for name, wanted in sorted(requirements.packages.items())]
    return [problem for problem in problems if problem]


def _npu(requirements: Requirements, device: str) -> list[str]:
    """Compare SoC, CANN, torch_npu and the chip's memory: by files and npu-smi, else by opening the device."""
    facts = ascend_facts()
    chip = facts.chip(int(device.partition(":")[2]))
    soc, cann, torch_npu = chip.soc if chip else None, facts.cann, facts.packages.get("torch_npu")
    free = chip.memory_total - (chip.memory_used or 0) if chip and chip.memory_total else None
    if soc is None or cann is None or torch_npu is None:
        check = check_device(device)
        if check.problem is not None:
            return [f"{device}: found that it does not open ({check.problem.removeprefix(f'{device}: ')})"]
        soc, cann = soc or check.versions.get("soc"), cann or check.versions.get("cann")
        torch_npu = torch_npu or check.versions.get("torch_npu")
        free = free or check.memory_total
    problems = []
    if requirements.socs and not any((soc or "").startswith(name) for name in requirements.socs):
        problems.append(f"SoC: found {soc or 'none'}, needed {' or '.join(requirements.socs)}")
    if requirements.cann is not None:
        problems.append(_outside("CANN", cann, requirements.cann))
    if requirements.torch_npu is not None:
        problems.append(_outside("torch_npu", torch_npu, requirements.torch_npu))
    problems.append(_too_little(f"memory of {device}", free, requirements.memory_bytes))
    return [problem for problem in problems if problem]


def _host_memory(requirements: Requirements, device: str) -> list[str]:
    """Compare the memory that programs may take now; that of a cuda device shows when it is opened."""
    problem = _too_little("memory", available_memory(), requirements.memory_bytes) if device == "cpu" else ""
    return [problem] if problem else []


def _too_little(what: str, found: int | None, needed: int) -> str:
    if found is None or found >= needed:
        return ""
    return f"{what}: found {binary_size(found)} free, needed {binary_size(needed)}"


def _outside(name: str, found: str | None, wanted: str) -> str:
    """Return what is wrong with a version, "" where it is in the range."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        specifiers = SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise DamagedArtifactError(
            f"requirement {name} {wanted!r}: expected a range such as >=2.9,<3; freeze again"
        ) from error
    needed = f"needed {wanted or 'any version'}"
    if found is None:
        return f"{name}: found none, {needed}"
    try:
        # 8.3.RC2 of CANN is 8.3rc2 here; a release candidate or a local build is what it is.
        inside = specifiers.contains(Version(found), prereleases=True)
    except InvalidVersion:
        inside = False
    return "" if inside else f"{name}: found {found}, {needed}"
