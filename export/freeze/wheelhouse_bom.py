"""The wheelhouse's bill of materials: CycloneDX 1.6, each wheel with its hash, licence and what it needs."""

from __future__ import annotations

import json
import re
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from export.freeze.bom import validate
from runtime.artifact import sha256_of

_ROOT = "atlasport"
_MAX_LICENCE = 200  # some wheels have the whole text where a name belongs


def metadata_of(wheel: Path) -> Message:
    """Return the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return BytesParser().parsebytes(archive.read(name), headersonly=True)


def wheelhouse_bom(wheels: Mapping[str, Path], needs: Mapping[str, Sequence[str]], about: Mapping[str, str]) -> str:
    """Return bom.cdx.json; the same wheels give the same text.

    Parameters
    ----------
    wheels : Mapping[str, Path]
        By normalised name.
    needs : Mapping[str, sequence of str]
        Names of those that each wheel needs.
    about : Mapping[str, str]
        What the wheelhouse is for.

    Raises
    ------
    InputError
        The library of CycloneDX finds that the document is not valid.

    """
    components = {name: _component(name, wheel) for name, wheel in sorted(wheels.items())}
    root = components.pop(_ROOT) | {"type": "application"}
    references = {name: component["bom-ref"] for name, component in (components | {_ROOT: root}).items()}
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": root,
            "properties": [{"name": f"atlasport:{name}", "value": value} for name, value in sorted(about.items())],
        },
        "components": list(components.values()),
        "dependencies": [
            {"ref": references[name], "dependsOn": sorted({references[need] for need in needs[name]})}
            for name in sorted(wheels)
        ],
    }
    # A serial number that follows from the content: the same content gives the same file.
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True)).urn
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    validate(text)
    return text


def _component(name: str, wheel: Path) -> dict[str, Any]:
    metadata = metadata_of(wheel)
    version = str(metadata["Version"])
    reference = f"pkg:pypi/{name}@{version}"
    licences = _licences(metadata)
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "purl": reference,
        "hashes": [{"alg": "SHA-256", "content": sha256_of(wheel)}],
        "properties": [{"name": "atlasport:wheel", "value": wheel.name}],
        **({"licenses": licences} if licences else {}),
    }


def _licences(metadata: Message) -> list[dict[str, Any]]:
    """Return what a wheel says of its licence: an SPDX expression, its classifiers, or a line of its own."""
    if expression := metadata["License-Expression"]:
        return [{"expression": str(expression)}]
    classifiers = [str(line) for line in metadata.get_all("Classifier") or [] if str(line).startswith("License ::")]
    names = [line.rpartition(" :: ")[2] for line in classifiers]
    stated = str(metadata["License"] or "").strip().partition("\n")[0][:_MAX_LICENCE]
    return [{"license": {"name": name}} for name in dict.fromkeys(names or [stated]) if name]
