"""Gathers the wheels of the runtime for a box without internet.

Versions are those of constraints.txt, one lock for all Pythons and processors. Requirements are followed wheel by wheel
with the markers of the target: `pip download` evaluates markers for the machine that it runs on, and would bring an Arm
box what x86 needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from export.freeze.wheelhouse_bom import metadata_of, wheelhouse_bom
from runtime.artifact import sha256_of
from runtime.ascend import COMPILER_PACKAGES
from runtime.errors import EnvironmentNotFitError, InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("atlasport", "export", "runtime", "verify")
EXTRAS = {"cpu": ("bundle", "onnxruntime"), "npu": ("bundle", "torch")}
_TARGET = re.compile(r"(aarch64|x86_64)-cp3(10|11|12|13)")
# glibc 2.28 is that of openEuler 20.03; Ubuntu 20.04 and Debian 11 have newer ones.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
# What CANN's operator compiler imports, of which no wheel says so. It wants numpy before 2; there is none for 3.13.
_COMPILER_PINS = {"cloudpickle": "3.1.2", "decorator": "5.3.1", "tornado": "6.5.2"}
_SCIPY = {10: "1.15.3"}
_LAST_SCIPY = "1.17.1"
_BEFORE_NUMPY_2 = {"numpy": "1.26.4", "ml-dtypes": "0.5.3"}
_LAST_MINOR_OF_IT = 12
BOM_NAME = "bom.cdx.json"
SUMS_NAME = "SHA256SUMS"
# Wheels carry the time of their files; the oldest that zip can say.
_EPOCH = "315532800"


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


def build_wheelhouse(target: Target, out: Path, profile: str = "cpu", torch: str | None = None) -> int:
    """Write wheels, `requirements.txt` with their hashes, `bom.cdx.json` and `SHA256SUMS` into the new folder `out`.

    Parameters
    ----------
    target : Target
        The box.
    out : Path
        The folder; it appears whole at the end.
    profile : {"cpu", "npu"}
        With ONNX Runtime, or with torch, torch_npu and what CANN's operator compiler imports.
    torch : str, optional
        Version of torch and torch_npu, needed for npu: the pair that fits the box's CANN.

    Returns
    -------
    int
        The number of wheels.

    Raises
    ------
    InputError
        `out` is there already, the profile is unknown, or this is not a checkout.
    EnvironmentNotFitError
        A wheel cannot be had or built.

    """
    if profile not in EXTRAS or (torch is None) == (profile == "npu"):
        raise InputError("PROFILE: expected cpu, or npu with TORCH=VERSION of torch and torch_npu")
    if out.exists():
        raise InputError(f"{out}: is there already; remove it, or name another folder")
    pins = _pins(target)
    if torch is not None:
        pins |= {"torch": torch, "torch-npu": torch} | compiler_pins(target)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "wheels"
        folder.mkdir()
        own = build_own_wheel(folder)
        asked = _gather(target, folder, own, profile, pins)
        describe_wheels(folder, asked, target, {"target": str(target), "profile": profile})
        folder.rename(out)
    return len(asked)


def compiler_pins(target: Target) -> dict[str, str]:
    """Return the versions of what CANN's operator compiler imports, beside those that constraints.txt has."""
    pins = _COMPILER_PINS | {"scipy": _SCIPY.get(target.minor, _LAST_SCIPY)}
    return pins | (_BEFORE_NUMPY_2 if target.minor <= _LAST_MINOR_OF_IT else {})


def describe_wheels(
    folder: Path, extras: Mapping[str, Iterable[str]], target: Target, about: Mapping[str, str]
) -> None:
    """Write `requirements.txt`, `bom.cdx.json` and `SHA256SUMS` of the wheels in a folder.

    Parameters
    ----------
    folder : Path
        Holds atlasport's wheel and what it needs.
    extras : Mapping[str, iterable of str]
        By each wheel's normalised name, the extras that it is installed with.
    target : Target
        The box, whose markers count.
    about : Mapping[str, str]
        What the bill of materials says of the whole.

    """
    from packaging.utils import canonicalize_name

    wheels: dict[str, Path] = {
        canonicalize_name(_name_and_version(wheel)[0]): wheel for wheel in sorted(folder.glob("*.whl"))
    }
    lines = [f"{name}=={_name_and_version(path)[1]} --hash=sha256:{sha256_of(path)}" for name, path in wheels.items()]
    (folder / "requirements.txt").write_text("\n".join([*sorted(lines), ""]), encoding="utf-8")
    needs: dict[str, list[str]] = {
        name: [canonicalize_name(found.name) for found in requirements_of(path, extras[name], target)]
        for name, path in wheels.items()
    }
    (folder / BOM_NAME).write_text(wheelhouse_bom(wheels, needs, about), encoding="utf-8")
    sums = [f"{sha256_of(path)}  {path.name}" for path in sorted(folder.iterdir()) if path.name != SUMS_NAME]
    (folder / SUMS_NAME).write_text("\n".join([*sums, ""]), encoding="utf-8")


def build_own_wheel(folder: Path) -> Path:
    """Build atlasport's wheel from a copy of the checkout: what setuptools left there must not get into it."""
    if not (ROOT / "pyproject.toml").exists():
        raise InputError(f"{ROOT}: expected a checkout of atlasport, found an installed package; run make there")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        for name in PACKAGES:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("atlasport-*.whl")
    return wheel


def requirements_of(wheel: Path, extras: Iterable[str], target: Target) -> Iterator[Requirement]:
    """Yield what a wheel needs on the target with these extras."""
    from packaging.requirements import Requirement

    environments = [{**target.environment, "extra": extra} for extra in ("", *extras)]
    for line in metadata_of(wheel).get_all("Requires-Dist") or []:
        requirement = Requirement(str(line))
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            yield requirement


def _gather(target: Target, folder: Path, own: Path, profile: str, pins: dict[str, str]) -> dict[str, set[str]]:
    """Download layer by layer what the wheels of the layer before need; return the extras of each wheel by its name."""
    from packaging.utils import canonicalize_name

    wheels = {"atlasport": own}
    asked: dict[str, set[str]] = {"atlasport": set()}
    layer = {"atlasport": set(EXTRAS[profile])}
    while layer:
        needed: dict[str, set[str]] = {}
        for name, extras in layer.items():
            asked[name] |= extras
            for requirement in requirements_of(wheels[name], asked[name], target):
                needed.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
                _check_pin(pins, requirement, wheels[name])
        if "torch" in needed and "torch-npu" in pins:
            needed |= {name: set() for name in ("torch-npu", *COMPILER_PACKAGES) if name not in needed}
        new = sorted(name for name in needed if name not in wheels)
        wheels |= _download(target, folder, [f"{name}=={pins[name]}" for name in new])
        layer = {name: extras for name, extras in needed.items() if name in new or not extras <= asked[name]}
        asked |= {name: set() for name in new}
    return asked


def _download(target: Target, folder: Path, pinned: list[str]) -> dict[str, Path]:
    from packaging.utils import canonicalize_name

    if pinned:
        _pip("download", *target.pip_options, "--dest", str(folder), *pinned)
    found = {canonicalize_name(_name_and_version(wheel)[0]): wheel for wheel in folder.glob("*.whl")}
    return {name: found[name] for name in (canonicalize_name(pin.split("==")[0]) for pin in pinned)}


def _check_pin(pins: dict[str, str], requirement: Requirement, wheel: Path) -> None:
    from packaging.utils import canonicalize_name

    pin = pins.get(canonicalize_name(requirement.name))
    if pin is None or not requirement.specifier.contains(pin, prereleases=True):
        raise EnvironmentNotFitError(
            f"{wheel.name}: expected a pin in constraints.txt that fits {requirement}, found {pin or 'none'}; "
            "`make lock` writes them anew"
        )


def _pins(target: Target) -> dict[str, str]:
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


def _name_and_version(wheel: Path) -> tuple[str, str]:
    from packaging.utils import parse_wheel_filename

    name, version, *_ = parse_wheel_filename(wheel.name)
    return str(name), str(version)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": _EPOCH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our pip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise EnvironmentNotFitError(f"pip {arguments[0]}: {errors[-1]}; choose another index, TARGET or TORCH")
