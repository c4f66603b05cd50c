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
from pathlib import Path
from typing import TYPE_CHECKING

from export.freeze.wheelhouse_bom import metadata_of, wheelhouse_bom
from export.freeze.wheelhouse_pins import ROOT, Target, TorchPair, pins_of
from runtime.artifact import sha256_of
from runtime.ascend import COMPILER_PACKAGES
from runtime.errors import EnvironmentNotFitError, InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGES = ("atlasport", "export", "runtime", "verify")
EXTRAS = {"cpu": ("bundle", "onnxruntime"), "npu": ("bundle", "torch")}
# What only torch for CUDA needs.
_CUDA = re.compile(r"(nvidia|cuda)-|triton$")
BOM_NAME = "bom.cdx.json"
SUMS_NAME = "SHA256SUMS"
# Wheels carry the time of their files; the oldest that zip can say.
_EPOCH = "315532800"


def build_wheelhouse(target: Target, out: Path, profile: str = "cpu", pair: TorchPair | None = None) -> int:
    """Write wheels, `requirements.txt` with their hashes, `bom.cdx.json` and `SHA256SUMS` into the new folder `out`.

    Parameters
    ----------
    target : Target
        The box.
    out : Path
        The folder; it appears whole at the end.
    profile : {"cpu", "npu"}
        With ONNX Runtime, or with torch, torch_npu and what CANN's operator compiler imports.
    pair : TorchPair, optional
        torch and torch_npu, needed for npu: those that fit the box's CANN.

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
    if profile not in EXTRAS or (pair is None) == (profile == "npu"):
        raise InputError("PROFILE: expected cpu, or npu with TORCH_NPU=VERSION (and TORCH=VERSION)")
    if out.exists():
        raise InputError(f"{out}: is there already; remove it, or name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        folder = Path(temporary) / "wheels"
        folder.mkdir()
        own = build_own_wheel(folder)
        asked = _gather(target, folder, own, profile, pair)
        describe_wheels(folder, asked, target, {"target": str(target), "profile": profile})
        folder.rename(out)
    return len(asked)


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


def _gather(target: Target, folder: Path, own: Path, profile: str, pair: TorchPair | None) -> dict[str, set[str]]:
    """Download layer by layer what the wheels of the layer before need; return the extras of each wheel by its name."""
    from packaging.utils import canonicalize_name

    pins = pins_of(target, pair)
    wheels = {"atlasport": own}
    asked: dict[str, set[str]] = {"atlasport": set()}
    if pair is not None:
        found = _torch_and_torch_npu(target, folder, pair)
        pins["torch"] = _name_and_version(found["torch"])[1]  # with its local version: 2.9.0+cpu
        wheels |= found
        asked |= {name: set() for name in found}
    layer = {"atlasport": set(EXTRAS[profile])} | {name: set[str]() for name in wheels if name != "atlasport"}
    while layer:
        needed: dict[str, set[str]] = {}
        for name, extras in layer.items():
            asked[name] |= extras
            for requirement in requirements_of(wheels[name], asked[name], target):
                needed.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
                _check_pin(pins, requirement, wheels[name])
        if "torch-npu" in layer:
            needed |= {name: set() for name in COMPILER_PACKAGES if name not in needed}
        new = sorted(name for name in needed if name not in wheels)
        wheels |= _download(target, folder, [f"{name}=={pins[name]}" for name in new])
        asked |= {name: set() for name in new}
        layer = {name: extras for name, extras in needed.items() if name in new or not extras <= asked[name]}
    return asked


def _torch_and_torch_npu(target: Target, folder: Path, pair: TorchPair) -> dict[str, Path]:
    """Download the pair; torch in the build that torch_npu names: on x86_64 torch_npu 2.9.0 wants torch 2.9.0+cpu.

    Raises
    ------
    EnvironmentNotFitError
        They do not belong together, or the index has no such torch, or only one for CUDA.

    """
    found = _download(target, folder, [f"torch-npu=={pair.torch_npu}"])
    wanted = next((each for each in requirements_of(found["torch-npu"], (), target) if each.name == "torch"), None)
    specifier = "" if wanted is None else str(wanted.specifier)
    local = specifier.partition("+")[1:]
    if wanted is not None and not wanted.specifier.contains("".join((pair.torch, *local))):
        raise EnvironmentNotFitError(
            f"torch_npu {pair.torch_npu}: expected with torch{specifier}, found TORCH {pair.torch}; name the pair of "
            "docs/npu.md"
        )
    asked = "".join((f"torch=={pair.torch}", *local))
    advice = "name an index that has torch for the CPU by TORCH_INDEX (--torch-index)"
    index = () if pair.index is None else ("--index-url", pair.index)
    try:
        found |= _download(target, folder, [asked], *index)
    except EnvironmentNotFitError as error:
        raise EnvironmentNotFitError(f"{asked} for {target}: {error}; {advice}") from error
    if cuda := [each.name for each in requirements_of(found["torch"], (), target) if _CUDA.match(each.name)]:
        raise EnvironmentNotFitError(
            f"{found['torch'].name}: expected torch for the CPU, found one that needs {cuda[0]} and {len(cuda) - 1} "
            f"packages more of CUDA; {advice}"
        )
    return found


def _download(target: Target, folder: Path, pinned: list[str], *options: str) -> dict[str, Path]:
    from packaging.utils import canonicalize_name

    if pinned:
        _pip("download", *target.pip_options, *options, "--dest", str(folder), *pinned)
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
        raise EnvironmentNotFitError(f"pip {arguments[0]}: {errors[-1]}; choose another index, TARGET or version")
