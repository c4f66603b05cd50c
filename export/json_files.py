"""Reads the JSON files beside a checkpoint's tensors."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runtime.bounded_json import load_json
from runtime.errors import InputError

# Vocabularies of 100,000 tokens are below half of it.
_MAX_JSON_BYTES = 16 * 2**20
_MAX_JSON_VALUES = 500_000


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    InputError
        The file holds something else.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise InputError(f"{path}: expected at most {_MAX_JSON_BYTES} bytes of JSON, found more; get it again")
        value = load_json(data, _MAX_JSON_VALUES)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, cannot read it ({error}); get it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}; get it again")
    return value


@contextmanager
def without_byte_order_marks(folder: Path) -> Iterator[Path]:
    """Yield the folder, or one of links to its files where some JSON begins with a byte order mark.

    `read_json` reads such files, as other programs wrote them; transformers does not.
    """
    marked = [path for path in folder.glob("*.json") if _begins(path, codecs.BOM_UTF8)]
    if not marked:
        yield folder
        return
    with TemporaryDirectory(prefix="atlasport-") as name:
        for path in folder.iterdir():
            if path not in marked:
                (Path(name) / path.name).symlink_to(path.resolve())
        for path in marked:
            (Path(name) / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        yield Path(name)


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def read_feature_extractor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint's feature extractor settings and their file, as transformers writes them.

    They are in preprocessor_config.json, or a part of processor_config.json.

    Raises
    ------
    InputError
        Neither file is there.

    """
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    path = folder / "processor_config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected preprocessor_config.json or processor_config.json, found neither")
    config = read_json(path).get("feature_extractor")
    return path, config if isinstance(config, dict) else {}
