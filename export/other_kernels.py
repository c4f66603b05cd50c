"""The source implementation in a process that is held to other instructions of the processor.

Run as a program, it measures: a pickled `Job` on standard input, JSON of a `Measured` on standard output.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.numpy import load_file

from export.floors import Measured, add_source
from export.golden import Golden
from export.weights import Weights
from runtime.errors import EnvironmentNotFitError
from runtime.manifest import Case, Graph, TeacherForced

_X86 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_OTHERS = {"ATEN_CPU_CAPABILITY": "default"}


@dataclass(frozen=True)
class Job:
    """What the process needs; `weights_file` holds the parameters in fp32, `arrays` the golden ones."""

    weights: Weights
    weights_file: Path
    arrays: Path
    cases: list[Case]
    teacher_forced: list[TeacherForced]
    graphs: dict[str, Graph]
    dtype: torch.dtype

    def measure(self) -> Measured:
        """Return what the source is off by in this process."""
        from export.families import open_model

        source = open_model(self.weights)[1].source(self.weights_file)
        golden = Golden(arrays=load_file(self.arrays), cases=self.cases, teacher_forced=self.teacher_forced)
        measured = Measured([f"{source.implementation}, kernels held to {os.environ['ATEN_CPU_CAPABILITY']}"])
        add_source(measured, source, golden, self.graphs, self.dtype, fp32=True)
        return measured


def measure_elsewhere(job: Job) -> Measured:
    """Return what the source is off by on AVX2, or on the plainest kernels of another processor.

    Raises
    ------
    EnvironmentNotFitError
        The process failed.

    """
    variables = _X86 if platform.machine() in {"x86_64", "AMD64"} else _OTHERS
    done = subprocess.run(
        [sys.executable, "-m", "export.other_kernels"],
        input=pickle.dumps(job),
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").splitlines() or ["no word"])[-1]
        wanted = f"the source to run with {' '.join(variables)}"
        raise EnvironmentNotFitError(
            f"floors: expected {wanted}, found {reason[:300]}; see that there is memory for it"
        )
    return Measured(**json.loads(done.stdout))


def _main() -> None:
    output, sys.stdout = sys.stdout, sys.stderr  # what packages print is none of the answer
    job: Job = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - the parent's
    output.write(json.dumps(asdict(job.measure())))


if __name__ == "__main__":
    _main()
