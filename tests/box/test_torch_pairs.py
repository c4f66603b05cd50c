"""torch and torch_npu of a wheelhouse: which build of torch, from which index, and every pair of Ascend's table.

Wheels of the fast tests are made by hand; the slow one asks the index, by uv, for metadata alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from export.freeze.wheelhouse import _CUDA, _torch_and_torch_npu
from export.freeze.wheelhouse_pins import Target, TorchPair, pins_of
from runtime.ascend import CANN_OF_TORCH_NPU, COMPILER_PACKAGES
from runtime.errors import EnvironmentNotFitError, InputError

REPOSITORY = Path(__file__).resolve().parents[2]
BOX = Target("x86_64", 11)
UV = "uv==0.13.9"
# On no index: people report it, built by hand.
NOT_RELEASED = {"2.9.0.post1"}
NEWEST = Version("2.13.0")
PAIRS = [
    TorchPair(Version(wheel).base_version, wheel)
    for wheel in CANN_OF_TORCH_NPU
    if wheel not in NOT_RELEASED and Version(wheel) <= NEWEST
]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("2.9.0", None), ("2.9.0", "2.9.0")),
        ((None, "2.9.0.post2"), ("2.9.0", "2.9.0.post2")),
        (("2.9.0+cpu", "2.9.0.post2"), ("2.9.0+cpu", "2.9.0.post2")),
    ],
)
def test_a_version_that_is_left_out(given: tuple[str | None, str | None], found: tuple[str, str]) -> None:
    assert TorchPair.parse(*given) == TorchPair(*found)


def test_no_versions() -> None:
    assert TorchPair.parse(None, None) is None
    for given in (("latest", None), (None, "2.9.0; rm"), (None, None, "https://index")):
        with pytest.raises(InputError, match="TORCH"):
            TorchPair.parse(*given)


# --- by hand ----------------------------------------------------------------------------------------------------------
def made(folder: Path, name: str, version: str, *requires: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join([*lines, ""]))
        archive.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")


def simple_index(folder: Path) -> str:
    """The wheels in `folder` as an index."""
    for wheel in folder.glob("*.whl"):
        project = folder / canonicalize_name(wheel.name.split("-")[0])
        project.mkdir(exist_ok=True)
        wheel.rename(project / wheel.name)
        links = (f'<a href="{path.name}">{path.name}</a>' for path in project.glob("*.whl"))
        (project / "index.html").write_text("\n".join(links))
    return folder.as_uri()


@pytest.fixture
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two indexes: pip's own, whose torch is for CUDA, and one with torch for the CPU, which is returned."""
    common, cpu = tmp_path / "common", tmp_path / "cpu"
    made(common, "torch_npu", "2.9.0.post2", 'torch==2.9.0+cpu; platform_machine == "x86_64"', "pyyaml")
    made(common, "torch_npu", "2.12.0", "torch==2.12.0")
    made(common, "torch", "2.9.0", 'nvidia-cublas-cu12; platform_machine == "x86_64"')
    made(common, "torch", "2.12.0", "filelock", "nvidia-cublas", "cuda-toolkit[cublas]", "triton")
    made(cpu, "torch", "2.9.0+cpu", "filelock")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", simple_index(common))
    return simple_index(cpu)


def downloaded(folder: Path, pair: TorchPair) -> set[str]:
    folder.mkdir()
    return {path.name.split("-py3")[0] for path in _torch_and_torch_npu(BOX, folder, pair).values()}


def test_torch_is_in_the_build_that_torch_npu_names(indexes: str, tmp_path: Path) -> None:
    found = downloaded(tmp_path / "wheels", TorchPair("2.9.0", "2.9.0.post2", indexes))
    assert found == {"torch-2.9.0+cpu", "torch_npu-2.9.0.post2"}
    with pytest.raises(EnvironmentNotFitError, match=r"torch==2\.9\.0\+cpu for x86_64-cp311: .*TORCH_INDEX"):
        downloaded(tmp_path / "none", TorchPair("2.9.0", "2.9.0.post2"))


@pytest.mark.slow
@pytest.mark.usefixtures("indexes")
def test_torch_for_cuda_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotFitError, match=r"torch for the CPU, found one that needs nvidia-cublas and 2"):
        downloaded(tmp_path / "cuda", TorchPair("2.12.0", "2.12.0"))


@pytest.mark.slow
@pytest.mark.usefixtures("indexes")
def test_versions_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotFitError, match=r"expected with torch==2\.12\.0, found TORCH 2\.9\.0"):
        downloaded(tmp_path / "wheels", TorchPair("2.9.0", "2.12.0"))


# --- with the index ---------------------------------------------------------------------------------------------------
class Uv:
    """Another resolver than ours, which reads metadata alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), UV]
        self.here = subprocess.run(command, check=False, capture_output=True).returncode == 0

    def compile(
        self, target: Target, pins: dict[str, str], wanted: Iterable[str], override: str = "", *, box: bool = False
    ) -> str:
        """What `uv pip compile` says of these requirements, and of the box's, with our pins as constraints."""
        files = {
            "wanted.in": "\n".join(wanted),
            "pins.txt": "\n".join(f"{name}=={version}" for name, version in pins.items()),
            "override.txt": override,
        }
        for name, text in files.items():
            (self._folder / name).write_text(text)
        options = [f"--python-platform={target.machine}-manylinux_2_28", f"--python-version=3.{target.minor}"]
        options += ["--only-binary=:all:", "--no-python-downloads", "--no-annotate", "--no-header", "--no-config"]
        options += ["--constraint=pins.txt", "--override=override.txt", f"--python={sys.executable}"]
        options += ["--extra=bundle", "--extra=torch", str(REPOSITORY / "pyproject.toml")] if box else []
        command = [str(self._folder / "bin" / "uv"), "pip", "compile", *options]
        environment = os.environ | {"UV_CACHE_DIR": str(self._folder / "cache")}
        done = subprocess.run(
            [*command, "wanted.in"], cwd=self._folder, env=environment, check=False, capture_output=True, text=True
        )
        return done.stderr if done.returncode else done.stdout


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Uv:
    found = Uv(tmp_path_factory.mktemp("uv"))
    if not found.here:
        pytest.skip("no package index")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-cp310", "aarch64-cp311", "x86_64-cp310", "x86_64-cp311", "x86_64-cp313"])
def test_every_pair_resolves_with_our_pins(target: str, uv: Uv) -> None:
    """Whatever torch for CUDA brings more is left out: PyPI has no other for most pairs."""
    box = Target.parse(target)
    releases: set[str] = set()
    for pair in PAIRS if box.minor < 13 else PAIRS[-1:]:
        pins = pins_of(box, pair)
        new = pair.torch not in releases  # the others of a release differ in torch_npu's wheel alone
        releases.add(pair.torch)
        wanted = [f"torch=={pair.torch}", f"torch-npu=={pair.torch_npu}", *(COMPILER_PACKAGES if new else ())]
        pinned = {name: version for name, version in pins.items() if not _CUDA.match(name)}
        found = uv.compile(box, pinned, wanted, override=f"torch=={pair.torch}", box=new)
        lines = [line for line in found.splitlines() if not _CUDA.match(line.split("==")[0])]
        assert "torch-npu" in {canonicalize_name(line.split("==")[0]) for line in lines}, f"{target} {pair}: {found}"
        for line in lines:
            (requirement,) = [Requirement(line)]
            assert str(requirement.specifier) == f"=={pins[canonicalize_name(requirement.name)]}", f"{pair}: {line}"


@pytest.mark.slow
def test_which_torch_the_wheels_name(uv: Uv) -> None:
    """What `_torch_and_torch_npu` reads in torch_npu's metadata: on x86_64 the CPU's build, which PyPI has not."""
    found = uv.compile(BOX, {}, ["torch-npu==2.9.0.post2"])
    assert "torch-npu==2.9.0.post2 depends on torch==2.9.0+cpu" in " ".join(found.split())
    assert "torch==2.9.0" in uv.compile(Target("aarch64", 11), {}, ["torch-npu==2.9.0.post2"]).splitlines()
