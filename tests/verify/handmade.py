"""An artifact and results made by hand, hostile texts and all."""

from __future__ import annotations

from pathlib import Path

from runtime.artifact import Artifact
from runtime.limits import judge
from runtime.manifest import (
    Case,
    Content,
    ExportRecord,
    FileEntry,
    GoldenInput,
    GoldenOutput,
    Graph,
    Manifest,
    Parity,
    Recording,
    Rule,
    Source,
    SourceParity,
    TensorSpec,
    Tolerances,
)
from verify.gates import gates_of, overall, verdict_of
from verify.inference import EngineInference, GoldenRecording, InferenceFile, InferenceRecording
from verify.metrics import statistics
from verify.results import (
    AccuracyFile,
    CaseAccuracy,
    Control,
    Difference,
    EngineAccuracy,
    EnvironmentFile,
    ForcedAccuracy,
    OutputAccuracy,
    ParitySummary,
    RecordingAccuracy,
)
from verify.results_folder import Results
from verify.timings import EndToEnd, EnginePerformance, Latency, Memory, PerformanceFile, Protocol

HOSTILE = "<script>alert('owned')</script> & so on"
_FP32 = {
    "relative_l2": Rule(constant=1e-4, k=3),
    "max_relative": Rule(constant=1e-4, k=3),
    "kl": Rule(constant=1e-6, k=9),
}
_FP16 = {
    "relative_l2": Rule(constant=0.01, k=4),
    "row_l2": Rule(constant=0.01, k=4),
    "kl": Rule(constant=1e-3, k=9),
    "max_relative": Rule(constant=0.01, k=4, logits_only=True),
}
FP32 = Tolerances(rules={"fp32": _FP32}, floors={}, implementations=(), decisions={})
FP16 = Tolerances(rules={"fp32": _FP32, "fp16": _FP16}, floors={}, implementations=(), decisions={})


def difference(error: float, **changes: float) -> Difference:
    values = {
        "relative_l2": error,
        "max_relative": 2 * error,
        "row_l2": 3 * error,
        "mean_relative": 3 * error,
        "cosine": 1.0,
        "raw_mean_relative": 4 * error,
        "raw_max_relative": 500 * error,
        "max_abs": 6 * error,
        "elements": 24,
        "zero_reference": 1,
        "non_finite": 0,
        "at_limit": 0,
    }
    return Difference.model_validate(values | changes)


def case(graph: str, name: str, *errors: float, precision: bool = False, **changes: float) -> CaseAccuracy:
    outputs = []
    for i, error in enumerate(errors):
        found = difference(error, **changes)
        judged = judge(found, FP16, "fp16" if precision else "fp32", "", logits=False)
        outputs.append(OutputAccuracy(name=f"out_{i}", dtype="float32", shape=(2, 12), difference=found, judged=judged))
    return CaseAccuracy(graph=graph, case=name, precision=precision, outputs=tuple(outputs))


def forced(**changes: object) -> ForcedAccuracy:
    """Return a teacher-forced run on fp32 graphs; `kl` is its worst divergence."""
    kl = changes.pop("kl", 1e-7)
    found = difference(1e-6, kl=kl)
    judged = judge(found, FP32, "fp32", "logits", logits=True)
    values = {"name": "forced", "positions": 32, "decided": 30, "agreed": 32, "kl_max": kl, "kl_mean": 1e-8}
    return ForcedAccuracy.model_validate(values | {"difference": found, "judged": judged} | changes)


def recording(name: str = "short_en", **changes: object) -> RecordingAccuracy:
    equal = {"text_equal": True, "times_equal": True, "tokens_equal": True, "repeats": True}
    rates = {"wer": 0.125, "cer": 0.05, "golden_wer": 0.125, "golden_cer": 0.05}
    spoken = {"reference": {"kind": "WER", "value": 0.125, "length": 8}}
    return RecordingAccuracy.model_validate({"name": name, **equal, **rates, **spoken, **changes})


def artifact(path: Path, weights: str = "trained") -> Artifact:
    graph = Graph(
        precision="fp32",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 4)),),
        outputs=(TensorSpec(name="out_0", dtype="float32", shape=(2, 12)),),
        files={"onnx": "encoder.onnx"},
    )
    content = Content(
        model="whisper-hand",
        family="whisper",
        variant="fp32",
        task="speech recognition",
        source=Source.model_validate(
            {
                "weights": weights,
                "origin": "hub",
                "repo": "example/whisper-hand",
                "revision": "0123abc",
                "seed": 7 if weights == "random" else None,
                "licence": "Apache-2.0",
                "files": {"model.safetensors": "a" * 64},
            }
        ),
        dims={},
        frontend={},
        settings={},
        graphs={"encoder": graph},
        cases=(
            Case(
                name="speech",
                graph="encoder",
                note=f"real speech {HOSTILE}",
                inputs={"x": GoldenInput(key="speech/x")},
                outputs={"out_0": GoldenOutput(key="speech/out_0")},
            ),
        ),
        teacher_forced=(),
        recordings=(
            Recording(
                name="short_en",
                file="audio/short_en.wav",
                options={},
                reference={"text": "Set a timer for twenty-six minutes.", "language": "en"},
                result={"text": "set a timer for twenty six minutes", "language": "en", "segments": []},
            ),
        ),
        parity=SourceParity(
            implementation="transformers 5.23.0",
            limit_relative_l2=1e-4,
            outputs=(Parity(case="speech", output="out_0", relative_l2=2e-6, max_relative=3e-6),),
            results_equal={"short_en": True},
        ),
        tolerances=FP32,
        versions={"torch": "2.13.0"},
        files={"encoder.onnx": FileEntry(size=5 * 2**20, sha256="b" * 64)},
    )
    return Artifact(path, Manifest.create(content, ExportRecord(created="2026-01-01T00:00:00Z", host="h", stages=())))


def results(artifact: Artifact, *, error: float = 1e-6, heard: str = "set a timer for twenty six minutes") -> Results:
    """Return results of ONNX Runtime, of TorchScript with `error` and `heard`, and of a pt2 engine that is blocked."""
    facts = {
        "model": artifact.content.model,
        "variant": artifact.content.variant,
        "weights": artifact.content.source.weights,
        "content_sha256": artifact.manifest.content_sha256,
        "created": "2026-01-01T00:00:00+00:00",
        "device": "cpu",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "atlasport": "0.1.0"},
        "flags": {"threads": "engine's choice", "OMP_NUM_THREADS": "1"},
    }
    golden = artifact.content.recordings[0]
    engines = [
        _judged("onnxruntime", 2e-8, equal=True),
        _judged("torchscript", error, equal=heard == golden.result["text"]),
        EngineAccuracy(engine="pt2", device="cpu", verdict="blocked", reason=f"torch is too old {HOSTILE}"),
    ]
    texts = {"onnxruntime": golden.result["text"], "torchscript": heard}
    return Results(
        accuracy=AccuracyFile.model_validate(
            {
                **facts,
                "verdict": overall([engine.verdict for engine in engines]),
                "summary": "by hand",
                "engines": engines,
                "source_parity": ParitySummary(
                    implementation="transformers 5.23.0",
                    outputs=1,
                    worst="speech out_0",
                    relative_l2=2e-6,
                    limit=1e-4,
                    results_equal=1,
                    results=1,
                ),
            }
        ),
        performance=PerformanceFile.model_validate(
            {
                **facts,
                "protocol": Protocol(warm_up=2, runs=5, budget_s=20, threads=None),
                "engines": [
                    _timed("onnxruntime", 1.0),
                    _timed("torchscript", 1.3),
                    EnginePerformance(engine="pt2", device="cpu", blocked="it died"),
                ],
            }
        ),
        inference=InferenceFile.model_validate(
            {
                **facts,
                "golden": [
                    GoldenRecording(
                        name=golden.name,
                        file=golden.file,
                        reference=golden.reference,
                        result=golden.result,
                    )
                ],
                "engines": [_heard(engine, text) for engine, text in texts.items()],
            }
        ),
        environment=EnvironmentFile.model_validate(
            {
                **facts,
                "system": {"system": "Linux-6.1", "machine": "x86_64", "python": "3.11.7"},
                "cpu_model": "A processor",
                "cpu_count": 2,
                "cpus_usable": 2,
                "memory_bytes": 24 * 2**30,
                "load_average": 0.5,
                "variables": {"OMP_NUM_THREADS": "1"},
            }
        ),
    )


def _judged(engine: str, error: float, *, equal: bool) -> EngineAccuracy:
    cases = [case("encoder", "speech", error, error / 2), case("encoder", "silence", error / 3)]
    runs, heard = [forced()], [recording(text_equal=equal, tokens_equal=equal, first_difference=None if equal else 4)]
    gates = gates_of(cases, runs, heard, "fp32", FP32)
    verdict, reason = verdict_of(gates)
    return EngineAccuracy(
        engine=engine,
        device="cpu",
        verdict=verdict,
        reason=reason,
        gates=gates,
        cases=tuple(cases),
        teacher_forced=tuple(runs),
        recordings=tuple(heard),
        controls=(
            Control(name="gain", gate="structure", caught=True, failed_gates=("structure.relative_l2",)),
            Control(name="swap", gate="decisions", caught=False, failed_gates=()),
        ),
    )


def _heard(engine: str, text: str) -> EngineInference:
    one = InferenceRecording(
        name="short_en",
        result={"text": text, "language": "en", "segments": [], "timings": {"total_s": 0.2}},
    )
    return EngineInference(engine=engine, device="cpu", recordings=(one,))


def _timed(engine: str, factor: float) -> EnginePerformance:
    def latency(*seconds: float) -> Latency:
        cold, *runs = (factor * s for s in seconds)
        return Latency(cold_s=cold, runs_s=tuple(runs), latency_s=statistics(runs))

    end_to_end = latency(0.4, 0.2, 0.21, 0.22, 0.2, 0.25)
    return EnginePerformance(
        engine=engine,
        device="cpu",
        load_s=0.8,
        graphs={
            "frontend": latency(0.004, 0.001, 0.0011, 0.001, 0.0012, 0.002),
            "encoder": latency(0.02, 0.006, 0.0061, 0.0064, 0.006, 0.0072),
            "prefill_4": latency(0.003, 0.0008, 0.0008, 0.0009, 0.0008, 0.0011),
            "step": latency(0.0012, 0.0003, 0.0003, 0.00031, 0.00032, 0.0005),
        },
        end_to_end=EndToEnd(
            recording="short_en",
            duration_s=3.0,
            tokens=14,
            latency=end_to_end,
            rtf=0.07,
            tokens_per_s=66.0,
            split_s={"encoder_s": 0.006, "prefill_s": 0.002, "step_s": 0.15, "total_s": 0.2},
        ),
        memory=Memory(before_load=60 * 2**20, after_load=110 * 2**20, peak=150 * 2**20),
    )
