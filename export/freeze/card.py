"""The bundle's model card: README.md with the front matter of model hubs; every number comes from verify's results."""

from __future__ import annotations

from importlib.metadata import version as installed_version

from jinja2 import Environment, PackageLoader, StrictUndefined

from export.freeze.evidence import Evidence, Performance, TimedEngine
from export.freeze.licences import SPDX
from runtime.bundle.manifest import Licence, Profile, Requirements, Waiver
from runtime.manifest import Content

_NPU_TAGS = ("NPU", "Ascend", "ascend-npu")


def model_card(
    content: Content,
    version: str,
    profile: Profile,
    *,
    engines: tuple[str, ...],
    licence: Licence,
    needs: Requirements,
    evidence: Evidence,
    waivers: tuple[Waiver, ...],
    file_name: str,
) -> str:
    """Return README.md.

    Parameters
    ----------
    content : Content
        Of the bundle's artifact.
    version, profile
        The bundle's.
    engines : tuple of str
        Those of the profile; results of others are left out.
    licence, needs, evidence, waivers
        What the bundle says of them.
    file_name : str
        Of the bundle, for the example.

    """
    judged = [e for e in (evidence.accuracy.engines if evidence.accuracy else ()) if e.engine in engines]
    tags = (*(_NPU_TAGS if profile != "cpu" else ()), "atlasport", content.task)
    environment = Environment(  # noqa: S701 - Markdown, not HTML
        loader=PackageLoader("export.freeze"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.j2").render(
        content=content,
        version=version,
        profile=profile,
        formats=", ".join(sorted({name for graph in content.graphs.values() for name in graph.files})),
        atlasport=installed_version("atlasport"),
        licence=licence,
        spdx=SPDX,
        needs=needs,
        waivers=waivers,
        accuracy=evidence.accuracy,
        engines=judged,
        on_npu=any(engine.device.startswith("npu") and not engine.simulated for engine in judged),
        timed=_timed(evidence.performance, engines),
        simulated=bool(evidence.accuracy and evidence.accuracy.simulated),
        tags=tags,
        file_name=file_name,
    )


def _timed(performance: Performance | None, engines: tuple[str, ...]) -> list[TimedEngine]:
    """Return the engines whose times are those of a real device."""
    found = performance.engines if performance else ()
    return [run for run in found if run.engine in engines and run.end_to_end and not run.simulated]
