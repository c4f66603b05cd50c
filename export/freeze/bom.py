"""The bundle's bill of materials: CycloneDX 1.6 with an ML model card (ML-BOM).

cyclonedx-python-lib has no model cards (its issue 912), so the document is written here and the library validates it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any

from export.freeze.evidence import Evidence
from export.freeze.licences import SPDX
from runtime.bundle.manifest import Licence, Profile, Requirements
from runtime.errors import InputError
from runtime.manifest import Content, FileEntry, Source


def bill_of_materials(
    content: Content,
    version: str,
    profile: Profile,
    *,
    files: Mapping[str, FileEntry],
    licence: Licence,
    needs: Requirements,
    evidence: Evidence,
) -> str:
    """Return bom.cdx.json; the same arguments give the same text.

    Parameters
    ----------
    content : Content
        Of the bundle's artifact.
    version : str
        The bundle's.
    profile : {"npu", "cpu", "om"}
        The bundle's.
    files : Mapping[str, FileEntry]
        The bundle's files, but for this one.
    licence : Licence
        Of the weights.
    needs : Requirements
        Packages become components.
    evidence : Evidence
        Gates become performance metrics.

    Raises
    ------
    InputError
        The library finds that the document is not valid.

    """
    libraries = [_library(name, specifier) for name, specifier in _packages(needs).items()]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {"type": "application", "name": "atlasport", "version": installed_version("atlasport")},
                ]
            },
            "component": _model(content, version, profile, licence, evidence),
        },
        "components": [*(_file(path, entry) for path, entry in sorted(files.items())), *libraries],
        "dependencies": [{"ref": "model", "dependsOn": [library["bom-ref"] for library in libraries]}],
    }
    # A serial number that follows from the content: the same content gives the same file.
    name = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, name).urn
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    validate(text)
    return text


def validate(text: str) -> None:
    """Check a document against the strict schema of CycloneDX 1.6.

    Raises
    ------
    InputError
        It is not valid; the message is the library's.

    """
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"bom.cdx.json: expected a valid CycloneDX 1.6 document, found: {line}")


def _model(content: Content, version: str, profile: Profile, licence: Licence, evidence: Evidence) -> dict[str, Any]:
    identifier = licence.identifier
    known = {"id": SPDX[identifier]} if identifier in SPDX else {"name": identifier}
    about = {
        "variant": content.variant,
        "profile": profile,
        "weights": content.source.weights,
        "formats": ", ".join(sorted({name for graph in content.graphs.values() for name in graph.files})),
        **{f"exported-with:{name}": number for name, number in sorted(content.versions.items())},
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": content.model,
        "version": version,
        "licenses": [{"license": known}],
        "copyright": licence.attribution,
        "pedigree": {"ancestors": [_ancestor(content.source)]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": content.task,
                "architectureFamily": content.family,
                "modelArchitecture": content.model,
                "inputs": [{"format": "audio"}],
                "outputs": [{"format": "text" if "speech" in content.task else "events"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(evidence)},
        },
        "properties": [{"name": f"atlasport:{name}", "value": value} for name, value in about.items()],
    }


def _ancestor(source: Source) -> dict[str, Any]:
    """Return the checkpoint that the weights came from, with the hashes of its files."""
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "name": source.repo or source.origin,
        "components": [
            {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}
            for name, sha256 in sorted(source.files.items())
        ],
    }
    if source.revision:
        component["version"] = source.revision
    if source.repo:
        component["externalReferences"] = [
            {"type": "distribution", "url": f"https://huggingface.co/{source.repo}"},
        ]
    return component


def _metrics(evidence: Evidence) -> list[dict[str, str]]:
    """Return verify's gates with their values."""
    engines = evidence.accuracy.engines if evidence.accuracy else ()
    return [
        {
            "type": gate.name,
            "value": f"{gate.value:.3g}",
            "slice": f"{judged.engine} on {judged.device}{' (simulated)' if judged.simulated else ''}",
        }
        for judged in engines
        for gate in judged.gates
        if gate.value is not None
    ]


def _file(path: str, entry: FileEntry) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{path}",
        "name": path,
        "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
    }


def _packages(needs: Requirements) -> dict[str, str]:
    extra = {"torch-npu": needs.torch_npu} if needs.torch_npu else {}
    return {**needs.packages, **extra}


def _library(name: str, specifier: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "properties": [{"name": "atlasport:versions", "value": specifier}],
    }
