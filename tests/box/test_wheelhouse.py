"""Wheels for a box without internet: whose markers count, and an installation with no index."""

from __future__ import annotations

import hashlib
import json
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

from export.freeze.bom import validate
from export.freeze.wheelhouse import build_wheelhouse, describe_wheels, requirements_of
from export.freeze.wheelhouse_pins import Target, TorchPair
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
    for profile, pair in (("npu", None), ("cpu", TorchPair("2.9.0", "2.9.0")), ("om", None)):
        with pytest.raises(InputError, match="PROFILE"):
            build_wheelhouse(ARM, tmp_path / "out", profile, pair)
    with pytest.raises(InputError, match="is there already"):
        build_wheelhouse(ARM, tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- what stands for what ---------------------------------------------------------------------------------------------
def installable(folder: Path, name: str, code: str, *requires: str, licence: str = "License-Expression: MIT") -> Path:
    """A wheel that pip installs."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", licence]
    metadata = "\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires), ""])
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in ((f"{name}.py", code), (f"{info}/METADATA", metadata), (f"{info}/WHEEL", wheel)):
            archive.writestr(member, text)
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A wheelhouse of three wheels."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    installable(folder, "atlasport", "x = 1", "first", "second; extra == 'bundle'", "third; extra == 'other'")
    installable(folder, "first", "x = 1", "second", licence="Classifier: License :: OSI Approved :: MIT License")
    installable(folder, "second", "x = 1", licence="License: a licence\n of several lines")
    extras = {"atlasport": {"bundle"}, "first": set[str](), "second": set[str]()}
    describe_wheels(folder, extras, ARM, {"target": str(ARM)})
    return folder


def pip_install(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    options = ("--no-index", "--require-hashes", "--find-links", str(folder), "--target", str(target), "--no-cache-dir")
    command = [sys.executable, "-m", "pip", "install", "-q", *options, "-r", str(folder / "requirements.txt")]
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_bill_of_materials(small: Path) -> None:
    text = (small / "bom.cdx.json").read_text()
    validate(text)
    bom = json.loads(text)
    wheels = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in small.glob("*.whl")}
    components = [bom["metadata"]["component"], *bom["components"]]
    listed = {each["properties"][0]["value"]: each["hashes"][0]["content"] for each in components}
    assert listed == wheels
    assert [each["purl"] for each in components] == [
        f"pkg:pypi/{name}@1.0" for name in ("atlasport", "first", "second")
    ]
    licences = [each["licenses"] for each in components]
    assert licences == [
        [{"expression": "MIT"}],
        [{"license": {"name": "MIT License"}}],
        [{"license": {"name": "a licence"}}],
    ]
    needs = {
        each["ref"].split("/")[1]: [need.split("/")[1] for need in each["dependsOn"]] for each in bom["dependencies"]
    }
    assert needs == {
        "atlasport@1.0": ["first@1.0", "second@1.0"],
        "first@1.0": ["second@1.0"],
        "second@1.0": [],
    }
    assert bom["metadata"]["properties"] == [{"name": "atlasport:target", "value": "aarch64-cp311"}]
    assert_sums_fit(small)
    again = small.parent / "again"
    shutil.copytree(small, again)
    describe_wheels(again, {"atlasport": {"bundle"}, "first": (), "second": ()}, ARM, {"target": str(ARM)})
    for name in ("bom.cdx.json", "requirements.txt", "SHA256SUMS"):
        assert (again / name).read_bytes() == (small / name).read_bytes()


def test_a_changed_wheel_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    done = pip_install(small, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "whole" / "second.py").is_file()
    installable(small, "second", "x = 2")
    done = pip_install(small, tmp_path / "changed")
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "second==1.0" in done.stderr
    assert not (tmp_path / "changed").exists()
    sums = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=small, capture_output=True, check=False)
    assert sums.returncode != 0
    assert sums.stdout == b"second-1.0-py3-none-any.whl: FAILED\n"


def test_what_is_not_listed_is_not_installed(small: Path, tmp_path: Path) -> None:
    """A later version, and a requirement that the list lacks."""
    (small / "first-2.0-py3-none-any.whl").write_bytes((small / "first-1.0-py3-none-any.whl").read_bytes())
    assert pip_install(small, tmp_path / "later").returncode == 0
    assert (tmp_path / "later" / "first-1.0.dist-info").is_dir()
    installable(small, "extra", "x = 1")
    requirements = small / "requirements.txt"
    lines = requirements.read_text().splitlines()
    requirements.write_text("\n".join([*(line for line in lines if not line.startswith("second")), ""]))
    done = pip_install(small, tmp_path / "lacking")
    assert done.returncode != 0
    assert "second" in done.stderr


# --- with the index ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index; nothing but its absence skips the tests that need one."""
    wanted = ("--no-deps", "--no-cache-dir", "--dest", str(tmp_path_factory.mktemp("index")), "packaging")
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-qq", *wanted], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no package index")


def make_wheelhouse(target: str, out: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "atlasport", "wheelhouse", target, "--out", str(out), *options]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return out


def assert_sums_fit(folder: Path) -> None:
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) | {"SHA256SUMS"} == {path.name for path in folder.iterdir()}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.usefixtures("index")
@pytest.mark.slow
def test_a_box_without_index_installs_and_runs(tmp_path: Path, pocket_artifact: Path) -> None:
    target = f"x86_64-cp3{sys.version_info.minor}"
    folder = make_wheelhouse(target, tmp_path / "wheels")
    assert_sums_fit(folder)
    bom = json.loads((folder / "bom.cdx.json").read_bytes())
    assert len(bom["components"]) + 1 == len(list(folder.glob("*.whl")))
    assert all(each["licenses"] for each in bom["components"] if each["name"] != "sigstore-models")  # it states none
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


@pytest.mark.usefixtures("index")
@pytest.mark.slow
@pytest.mark.parametrize("versions", [(), ("--profile", "npu", "--torch-npu", "2.9.0.post2")], ids=["cpu", "npu"])
def test_the_wheels_of_an_arm_box_are_complete(versions: tuple[str, ...], tmp_path: Path) -> None:
    """Every requirement is there, in a version that fits, in a wheel that the box can load."""
    folder = make_wheelhouse("aarch64-cp311", tmp_path / "wheels", *versions)
    assert_sums_fit(folder)
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)] + ["manylinux2014_aarch64"]
    loadable = {*map(str, cpython_tags((3, 11), ["cp311"], platforms)), "py3-none-any", "py2-none-any"}
    loadable |= {f"py{version}-none-{platform}" for version in ("2", "3") for platform in platforms}
    found: dict[str, tuple[Path, str]] = {}
    for path in folder.glob("*.whl"):
        name, version, _, tags = parse_wheel_filename(path.name)
        assert loadable & set(map(str, tags)), path.name
        found[canonicalize_name(name)] = (path, str(version))
    assert {"atlasport", "model-signing", "filelock", "tokenizers", "soxr"} <= set(found)
    assert not {"transformers", "onnx", "oras"} & set(found)
    engine = "torch" if versions else "onnxruntime"
    assert {"torch", "torch-npu", "onnxruntime", "scipy"} & set(found) == (
        {"torch", "torch-npu", "scipy"} if versions else {"onnxruntime"}
    )
    assert not versions or (found["torch"][1], found["torch-npu"][1]) == ("2.9.0", "2.9.0.post2")
    extras = {"atlasport": ("bundle", engine)}
    for name, (path, _) in found.items():
        for requirement in requirements_of(path, extras.get(name, ()), ARM):
            assert isinstance(requirement, Requirement)
            _, version = found[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{path.name}: {requirement}"
