"""Licence text and attribution of the weights."""

from __future__ import annotations

from importlib.resources import files

from runtime.bundle.manifest import Licence
from runtime.manifest import Content

UNKNOWN = "unknown"
# Identifiers as model cards spell them, with their text in licence_texts/ and their SPDX identifier.
SPDX = {"apache-2.0": "Apache-2.0", "cc-by-4.0": "CC-BY-4.0", "mit": "MIT"}
_CHANGES = {
    "fp32": "its values are those of the source",
    "fp16": "its values are rounded to float16, but for layers that stay float32",
    "bf16": "its values are rounded to bfloat16, but for layers that stay float32",
}


def licence_of(content: Content) -> Licence:
    """Return identifier and attribution; the identifier is `unknown` where the checkpoint names none."""
    source = content.source
    if source.repo:
        where = f"{source.repo} (https://huggingface.co/{source.repo})"
        if source.revision:
            where += f", revision {source.revision}"
    else:
        where = source.origin
    changes = f"made from it by atlasport {content.versions['atlasport']}; {_CHANGES[content.variant]}"
    return Licence(
        identifier=source.licence.strip().lower() or UNKNOWN,
        attribution=f"Weights: {where}. Changes: these graphs were {changes}.",
    )


def licence_text(content: Content, licence: Licence) -> str:
    """Return LICENSE.txt: whom to credit, then the licence's text where there is one."""
    identifier = licence.identifier
    if identifier in SPDX:
        text = files("export.freeze").joinpath("licence_texts", f"{identifier}.txt").read_text(encoding="utf-8")
        holder = content.source.repo.partition("/")[0] if content.source.repo else "the authors of the weights"
        # The MIT licence asks for the copyright notice; the hub's cards carry no other than the owner's name.
        notice = f"Copyright (c) {holder}\n\n" if identifier == "mit" else ""
        text = notice + text
    else:
        text = f"No text: the licence of these weights is {identifier!r}. Ask whoever gave them to you.\n"
    name = SPDX.get(identifier, identifier)
    return f"{content.model}: licence of the weights: {name}\n\n{licence.attribution}\n\n{'-' * 72}\n\n{text}"
