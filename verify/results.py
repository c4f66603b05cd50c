"""The results files that verify writes into an artifact's `results` folder, and nothing else reads from elsewhere.

Every file starts with the same facts (`Subject`): which artifact (its manifest's content hash), which device, which
versions. `accuracy.json`, `performance.json` and `inference.json` then hold one section per engine. Infinite values
are written as the JSON string "Infinity".
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from runtime.differences import Difference
from runtime.limits import Judged
from runtime.manifest import Dtype
from verify.diverged import Divergence

Verdict = Literal["pass", "fail", "blocked"]
RESULTS_FORMAT_VERSION = 2


class Result(BaseModel):
    """Base: frozen, unknown keys refused, infinity survives the way through JSON."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_inf_nan="strings", validate_by_name=True, serialize_by_alias=True
    )


class Subject(Result):
    """What was verified, where and with what.

    `created` is UTC in ISO 8601. `simulated` says that a stand-in for the device was used. `flags` are the settings
    that change numbers or speed. `selection` holds the patterns of the chosen cases, None for all.
    """

    format_version: int = RESULTS_FORMAT_VERSION
    model: str
    variant: str
    weights: Literal["trained", "random"]
    content_sha256: str
    created: str
    device: str
    simulated: bool = False
    versions: dict[str, str]
    flags: dict[str, str]
    selection: tuple[str, ...] | None = None


class OutputAccuracy(Result):
    """One output of a case. `judged` holds each metric that has a limit, largest share of it first.

    `problem` says why it could not be compared by value (shape or dtype).
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    difference: Difference
    judged: tuple[Judged, ...] = ()
    problem: str | None = None


class CaseAccuracy(Result):
    """One case of a graph on one engine; `blocked` is the reason why it did not run."""

    graph: str
    case: str
    precision: bool = Field(description="judged by the limits of its precision: the graph computes below fp32")
    real: bool = Field(default=False, description="its inputs follow from a recording, as in use")
    outputs: tuple[OutputAccuracy, ...] = ()
    blocked: str | None = None


class ForcedAccuracy(Result):
    """Decisions along a golden token sequence fed to the engine token by token.

    `decided` of the `positions` had a golden top-2 margin of at least `near_tie`, or, where that is None, of twice the
    largest logit error that the limits allow; `flipped` of these have another best token. `agreed` counts equal best
    tokens at all positions. `kl_max` and `kl_mean` are Kullback-Leibler divergences from the golden distribution in
    nats, over all positions. `least_margin` is the smallest golden margin between the best two, `flipped_margin` the
    largest one where the best token changed. `head` names the softmax that decides; `real`: on a recording.
    """

    name: str
    head: str = "tokens"
    real: bool = True
    positions: int = 0
    decided: int = 0
    flipped: int = 0
    agreed: int = 0
    near_tie: float | None = None
    kl_max: float = 0.0
    kl_mean: float = 0.0
    least_margin: float = 0.0
    flipped_margin: float = 0.0
    difference: Difference | None = None
    judged: tuple[Judged, ...] = ()
    blocked: str | None = None

    @property
    def remark(self) -> str:
        """What differs, in words."""
        margins = f"margins from {self.least_margin:.3g}"
        return f"{self.agreed} of {self.positions} choices agree, {margins}, KL at most {self.kl_max:.3g}"


class FrameDecisions(Result):
    """Decisions of sound events: a case's scores [n, C] against the golden ones, at every class's two thresholds.

    Of the `decisions` (scores times classes times thresholds) `flipped` fell on the other side although the golden
    score was more than `band` away from the threshold, `near` within it. `moved` of the `classes` have their highest
    score in a frame where the golden score is more than `band` below its highest.

    `max_score_error` is the largest difference of a score, `clip_mean_relative` the mean over classes of the raw
    relative error of the case's pooled score; `head_error` the largest relative error that the host's float32 made
    between the engine's logits and their scores, pooled or not. `relative_l2` is the error of the whole network's
    logits from golden log-mel frames; `real`: on a recording.
    """

    name: str
    real: bool = False
    band: float = 0.0
    decisions: int = 0
    flipped: int = 0
    near: int = 0
    classes: int = 0
    moved: int = 0
    max_score_error: float = 0.0
    clip_mean_relative: float = 0.0
    head_error: float = 0.0
    relative_l2: float = 0.0
    blocked: str | None = None

    @property
    def remark(self) -> str:
        """What differs, in words."""
        return f"{self.flipped} of {self.decisions} decisions flipped, scores off by at most {self.max_score_error:.3g}"


class EventAccuracy(Result):
    """A recording's sound events against those of the golden run, and against a person's annotations if there are any.

    F1 scores with collars of 200 ms (offsets: or 20 % of the event's length) by class, micro-averaged; segment F1 over
    segments of one second. `moved_s` is how far an onset or offset is from its golden one at most, among the pairs of
    `event_f1`, and `scores_error` how far a score. `beyond_steps` is how many steps of scores an onset or offset is
    beyond those that scores within 0.02 of the golden ones can give, infinite where a label has none.
    `tags_error` is the largest difference of a tag's score, infinite where one side has more tags.
    `repeats`: the same was heard once more, behind all other cases and recordings.
    """

    name: str
    event_f1: float | None = None
    moved_s: float | None = None
    beyond_steps: float | None = None
    scores_error: float | None = None
    tags_error: float | None = None
    annotated_event_f1: float | None = None
    annotated_segment_f1: float | None = None
    golden_annotated_event_f1: float | None = None
    golden_annotated_segment_f1: float | None = None
    repeats: bool | None = None
    blocked: str | None = None

    @property
    def as_golden(self) -> bool:
        """Whether the events are those of the golden run, none of them moved beyond the collar."""
        return self.event_f1 == 1.0

    @property
    def remark(self) -> str:
        """What differs, in words."""
        if self.event_f1 is None:
            return self.blocked or "not run"
        if not self.as_golden:
            return f"event-F1 {self.event_f1:.3f} against the golden run"
        moved = f", moved by at most {1000 * self.moved_s:.0f} ms" if self.moved_s else ""
        return f"events as golden{moved}"


class ReferenceRate(Result):
    """Error rate of a golden text against the `length` words or characters that people say were spoken.

    `not_judged` says why no gate judges it.
    """

    kind: Literal["WER", "CER"]
    value: float
    length: int
    not_judged: str | None = None

    @property
    def remark(self) -> str:
        """The rate in words."""
        return f"{self.kind} {self.value:.1%}{f', not judged: {self.not_judged}' if self.not_judged else ''}"


class RecordingAccuracy(Result):
    """A recording's text against the golden one.

    `tokens_equal` is about text tokens, of which the one at index `first_difference` is the first to differ; times are
    in seconds. Word and character error rates are against the
    human transcript, lower-cased and without punctuation; the golden run's stand beside them, and in `reference` the
    one that the golden text is judged by. `blamed` names the part that is to blame for other tokens, where the family
    can tell. `near_tie`: the first token or time differs where the golden choice was nearly another (below fp32).
    `worse` of the `spoken` words, or characters, are wrong here and not in the golden text. `repeats`: the same was
    heard once more, behind all other cases and recordings; `in_batch`: also in one batch with others.
    `temperatures_equal`: the windows' texts were accepted at the golden run's temperatures, None where there are none.
    """

    name: str
    text_equal: bool | None = None
    times_equal: bool | None = None
    tokens_equal: bool | None = None
    temperatures_equal: bool | None = None
    first_difference: int | None = None
    wer: float | None = None
    cer: float | None = None
    golden_wer: float | None = None
    golden_cer: float | None = None
    reference: ReferenceRate | None = None
    blamed: str | None = None
    near_tie: bool = False
    worse: int | None = None
    spoken: int | None = None
    repeats: bool | None = None
    in_batch: bool | None = None
    blocked: str | None = None

    @property
    def as_golden(self) -> bool:
        """Whether text, times and text tokens are those of the golden run."""
        return bool(self.text_equal and self.times_equal and self.tokens_equal)

    @property
    def remark(self) -> str:
        """What differs, in words."""
        if self.text_equal is None:
            return self.blocked or "not run"
        if self.as_golden:
            return "text, times and tokens as golden"
        if self.near_tie:
            where = "in times" if self.first_difference is None else f"from token {self.first_difference} on"
            return f"differs {where}, from a near-tie on"
        if self.text_equal:
            return "text as golden, times or tokens not"
        blamed = f", because of {self.blamed}" if self.blamed else ""
        return f"differs from token {self.first_difference} on{blamed}"


class Gate(Result):
    """One gate: it holds (`pass`) if `value` <= `limit`; None means that something it needs could not run."""

    name: str
    value: float | None
    limit: float
    passed: bool | None = Field(alias="pass")
    where: str
    note: str = ""


class Control(Result):
    """A known fault that was injected on purpose: verify must fail, by a gate whose name starts with `gate`."""

    name: str
    gate: str
    caught: bool | None
    failed_gates: tuple[str, ...]
    blocked: str | None = None


class EngineSection(Result):
    """What one engine did on one device."""

    engine: str
    device: str

    @property
    def label(self) -> str:
        """Engine and device as a person reads them."""
        return self.engine if self.device == "cpu" else f"{self.engine} on {self.device}"


class DeviceFailure(Result):
    """Where a device failed: everything that the engine had found by then was thrown away.

    Devices work ahead of the host, so the operator may be a later one than the one that failed.
    """

    graph: str | None
    case: str | None
    operator: str | None
    reason: str


class EngineAccuracy(EngineSection):
    """Everything that one engine was judged by.

    `flags` and `versions` are what the device had in force and loaded; `simulated` says that it was a stand-in.
    `shapes` counts by graph the different sets of input shapes that it was called with. `restarted` says that the
    device had failed once before. `real_relative_l2` is the largest relative L2 error of an output on real recordings.
    `divergences` is there where it was asked for.
    """

    verdict: Verdict
    reason: str
    gates: tuple[Gate, ...] = ()
    cases: tuple[CaseAccuracy, ...] = ()
    teacher_forced: tuple[ForcedAccuracy, ...] = ()
    frame_decisions: tuple[FrameDecisions, ...] = ()
    recordings: tuple[RecordingAccuracy | EventAccuracy, ...] = ()
    controls: tuple[Control, ...] = ()
    simulated: bool = False
    flags: dict[str, str] = {}
    versions: dict[str, str] = {}
    shapes: dict[str, int] = {}
    device_failure: DeviceFailure | None = None
    restarted: bool = False
    real_relative_l2: float | None = None
    divergences: tuple[Divergence, ...] = ()

    @property
    def error_rates(self) -> dict[str, float]:
        """Errors of this engine over all words (`WER`), or characters (`CER`), of the recordings that are judged."""
        errors: dict[str, float] = {}
        lengths: dict[str, int] = {}
        for recording in self.recordings:
            if not isinstance(recording, RecordingAccuracy) or recording.reference is None:
                continue
            spoken = recording.reference
            if spoken.not_judged:
                continue
            rate = recording.wer if spoken.kind == "WER" else recording.cer
            if rate is not None:
                errors[spoken.kind] = errors.get(spoken.kind, 0.0) + rate * spoken.length
                lengths[spoken.kind] = lengths.get(spoken.kind, 0) + spoken.length
        return {kind: total / lengths[kind] for kind, total in errors.items()}


class ParitySummary(Result):
    """The golden run against the model's own implementation, as measured at export."""

    implementation: str
    outputs: int
    worst: str
    relative_l2: float
    limit: float
    results_equal: int
    results: int


class AccuracyFile(Subject):
    """results/accuracy.json.

    The verdict is `fail` if an engine failed, `pass` if one passed and none failed, else `blocked`.
    """

    verdict: Verdict
    summary: str
    engines: tuple[EngineAccuracy, ...]
    source_parity: ParitySummary | None


class EnvironmentFile(Subject):
    """results/env_info.json. `variables` holds the environment variables that are set and matter here."""

    system: dict[str, str]
    cpu_model: str
    instruction_sets: str = Field(default="", description="of the processor, those of arithmetic")
    cpu_count: int
    cpus_usable: int
    memory_bytes: int
    load_average: float = Field(description="of the last minute when verify began; a busy machine is slow and uneven")
    variables: dict[str, str]
    ascend: dict[str, Any] | None = Field(
        default=None, description="on an NPU: driver, npu-smi's table, CANN and what else runtime/ascend.py finds"
    )
