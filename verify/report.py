"""The report: one self-contained HTML page. Every number on it comes from the results files or the manifest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from runtime.artifact import Artifact
from runtime.limits import Judged
from runtime.manifest import Content
from verify.case_report import section_of
from verify.case_results import CasesFile
from verify.coverage import commands, covered
from verify.divergence.growth import by_module, growth_plot
from verify.inference import InferenceFile
from verify.marked import Text, marked
from verify.questions import LOWER_GATES, QUESTIONS, SOUND_GATES, TEXT_GATES
from verify.results import AccuracyFile, CaseAccuracy, EngineAccuracy, Gate, RecordingAccuracy
from verify.results_folder import Results
from verify.timeline import recording_sounds
from verify.timings import Latency, PerformanceFile

REPORT_NAME = "report.html"


def render_cases(artifact: Artifact, cases: CasesFile) -> str:
    """Return the page of an artifact that was not verified yet, with a user's recordings alone."""
    return (
        _environment()
        .get_template("cases_page.html.j2")
        .render(content=artifact.content, **section_of(artifact.content, cases))
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("verify", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(artifact: Artifact, results: Results, cases: CasesFile | None = None) -> str:
    """Return the page: no external resources, no scripts, all text escaped."""
    environment = _environment()
    hears_sounds = any("events" in recording.result for recording in results.inference.golden)
    others = (TEXT_GATES if hears_sounds else SOUND_GATES) | (
        LOWER_GATES if results.accuracy.variant == "fp32" else set()
    )
    environment.filters.update(number=number, duration=duration, size=size, share=share)
    # A stand-in's times are nobody's: they stay in performance.json, which says what they are.
    performance = results.performance
    timed = performance.model_copy(update={"engines": ()}) if results.accuracy.simulated else performance
    return environment.get_template("report.html.j2").render(
        content=artifact.content,
        export=artifact.manifest.export,
        accuracy=results.accuracy,
        performance=timed,
        inference=results.inference,
        environment=results.environment,
        engines=[(engine, {gate.name: gate for gate in engine.gates}) for engine in results.accuracy.engines],
        shares=largest_shares,
        used=used,
        costs=costs(artifact.content),
        located=[(e.label, d, growth_plot(d), by_module(d)) for e in results.accuracy.engines for d in e.divergences],
        covered=covered(artifact.content, results),
        commands=commands(artifact.content, results),
        questions={name: question for name, question in QUESTIONS.items() if name not in others},
        hears_sounds=hears_sounds,
        headline=headline(results.accuracy),
        notes={case.name: case.note for case in artifact.content.cases},
        worst=worst_errors,
        outcome=outcome,
        texts=texts(results),
        sounds=recording_sounds(results.accuracy, results.inference),
        plot=latency_plot(timed),
        operations=operations(timed),
        **section_of(artifact.content, cases),
        work=[
            (e.label, name, work)
            for e in performance.engines
            if (run := e.end_to_end)
            for name, work in run.work.items()
        ],
        asked=[
            (f"{e.label}{', captured' if e.captured else ''}", part, cost)
            for e in performance.engines
            if (run := e.end_to_end)
            for part, cost in (("token", run.per_token), ("window", run.per_window))
            if cost
        ],
    )


def headline(accuracy: AccuracyFile) -> str:
    """Return the verdict in words."""
    engines = {v: [e.label for e in accuracy.engines if e.verdict == v] for v in ("pass", "fail", "blocked")}
    words = {
        "pass": f"Verified on {_listed(engines['pass'])}",
        "fail": f"Not verified: {_listed(engines['fail'])} failed",
        "blocked": "Not verified: it could not be run",
    }[accuracy.verdict]
    return f"{words}; blocked: {', '.join(engines['blocked'])}" if engines["blocked"] else words


def _listed(names: list[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def number(value: float | None) -> str:
    """Return three significant digits, in scientific form away from 1."""
    if value is None:
        return "not run"
    if math.isinf(value):
        return "∞"
    if value == int(value) and abs(value) < 1e6:  # noqa: PLR2004 - longer integers read better in scientific form
        return str(int(value))
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"  # noqa: PLR2004


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it: µs, ms or s."""
    if seconds is None:
        return "not run"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def size(count: float | None) -> str:
    """Return a number of bytes in MiB."""
    return "not run" if count is None else f"{count / 2**20:,.1f} MiB"


def share(value: float | None) -> str:
    """Return a fraction in per cent."""
    return "not run" if value is None else f"{100 * value:.1f} %"


def used(value: float) -> str:
    """Return the share of a limit in per cent."""
    return "∞" if math.isinf(value) else f"{100 * value:.3g} %"


_SHARES = 12


def largest_shares(engine: EngineAccuracy) -> list[tuple[str, Judged]]:
    """Return what uses most of its limit, with its place, largest first."""
    found = [
        (f"{case.graph}/{case.case} {output.name}", judged)
        for case in engine.cases
        for output in case.outputs
        for judged in output.judged
    ]
    found += [(f"forced/{run.name}", judged) for run in engine.teacher_forced for judged in run.judged]
    return sorted(found, key=lambda pair: -pair[1].share)[:_SHARES]


def costs(content: Content) -> list[tuple[str, float, str]]:
    """Return by metric the largest floor of all and its pool."""
    tolerances = content.tolerances
    found: list[tuple[str, float, str]] = []
    for metric in tolerances.rules[content.variant]:
        floors = [(values[metric], pool) for pool, values in tolerances.floors.items() if metric in values]
        if floors:
            floor, pool = max(floors)
            found.append((metric, floor, pool))
    return found


def outcome(gate: Gate | None) -> Literal["pass", "fail", "blocked", "none"]:
    """Return the class of a gate's cell."""
    if gate is None:
        return "none"
    if gate.passed is None:
        return "blocked"
    return "pass" if gate.passed else "fail"


METRICS = ("relative_l2", "max_relative", "mean_relative", "raw_mean_relative", "raw_max_relative")


def worst_errors(case: CaseAccuracy) -> dict[str, float]:
    """Return the worst value of each metric over a case's outputs."""
    return {metric: max(getattr(output.difference, metric) for output in case.outputs) for metric in METRICS}


@dataclass(frozen=True)
class RecordingTexts:
    """The texts of one recording: golden, engines, person."""

    name: str
    file: str
    lines: tuple[Text, ...]


def texts(results: Results) -> list[RecordingTexts]:
    """Return the texts of all recordings with what differs from the golden text marked."""
    found = []
    for golden in results.inference.golden:
        if "text" not in golden.result:
            continue
        text, reference = golden.result["text"], golden.reference or {}
        lines = [Text("golden", (("same", text),), reference.get("language") or golden.result.get("language", ""))]
        lines += [_engine_text(results.inference, e, golden.name, text) for e in results.accuracy.engines]
        if "text" in reference:
            remark = f"what was spoken{_golden_rate(results.accuracy.engines, golden.name)}"
            lines.append(Text("person", marked(text, reference["text"], strict=False), remark))
        found.append(RecordingTexts(golden.name, golden.file, tuple(lines)))
    return found


def _golden_rate(engines: Sequence[EngineAccuracy], name: str) -> str:
    """Return how far the golden text is from what was spoken, in words; it is the same for every engine."""
    recordings = (r for e in engines for r in e.recordings if isinstance(r, RecordingAccuracy) and r.name == name)
    rate = next((r.reference for r in recordings if r.reference), None)
    return f"; golden {rate.remark}" if rate else ""


def _engine_text(inference: InferenceFile, engine: EngineAccuracy, name: str, golden: str) -> Text:
    heard = [r for e in inference.engines if e.label == engine.label for r in e.recordings if r.name == name]
    judged = [r for r in engine.recordings if isinstance(r, RecordingAccuracy) and r.name == name]
    if not heard or not judged:
        reason = judged[0].blocked if judged and judged[0].blocked else "not run"
        return Text(engine.label, (), reason)
    result = judged[0]
    remark = result.remark
    if result.wer is not None and result.cer is not None:
        remark += f"; WER {share(result.wer)}, CER {share(result.cer)}"
    return Text(engine.label, marked(golden, heard[0].result["text"], strict=True), remark)


@dataclass(frozen=True)
class Operation:
    """One timed operation of one engine."""

    engine: str
    name: str
    latency: Latency


def operations(performance: PerformanceFile) -> list[Operation]:
    """Return everything that was timed: graphs, then the recording; the engines side by side."""
    found = [Operation(e.label, name, latency) for e in performance.engines for name, latency in e.graphs.items()]
    found += [
        Operation(e.label, f"recording {e.end_to_end.recording}", e.end_to_end.latency)
        for e in performance.engines
        if e.end_to_end
    ]
    order = list(dict.fromkeys(operation.name for operation in found))
    return sorted(found, key=lambda operation: order.index(operation.name))


PLOT_WIDTH = 440
_ROW = 38
_LEFT = 8
_TOP = 14


@dataclass(frozen=True)
class PlotRow:
    """One operation in the plot; x positions in the SVG's units."""

    operation: Operation
    y: int
    cold: float
    warm: tuple[float, ...]
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Plot:
    """Latencies on a logarithmic time axis; `ticks` are (x, label)."""

    width: int
    height: int
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[PlotRow, ...]


def latency_plot(performance: PerformanceFile) -> Plot | None:
    """Return the plot's geometry, None where nothing was timed."""
    timed = operations(performance)
    if not timed:
        return None
    every = [s for operation in timed for s in (operation.latency.cold_s, *operation.latency.runs_s)]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    high = max(high, low + 1)

    def x(seconds: float) -> float:
        return round(_LEFT + (PLOT_WIDTH - 2 * _LEFT) * (math.log10(seconds) - low) / (high - low), 1)

    rows = tuple(
        PlotRow(
            operation=operation,
            y=_TOP + _ROW * index,
            cold=x(operation.latency.cold_s),
            warm=tuple(x(s) for s in operation.latency.runs_s),
            p50=x(operation.latency.latency_s.p50),
            p90=x(operation.latency.latency_s.p90),
            p99=x(operation.latency.latency_s.p99),
        )
        for index, operation in enumerate(timed)
    )
    ticks = tuple((x(10.0**power), duration(10.0**power)) for power in range(low, high + 1))
    return Plot(PLOT_WIDTH, _TOP + _ROW * len(timed) + 22, ticks, rows)
