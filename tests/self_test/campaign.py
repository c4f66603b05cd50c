"""Exports what is not there, runs what has no line in runs.jsonl yet, and appends a line for each run that ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any

from runtime.artifact import open_artifact
from runtime.manifest import Variant
from self_test.plan import BY_NAME, KERNELS, REPOSITORY, SAMPLES, Code, Model, Setting, formats, key_of

Line = dict[str, Any]
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])


def say(line: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write(f"{datetime.now(timezone.utc):%H:%M:%S} {line}\n")
    sys.stdout.flush()


def commit() -> str:
    """Return the checkout's commit, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    return told.stdout.strip() or "no commit"


@dataclass
class Campaign:
    """What lies in a work folder: artifacts, scratch copies, and the lines of finished runs.

    A line counts for the artifact's content hash, the run's settings and the code that judged it; a line that a kill
    cut off does not.
    """

    work: Path
    code: Code = field(default_factory=Code)
    _lines: dict[str, Line] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self._file = self.work / "runs.jsonl"
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                found = json.loads(line)
                self._lines[found["key"]] = found
        if text and not text.endswith("\n"):
            whole = text[: text.rfind("\n") + 1]
            self._file.write_text(whole, encoding="utf-8")

    def artifact(self, model: str, variant: Variant) -> Path:
        """Return the folder of an artifact that this checkout's export writes."""
        return self.work / "artifacts" / self.code.exporting[:12] / model / variant

    def content_sha256(self, model: str, variant: Variant) -> str | None:
        """Return the hash of an artifact that was exported, None where it was not."""
        manifest = self.artifact(model, variant) / "manifest.json"
        if not manifest.exists():
            return None
        digest: str = json.loads(manifest.read_text(encoding="utf-8"))["content_sha256"]
        return digest

    def line_of(self, setting: Setting) -> Line | None:
        """Return the line of a finished run, None where there is none of these settings, artifact and code."""
        content = self.content_sha256(setting.model, setting.variant)
        return self._lines.get(key_of(content, setting, self.code.judging)) if content else None

    def run(self, asked: Sequence[Setting], jobs: int) -> None:
        """Run what has not been run; runs with more threads than one have the machine to themselves."""
        todo = [setting for setting in asked if self.line_of(setting) is None]
        say(f"{len(todo)} runs to do, {len(asked) - len(todo)} are done; lines in {self._file}")
        for left in self.work.glob("scratch-*"):  # by a run that was killed
            shutil.rmtree(left)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._export, self._missing(todo)))
        todo = [s for s in todo if self.content_sha256(s.model, s.variant) and self.line_of(s) is None]
        together = list(_processes([setting for setting in todo if setting.threads == 1]))
        alone = list(_processes([setting for setting in todo if setting.threads > 1]))
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._process, together))
        for process in alone:
            self._process(process)

    def _missing(self, todo: Iterable[Setting]) -> list[tuple[str, list[str]]]:
        """Return what is not there yet, each with the command that exports it; what is there is checked."""
        commands = []
        for model, variant in dict.fromkeys((setting.model, setting.variant) for setting in todo):
            target = self.artifact(model, variant)
            if target.exists():
                open_artifact(target)
            else:
                command = export_command(BY_NAME[model], variant, target.parents[1], self.work)
                commands.append((f"{model} {variant}", command))
        return commands

    def _export(self, named: tuple[str, list[str]]) -> None:
        name, command = named
        began = time.perf_counter()
        done = subprocess.run(command, env=_environment(1), capture_output=True, text=True, check=False, cwd=REPOSITORY)
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1] if done.returncode else "exported"
        say(f"{name}: {said}, {time.perf_counter() - began:.0f} s")

    def _process(self, asked: list[Setting]) -> None:
        first = asked[0]
        artifact = self.artifact(first.model, first.variant)
        content, now = self.content_sha256(first.model, first.variant), commit()
        assert content is not None
        with tempfile.TemporaryDirectory(dir=self.work, prefix="scratch-") as scratch:
            environment = _environment(first.threads) | KERNELS[first.kernels] | _device(first.device, Path(scratch))
            command = [sys.executable, "-m", "self_test.one_process", str(artifact), scratch]
            with subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            ) as process:
                assert process.stdin
                assert process.stdout
                assert process.stderr
                with ThreadPoolExecutor(1) as reader:
                    errors = reader.submit(process.stderr.read)
                    process.stdin.write(json.dumps([vars(setting) for setting in asked]))
                    process.stdin.close()
                    for text in process.stdout:
                        found = json.loads(text)
                        setting = Setting(**found["setting"])
                        key = key_of(content, setting, self.code.judging)
                        self._append({"key": key, "content_sha256": content, "commit": now, **found})
                        say(f"{setting.label}: {found['answer']}, {said_of(found)}, {found['seconds']:.0f} s")
            if process.returncode:
                told = (errors.result().strip().splitlines() or ["nothing said"])[-1]
                say(f"{first.model} {first.variant}: the process ended with {process.returncode}: {told[:300]}")

    def _append(self, line: Line) -> None:
        with self._lock, self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self._lines[line["key"]] = line


def said_of(found: Mapping[str, Any]) -> str:
    """Return in words what is nearest to its limit, or caught the fault."""
    nearest = found["nearest"]
    strength = f" from {found['first_caught']:.3g} on" if found.get("first_caught") else ""
    if found["failed"]:
        return f"{', '.join(found['failed'])}{strength}"
    return f"{nearest['gate']} at {100 * float(nearest['share']):.0f} % of its limit"


def _processes(todo: Iterable[Setting]) -> Iterator[list[Setting]]:
    """Faults of one artifact share a process, whose engine is sound; a correct build has one of its own."""
    for (_, _, device, faulty), same in groupby(todo, lambda s: (s.model, s.variant, s.device, bool(s.fault))):
        assert device
        if faulty:
            yield list(same)
        else:
            yield from ([setting] for setting in same)


def export_command(model: Model, variant: Variant, out: Path, work: Path) -> list[str]:
    """Return the command that exports an artifact; what it needs of test data is made first."""
    command = [sys.executable, "-m", "atlasport", "export", model.name, "--precision", variant, "--out", str(out)]
    command += ["--formats", formats(variant), *model.options]
    if model.weights == "ctc":
        from ctc_checkpoints import hybrid_nemo

        made = work / "made" / variant
        made.mkdir(parents=True, exist_ok=True)
        silent = made / "short_en.wav"  # without its transcript: a network that does not hear is not judged by words
        shutil.copyfile(SAMPLES / "short_en.wav", silent)
        return [*command, "--weights", str(hybrid_nemo(made / "hybrid.nemo")), "--recordings", str(silent)]
    return [*command, "--weights", model.weights] if model.weights else command


def _environment(threads: int) -> dict[str, str]:
    """Return this process's environment without what changes arithmetic."""
    changed = {name for kernels in KERNELS.values() for name in kernels} | {"MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE"}
    kept = {name: value for name, value in os.environ.items() if name not in changed}
    return kept | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "200", "PYTHONPATH": PYTHONPATH}


def _device(device: str, folder: Path) -> dict[str, str]:
    if device == "cpu":
        return {}
    from npu_simulator import simulated_npu

    environment = simulated_npu(folder)
    path = os.pathsep.join([environment["PYTHONPATH"], PYTHONPATH])
    return environment | {"PYTHONPATH": path, "TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
