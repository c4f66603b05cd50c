"""`atlasport verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlasport.commands.cases import own_recordings, show_cases
from atlasport.commands.options import (
    ARTIFACTS,
    CaptureOption,
    DeterministicOption,
    EngineName,
    RestartOption,
    RootOption,
    ThreadsOption,
    artifact_folders,
)

if TYPE_CHECKING:
    from rich.console import Console

    from runtime.artifact import Artifact
    from verify.cases import CasesResult
    from verify.run import VerifyResult
    from verify.timings import EndToEnd


def verify(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts' folders or models' names (all variants); default: every artifact."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:N or npu:N; npu:0,npu:1 verifies on both.")] = "cpu",
    engine: Annotated[EngineName | None, typer.Option(help="Default: all that the artifact has graphs for.")] = None,
    cases: Annotated[
        str | None,
        typer.Option(
            help="Names or patterns (step_*) of cases and recordings, comma-separated. A folder: count errors in its "
            "recordings, beside which lie transcripts (a.txt) or events (a.tsv); the verdict stays."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=0, help="Timed runs of each graph; 0 leaves the times out.")] = 20,
    threads: ThreadsOption = None,
    capture: CaptureOption = False,
    deterministic: DeterministicOption = False,
    default_precision: Annotated[
        bool, typer.Option("--default-precision", help="Leave the device's own precision: fp32 may not be fp32 then.")
    ] = False,
    restart: RestartOption = False,
    controls: Annotated[bool, typer.Option(help="Inject known bugs too: every one must be caught.")] = False,
    locate: Annotated[
        bool, typer.Option("--locate", help="Say where an engine leaves the reference: in which layer and operator.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Run nothing: say what became worse from the first of two to the second."),
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0, help="--compare: how much worse, of a gate's limit, of times and memory.")
    ] = 0.1,
    source: Annotated[
        str | None,
        typer.Option(
            help="Run no engine: compare the golden outputs with this checkpoint's own implementation once more; named "
            "as for export --weights. With --locate: compare the engines with its graphs."
        ),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="--source: as for export.")] = None,
    base: Annotated[str | None, typer.Option(help="--source: as for export.")] = None,
    root: RootOption = ARTIFACTS,
) -> None:
    """Prove that an artifact's graphs agree with their golden outputs, time them, and write report.html."""
    from rich.console import Console

    from runtime.engines.base import EngineSettings
    from runtime.errors import AtlasportError, InputError
    from runtime.progress import steps
    from verify.cases import hear_cases
    from verify.run import VerifyResult, verify_artifact

    if compare:
        raise typer.Exit(_compare(artifacts or [], margin, root))
    own = own_recordings(cases)
    if own and (controls or locate or source is not None):
        raise InputError(f"--cases {cases}: expected no --controls, --locate or --source with a folder of recordings")
    if source is not None and not locate:
        raise typer.Exit(
            max(_check_source(folder, source, tokenizer, base) for folder in artifact_folders(artifacts or [], root))
        )
    chosen: dict[str, Any] = {
        "device": device,
        "engines": [engine.value] if engine else None,
        "threads": threads,
        "settings": EngineSettings(capture, deterministic, default_precision),
        "restart": restart,
    }
    names = cases.split(",") if cases else None

    def work(folder: Path, reference: Artifact | None, say: Callable[[str], None]) -> VerifyResult | CasesResult:
        if own:
            return hear_cases(folder, own, progress=say, **chosen)
        asked: dict[str, Any] = {"cases": names, "runs": runs, "controls": controls, "locate": locate}
        return verify_artifact(folder, reference=reference, progress=say, **asked, **chosen)

    console = Console(highlight=False, soft_wrap=True)
    codes, said = [], set()
    for folder in artifact_folders(artifacts or [], root):
        try:
            with steps() as say, _reference(folder, source, tokenizer, base, say) as reference:
                result = work(folder, reference, say)
        except AtlasportError as error:
            # One damaged artifact must not hide the verdict on the others.
            if str(error) not in said:
                typer.echo(f"atlasport: {error}", err=True)
            said.add(str(error))
            codes.append(error.exit_code)
            continue
        if isinstance(result, VerifyResult):
            _show(console, folder, result)
        else:
            show_cases(folder, result)
        codes.append(result.exit_code)
    raise typer.Exit(max(codes))


def _reference(
    folder: Path, weights: str | None, tokenizer: str | None, base: str | None, say: Callable[[str], None]
) -> AbstractContextManager[Artifact | None]:
    """Return the checkpoint's graphs where one is named."""
    if weights is None:
        return nullcontext()
    from export.reference import reference_graphs
    from export.source_check import Checkpoint

    return reference_graphs(folder, Checkpoint(weights, tokenizer, base), say)


def _compare(names: list[str], margin: float, root: Path) -> int:
    """Print what differs; return what the command line leaves with."""
    from runtime.errors import ExitCode, InputError
    from verify.compare import compare_results

    try:
        before, after = names
    except ValueError as error:
        msg = f"--compare: expected two artifacts or folders of results, found {len(names)}"
        raise InputError(msg) from error
    found = compare_results(_results_of(before, root), _results_of(after, root), margin)
    for line in (*found.notes, *found.changes):
        typer.echo(f"  {line}")
    worse = len(found.worse)
    typer.echo(
        f"compare {before} with {after}: {worse} of {found.compared} values became worse, margin {margin:.0%}, "
        f"{len(found.changes)} differ"
    )
    return ExitCode.GATE_FAILED if worse else ExitCode.OK


def _check_source(folder: Path, weights: str, tokenizer: str | None, base: str | None) -> int:
    """Print how far golden is from the checkpoint; return what the command line leaves with."""
    from export.source_check import Checkpoint, check_source
    from runtime.errors import AtlasportError, ExitCode
    from runtime.progress import steps

    try:
        with steps() as say:
            parity = check_source(folder, Checkpoint(weights, tokenizer, base), progress=say)
    except AtlasportError as error:
        typer.echo(f"atlasport: {error}", err=True)
        return error.exit_code
    worst = max(parity.outputs, key=lambda output: output.relative_l2)
    typer.echo(
        f"{folder}: weights, settings and golden are this checkpoint's: {len(parity.outputs)} outputs and "
        f"{len(parity.results_equal)} recordings, at most {worst.relative_l2:.1e} (relative L2) from "
        f"{parity.implementation}, limit {parity.limit_relative_l2:.0e}"
    )
    return ExitCode.OK


def _results_of(name: str, root: Path) -> Path:
    from runtime.errors import InputError

    if Path(name, "accuracy.json").is_file():
        return Path(name)
    variants = artifact_folders([name], root)
    if len(variants) > 1:
        found = ", ".join(str(folder) for folder in variants)
        raise InputError(f"--compare: {name}: expected one artifact, found {found}; name one of the folders")
    return variants[0] / "results"


def _show(console: Console, folder: Path, result: VerifyResult) -> None:
    colour = {"pass": "green", "fail": "red", "blocked": "yellow"}
    for judged in result.results.accuracy.engines:
        style = colour[judged.verdict]
        console.print(f"{folder} on {judged.engine}, {judged.device}: ", end="", markup=False)
        console.print(judged.verdict, style=f"bold {style}", end="")
        console.print(f", {judged.reason}", markup=False)
        for divergence in judged.divergences:
            console.print(f"  {divergence.summary}", markup=False)
        if judged.shapes and judged.device != "cpu":
            shapes = ", ".join(f"{graph} {count}" for graph, count in judged.shapes.items())
            console.print(f"  {judged.label}: sets of input shapes: {shapes}", markup=False)
    if result.results.accuracy.simulated:
        console.print(
            "  simulated device: no figure of it is one of the real device, times are not shown", markup=False
        )
    for timed in result.results.performance.engines:
        if timed.end_to_end is None:
            continue
        run = timed.end_to_end
        for line in _asked(run, captured=timed.captured):
            console.print(f"  {timed.label}{line}", markup=False)
        if timed.simulated:
            continue
        speeds = [f"RTF {run.rtf:.3f}"]
        if run.tokens_per_s is not None:
            speeds.append(f"{run.tokens_per_s:.1f} tokens/s")
        stages = (stage for stage in run.split_s if stage != "total_s")
        speeds += [f"{stage.removesuffix('_s')} {1e3 * run.split_s[stage]:.1f} ms" for stage in stages]
        console.print(f"  {timed.label}: {', '.join(speeds)}", markup=False)
    console.print(f"verdict {folder}: ", end="", markup=False)
    console.print(result.verdict, style=f"bold {colour[result.verdict]}", end="")
    console.print(f"; report: {result.report}", markup=False)


def _asked(run: EndToEnd, *, captured: bool) -> Iterator[str]:
    """Yield what a recording asked of the device, by kind of search, token and window."""
    for search, work in run.work.items():
        yield (
            f", {search}, per second of audio: {work.calls:.2f} calls, {work.operators:.0f} operators, "
            f"{work.copies:.2f} copies and {work.syncs:.2f} syncs of the device, "
            f"{work.host_calls:.1f} calls on the host"
        )
    for part, cost in (("token", run.per_token), ("window", run.per_window)):
        if cost:
            yield (
                f", per {part}{', captured' if captured else ''}: {cost.operators:.1f} operators in "
                f"{cost.launches:.1f} launches, {cost.copies:.2f} copies and {cost.syncs:.2f} syncs of the device"
            )
