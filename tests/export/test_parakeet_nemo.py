"""The reader of .nemo files: layouts, hostile archives, damage, memory."""

from __future__ import annotations

import gzip
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from parakeet_checkpoints import (
    CONFIG,
    POCKET_NEMO,
    WEIGHTS,
    pocket_config,
    pocket_members,
    pocket_state,
    saved,
    write_tar,
)

from export import nemo
from export.nemo import NemoArchive
from runtime.errors import EnvironmentNotFitError, ExitCode, InputError

_TOKENIZER = next(name for name in pocket_members() if name.endswith("_tokenizer.model"))
# Enough for what is not about weights.
_SMALL = {CONFIG: b"target: x\n", WEIGHTS: saved({"a": torch.arange(3.0)})}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing that a test reads may leave a file behind."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    # torch makes a folder there when it is imported.
    assert not [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor")]


def _refused(path: Path, *told: str) -> None:
    with pytest.raises(InputError) as caught:
        NemoArchive(path).checkpoint()
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))
    assert all(part in message for part in told), message


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_layout_gives_the_same_configuration_tokenizer_and_tensors(
    tmp_path: Path, prefix: str, mode: str, form: int
):
    members = {prefix + name: data for name, data in pocket_members().items()}
    path = write_tar(tmp_path / "model.nemo", members, mode, format=form)
    archive = NemoArchive(path)
    assert archive.config == pocket_config()
    assert archive.read(_TOKENIZER) == pocket_members()[_TOKENIZER]
    checkpoint, expected = archive.checkpoint(), pocket_state()
    assert checkpoint.files == (path,)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).dtype == tensor.dtype


@pytest.mark.parametrize("option", ["-c", "-cz"])
def test_archives_of_the_tar_program_are_read(tmp_path: Path, option: str):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in _SMALL.items():
        (folder / name).write_bytes(data)
    path = tmp_path / "model.nemo"
    subprocess.run(["tar", option, "-f", path, "-C", folder, "."], check=True)
    assert torch.equal(NemoArchive(path).checkpoint().read("a"), torch.arange(3.0))


def _member(kind: bytes, name: str = "x", link: str = "/etc/passwd") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "a") as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info)

    return write


def _many(path: Path) -> None:
    write_tar(path, {**_SMALL, **{f"x{index}": b"" for index in range(1000)}})


def _twice(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("./" + CONFIG)
        archive.addfile(info, io.BytesIO())


def _sparse(path: Path) -> None:
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}
        archive.addfile(info)


def _huge_header(path: Path) -> None:
    write_tar(path, {**_SMALL, "x" * (3 << 20): b""}, format=tarfile.GNU_FORMAT)


def _large_config(path: Path) -> None:
    write_tar(path, {**_SMALL, CONFIG: b"#" * (16 << 20) + b"\n"})


def _bomb(path: Path) -> None:
    write_tar(path, {**_SMALL, "x": bytes(64 << 20)}, "w:gz")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_member(tarfile.SYMTYPE), ["'x' is a link", "refused"]),
        (_member(tarfile.LNKTYPE), ["'x' is a link", "refused"]),
        (_member(tarfile.SYMTYPE, WEIGHTS), [f"'{WEIGHTS}' is a link"]),
        (_member(tarfile.CHRTYPE), ["'x' is no plain file"]),
        (_member(tarfile.BLKTYPE), ["'x' is no plain file"]),
        (_member(tarfile.FIFOTYPE), ["'x' is no plain file"]),
        (_member(tarfile.CONTTYPE), ["'x' is no plain file"]),
        (_member(tarfile.REGTYPE, "../x"), ["'../x' leaves the archive's folder"]),
        (_member(tarfile.REGTYPE, "a/../../x"), ["leaves"]),
        (_member(tarfile.REGTYPE, "/etc/x"), ["'/etc/x' leaves"]),
        (_member(tarfile.DIRTYPE, "../x"), ["leaves"]),
        (_member(tarfile.REGTYPE, "..\\x"), ["leaves"]),
        (_twice, [f"'{CONFIG}' is there twice"]),
        (_sparse, ["'hole' is no plain file"]),
        (_many, ["at most 1000 members"]),
        (_huge_header, ["a header of 3"]),
        (_large_config, [CONFIG, "at most 2097152 bytes"]),
        (_bomb, ["grows to more than 100 times its size"]),
    ],
)
def test_a_hostile_archive_is_refused_by_name(tmp_path: Path, make: Callable[[Path], None], told: list[str]):
    path = write_tar(tmp_path / "model.nemo", _SMALL)
    make(path)
    _refused(path, *told)


def test_a_tokenizer_may_not_be_of_any_size(tmp_path: Path):
    archive = NemoArchive(write_tar(tmp_path / "model.nemo", {**_SMALL, "t": bytes(11)}))
    with pytest.raises(InputError, match="t: expected at most 10 bytes, found 11"):
        archive.read("t", limit=10)
    assert archive.read("t", limit=11) == bytes(11)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "b c", "\u00e9", "...", "", "~", "C:"]), min_size=1, max_size=5))
@example(["", "etc"])
def test_no_name_leaves_the_archive(tmp_path: Path, parts: list[str]):
    name = "/".join(parts)
    path = write_tar(tmp_path / "model.nemo", {**_SMALL, name: b"data"})
    # Judged by where the operating system would put it.
    target = os.path.normpath(os.path.join("/base/inner", name))  # noqa: PTH118 - PurePath keeps the dots
    if not target.startswith("/base/inner") or ".." in parts:
        _refused(path, "leaves")
        return
    if not str(PurePosixPath(name)).strip("."):
        return  # no file's name
    assert NemoArchive(path).read(str(PurePosixPath(name))) == b"data"


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_member_is_named(tmp_path: Path, missing: str):
    path = write_tar(tmp_path / "model.nemo", {name: data for name, data in _SMALL.items() if name != missing})
    _refused(path, f"expected a member {missing}")


@pytest.mark.parametrize("data", [b"", b"x", b"not a tar" * 1000, b"\x1f\x8b", gzip.compress(b"no tar" * 200, mtime=0)])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "model.nemo"
    path.write_bytes(data)
    _refused(path)


_BILLION_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (_BILLION_LAUGHS.encode(), "alias *a0"),
        (b"a: " + b"[" * 100_000, "nested more than 64 deep"),
        (b"a: " + b"{a: " * 100_000, "nested more than 64 deep"),
        (b"x: !!python/object/apply:os.system [touch /tmp/owned]\n", "could not determine a constructor"),
        (b"- 1\n- 2\n", "expected a mapping, found list"),
        (b"", "expected a mapping, found NoneType"),
        (b"a: [1, 2\nb: 3\n", "cannot be read as YAML"),
        (b"a: \xff\xfe\n", "cannot be read as YAML"),
        (b"a: " + b"9" * 5000, "cannot be read as YAML"),
    ],
)
def test_a_hostile_configuration_ends_in_one_line(tmp_path: Path, data: bytes, told: str):
    _refused(write_tar(tmp_path / "model.nemo", {**_SMALL, CONFIG: data}), CONFIG, told)


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch owned",)


def _compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_SMALL[WEIGHTS])) as source, zipfile.ZipFile(buffer, "w") as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _legacy() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (saved({"a": _Code()}), "code is refused"),
        (_compressed(), "is compressed"),
        (_legacy(), "older than torch 1.6"),
        (b"", "cannot read them"),
        (saved([torch.ones(3)]), "expected tensors by name, found list"),
        (saved({"a": 3}), "expected tensors by name, found int"),
        (saved({3: torch.ones(3)}), "expected tensors by name"),
        (saved({"a": torch.ones(3).to_sparse()}), "expected a plain tensor"),
        (saved({"a": torch.ones(2, 3).T}), "a is stored transposed"),
        (saved({"a": torch.empty(3, device="meta")}), "a: expected a plain tensor"),
    ],
)
def test_weights_that_are_not_plain_tensors_are_refused(
    tmp_path: Path, data: bytes, told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    _refused(write_tar(tmp_path / "model.nemo", {**_SMALL, WEIGHTS: data}), told)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_of_every_dtype_views_and_empty_ones_are_read(tmp_path: Path, dtype: torch.dtype):
    whole = torch.arange(12).to(dtype)
    state = {"whole": whole, "part": whole[4:8].reshape(2, 2), "none": whole[:0], "scalar": whole[3]}
    path = write_tar(tmp_path / "model.nemo", {**_SMALL, WEIGHTS: saved(state)})
    checkpoint = NemoArchive(path).checkpoint()
    for name, tensor in state.items():
        assert torch.equal(checkpoint.read(name), tensor)


def _open(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = NemoArchive(path).checkpoint()
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.floats(0, 1, exclude_max=True), st.sampled_from(["w", "w:gz"]))
def test_a_truncated_archive_is_refused(tmp_path: Path, share: float, mode: str):
    path = write_tar(tmp_path / "model.nemo", _SMALL, mode)
    data = path.read_bytes()
    # A tar ends in blocks of zeros: without them it is whole.
    used = len(data.rstrip(b"\0")) if mode == "w" else len(data)
    path.write_bytes(data[: int(share * used)])
    with pytest.raises(InputError) as caught:
        _open(path)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.sampled_from(["w", "w:gz"]))
def test_a_flipped_bit_is_refused_or_changes_no_tensor(tmp_path: Path, share: float, bit: int, mode: str):
    path = write_tar(tmp_path / "model.nemo", _SMALL, mode)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)
    state, message = {"a": torch.arange(3.0)}, ""
    try:
        state = _open(path)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
    assert list(state) == ["a"]
    assert torch.equal(state["a"], torch.arange(3.0))


def test_a_flipped_bit_in_real_weights_is_found(tmp_path: Path):
    data = bytearray(POCKET_NEMO.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "model.nemo"
    path.write_bytes(data)
    _refused(path, "does not match its checksum")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, scratch: Path):
    path = write_tar(tmp_path / "model.nemo", _SMALL, "w:gz")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(EnvironmentNotFitError) as caught:
            NemoArchive(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"{scratch}: cannot unpack model.nemo there (File too large)")
    assert "TMPDIR" in message


_PEAK = """
import resource, sys
from pathlib import Path
from export.nemo import NemoArchive
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def read(path):
    checkpoint = NemoArchive(Path(path)).checkpoint()
    for name in checkpoint.tensors:
        checkpoint.read(name)
read(sys.argv[1])
before = peak()
read(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.parametrize("options", [{"mode": "w"}, {"mode": "w:gz", "compresslevel": 0}], ids=["tar", "gzipped"])
def test_weights_are_never_in_memory_as_a_whole(tmp_path: Path, options: dict[str, Any]):
    small = write_tar(tmp_path / "small.nemo", _SMALL)
    state = {f"t{index}": torch.rand(1 << 21) for index in range(24)}  # 8 MiB each
    large = tmp_path / "large.nemo"
    write_tar(large, {**_SMALL, WEIGHTS: saved(state)}, **options)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, small, large],
        capture_output=True,
        text=True,
        check=True,
        cwd=POCKET_NEMO.parents[1],
    )
    assert float(done.stdout) < 40  # MiB, of 192


def test_a_configuration_is_read_without_libyaml_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(nemo.yaml, "CSafeLoader", raising=False)
    path = write_tar(tmp_path / "model.nemo", {**_SMALL, CONFIG: pocket_members()[CONFIG]})
    assert NemoArchive(path).config == pocket_config()
