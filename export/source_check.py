"""A finished artifact's golden outputs against its checkpoint, once more: for whoever doubts them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from export.families import family_named, open_model
from export.family import FamilyModel
from export.golden import Clip, Golden
from export.parity import source_parity
from export.pipeline import DTYPES, WEIGHTS_NAME
from export.weights import resolve_weights
from export.writers.weights import write_weights
from runtime.artifact import GOLDEN_NAME, Artifact, open_artifact, sha256_of
from runtime.disk import disk_errors
from runtime.errors import GateError, InputError
from runtime.manifest import SourceParity

_OUTCOME = "the artifact is not what it is said to be"


@dataclass(frozen=True)
class Checkpoint:
    """What an artifact is to be of, in the words of `export_model`."""

    weights: str | None
    tokenizer: str | None = None
    base: str | None = None

    def open(self, model: str, family: str) -> FamilyModel:
        """Return the checkpoint opened by the family; a hybrid's by the head that the family is of.

        Raises
        ------
        InputError
            No checkpoint, or one of another family.

        """
        for head in (None, family_named(family).head):
            resolved = resolve_weights(model, self.weights, tokenizer=self.tokenizer, base=self.base, head=head)
            found, opened = open_model(resolved)
            if found == family:
                return opened
            if family_named(found).head is None:
                break
        raise InputError(f"--source: expected a checkpoint of the family {family}, found one of {found}; name another")


def check_source(
    folder: Path, checkpoint: Checkpoint, progress: Callable[[str], None] = lambda _stage: None
) -> SourceParity:
    """Compare an artifact's golden outputs and texts with what a checkpoint's own implementation makes of the inputs.

    Golden outputs that were changed together with a graph, or weights that are not the checkpoint's, show here: of the
    artifact nothing is believed but the inputs. Nothing is written but weights in a temporary folder.

    Parameters
    ----------
    folder : Path
        The artifact's.
    checkpoint : Checkpoint
        What it is said to be of.
    progress : Callable[[str], None]
        Told the name of each stage when it begins.

    Raises
    ------
    InputError
        No artifact, no checkpoint, or one of another family.
    GateError
        The checkpoint's files, the artifact's weights, a golden output or a text are not the same.
    DamagedArtifactError
        A file of the artifact is not the exported one.
    EnvironmentNotFitError
        The checkpoint cannot be fetched, or there is no room for its weights.

    """
    progress("checking the artifact")
    artifact = open_artifact(folder)
    artifact.check_whole()
    content = artifact.content
    model = checkpoint.open(content.model, content.family)
    _check_files(artifact, model)
    temporary = Path(tempfile.gettempdir())
    with disk_errors(temporary, "set TMPDIR"), tempfile.TemporaryDirectory(prefix="atlasport-") as made:
        progress("weights")
        weights = Path(made, WEIGHTS_NAME)
        _check_parts(artifact, model, weights)
        if content.variant != "fp32":
            write_weights(model, DTYPES["fp32"], weights)
        progress("source parity")
        golden = Golden(
            arrays=load_file(artifact.file(GOLDEN_NAME)),
            cases=list(content.cases),
            teacher_forced=list(content.teacher_forced),
            recordings=list(content.recordings),
        )
        clips = [Clip(artifact.file(name), None) for name in {recording.file for recording in content.recordings}]
        return source_parity(golden, model.source(weights), clips, str(folder), outcome=_OUTCOME)


def _check_files(artifact: Artifact, model: FamilyModel) -> None:
    """Refuse a checkpoint whose files are not those that the artifact names."""
    found = {path.name: sha256_of(path) for path in model.source_files}
    named = artifact.content.source.files
    other = sorted(name for name in found.keys() | named.keys() if found.get(name) != named.get(name))
    if other:
        raise GateError(
            f"{artifact.path}: was made of another checkpoint than --source: {other[0]} has "
            f"{_hash(found.get(other[0]))}, the artifact names {_hash(named.get(other[0]))}; name the one that it is of"
        )


def _check_parts(artifact: Artifact, model: FamilyModel, weights: Path) -> None:
    """Write the checkpoint's weights in the artifact's precision; refuse other ones in it, and other settings."""
    content = artifact.content
    write_weights(model, DTYPES[content.variant], weights)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in model.side_files.items()}
    for name, sha256 in {WEIGHTS_NAME: sha256_of(weights), **expected}.items():
        # A bundle's artifact may lack the weights: TorchScript has its own.
        there = content.files.get(name)
        if there is not None and there.sha256 != sha256:
            raise _changed(artifact, f"{name} has {_hash(there.sha256)}, the checkpoint makes {_hash(sha256)}")
    for name in ("dims", "frontend", "settings"):
        found, made = getattr(content, name), getattr(model, name)
        if key := next((key for key in found.keys() | made.keys() if found.get(key) != made.get(key)), None):
            raise _changed(artifact, f"{name} say {key} {found.get(key)!r:.40}, the checkpoint {made.get(key)!r:.40}")


def _changed(artifact: Artifact, what: str) -> GateError:
    return GateError(f"{artifact.path}: {what}; {_OUTCOME}: export it again")


def _hash(sha256: str | None) -> str:
    return f"SHA-256 {sha256[:12]}..." if sha256 else "no such file"
