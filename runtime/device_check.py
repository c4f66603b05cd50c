"""Opens a device in a process of its own and computes one product on it.

Only that proves that drivers, CANN and wheels work together. What goes wrong there, a crash or a hang, stays there.

`python -m runtime.device_check npu:0 FOLDER` is that process; it works in that folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from runtime.engines.channel import worker_environment
from runtime.engines.devices import require_torch_npu
from runtime.errors import AtlasportError, NoDeviceError

# The first use of an NPU compiles or loads its operators.
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class DeviceCheck:
    """What the device said of itself, or the `problem` that kept it from computing, in one line.

    `flags` are the settings in force, `versions` those of what was loaded, `memory_total` is in bytes.
    """

    device: str
    problem: str | None = None
    simulated: bool = False
    name: str = ""
    memory_total: int | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def check_device(device: str, timeout_s: float = TIMEOUT_S) -> DeviceCheck:
    """Return what a fresh process finds when it computes on `device` (`cuda:N` or `npu:N`); it never raises."""
    try:
        if device.startswith("npu"):
            # Told at once: a process that imports torch to learn it takes seconds.
            require_torch_npu(device)
    except NoDeviceError as error:
        return DeviceCheck(device, problem=str(error))
    # CANN's operator compiler writes where the process stands.
    with tempfile.TemporaryDirectory(prefix="atlasport-check-", ignore_cleanup_errors=True) as folder:
        return _ask([sys.executable, "-m", "runtime.device_check", device, folder], device, timeout_s)


def _ask(command: list[str], device: str, timeout_s: float) -> DeviceCheck:
    """Return what the process says; it is killed where it does not end in time."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=worker_environment(),
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # A process inside a driver's call may not die; do not wait for it.
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        return DeviceCheck(device, problem=f"no answer within {timeout_s:g} s; the driver or the device hangs")
    if process.returncode:
        lines = stderr.strip().splitlines() or [f"the process that opened it ended with {process.returncode}"]
        return DeviceCheck(device, problem=" ".join(lines[-1].split()))
    return DeviceCheck(**json.loads(stdout.splitlines()[-1]))


def _compute(name: str) -> DeviceCheck:
    """Open the device in this process and compute on it."""
    import torch

    from runtime.engines.base import EngineSettings
    from runtime.engines.devices import open_torch_device

    device = open_torch_device(name, EngineSettings())
    dtype = torch.float16 if "float32" in device.lacks else torch.float32
    ones = device.to_device(torch.ones(16, 16, dtype=dtype))
    product = device.to_host(ones @ ones)
    device.synchronize()
    if not bool((product == 16).all()):  # noqa: PLR2004 - the rows' length
        return DeviceCheck(name, problem=f"a product of ones gave {product.flatten()[0]:g}, expected 16; do not use it")
    module = torch.get_device_module(name)
    return DeviceCheck(
        name,
        simulated=device.facts.simulated,
        name=device.facts.versions.get("soc", name),
        memory_total=module.get_device_properties(name).total_memory,
        flags=dict(device.facts.flags),
        versions=dict(device.facts.versions),
    )


def _main() -> None:
    device, folder = sys.argv[1:]
    sys.path[:] = map(os.path.abspath, sys.path)
    os.chdir(folder)
    try:
        check = _compute(device)
    except AtlasportError as error:
        sys.exit(str(error))
    except ModuleNotFoundError as error:
        sys.exit(f"the package {error.name} is not installed")
    except RuntimeError as error:
        # What follows the first line is the runtime's own log.
        sys.exit(f"it does not compute: {str(error).strip().partition(chr(10))[0]}")
    sys.stdout.write(json.dumps(asdict(check)) + "\n")


if __name__ == "__main__":
    _main()
