"""What verify notes of the device that an engine ran on, and what is left when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from runtime.artifact import Artifact
from runtime.ascend import AscendFacts
from runtime.engines import ENGINES, check_device_name, engines_of
from runtime.engines.base import Engine
from runtime.engines.probe import DeviceFacts
from runtime.errors import DeviceFailedError, InputError
from verify.gates import overall
from verify.inference import EngineInference
from verify.results import DeviceFailure, EngineAccuracy, Verdict

log = logging.getLogger("verify.accuracy")

Sections = tuple[EngineAccuracy, EngineInference]


def parse_devices(text: str) -> list[str]:
    """Return the devices of a list with commas, each once.

    Raises
    ------
    InputError
        One of them is not a device's name.

    """
    devices = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for device in devices:
        check_device_name(device)
    return devices


def engines_on(artifact: Artifact, device: str, chosen: Sequence[str] | None) -> list[str]:
    """Return the engines to verify on a device: the chosen ones, else all that run there.

    Raises
    ------
    InputError
        The artifact has no graphs for any engine that runs there.

    """
    names = list(chosen) if chosen else engines_of(artifact, device)
    if not names:
        there = ", ".join(engines_of(artifact)) or "no engine"
        raise InputError(
            f"{artifact.path}: has graphs of {there}, none of an engine that runs on {device}; "
            "export again with --formats torchscript"
        )
    return names


def engines_on_devices(artifact: Artifact, devices: str, engines: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return pairs of an engine and a device: the named engines, or all that run there, on a list of devices.

    Raises
    ------
    InputError
        An engine or device that there is not, or for which the artifact has no graphs.

    """
    there = engines_of(artifact)
    for name in engines or ():
        if name not in there:
            known = "the artifact has no graphs for it" if name in ENGINES else "there is no such engine"
            msg = f"engine {name!r}: {known}; {artifact.path} runs on {', '.join(there) or 'none'}"
            raise InputError(msg)
    chosen = list(dict.fromkeys(engines or ()))
    return [(name, device) for device in parse_devices(devices) for name in engines_on(artifact, device, chosen)]


def with_facts(accuracy: EngineAccuracy, engine: Engine) -> EngineAccuracy:
    """Return the section with what the engine's device says of itself."""
    shapes = engine.probe.shapes()
    if shapes:
        counts = ", ".join(f"{graph} {count}" for graph, count in shapes.items())
        log.info("%s: different sets of input shapes: %s", accuracy.label, counts)
    return accuracy.model_copy(update={**_facts(engine.probe.facts), "shapes": shapes})


def failed_section(engine: str, device: str, error: DeviceFailedError, facts: DeviceFacts | None) -> EngineAccuracy:
    """Return the section of an engine whose device failed.

    It fails, and is not merely blocked: beside another engine that passes, that would count for nothing.
    """
    failure = DeviceFailure(graph=error.graph, case=error.case, operator=error.operator, reason=error.reason)
    log.error("%s on %s: %s", engine, device, error)
    section = EngineAccuracy(engine=engine, device=device, verdict="fail", reason=str(error), device_failure=failure)
    return section if facts is None else section.model_copy(update=_facts(facts))


def _facts(facts: DeviceFacts) -> dict[str, Any]:
    return {"simulated": facts.simulated, "flags": dict(facts.flags), "versions": dict(facts.versions)}


def verify_on_device(verify: Callable[[], Sections], *, restart: bool) -> Sections:
    """Verify an engine; where its device failed and `restart`, once more from the start, in a fresh process."""
    accuracy, heard = verify()
    if accuracy.device_failure is None or not restart:
        return accuracy, heard
    log.info("%s: starts again", accuracy.label)
    accuracy, heard = verify()
    return accuracy.model_copy(update={"restarted": True}), heard


def overall_of_devices(sections: Sequence[EngineAccuracy]) -> Verdict:
    """Return the verdict over devices: fail if one fails, pass if each passes, else blocked."""
    by_device: dict[str, list[Verdict]] = {}
    for section in sections:
        by_device.setdefault(section.device, []).append(section.verdict)
    verdicts = [overall(verdicts) for verdicts in by_device.values()]
    return "fail" if "fail" in verdicts else "blocked" if "blocked" in verdicts else "pass"


def merged(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return all keys of the parts; where their values differ, all values."""
    values: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, {})[value] = None
    return {name: ", ".join(found) for name, found in values.items()}


def ascend_json(facts: AscendFacts | None) -> dict[str, Any] | None:
    """Return what was found on the machine in JSON's types."""
    return None if facts is None else asdict(facts)
