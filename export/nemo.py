"""Reads .nemo files, the tar archives of NVIDIA NeMo, without NeMo and without writing what they hold to any path."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import yaml

from export.torch_zip import TorchZipCheckpoint
from runtime.errors import EnvironmentNotFitError, InputError

CONFIG_NAME = "model_config.yaml"
WEIGHTS_NAME = "model_weights.ckpt"
_MIB = 1 << 20
_CONFIG_LIMIT = 2 * _MIB
_TOKENIZER_LIMIT = 64 * _MIB
_MEMBERS = 1000
# Trained weights hardly shrink: what grows a hundredfold is made to fill the disk.
_EXPANSION = 100
_YAML_DEPTH = 64
# Twice a vocabulary of 8192 pieces, and the rest, are 20,000 values. Each takes a kilobyte while it is read.
_YAML_VALUES = 60_000
# YAML has numbers in base 60, 1:59:59, which take quadratic time.
_YAML_DIGITS = 40
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN = 80


class NemoArchive:
    """A .nemo file: a tar, gzipped or not, its names with or without `./`.

    Members are read from where they lie. Only a gzipped archive is unpacked, into a temporary file without a name.

    Attributes
    ----------
    config : dict[str, Any]
        model_config.yaml.
    model : str
        NeMo's class of the model, without its module.
    path : Path
        The file, for errors.

    Raises
    ------
    InputError
        Not such an archive, a damaged one, or one with members that could leave a folder it is unpacked to.
    EnvironmentNotFitError
        No room for the temporary file.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = _plain(path)
            self._members = self._scan()
        except (tarfile.TarError, zlib.error, EOFError, ValueError, RecursionError, gzip.BadGzipFile) as error:
            raise InputError(
                f"{path}: expected a .nemo file (a tar archive), cannot read it ({_reason(error)}); get it again"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
        self.config = self._read_config()
        self.model = str(self.config.get("target", "nothing")).rpartition(".")[2]

    def read(self, name: str, limit: int = _TOKENIZER_LIMIT) -> bytes:
        """Return the bytes of a member of at most `limit` bytes."""
        offset, size = self._place(name)
        if size > limit:
            raise InputError(f"{self.path}: {name}: expected at most {limit} bytes, found {size}; refused")
        self._file.seek(offset)
        return self._file.read(size)

    def checkpoint(self) -> TorchZipCheckpoint:
        """Return the tensors of model_weights.ckpt."""
        offset, size = self._place(WEIGHTS_NAME)
        return TorchZipCheckpoint(cast("BinaryIO", io.BufferedReader(_Part(self._file, offset, size))), self.path)

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._members:
            found = ", ".join(sorted(self._members)[:4]) or "nothing"
            raise InputError(f"{self.path}: expected a member {name}, found {_short(found)}; get the file again")
        return self._members[name]

    def _scan(self) -> dict[str, tuple[int, int]]:
        """Return offset and size of each file; refuse every other kind of member."""
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        members: dict[str, tuple[int, int]] = {}
        with tarfile.open(fileobj=_Headers(self._file), mode="r:") as archive:
            for count, member in enumerate(archive, 1):
                if count > _MEMBERS:
                    raise InputError(f"{self.path}: expected at most {_MEMBERS} members, found more; refused")
                name = self._checked_name(member)
                if member.isdir():
                    continue
                if name in members:
                    raise InputError(f"{self.path}: member {name!r} is there twice; refused")
                if member.offset_data + member.size > size:
                    raise InputError(f"{self.path}: ends within {name!r}; the file is damaged, get it again")
                members[name] = (member.offset_data, member.size)
        return members

    def _checked_name(self, member: tarfile.TarInfo) -> str:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
            raise InputError(f"{self.path}: member {_short(member.name)} leaves the archive's folder; refused")
        if not member.isdir() and (member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse()):
            kind = "a link" if member.islnk() or member.issym() else "no plain file"
            raise InputError(f"{self.path}: member {_short(member.name)} is {kind}; refused")
        return str(path)

    def _read_config(self) -> dict[str, Any]:
        where = f"{self.path}: {CONFIG_NAME}"
        data = self.read(CONFIG_NAME, _CONFIG_LIMIT)
        # libyaml where it is there: twenty times as fast on a vocabulary of thousands of lines.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            _check_yaml(data, loader)
            config = yaml.load(data, Loader=loader)  # noqa: S506 - a safe loader
        except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
            raise InputError(f"{where}: cannot be read as YAML ({_reason(error)}); get the file again") from error
        if not isinstance(config, dict):
            raise InputError(f"{where}: expected a mapping, found {type(config).__name__}; get the file again")
        return config


class _Headers(io.RawIOBase):
    """What tarfile reads headers through: it takes extended headers into memory whatever size they state."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MIB:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class _Part(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._file.seek(self._offset + self._at)
        count = int(self._file.readinto(view))  # type: ignore[attr-defined]
        self._at += count
        return count


def _plain(path: Path) -> BinaryIO:
    """Open an archive for reading, unpacked if it is gzipped."""
    file = path.open("rb")
    if file.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
        return file
    file.close()
    return _unpacked(path)


def _unpacked(path: Path) -> BinaryIO:
    """Return a gzipped archive unpacked to a temporary file without a name, which is gone when it is closed."""
    limit = _EXPANSION * path.stat().st_size
    target = tempfile.TemporaryFile()  # noqa: SIM115 - the tensors are read from it later
    with gzip.open(path) as source:
        while block := source.read(_MIB):
            if target.tell() > limit:
                raise InputError(f"{path}: grows to more than {_EXPANSION} times its size when unpacked; refused")
            try:
                target.write(block)
                target.flush()
            except OSError as error:
                raise EnvironmentNotFitError(
                    f"{tempfile.gettempdir()}: cannot unpack {path.name} there ({error.strerror}); it is gzipped: "
                    "free some room, or name another folder in TMPDIR"
                ) from error
    return cast("BinaryIO", target)


def _check_yaml(data: bytes, loader: Any) -> None:
    """Refuse what can grow without bound: aliases, which NeMo never writes, depth, values, and numbers."""
    depth = 0
    for count, event in enumerate(yaml.parse(data, Loader=loader)):
        if count > _YAML_VALUES:
            raise yaml.YAMLError(f"more than {_YAML_VALUES} values")
        if (
            isinstance(event, yaml.ScalarEvent)
            and len(event.value) > _YAML_DIGITS
            and not event.value.strip("+-.:_0123456789")
        ):
            raise yaml.YAMLError(f"a number of more than {_YAML_DIGITS} digits")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"alias *{event.anchor}, and NeMo writes none")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _YAML_DEPTH:
            raise yaml.YAMLError(f"nested more than {_YAML_DEPTH} deep")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
