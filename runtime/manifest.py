"""The manifest: what an artifact holds, where it came from, and the hash of every file.

`manifest.json` has two parts. `content` is a function of the checkpoint, the options and the tool versions: two
exports give the same bytes. `export` says how this export went (time, host, memory). Each part has its SHA-256
beside it, and the file is written in one canonical form, so that any changed byte shows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import DamagedArtifactError, OtherFormatError

FORMAT_VERSION = 6
MANIFEST_NAME = "manifest.json"

Dtype = Literal["float32", "float16", "bfloat16", "int64"]
Format = Literal["onnx", "torchscript", "pt2"]
Variant = Literal["fp32", "fp16", "bf16"]
Metric = Literal["relative_l2", "max_relative", "row_l2", "bias", "slope", "kl"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside(path: str) -> str:
    """Refuse a path that could leave the artifact's folder."""
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and ".." not in parts and not path.startswith("/")
    if not parts or not plain or "/".join(parts) != path:
        msg = f"path {path!r} is not a plain path inside the artifact"
        raise ValueError(msg)
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class Part(BaseModel):
    """Base of the manifest's parts: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorSpec(Part):
    """Name, dtype and shape of one input or output of a graph; a string in `shape` names a symbolic dimension."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]


class Graph(Part):
    """One traced function.

    `files` maps each format to the file that holds it. All graphs of an artifact share one TorchScript file, in which
    the graph's name is the method's name. `precision` is the lowest of its weights and tensors: an artifact below fp32
    has graphs in fp32, too.
    """

    precision: Variant
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[Format, RelativePath]

    @property
    def is_below_fp32(self) -> bool:
        """Whether it computes in a lower precision than fp32."""
        return self.precision != "fp32"


class GoldenInput(Part):
    """An input of a case, stored in golden.safetensors under `key`.

    Where `fill` is given, the stored array is shorter than the graph's input along axis 2 (kv cache rows) and the
    rest is filled with that value: rows that the graph must not read. An open length is filled up to the next
    multiple of 64.
    """

    key: str
    fill: float | None = None


class GoldenOutput(Part):
    """A golden output, stored under `key`; only every `stride`-th index along axis -2 is kept.

    `logits`: a softmax follows, to which a common shift of a row is nothing. `pool` names its floors in `Tolerances`.
    """

    key: str
    stride: int = Field(default=1, ge=1)
    logits: bool = False
    pool: str = ""


class Case(Part):
    """One input of one graph with its golden outputs; `real`: they follow from a recording, as in use."""

    name: str
    graph: str
    note: str
    real: bool = False
    inputs: dict[str, GoldenInput]
    outputs: dict[str, GoldenOutput]


class Recording(Part):
    """A recording with the reference run's result: ONNX Runtime, fp32, CPU, by the recogniser of `runtime`.

    `options` are keyword arguments of the family's options class. `reference` is what a person says is in it: `text`
    and `language` of speech, `events` of sounds. `not_judged` says why the result's text is not judged against it, None
    where it is. `result` holds the parts of the result's JSON that are compared:
    `text`, `language` and `segments`, or `tags` and `events`. `margins` has by softmax (`TeacherForced.heads`), for
    each decision of `segments` (runtime/decisions.py), by how many logits it was taken; None where that is not known.
    `certain` and `possible` are the events that are found whatever rounding does to the scores, and those that may be:
    with thresholds that are higher, and lower, by what a score may be off; None for speech.
    """

    name: str
    file: RelativePath
    options: dict[str, Any]
    reference: dict[str, Any] | None
    not_judged: str | None = None
    result: dict[str, Any]
    margins: dict[str, tuple[float, ...]] | None = None
    certain: tuple[dict[str, Any], ...] | None = None
    possible: tuple[dict[str, Any], ...] | None = None


class TeacherForced(Part):
    """Golden logits [n, V] f32 along a token sequence, of which the first `prompt` are given.

    `encoder_case` names the case whose golden outputs the decoder reads. Row i of `logits` predicts tokens[prompt + i],
    but for a transducer, where it belongs to step i of the search that emits `tokens`: blanks have rows too.
    `heads` names the columns, first and behind the last, of each softmax; each of them decides.
    """

    name: str
    encoder_case: str
    tokens: tuple[int, ...]
    prompt: int
    logits: str
    heads: dict[str, tuple[int, int]]


class Parity(Part):
    """Distance of one golden output from the source implementation's (transformers, NeMo) on the same input."""

    case: str
    output: str
    relative_l2: float
    max_relative: float


class SourceParity(Part):
    """What the golden outputs were compared with, and how far they are from it."""

    implementation: str
    limit_relative_l2: float
    outputs: tuple[Parity, ...]
    results_equal: dict[str, bool]


class Source(Part):
    """Where the weights came from. `revision` is the resolved commit for a hub repository."""

    weights: Literal["trained", "random"]
    origin: str
    repo: str | None
    revision: str | None
    seed: int | None
    licence: str
    files: dict[str, Sha256]


class Rule(Part):
    """How far an output may be by one metric: max(constant, k * floor). `logits_only`: it judges no other output."""

    constant: float
    k: float
    logits_only: bool = False


class HeadDecisions(Part):
    """How the source in the artifact's precision decides along the teacher-forced runs, by one softmax.

    Of `positions` choices `flips` are not the golden ones. `pair_error` is the 95th percentile over positions of the
    largest error, in logits, of the gap between the golden choice and another candidate.
    """

    positions: int
    flips: int
    pair_error: float


class Tolerances(Part):
    """Limits of the gates, fixed at export.

    `rules` has those of graphs that compute in each precision. `floors` has by pool of outputs how far correct
    implementations other than this artifact, `implementations`, are from golden, each the largest. `decisions` has the
    source's by the names of `TeacherForced.heads`.
    """

    rules: dict[Variant, dict[Metric, Rule]]
    floors: dict[str, dict[Metric, float]]
    implementations: tuple[str, ...]
    decisions: dict[str, HeadDecisions]


class FileEntry(Part):
    """Size in bytes and SHA-256 of one file of the artifact."""

    size: int = Field(ge=0)
    sha256: Sha256


class Content(Part):
    """The hashed part of the manifest.

    `dims`, `frontend` and `settings` belong to the family: its runtime module validates them.
    """

    model: str
    family: str
    variant: Variant
    task: str
    source: Source
    dims: dict[str, int]
    frontend: dict[str, Any]
    settings: dict[str, Any]
    graphs: dict[str, Graph]
    cases: tuple[Case, ...]
    teacher_forced: tuple[TeacherForced, ...]
    recordings: tuple[Recording, ...]
    parity: SourceParity
    tolerances: Tolerances
    versions: dict[str, str]
    files: dict[RelativePath, FileEntry]


class StageCost(Part):
    """Cost of one stage of an export: CPU seconds, wall seconds, peak resident memory in bytes."""

    stage: str
    cpu_s: float
    wall_s: float
    peak_rss: int


class ExportRecord(Part):
    """The part outside `content`'s hash: differs from export to export.

    `taken` says in words what export took the checkpoint for, `notes` what of it is not honoured or was assumed.
    """

    created: str
    host: str
    stages: tuple[StageCost, ...]
    taken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Manifest(Part):
    """`manifest.json`."""

    format_version: int
    content_sha256: Sha256
    export_sha256: Sha256
    content: Content
    export: ExportRecord

    @classmethod
    def create(cls, content: Content, export: ExportRecord) -> Manifest:
        """Return a manifest whose digests fit its parts."""
        return cls(
            format_version=FORMAT_VERSION,
            content_sha256=_digest(content),
            export_sha256=_digest(export),
            content=content,
            export=export,
        )

    def to_bytes(self) -> bytes:
        """Return the canonical file: sorted keys, two spaces, one line feed at the end."""
        return _canonical(self)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Parse and check a manifest file.

        Parameters
        ----------
        data : bytes
            The file.
        where : str
            Its path, for messages.

        Raises
        ------
        OtherFormatError
            The manifest is of another format version.
        DamagedArtifactError
            The bytes are not a manifest in canonical form, or a digest does not fit.

        """
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            msg = f"{where}: expected a JSON manifest, found something else ({_short(error)}); export the model again"
            raise DamagedArtifactError(msg) from error
        version = raw.get("format_version") if isinstance(raw, dict) else None
        if version != FORMAT_VERSION:
            msg = (
                f"{where}: expected manifest format {FORMAT_VERSION}, found {_short(version)}; "
                "export the model again with this version of atlasport"
            )
            raise OtherFormatError(msg)
        try:
            manifest = cls.model_validate_json(data)
            canonical = manifest.to_bytes()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            msg = f"{where}: {_short(place)}: {_short(first['msg'])}; the manifest is damaged, export the model again"
            raise DamagedArtifactError(msg) from error
        except ValueError as error:  # NaN in a part of any type
            msg = f"{where}: expected finite numbers ({_short(error)}); the manifest is damaged, export the model again"
            raise DamagedArtifactError(msg) from error
        for part, expected in (("content", manifest.content_sha256), ("export", manifest.export_sha256)):
            found = _digest(getattr(manifest, part))
            if found != expected:
                msg = (
                    f"{where}: {part} has SHA-256 {found[:12]}, expected {expected[:12]}; "
                    "the manifest was changed, export the model again"
                )
                raise DamagedArtifactError(msg)
        if canonical != data:
            msg = f"{where}: not in the form that export writes; the manifest was changed, export the model again"
            raise DamagedArtifactError(msg)
        return manifest


def _short(found: object) -> str:
    """Return what was found in a damaged file as part of one line."""
    text = repr(str(found)[:100])[1:-1]
    return text[:150]


def _canonical(part: BaseModel) -> bytes:
    text = json.dumps(part.model_dump(mode="json"), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _digest(part: BaseModel) -> str:
    return hashlib.sha256(_canonical(part)).hexdigest()
