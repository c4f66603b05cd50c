"""Targets and versions: those of constraints.txt, and what torch, torch_npu and CANN want otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
_TARGET = re.compile(r"(aarch64|x86_64)-cp3(10|11|12|13)")
# glibc 2.28 is that of openEuler 20.03; Ubuntu 20.04 and Debian 11 have newer ones.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
# What CANN's operator compiler imports, of which no wheel says so. It wants numpy before 2; there is none for 3.13.
_COMPILER_PINS = {"cloudpickle": "3.1.2", "decorator": "5.3.1", "tornado": "6.5.2"}
_SCIPY = {10: "1.15.3"}
_LAST_SCIPY = "1.17.1"
_BEFORE_NUMPY_2 = {"numpy": "1.26.4", "ml-dtypes": "0.5.3"}
_LAST_MINOR_OF_IT = 12
# By release of torch, what it wants otherwise than constraints.txt has it: `setuptools<82`, say the wheels' metadata.
_TORCH_PINS: dict[tuple[int, ...], dict[str, str]] = {
    (2, 11): {"setuptools": "81.0.0"},
    (2, 12): {"setuptools": "81.0.0"},
}


@dataclass(frozen=True)
class Target:
    """The box: processor and Python."""

    machine: str
    minor: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target named like aarch64-cp311.

        Raises
        ------
        InputError
            It is not one.

        """
        match = _TARGET.fullmatch(text)
        if not match:
            raise InputError(f"TARGET: expected aarch64 or x86_64, a dash, and cp310 to cp313, found {text!r}")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        """Return the text that it was parsed from."""
        return f"{self.machine}-cp3{self.minor}"

    @property
    def environment(self) -> dict[str, str]:
        """The values of markers there."""
        from packaging.markers import default_environment

        version = f"3.{self.minor}"
        return {
            **{key: str(value) for key, value in default_environment().items()},
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "python_version": version,
            "python_full_version": f"{version}.0",
            "implementation_version": f"{version}.0",
        }

    @property
    def pip_options(self) -> list[str]:
        """What tells pip to take wheels for it."""
        platforms = [f"--platform={platform}_{self.machine}" for platform in _PLATFORMS]
        python = [f"--python-version=3.{self.minor}", "--implementation=cp", f"--abi=cp3{self.minor}"]
        return ["--only-binary=:all:", "--no-deps", *platforms, *python]


@dataclass(frozen=True)
class TorchPair:
    """Versions of torch and torch_npu that belong together, and the index that has torch for the CPU; None: pip's own.

    torch_npu 2.9.0.post2 is made for torch 2.9.0 (runtime.ascend.CANN_OF_TORCH_NPU).
    """

    torch: str
    torch_npu: str
    index: str | None = None

    @classmethod
    def parse(cls, torch: str | None, torch_npu: str | None, index: str | None = None) -> TorchPair | None:
        """Return the pair of which one version may be left out, or None where both are.

        Raises
        ------
        InputError
            No versions, or an index without any.

        """
        from packaging.version import InvalidVersion, Version

        if torch is None and torch_npu is None:
            if index is not None:
                raise InputError("TORCH_INDEX: expected with TORCH or TORCH_NPU, found neither")
            return None
        try:
            made_for = Version(torch_npu or torch or "").base_version
            return cls(str(Version(torch or made_for)), str(Version(torch_npu or torch or "")), index)
        except InvalidVersion as error:
            raise InputError(
                f"TORCH, TORCH_NPU: expected versions such as 2.9.0 and 2.9.0.post2, found {error}"
            ) from error


def pins_of(target: Target, pair: TorchPair | None = None) -> dict[str, str]:
    """Return the version of every package, by its normalised name: those of constraints.txt, and for a pair its own."""
    from packaging.version import Version

    pins = _locked(target)
    if pair is None:
        return pins
    compiler = _COMPILER_PINS | {"scipy": _SCIPY.get(target.minor, _LAST_SCIPY)}
    if target.minor <= _LAST_MINOR_OF_IT:
        compiler |= _BEFORE_NUMPY_2
    release = Version(pair.torch).release[:2]
    return pins | compiler | _TORCH_PINS.get(release, {}) | {"torch": pair.torch, "torch-npu": pair.torch_npu}


def _locked(target: Target) -> dict[str, str]:
    """Return the versions that constraints.txt has for the target."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(target.environment):
                pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return pins
