"""What an Ascend machine has: driver, chips, CANN, wheels, environment. Nothing here imports torch or a CANN library.

Importing torch_npu starts the driver's runtime and may end the process where CANN is missing, so everything that can
be told from files, package metadata and npu-smi is told from there.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runtime.npu_smi import TIMEOUT_S, NpuChip, NpuSmi, read_npu_smi

ASCEND = Path("/usr/local/Ascend")

# What changes numbers, speed or device on an Ascend machine.
VARIABLES = (
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_HOME_PATH",
    "ASCEND_LAUNCH_BLOCKING",
    "ACL_PRECISION_MODE",
    "ASCEND_OPP_PATH",
    "CPU_AFFINITY_CONF",
    "PYTORCH_NPU_ALLOC_CONF",
    "TASK_QUEUE_ENABLE",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "TORCH_NPU_FALLBACK_CPU_DISABLE",
)

# CANN that a torch_npu wheel was built for: COMPATIBILITY.md and docs/zh/release_notes.md of the project, from 26.2.0
# back to 7.3.0. Not in them are 2.9.0.post1 and .post4, named here with the CANN that people report them with (8.5.1;
# 9.0.0 in vllm-ascend's issue 13673). The wheel's base version is the version of torch.
CANN_OF_TORCH_NPU = {
    "2.9.0": "8.5.0",
    "2.9.0.post1": "8.5.1",
    "2.9.0.post2": "9.0.0",
    "2.9.0.post4": "9.0.0",
    "2.9.0.post6": "9.1.0",
    "2.9.0.post8": "9.1.0",
    "2.9.0.post9": "9.2.0",
    "2.10.0": "9.0.0",
    "2.10.0.post4": "9.1.0",
    "2.10.0.post6": "9.1.0",
    "2.10.0.post7": "9.2.0",
    "2.11.0": "9.1.0",
    "2.11.0.post2": "9.1.0",
    "2.11.0.post3": "9.2.0",
    "2.12.0": "9.1.0",
    "2.12.0.post2": "9.1.0",
    "2.12.0.post3": "9.2.0",
    "2.13.0": "9.2.0",
    "2.14.0": "9.2.0",
}
# The same release notes call all of these wheels compatible with each CANN from this one on.
OLDEST_CANN = (8, 5)
# Wheels that start CANN's operator compiler when a flag is set; later ones put that off until it has work
# (LazyAclSetCompileopt in torch_npu's RegisterOptionsAclOp.cpp, from 26.0.0 on).
EAGER_COMPILER = ("2.9.0", "2.9.0.post1")
# What that compiler imports, by the names of the packages (CANN's installation guide).
COMPILER_PACKAGES = ("attrs", "cloudpickle", "decorator", "ml-dtypes", "numpy", "psutil", "scipy", "tornado")


@dataclass(frozen=True)
class SocFamily:
    """What is known of a family of SoCs: products, whether torch_npu drives it, and what its products may be of.

    `fp32` and `bf16`: whether matrix products of float32 and of bfloat16 are computed; those of float16 always are.
    """

    name: str
    products: str
    torch_npu: bool
    fp32: bool
    bf16: bool
    note: str


# By prefix of the SoC's name.
SOC_FAMILIES = {
    "Ascend910_93": SocFamily(
        name="910_93",
        products="Atlas 800I/800T A3",
        torch_npu=True,
        fp32=True,
        bf16=True,
        note="each of a card's two chips counts",
    ),
    "Ascend910B": SocFamily(
        name="910B",
        products="Atlas 800I/800T A2, 300T A2",
        torch_npu=True,
        fp32=True,
        bf16=True,
        note="the first target",
    ),
    "Ascend310P": SocFamily(
        name="310P",
        products="Atlas 300I Duo, 300I/300V Pro",
        torch_npu=True,
        fp32=False,
        bf16=False,
        note="its matrix unit has no float32; overflow saturates instead of giving infinity",
    ),
    "Ascend310B": SocFamily(
        name="310B",
        products="Atlas 200I DK A2, 500 A2",
        torch_npu=False,
        fp32=True,
        bf16=False,
        note="has no torch_npu: convert the ONNX graphs to OM with ATC",
    ),
}


@dataclass(frozen=True)
class AscendFacts:
    """What is here; None or empty means that it was looked for and not found.

    `driver` is the version of the driver, from npu-smi or else from its version.info. `cann` is the toolkit's version
    and `cann_path` its folder. `packages` holds the installed torch and torch_npu, `variables` those of `VARIABLES`
    that are set, `device_nodes` the /dev/davinciN of this machine or container.
    """

    npu_smi: NpuSmi
    driver: str | None
    cann: str | None
    cann_path: str | None
    packages: dict[str, str]
    variables: dict[str, str]
    device_nodes: tuple[str, ...]

    def chip(self, index: int) -> NpuChip | None:
        """Return the chip behind `npu:<index>`, or None where npu-smi lists none.

        ASCEND_RT_VISIBLE_DEVICES renumbers: with `4,5` npu:0 is the fifth chip of the table.
        """
        visible = self.variables.get("ASCEND_RT_VISIBLE_DEVICES")
        if visible is not None:
            numbers = [int(part) for part in visible.split(",") if part.strip().isdecimal()]
            index = numbers[index] if index < len(numbers) else len(self.npu_smi.chips)
        return self.npu_smi.chips[index] if index < len(self.npu_smi.chips) else None

    def to_strings(self) -> dict[str, str]:
        """Return the facts that belong beside every result, each a short text."""
        chips = self.npu_smi.chips
        facts = {
            "driver": self.driver,
            "npu_smi": self.npu_smi.version or self.npu_smi.problem,
            "cann": self.cann,
            "soc": ", ".join(dict.fromkeys(chip.soc for chip in chips)),
            "chips": str(len(chips)),
        }
        return {name: text for name, text in facts.items() if text} | self.packages


def ascend_facts(root: Path = ASCEND, npu_smi_timeout_s: float = TIMEOUT_S) -> AscendFacts:
    """Return what this machine has; it never raises because something is missing or broken.

    Parameters
    ----------
    root : Path
        Where the driver and the toolkit are installed by default.
    npu_smi_timeout_s : float
        Seconds that npu-smi may take.

    """
    npu_smi = read_npu_smi(npu_smi_timeout_s)
    cann, path = cann_toolkit(root)
    return AscendFacts(
        npu_smi=npu_smi,
        driver=npu_smi.driver or driver_version(root),
        cann=cann,
        cann_path=None if path is None else str(path),
        packages={name: found for name in ("torch", "torch_npu") if (found := installed(name))},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        device_nodes=tuple(sorted(str(path) for path in Path("/dev").glob("davinci[0-9]*"))),
    )


def installed(package: str) -> str | None:
    """Return the version of an installed package without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def soc_family(soc: str) -> SocFamily | None:
    """Return the family of a SoC's name such as Ascend910B4, None for one that this project knows nothing of."""
    return next((family for prefix, family in SOC_FAMILIES.items() if soc.startswith(prefix)), None)


def driver_version(root: Path = ASCEND) -> str | None:
    """Return the version in the driver's version.info."""
    # Newer drivers put the release into package_version and an internal number into Version.
    return _value(root / "driver" / "version.info", "package_version", "Version")


def cann_homes(root: Path = ASCEND) -> list[Path]:
    """Return the folders in which a CANN toolkit may lie, those that the environment names first."""
    named = [os.environ[name] for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH") if os.environ.get(name)]
    usual = ("cann", "ascend-toolkit/latest", "nnrt/latest")
    homes = (root, Path.home() / "Ascend")
    return [*map(Path, named), *(home / name for home in homes for name in usual)]


def cann_release(text: str) -> tuple[int, int] | None:
    """Return major and minor of a CANN version: (8, 5) of 8.5.1, (8, 3) of 8.3.RC2."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def cann_toolkit(root: Path = ASCEND) -> tuple[str | None, Path | None]:
    """Return version and folder of the CANN toolkit that is in use, told from its files; None where there is none."""
    for home in cann_homes(root):
        for pattern in ("ascend_*_install.info", "*-linux/ascend_*_install.info", "runtime/version.info"):
            for path in _matching(home, pattern):
                if text := _value(path, "version", "Version"):
                    return text, home
    return None, None


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match, none in a folder that this user may not enter (the home of root, in a service)."""
    try:
        return sorted(folder.glob(pattern))
    except PermissionError:
        return []


def _value(path: Path, *keys: str) -> str | None:
    """Return the value of the first of the keys in a file of `key=value` lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    text = next((values[key].strip() for key in keys if key in values), "")
    # A component's version has the release after a colon: 7.6.0.1.220:8.0.0.
    return text.rpartition(":")[2] or None
