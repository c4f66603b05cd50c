"""What is here, what each artifact needs of a device, and what to do about the difference.

Facts come from three places that may disagree, and the disagreement is the finding: files and npu-smi (`ascend`), the
device itself, opened by a process of its own (`device_check`), and the artifacts' manifests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.ascend import (
    CANN_OF_TORCH_NPU,
    COMPILER_PACKAGES,
    EAGER_COMPILER,
    OLDEST_CANN,
    AscendFacts,
    ascend_facts,
    cann_release,
    installed,
    soc_family,
)
from runtime.device_check import DeviceCheck, check_device
from runtime.engines import ENGINES, check_device_name
from runtime.errors import DamagedArtifactError
from runtime.findings import Finding, Level, binary_size
from runtime.manifest import MANIFEST_NAME, Content, Manifest
from runtime.needs import ArtifactNeed, artifact_need, engines_on
from runtime.npu_smi import TIMEOUT_S, NpuChip

_PACKAGE = {"onnxruntime": "onnxruntime", "torchscript": "torch", "pt2": "torch"}
# Alarms of the network leave a 910B usable; what is worse than a warning stops a run that is to be trusted.
_HEALTHY: dict[str, Level] = {"OK": "ok", "Warning": "note"}


@dataclass(frozen=True)
class Diagnosis:
    """Everything that doctor found; `fit` says that every device asked for can run every artifact."""

    devices: tuple[str, ...]
    fit: bool
    simulated: bool
    ascend: AscendFacts
    checks: dict[str, DeviceCheck]
    artifacts: tuple[ArtifactNeed, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON types."""
        return asdict(self)


def diagnose(devices: Sequence[str], artifacts: Sequence[Path], npu_smi_timeout_s: float = TIMEOUT_S) -> Diagnosis:
    """Look at the machine, the devices and the artifacts.

    Parameters
    ----------
    devices : sequence of str
        `cpu`, `cuda:N` or `npu:N` each.
    artifacts : sequence of Path
        Folders of artifacts. Only their manifests are read; verify checks every file's hash.
    npu_smi_timeout_s : float
        Seconds that npu-smi may take.

    Raises
    ------
    InputError
        There is no such kind of device.

    """
    for device in devices:
        check_device_name(device)
    facts = ascend_facts(npu_smi_timeout_s=npu_smi_timeout_s)
    checks = {device: check_device(device) for device in devices if device != "cpu"}
    findings: list[Finding] = []
    for device in devices:
        findings += _device_findings(device, facts, checks)
    if any(device.startswith("npu") for device in devices):
        findings += _software_findings(facts, [checks[device] for device in devices if device.startswith("npu")])
    needs = []
    for path in artifacts:
        try:
            need = artifact_need(path, _content(path), devices[0].partition(":")[0])
        except DamagedArtifactError as error:
            findings.append(Finding("problem", _short(path), str(error)))
            continue
        needs.append(need)
        for device in devices:
            findings += _artifact_findings(need, device, facts, checks.get(device))
    return Diagnosis(
        devices=tuple(devices),
        fit=not any(finding.level == "problem" for finding in findings),
        simulated=any(check.simulated for check in checks.values()),
        ascend=facts,
        checks=checks,
        artifacts=tuple(needs),
        findings=tuple(findings),
    )


def _content(path: Path) -> Content:
    manifest = path / MANIFEST_NAME
    try:
        return Manifest.from_bytes(manifest.read_bytes(), str(manifest)).content
    except OSError as error:
        raise DamagedArtifactError(f"{manifest}: {(error.strerror or str(error)).lower()}; export again") from error


def _device_findings(device: str, facts: AscendFacts, checks: dict[str, DeviceCheck]) -> list[Finding]:
    if device == "cpu":
        return [_cpu_finding()]
    check = checks[device]
    findings = [_check_finding(check)]
    if device.startswith("npu"):
        findings += _chip_findings(device, facts, opened=check.problem is None)
        if soc := _soc(device, facts, check):
            findings.append(_soc_finding(device, soc))
    return findings


def _soc(device: str, facts: AscendFacts, check: DeviceCheck | None) -> str | None:
    """Return the name of an NPU's SoC: the device's own word counts more than npu-smi's."""
    chip = facts.chip(int(device.partition(":")[2]))
    return (check.versions.get("soc") if check else None) or (chip.soc if chip else None)


def _cpu_finding() -> Finding:
    there = sorted({package for package in _PACKAGE.values() if find_spec(package)})
    if there:
        return Finding("ok", "cpu", f"engines' packages: {', '.join(there)}")
    return Finding("problem", "cpu", "neither onnxruntime nor torch", "pip install 'atlasport[onnxruntime]'")


def _check_finding(check: DeviceCheck) -> Finding:
    if check.problem is not None:
        return Finding("problem", check.device, check.problem.removeprefix(f"{check.device}: "))
    banner = "SIMULATED, no real device: " if check.simulated else ""
    flags = ", ".join(f"{name}={value}" for name, value in check.flags.items())
    return Finding("ok", check.device, f"{banner}{check.name}, computes; flags in force: {flags or 'none'}")


def _chip_findings(device: str, facts: AscendFacts, *, opened: bool) -> list[Finding]:
    """Judge the chip that npu-smi lists; what npu-smi does not know is no problem once the device has computed."""
    npu_smi, index = facts.npu_smi, int(device.partition(":")[2])
    worse: Level = "note" if opened else "problem"
    chip = facts.chip(index)
    if chip is None:
        if npu_smi.problem and not npu_smi.chips:
            return [_npu_smi_finding(worse, npu_smi.problem)]
        visible = facts.variables.get("ASCEND_RT_VISIBLE_DEVICES")
        limited = f", of which ASCEND_RT_VISIBLE_DEVICES={visible} shows some" if visible is not None else ""
        found = f"npu-smi lists {len(npu_smi.chips)} chips{limited}"
        return [Finding(worse, device, found, "name another device or change ASCEND_RT_VISIBLE_DEVICES")]
    findings = [_npu_smi_finding("note", npu_smi.problem)] if npu_smi.problem else []
    memory = f", {binary_size(chip.memory_total)} of memory" if chip.memory_total else ""
    level = _HEALTHY.get(chip.health, "problem")
    advice = "" if level == "ok" else f"see `npu-smi info -t health -i {chip.npu} -c {chip.chip}`"
    findings.append(Finding(level, device, f"{chip.soc}, health {chip.health}{memory}", advice))
    return findings


def _npu_smi_finding(level: Level, problem: str) -> Finding:
    return Finding(level, "npu-smi", problem.removeprefix("npu-smi: ").removeprefix("npu-smi info: "))


def _soc_finding(device: str, soc: str) -> Finding:
    family = soc_family(soc)
    if family is None:
        return Finding("note", device, f"{soc} is not a SoC that this project knows", "rely on verify alone")
    about = f"{family.name} ({family.products}): {family.note}"
    return Finding("ok" if family.torch_npu else "problem", device, about)


def _software_findings(facts: AscendFacts, checks: Sequence[DeviceCheck]) -> list[Finding]:
    """Judge driver, CANN and wheels. What a check reports from inside the process counts more than files."""
    opened = all(check.problem is None for check in checks)
    reported = next((check.versions for check in checks if check.versions), {})
    worse: Level = "note" if opened else "problem"
    findings = []
    if facts.driver is None:
        findings.append(Finding(worse, "driver", "none found", "install the driver and firmware of the card (HDK)"))
    if not facts.device_nodes:
        hint = "load the driver, or pass the device into the container"
        findings.append(Finding(worse, "driver", "no /dev/davinciN", hint))
    cann = reported.get("cann", facts.cann)
    if cann is None:
        findings.append(Finding(worse, "CANN", "no toolkit found", "install it and `source set_env.sh` of its folder"))
    elif facts.cann_path and not any(name in facts.variables for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")):
        findings.append(Finding(worse, "CANN", "its environment is not set", f"source {facts.cann_path}/set_env.sh"))
    elif "ASCEND_OPP_PATH" not in facts.variables:
        home = facts.cann_path or "the toolkit"
        findings.append(Finding(worse, "CANN", "ASCEND_OPP_PATH is not set", f"source set_env.sh of {home}"))
    torch = reported.get("torch", facts.packages.get("torch"))
    torch_npu = reported.get("torch_npu", facts.packages.get("torch_npu"))
    if torch is None:
        findings.append(Finding("problem", "torch", "not installed", "pip install 'atlasport[torch,verify]'"))
    if torch_npu is None:
        wanted = _base(torch) if torch else "2.9.0"
        findings.append(Finding("problem", "torch_npu", "not installed", f"pip install torch_npu=={wanted}"))
    elif torch is not None:
        findings += wheel_findings(torch, torch_npu, cann)
    findings += compiler_findings(torch_npu, {name: installed(name) for name in COMPILER_PACKAGES}, worse)
    return findings


def compiler_findings(torch_npu: str | None, packages: Mapping[str, str | None], level: Level) -> list[Finding]:
    """Judge whether CANN's operator compiler, which some wheels start at once, finds its Python packages.

    Parameters
    ----------
    torch_npu : str or None
        Its version.
    packages : mapping of str to str or None
        The versions of `COMPILER_PACKAGES` that are installed.
    level : str
        How bad it is where one is missing.

    """
    if torch_npu is None or torch_npu.partition("+")[0] not in EAGER_COMPILER:
        return []
    unfit = [name for name, version in packages.items() if version is None]
    if (packages.get("numpy") or "").startswith("2."):
        unfit.append("numpy<2")
    if not unfit:
        return []
    found = f"torch_npu {torch_npu} starts the operator compiler, which needs {', '.join(unfit)}"
    install = " ".join(f"'{name}'" if "<" in name else name for name in unfit)
    return [Finding(level, "CANN", found, f"pip install {install}")]


def wheel_findings(torch: str, torch_npu: str, cann: str | None) -> list[Finding]:
    """Judge whether the versions of torch, torch_npu and CANN belong together.

    Parameters
    ----------
    torch, torch_npu, cann : str
        Versions; CANN's is None where there is none.

    """
    if _base(torch) != _base(torch_npu):
        found = f"torch_npu {torch_npu} beside torch {torch}"
        return [Finding("problem", "torch_npu", found, f"pip install torch=={_base(torch_npu)}")]
    wheel = torch_npu.partition("+")[0]
    wanted = CANN_OF_TORCH_NPU.get(wheel)
    if wanted is None:
        hint = "look its CANN up in torch_npu's COMPATIBILITY.md"
        return [Finding("note", "torch_npu", f"{torch_npu}: no pairing with CANN is known here", hint)]
    if cann is None:
        return []
    release, needed = cann_release(cann), cann_release(wanted)
    found = f"torch_npu {torch_npu} was built for CANN {wanted}, found {cann}"
    if release is None or needed is None or release == needed:
        return [Finding("ok", "torch_npu", found)]
    if release < OLDEST_CANN:
        return [Finding("problem", "CANN", found, f"install CANN {wanted}, or another torch_npu")]
    return [Finding("note", "CANN", found, f"Ascend calls them compatible; if it fails install CANN {wanted}")]


def _base(version: str) -> str:
    """Return 2.9.0 of 2.9.0.post1+git."""
    match = re.match(r"\d+(\.\d+)*", version)
    return match[0] if match else version


def _artifact_findings(need: ArtifactNeed, device: str, facts: AscendFacts, check: DeviceCheck | None) -> list[Finding]:
    kind, about = device.partition(":")[0], _short(Path(need.path))
    if not need.engines:
        formats = " or ".join(dict.fromkeys(ENGINES[name].format for name in engines_on(kind)))
        hint = f"atlasport export {need.model} --precision {need.variant} --formats onnx,torchscript"
        return [Finding("problem", about, f"no complete set of {formats} graphs for {kind}", hint)]
    findings = []
    missing = {_PACKAGE[name] for name in need.engines}
    if not any(find_spec(package) for package in missing):
        hint = f"pip install 'atlasport[{ENGINES[need.engines[0]].extra}]'"
        findings.append(Finding("problem", about, f"none of its engines' packages: {', '.join(missing)}", hint))
    chip = facts.chip(int(device.partition(":")[2])) if kind == "npu" else None
    soc = _soc(device, facts, check) if kind == "npu" else None
    family = soc_family(soc) if soc else None
    lacks = {"bf16": "bfloat16", "fp32": "float32"}.get(need.variant)
    if lacks and family is not None and not getattr(family, need.variant):
        hint = f"atlasport export {need.model} --precision fp16"
        findings.append(Finding("problem", about, f"{family.name} does not compute {lacks}", hint))
    total = _memory_total(kind, check, chip)
    needed = need.weights_bytes + need.state_bytes
    if total is not None and needed > total:
        found = f"needs at least {binary_size(needed)}, {device} has {binary_size(total)}"
        findings.append(Finding("problem", about, found, "take a smaller model or precision"))
    if need.memory:
        findings.append(need.memory.finding(need.weights_bytes, about, device, total))
    return findings


def _memory_total(kind: str, check: DeviceCheck | None, chip: NpuChip | None) -> int | None:
    """Return the device's memory in bytes; the host's for the CPU."""
    if kind == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (check.memory_total if check else None) or (chip.memory_total if chip else None)


def _short(path: Path) -> str:
    """Return model and variant of an artifact's folder."""
    return f"{path.parent.name}/{path.name}"
