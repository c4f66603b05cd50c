"""Fills the templates of a model repository; they are given a `Repository`, so no number can come from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.metadata import requires, version
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError, select_autoescape
from packaging.requirements import Requirement

from atlasport.model_repository import chinese
from atlasport.model_repository.facts import Repository
from atlasport.model_repository.kept import BLOCKS, Language
from atlasport.model_repository.markdown import cell, code, one_line
from atlasport.model_repository.plots import Chart, gates_chart, latency_chart
from export.freeze.licences import SPDX, UNKNOWN, licence_text
from runtime.engines import ENGINES
from runtime.errors import InputError
from verify.questions import QUESTIONS
from verify.report import duration, number, share, size

PACKAGE = "atlasport.model_repository"
SCRIPTS = ("inference.py", "eval/eval_accuracy.py", "eval/eval_performance.py")
# Names of verify's files, and what the ports call them.
PUBLISHED = {
    "results/accuracy.json": "results/accuracy_eval.json",
    "results/performance.json": "results/performance_eval.json",
    "results/inference.json": "results/inference_result.json",
    "results/env_info.json": "results/env_info.json",
    "logs/accuracy.log": "logs/accuracy_eval.log",
    "logs/performance.log": "logs/performance_eval.log",
}
_TASKS = {"sound-event-detection": "audio-classification"}
_QUESTIONS: dict[Language, dict[str, str]] = {"en": QUESTIONS, "zh": chinese.QUESTIONS}
_NOT_RUN: dict[Language, str] = {"en": "not run", "zh": "未运行"}


def repository_files(
    repository: Repository,
    kept: Mapping[Language, Mapping[str, str]],
    *,
    chinese_first: bool = False,
    wheel: str | None = None,
) -> dict[str, bytes]:
    """Return every file but the artifact's and the wheel, by its path in the repository.

    Parameters
    ----------
    repository : Repository
        What may be said.
    kept : mapping
        By language and place what people wrote.
    chinese_first : bool
        README.md is the Chinese one.
    wheel : str, optional
        The path of atlasport's wheel in the repository.

    """
    names: dict[Language, str] = (
        {"zh": "README.md", "en": "README.en.md"} if chinese_first else {"en": "README.md", "zh": "README.zh-CN.md"}
    )
    charts: dict[str, Chart] = {
        f"assets/{name}.svg": chart
        for name, chart in (("gates", gates_chart(repository)), ("latency", latency_chart(repository)))
        if chart is not None
    }
    made: dict[str, str] = {
        "requirements.txt": requirements(repository, wheel),
        "LICENSE": licence_text(repository.content, repository.licence),
        "NOTICE": _filled("NOTICE.j2", repository, "en"),
        ".gitignore": _filled("gitignore.j2", repository, "en"),
        ".gitattributes": _filled("gitattributes.j2", repository, "en", suffixes=_large_suffixes(repository)),
        "logs/env_check.log": _filled("env_check.log.j2", repository, "en"),
        "logs/inference.log": _filled("inference.log.j2", repository, "en"),
        "results/summary.json": json.dumps(repository.summary(), indent=1, ensure_ascii=False) + "\n",
        **{name: _filled("chart.svg.j2", repository, "en", chart=chart) for name, chart in charts.items()},
    }
    for language, name in names.items():
        other = names["zh" if language == "en" else "en"]
        own = {block: kept.get(language, {}).get(block, "") for block in BLOCKS}
        made[name] = _filled(
            f"README.{language}.md.j2",
            repository,
            language,
            front_matter=front_matter(repository),
            other=other,
            yours=own,
            assets=set(charts),
        )
    contents = {name: text.encode() for name, text in made.items()}
    for name in SCRIPTS:
        contents[name] = files(PACKAGE).joinpath("scripts", name).read_bytes()
    return contents | _results(repository)


def _results(repository: Repository) -> dict[str, bytes]:
    """Return verify's files as they are: the main run's at the top, those of other runs in folders of their own."""
    found: dict[str, bytes] = {}
    for index, run in enumerate(repository.runs):
        place = f"{run_name(repository, index)}/" if index else ""
        for name, data in run.files.items():
            folder, _, file = PUBLISHED[name].partition("/")
            found[f"{folder}/{place}{file}"] = data
    return found


def run_name(repository: Repository, index: int) -> str:
    """Return the name of a run's folder: its device, and a number where several have it."""
    names = [run.accuracy.device.replace(":", "").replace(",", "-") for run in repository.runs]
    twins = names[:index].count(names[index])
    return names[index] + (f"-{twins + 1}" if twins else "")


def front_matter(repository: Repository) -> str:
    """Return the metadata of model hubs in YAML, without its rules."""
    content = repository.content
    licence = repository.licence.identifier
    known = licence in SPDX or licence == UNKNOWN
    task = _TASKS.get(content.task, content.task)
    rates = {} if repository.random or repository.simulated else repository.scores[0].error_rates
    data: dict[str, Any] = {
        "license": licence if known else "other",
        **({} if known else {"license_name": licence, "license_link": "LICENSE"}),
        "hardware": "NPU",
        "library_name": "atlasport",
        "pipeline_tag": task,
        **({"base_model": content.source.repo} if content.source.repo else {}),
        **({"language": list(repository.languages)} if repository.languages else {}),
        "tags": ["NPU", "Ascend", "ascend-npu", "atlasport", content.task],
        **({"metrics": [kind.lower() for kind in rates]} if rates else {}),
    }
    if rates:
        data["model-index"] = [
            {
                "name": f"{content.model} {content.variant}",
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"type": "recordings", "name": "recordings of the artifact"},
                        "metrics": [
                            {"type": kind.lower(), "value": float(f"{100 * rate:.3g}"), "name": f"{kind} in %"}
                            for kind, rate in rates.items()
                        ],
                    }
                ],
            }
        ]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()


def requirements(repository: Repository, wheel: str | None) -> str:
    """Return requirements.txt: what was measured with in its version, the rest in that of this machine."""
    measured = repository.main.accuracy.versions
    engines = {score.engine for score in repository.scores}
    extras = {"", "verify", *(ENGINES[engine].extra for engine in engines)}
    own = measured.get("atlasport", version("atlasport"))
    # On an index another may have taken the name: pip is not to look for it there.
    lines = [f"./{wheel}" if wheel else f"# atlasport=={own}, which has to be installed already"]
    for line in sorted(requires("atlasport") or ()):
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if not wanted or requirement.name == "atlasport":
            continue
        if found := measured.get(requirement.name):
            lines.append(f"{requirement.name}=={found.partition('+')[0]}")
        else:
            lines.append(f"{requirement.name}=={version(requirement.name)}  # not told by the results: that of publish")
    if torch_npu := measured.get("torch_npu"):
        note = "  # of a simulated device" if repository.simulated else ""
        lines.append(f"{'# ' if repository.simulated else ''}torch_npu=={torch_npu}{note}")
    else:
        lines.append("# on an NPU also torch_npu of the same version as torch, which fits its CANN; not run on one")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _large_suffixes(repository: Repository) -> list[str]:
    """Return the suffixes of the artifact's files that are no text, and those of wheels."""
    suffixes = {name.rpartition(".")[2] for name in repository.content.files if "." in name}
    return sorted((suffixes - {"json", "txt", "md"}) | {"whl"})


def _filled(template: str, repository: Repository, language: Language, **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=select_autoescape(["svg.j2"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    not_run = _NOT_RUN[language]

    def told(say: Any) -> Any:
        return lambda value: not_run if value is None else "NaN" if math.isnan(value) else say(value)

    environment.filters.update(
        number=told(number),
        duration=told(duration),
        size=told(size),
        share=told(share),
        percent=told(lambda value: f"{number(100 * value)} %"),
        cosine=told(lambda value: f"{value:.8f}"),
        cell=cell,
        code=code,
        line=one_line,
    )
    try:
        return environment.get_template(template).render(
            r=repository, questions=_QUESTIONS[language], spdx=SPDX, run_name=run_name, **more
        )
    except UndefinedError as error:
        raise InputError(f"{repository.main.where}: {error.message}; run `atlasport verify` again") from error
