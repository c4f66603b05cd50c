"""Which golden arrays go with a bundle: those of its self-test, a few of an artifact's; the rest by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from safetensors.numpy import save

from runtime.artifact import GOLDEN_NAME, WHOLE_NAME, Artifact
from runtime.engines.base import Array
from runtime.golden import Golden, kept
from runtime.manifest import Content, ExportRecord, FileEntry, Manifest

# As of the cases that no other one reads.
_STRIDE = 16
_CACHE_RANK = 4  # [B, H, T, dh]


def with_golden_of(names: Sequence[str], artifact: Artifact, content: Content) -> tuple[Manifest, dict[str, bytes]]:
    """Return a bundle's manifest of an artifact whose golden arrays are those of some cases, and its files.

    When and where it was exported is left out: two exports of the same content freeze to the same bundle.

    Caches that one of these cases hands on to others are most of what an artifact of Whisper carries: the box makes
    them itself (`runtime.golden.run_cases`), and compares every 16th row with golden. The files are GOLDEN_NAME and
    WHOLE_NAME: the manifest with all cases, in which the hash of all golden arrays stands.

    Parameters
    ----------
    names : sequence of str
        The cases of the self-test.
    artifact : Artifact
        Whose golden arrays they are.
    content : Content
        Of its manifest, without the formats that the profile leaves out.

    """
    golden = Golden(artifact)
    cases = [case for case in content.cases if case.name in names]
    inputs = [stored for case in cases for stored in case.inputs.values()]
    read = {stored.key for stored in inputs}
    filled = {stored.key for stored in inputs if stored.fill is not None}
    arrays: dict[str, Array] = {}
    handed_on = set()
    reduced = []
    for case in cases:
        outputs = {}
        for name, stored in case.outputs.items():
            array = golden.output(stored)
            if stored.key in read - filled and array.ndim == _CACHE_RANK and array.shape[-2] >= _STRIDE**2:
                outputs[name] = stored.model_copy(update={"key": f"{stored.key}/{_STRIDE}", "stride": _STRIDE})
                arrays[outputs[name].key] = kept(array, outputs[name])
                handed_on.add(stored.key)
            else:
                outputs[name] = stored
                arrays[stored.key] = array
        reduced.append(case.model_copy(update={"outputs": outputs}))
    arrays |= {key: golden.array(key) for key in sorted(read - handed_on - arrays.keys())}
    made = {GOLDEN_NAME: save({key: array.copy(order="C") for key, array in arrays.items()})}
    made[WHOLE_NAME] = _unhosted(artifact.content).to_bytes()
    files = {**content.files, **{name: entry_of(data) for name, data in made.items()}}
    changes = {"cases": tuple(reduced), "teacher_forced": (), "files": files}
    return _unhosted(content.model_copy(update=changes)), made


def _unhosted(content: Content) -> Manifest:
    return Manifest.create(content, ExportRecord(created="", host="", stages=()))


def entry_of(data: bytes) -> FileEntry:
    """Return size and hash of a file."""
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
