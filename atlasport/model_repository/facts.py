"""Everything that the templates of a model repository may say; `gather` makes it of an artifact and results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from atlasport.model_repository.evidence import Run
from runtime.bundle.manifest import Licence
from runtime.manifest import Content
from verify.results import EngineAccuracy
from verify.timings import EndToEnd, EnginePerformance, Latency, Protocol


@dataclass(frozen=True)
class Errors:
    """The worst of some outputs; every value is that of one output. None: not measured.

    `mean_relative` divides by the larger of the reference's magnitude and a hundredth of the largest one,
    `raw_mean_relative` by the reference's magnitude itself.
    """

    outputs: int
    max_abs: float | None = None
    mean_abs: float | None = None
    relative_l2: float | None = None
    max_relative: float | None = None
    mean_relative: float | None = None
    raw_mean_relative: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Match:
    """How many of `total` choices are those of the reference."""

    equal: int
    total: int

    @property
    def rate(self) -> float:
        """The share, 0 to 1."""
        return self.equal / self.total


@dataclass(frozen=True)
class Score:
    """One engine on one device in one line: what scoring scripts of reviewers look for.

    `on_recordings` says that `errors` are those of inputs that follow from recordings. `ports_limit` is the relative L2
    error that ports may have, None where no gate asks for it (bf16). `top1` counts best tokens along golden sequences,
    or for sounds decisions at thresholds; `recordings` those whose whole result is the reference's. `error_rates` and
    `golden_error_rates` are against what people say was spoken. Times are None where a simulated device has none.
    """

    label: str
    engine: str
    device: str
    chip: str
    simulated: bool
    verdict: str
    reference_device: str
    real_weights: bool
    weights_sha256: dict[str, str]
    errors: Errors
    on_recordings: bool
    ports_limit: float | None
    top1: Match | None
    recordings: Match | None
    error_rates: dict[str, float]
    golden_error_rates: dict[str, float]
    event_f1: float | None
    latency_ms: float | None
    rtf: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class GraphErrors:
    """The worst errors of one graph on one engine, over all its cases."""

    label: str
    graph: str
    cases: int
    errors: Errors


@dataclass(frozen=True)
class Timing:
    """One operation on one engine; `recording` None for a graph."""

    label: str
    name: str
    recording: EndToEnd | None
    latency: Latency


@dataclass(frozen=True)
class Texts:
    """A recording's text as the reference, each engine and a person have it: (who, text, remark).

    `who` is "reference", "person", or engine and device.
    """

    name: str
    lines: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Sounds:
    """A recording's sounds: the reference's and each engine's, as (label, onset, offset, score), with a remark."""

    name: str
    golden: tuple[dict[str, Any], ...]
    engines: tuple[tuple[str, tuple[dict[str, Any], ...], str], ...]


@dataclass(frozen=True)
class Machine:
    """Where a run took place."""

    run: Run
    chips: tuple[dict[str, Any], ...]

    @property
    def device(self) -> str:
        """As it was given to verify."""
        return self.run.accuracy.device


@dataclass(frozen=True)
class NotCovered:
    """What the results say nothing of: formats that no engine ran, engines that were blocked, and why."""

    formats: tuple[str, ...]
    blocked: tuple[tuple[str, str], ...]
    controls: bool
    times: bool


@dataclass(frozen=True)
class Repository:
    """All that a template is given."""

    content: Content
    content_sha256: str
    licence: Licence
    runs: tuple[Run, ...]
    machines: tuple[Machine, ...]
    scores: tuple[Score, ...]
    gates: tuple[tuple[str, EngineAccuracy], ...]
    graphs: tuple[GraphErrors, ...]
    timings: tuple[Timing, ...]
    performances: tuple[tuple[str, EnginePerformance], ...]
    protocols: tuple[tuple[str, Protocol], ...]
    texts: tuple[Texts, ...]
    sounds: tuple[Sounds, ...]
    languages: tuple[str, ...]
    recordings_s: float
    not_covered: NotCovered

    @property
    def main(self) -> Run:
        """The run that the files at the top of results/ are of: on an NPU where there is one."""
        return self.runs[0]

    @property
    def on_npu(self) -> bool:
        """Whether a run passed on a real NPU."""
        return any(run.on_npu for run in self.runs)

    @property
    def simulated(self) -> bool:
        """Whether a run was on a simulated device."""
        return any(run.simulated for run in self.runs)

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.content.source.weights == "random"

    @property
    def hears_sounds(self) -> bool:
        """Whether results are sound events."""
        return any("events" in recording.result for recording in self.main.inference.golden)

    @property
    def power(self) -> bool:
        """Whether npu-smi told what a device draws."""
        return any(engine.power for _, engine in self.performances)

    @property
    def device(self) -> str:
        """The first device of the main run, for examples."""
        return self.main.accuracy.device.partition(",")[0]

    @property
    def chips(self) -> tuple[str, ...]:
        """The SoCs of real NPUs that a run passed on."""
        return tuple(dict.fromkeys(soc for run in self.runs if run.on_npu for soc in run.socs))

    def summary(self) -> dict[str, Any]:
        """Return results/summary.json: one entry an engine, with the names that scoring scripts look for."""
        return {
            "format_version": 1,
            "model": self.content.model,
            "variant": self.content.variant,
            "content_sha256": self.content_sha256,
            "run_on_npu": self.on_npu,
            "simulated": self.simulated,
            "recordings_s": self.recordings_s,
            "engines": [_scored(score) for score in self.scores],
            "graphs": [asdict(graph) for graph in self.graphs],
        }


def _scored(score: Score) -> dict[str, Any]:
    errors = score.errors
    return {
        **asdict(score),
        "max_abs_diff": errors.max_abs,
        "mean_abs_diff": errors.mean_abs,
        "cosine_similarity": errors.cosine,
        "top1_match": score.top1.rate if score.top1 else None,
    }
