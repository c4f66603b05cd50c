"""Wheels for a box without internet: whose markers count, and an installation with no index."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from export.freeze.wheelhouse import Target, build_wheelhouse, requirements_of
from runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT = REPOSITORY / "samples" / "short_en.wav"
ARM = Target("aarch64", 11)


def wheel(folder: Path, *requires: str) -> Path:
    path = folder / "toy-1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", "Name: toy", "Version: 1.0", *(f"Requires-Dist: {line}" for line in requires)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy-1.0.dist-info/METADATA", "\n".join([*lines, "", "Requires-Dist: in the description"]))
    return path


def names(path: Path, target: Target = ARM, extras: tuple[str, ...] = ()) -> set[str]:
    return {requirement.name for requirement in requirements_of(path, extras, target)}


def test_markers_are_those_of_the_target(tmp_path: Path) -> None:
    path = wheel(
        tmp_path,
        "plain>=1",
        'cuda; platform_machine == "x86_64"',
        'arm; platform_machine == "aarch64"',
        'old; python_version < "3.11"',
        'older; python_full_version < "3.10.1"',
        'windows; sys_platform == "win32"',
        'chosen; extra == "more"',
        'chosen-on-arm; extra == "more" and platform_machine == "aarch64"',
    )
    assert names(path) == {"plain", "arm"}
    assert names(path, extras=("more",)) == {"plain", "arm", "chosen", "chosen-on-arm"}
    assert names(path, Target("x86_64", 10)) == {"plain", "cuda", "old", "older"}


@pytest.mark.parametrize("text", ["", "aarch64", "riscv64-cp311", "aarch64-cp39", "aarch64-cp311 ", "aarch64-cp311\n"])
def test_bad_targets(text: str) -> None:
    with pytest.raises(InputError, match="TARGET"):
        Target.parse(text)


def test_bad_usage_builds_nothing(tmp_path: Path) -> None:
    for profile, torch in (("npu", None), ("cpu", "2.9.0"), ("om", None)):
        with pytest.raises(InputError, match="PROFILE"):
            build_wheelhouse(ARM, tmp_path / "out", profile, torch)
    with pytest.raises(InputError, match="is there already"):
        build_wheelhouse(ARM, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- with the index ---------------------------------------------------------------------------------------------------
def make_wheelhouse(target: str, out: Path) -> Path:
    command = [sys.executable, "-m", "atlasport", "wheelhouse", target, "--out", str(out)]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if process.returncode == 3:
        pytest.skip(f"no index with the wheels: {process.stderr.strip()}")
    assert process.returncode == 0, process.stderr
    return out


def assert_sums_fit(folder: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) | {"SHA256SUMS"} == {path.name for path in folder.iterdir()}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_a_box_without_index_installs_and_runs(tmp_path: Path, pocket_artifact: Path) -> None:
    target = f"x86_64-cp3{sys.version_info.minor}"
    folder = make_wheelhouse(target, tmp_path / "wheels")
    assert_sums_fit(folder)
    venv.create(tmp_path / "box", with_pip=True)
    bin_ = tmp_path / "box" / "bin"
    # Nothing of this machine: no index, no cache, no environment variables of pip, no checkout on the path.
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }

    def run(*command: str) -> str:
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        process = subprocess.run(command, check=False, **options)
        assert process.returncode == 0, process.stderr
        return process.stdout

    requirements = str(folder / "requirements.txt")
    find = ["--no-index", "--require-hashes", "--find-links", str(folder)]
    run(str(bin_ / "pip"), "install", "-qq", *find, "-r", requirements)
    run(str(bin_ / "pip"), "check")
    assert "Usage" in run(str(bin_ / "atlasport"), "--help")
    text = run(str(bin_ / "atlasport"), "run", str(pocket_artifact), str(SHORT))
    assert text == "set a timer for twenty six minutes\n"
    # The stick's other half: a signed bundle, installed and served.
    bundle, keys = tmp_path / "toy.atlas", tmp_path / "keys"
    signed = ("--key", str(keys / "key.pem"), "--out", str(bundle))
    for command in (
        ("keygen", str(keys)),
        ("freeze", str(pocket_artifact), "--profile", "cpu", "--version", "1.0.0", "--allow-unverified", *signed),
    ):
        subprocess.run([sys.executable, "-m", "atlasport", *command], cwd=REPOSITORY, check=True)
    root = ("--root", str(tmp_path / "root"))
    run(str(bin_ / "atlasport"), "install", str(bundle), *root, "--public-key", str(keys / "key.pub"), "--activate")
    (tmp_path / "in").mkdir()
    shutil.copy(SHORT, tmp_path / "in")
    run(str(bin_ / "atlasport"), "serve-dir", "in", "out", "whisper-pocket", *root, "--once", "--interval", "0.1")
    (result,) = (tmp_path / "out").glob("*.txt")
    assert result.read_text() == text
    absent = "import importlib.util as u; print([m for m in ('torch', 'transformers', 'onnx') if u.find_spec(m)])"
    assert run(str(bin_ / "python"), "-c", absent) == "[]\n"


@pytest.mark.slow
def test_the_wheels_of_an_arm_box_are_complete(tmp_path: Path) -> None:
    """Resolved only: every requirement is there, in a version that fits, in a wheel that the box can load."""
    folder = make_wheelhouse("aarch64-cp311", tmp_path / "wheels")
    assert_sums_fit(folder)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)] + ["manylinux2014_aarch64"]
    loadable = {*map(str, cpython_tags((3, 11), ["cp311"], platforms)), "py3-none-any", "py2-none-any"}
    loadable |= {f"py{version}-none-{platform}" for version in ("2", "3") for platform in platforms}
    found: dict[str, tuple[Path, str]] = {}
    for path in folder.glob("*.whl"):
        name, version, _, tags = parse_wheel_filename(path.name)
        assert loadable & set(map(str, tags)), path.name
        found[canonicalize_name(name)] = (path, str(version))
    assert {"atlasport", "onnxruntime", "model-signing", "filelock", "tokenizers", "soxr"} <= set(found)
    assert not {"torch", "transformers", "onnx", "oras"} & set(found)
    extras = {"atlasport": ("bundle", "onnxruntime")}
    for name, (path, _) in found.items():
        for requirement in requirements_of(path, extras.get(name, ()), ARM):
            assert isinstance(requirement, Requirement)
            _, version = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{path.name}: {requirement}"
