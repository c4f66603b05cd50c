"""Parakeet checkpoints for tests: the pocket model's .nemo taken apart and put together again, with changes."""

from __future__ import annotations

import copy
import io
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from runtime.errors import ExitCode, InputError

POCKET_NEMO = Path(__file__).resolve().parents[1] / "pocket" / "parakeet-pocket.nemo"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@cache
def pocket_members() -> Mapping[str, bytes]:
    """The files in parakeet-pocket.nemo by name, without `./`."""
    with tarfile.open(POCKET_NEMO) as archive:
        files = (member for member in archive.getmembers() if member.isfile())
        return {member.name.removeprefix("./"): archive.extractfile(member).read() for member in files}  # type: ignore[union-attr]


def pocket_config() -> dict[str, Any]:
    """A copy of the pocket model's configuration."""
    return copy.deepcopy(_config())


@cache
def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.load(pocket_members()[CONFIG], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return config


def pocket_state() -> dict[str, torch.Tensor]:
    """The pocket model's tensors as torch reads them from the extracted file."""
    state: dict[str, torch.Tensor] = torch.load(io.BytesIO(pocket_members()[WEIGHTS]), weights_only=True)
    return state


def saved(state: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w", **options: Any) -> Path:
    """Write an archive with these members in this order; `mode` as of tarfile.open."""
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def changed_nemo(
    path: Path,
    config: Callable[[dict[str, Any]], object] = lambda _config: None,
    state: Callable[[dict[str, torch.Tensor]], object] = lambda _state: None,
) -> Path:
    """Write the pocket model's .nemo with a changed configuration and changed tensors."""
    members = dict(pocket_members())
    changed_config, changed_state = pocket_config(), pocket_state()
    config(changed_config)
    state(changed_state)
    members[CONFIG] = yaml.safe_dump(changed_config, allow_unicode=True).encode()
    members[WEIGHTS] = saved(changed_state)
    return write_tar(path, members)


def assert_one_line(error: InputError, *told: str) -> None:
    """Check what every message to a user has, and that it holds the texts `told`."""
    message = str(error)
    assert error.exit_code == ExitCode.BAD_INPUT
    assert "\n" not in message
    assert len(message) < 600
    assert all(part in message for part in told), message


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Set `section.subsection.key` of a configuration."""
    *sections, last = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = value
