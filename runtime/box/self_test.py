"""The self-test of an installed version: golden cases on the real device, then one recording from file to result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from runtime.artifact import Artifact
from runtime.box.root import SELF_TEST_NAME, Box
from runtime.bundle.manifest import BundleManifest
from runtime.differences import compare_output
from runtime.disk import make_folder, sync
from runtime.engines.base import Array, Engine
from runtime.errors import DamagedArtifactError
from runtime.golden import Golden, handed_on, kept, run_cases
from runtime.limits import judge, limit_of
from runtime.manifest import Case, Content, Metric, Recording

SELF_TEST_FORMAT_VERSION = 1

# How far numbers of a result may be from the golden run's: times of speech come from tokens, those of sounds have
# the usual collar of 200 ms; a score this close to its threshold may fall on either side. Other numbers decide nothing.
_ALLOWED = {"start": 1e-3, "end": 1e-3, "onset": 0.2, "offset": 0.2, "score": 0.02}
_ROUNDING = 1e-6


class Worst(BaseModel):
    """The output that came closest to its limit, or went furthest beyond it; `share` is the error over the limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    case: str
    output: str
    metric: str
    value: float
    limit: float
    share: float


class SelfTestResult(BaseModel):
    """What a self-test found. `blocked`: it could not run. `created` is UTC by the box's clock, and decides nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    format_version: int = SELF_TEST_FORMAT_VERSION
    model: str
    version: str
    content_sha256: str
    verdict: Literal["pass", "fail", "blocked"]
    reason: str
    device: str
    engine: str | None = None
    simulated: bool = False
    cases: tuple[str, ...] = ()
    worst: Worst | None = None
    recording: str | None = None
    heard: str | None = None
    versions: dict[str, str] = {}
    flags: dict[str, str] = {}
    seconds: float = 0.0
    created: str

    def to_bytes(self) -> bytes:
        """Return the file."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def self_test(artifact: Artifact, manifest: BundleManifest, device: str) -> SelfTestResult:
    """Run an opened version's self-test on a device; the first engine that has graphs in it and runs there is taken.

    Raises
    ------
    InputError, EnvironmentNotFitError
        The test cannot run: no such device, no engine, or the device fails.
    DamagedArtifactError
        The version lacks a case or a golden array.

    """
    from runtime.engines import open_engine

    started = time.perf_counter()
    engine = open_engine(artifact, None, device, graphs=list(artifact.content.graphs))
    try:
        worst = _worst(artifact, engine, manifest.self_test.cases)
        problem = (
            f"{worst.case} {worst.output}: {worst.metric} {worst.value:.3g} > {worst.limit:.3g}"
            if worst and worst.share > 1
            else None
        )
        heard = None
        if problem is None and manifest.self_test.recording is not None:
            recording = _named(artifact.content.recordings, manifest.self_test.recording)
            heard, problem = _recording(artifact, engine, recording)
        facts = engine.probe.facts
        return SelfTestResult(
            model=manifest.model,
            version=manifest.version,
            content_sha256=manifest.content_sha256,
            verdict="fail" if problem else "pass",
            reason=problem or _praise(manifest),
            device=device,
            engine=engine.name,
            simulated=facts.simulated,
            cases=manifest.self_test.cases,
            worst=worst,
            recording=manifest.self_test.recording,
            heard=heard,
            versions=dict(facts.versions),
            flags=dict(facts.flags),
            seconds=time.perf_counter() - started,
            created=_now(),
        )
    finally:
        engine.close()


def not_passed(
    manifest: BundleManifest, device: str, verdict: Literal["fail", "blocked"], reason: str
) -> SelfTestResult:
    """Return the result of a self-test that could not run, or in which the engine gave up."""
    return SelfTestResult(
        model=manifest.model,
        version=manifest.version,
        content_sha256=manifest.content_sha256,
        verdict=verdict,
        reason=reason,
        device=device,
        created=_now(),
    )


def store(box: Box, result: SelfTestResult) -> None:
    """Keep a result beside the version; needs the box's lock."""
    target = box.self_test_file(result.model, result.version)
    make_folder(target.parent)
    box.stage(SELF_TEST_NAME, result.to_bytes()).replace(target)
    sync(target.parent)


def last(box: Box, model: str, version: str) -> SelfTestResult | None:
    """Return the stored result of a version's last self-test; None where there is none that can be read."""
    try:
        return SelfTestResult.model_validate_json(box.self_test_file(model, version).read_bytes())
    except (OSError, ValueError):
        return None


def first_difference(golden: Any, found: Any, place: str = "result") -> str | None:
    """Return where a result's JSON differs from the golden run's in a way that counts, None where it does not.

    Parameters
    ----------
    golden : JSON
        What a recording's `result` in the manifest holds; the other parts of `found` are not compared.
    found : JSON
        The result's `to_json`.
    place : str
        Path of the two, for the message.

    """
    if isinstance(golden, Mapping):
        heard = found if isinstance(found, Mapping) else {}
        said = (_part(f"{place}.{key}", golden[key], heard.get(key)) for key in golden)
        return next(filter(None, said), None)
    if isinstance(golden, list | tuple):
        items = found if isinstance(found, list | tuple) else ()
        if len(items) != len(golden):
            return f"{place}: expected {len(golden)}, found {len(items)}"
        pairs = enumerate(zip(golden, items, strict=True))
        return next(filter(None, (first_difference(a, b, f"{place}[{i}]") for i, (a, b) in pairs)), None)
    return None if golden == found else f"{place}: expected {golden!r}, found {found!r}"


def _part(place: str, golden: Any, found: Any) -> str | None:
    """Compare one named part of a result."""
    name = place.rpartition(".")[2]
    if name == "tags":
        return _tags(golden, found or ())
    if name == "events":
        return first_difference(_by_label(golden), _by_label(found or ()), place)
    if name in _ALLOWED and isinstance(found, int | float):
        apart = abs(golden - found)
        return None if apart <= _ALLOWED[name] + _ROUNDING else f"{place}: expected {golden:.3f}, found {found:.3f}"
    if isinstance(golden, float):
        return None
    return first_difference(golden, found, place)


def _by_label(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events by class: two of different classes that begin together have no order."""
    return sorted(events, key=lambda event: (event["label"], event["onset"]))


def _tags(golden: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> str | None:
    """Compare scores by label; a label on one list only has at most the other list's lowest score there."""
    expected, heard = ({tag["label"]: tag["score"] for tag in tags} for tags in (golden, found))
    lowest = min(expected.values(), default=0.0), min(heard.values(), default=0.0)
    for label in sorted(expected.keys() | heard.keys()):
        one, other = expected.get(label, lowest[0]), heard.get(label, lowest[1])
        if label in expected and label in heard:
            apart = abs(one - other)
        else:  # where it is missing, its score is anything up to the lowest one listed
            apart = one - other if label in expected else other - one
        if apart > _ALLOWED["score"]:
            return f"tag {label}: expected {one:.3f}, found {other:.3f}"
    return None


def _worst(artifact: Artifact, engine: Engine, names: tuple[str, ...]) -> Worst | None:
    """Run the cases and return the output that is furthest towards or beyond its limit."""
    golden = Golden(artifact)
    cases = [_named(artifact.content.cases, name) for name in names]
    ran = run_cases(engine, golden, cases)
    measured = [worst for case, outputs in ran for worst in _case(artifact, golden, case, outputs)]
    return max(measured, key=lambda worst: worst.share, default=None)


def _case(artifact: Artifact, golden: Golden, case: Case, outputs: Mapping[str, Array]) -> Iterator[Worst]:
    """Compare every output of a case with its golden one, by every metric that the tolerances limit."""
    graph = artifact.content.graphs[case.graph]
    precision = graph.precision
    inherited = _inherited(artifact.content, case)
    for spec in graph.outputs:
        if spec.name in case.outputs:
            stored = case.outputs[spec.name]
            found = kept(outputs[spec.name], stored)
            difference, _ = compare_output(found, golden.output(stored), spec.dtype, logits=stored.logits)
            tolerances = artifact.content.tolerances
            for judged in judge(difference, tolerances, precision, stored.pool, logits=stored.logits):
                if inherited and judged.metric == "bias":  # an encoder's rounding is one, to those that read it
                    continue
                limit = judged.limit + inherited.get(judged.metric, 0.0)
                yield Worst(
                    case=case.name,
                    output=spec.name,
                    metric=judged.metric,
                    value=judged.value,
                    limit=limit,
                    share=judged.share * judged.limit / limit,
                )
            saturated = float(difference.at_limit)
            if saturated:
                yield Worst(
                    case=case.name, output=spec.name, metric="at_limit", value=saturated, limit=0.0, share=float("inf")
                )


def _inherited(content: Content, case: Case) -> dict[Metric, float]:
    """Return by metric how far the inputs that another case hands on may be off, which shows in the outputs too."""
    found: dict[Metric, float] = {}
    for maker, output in handed_on(content, case).values():
        precision, pool = content.graphs[maker.graph].precision, maker.outputs[output].pool
        for metric in content.tolerances.floors.get(pool, {}).keys() & content.tolerances.rules[precision].keys():
            found[metric] = max(found.get(metric, 0.0), limit_of(content.tolerances, precision, pool, metric))
    return found


def _recording(artifact: Artifact, engine: Engine, recording: Recording) -> tuple[str, str | None]:
    """Return what is heard in a recording, and where that differs from the golden run."""
    from runtime.audio import open_audio
    from runtime.families import family_of

    family = family_of(artifact)
    recognizer = family.open(artifact, engine, 0.0)
    audio = open_audio(artifact.file(recording.file))
    result = recognizer.recognize(audio, family.options.parse(recording.options))
    difference = first_difference(recording.result, result.to_json(), recording.name)
    return result.summary, difference


def _named(items: tuple[Any, ...], name: str) -> Any:
    for item in items:
        if item.name == name:
            return item
    raise DamagedArtifactError(
        f"self-test: expected a case or recording {name!r} in the artifact, found none; freeze again"
    )


def _praise(manifest: BundleManifest) -> str:
    heard = (
        "no recording" if manifest.self_test.recording is None else f"recording {manifest.self_test.recording} equal"
    )
    return f"{len(manifest.self_test.cases)} golden cases within their limits, {heard}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
