"""Time the graphs from a recording to its text or sounds: the first call, then warm ones.

python eval/eval_performance.py --device npu:0 --warmup 2 --num_runs 20 --output_json performance.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import atlasport
from runtime.artifact import find_artifact
from verify.metrics import statistics

HERE = Path(__file__).resolve().parents[1]
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Time the graphs from a recording to its text or sounds.")
    parser.add_argument("--model_path", default=str(HERE / "model"), help="artifact's folder, or a model's name")
    parser.add_argument("--audio", help="default: the first recording of the artifact")
    parser.add_argument("--device", default="npu:0", help="npu:N, cuda:N or cpu")
    parser.add_argument("--dtype", choices=[*DTYPES.values(), *DTYPES], help="precision that the artifact must have")
    parser.add_argument("--language", help="of the speech, where the model takes one")
    parser.add_argument("--task", help="transcribe or translate, where the model takes one")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--warmup", type=int, default=2, help="calls behind the first that do not count")
    parser.add_argument("--num_runs", type=int, default=20, help="calls that count")
    parser.add_argument("--output_json", type=Path)
    arguments = parser.parse_args()
    if arguments.warmup < 0 or arguments.num_runs < 1:
        parser.error("expected --warmup of 0 or more and --num_runs of 1 or more")
    return arguments


def timed(model: Any, audio: str, options: dict[str, Any], warmup: int, num_runs: int) -> dict[str, Any]:
    """Return seconds of the first call and of the warm ones, wall clock, from file to result."""
    recognize = model.transcribe if model.kind == "Speech" else model.detect_events
    seconds = []
    for index in range(1 + warmup + num_runs):
        start = time.perf_counter()
        result = recognize(audio, **options)
        seconds.append(time.perf_counter() - start)
        kind = "first" if index == 0 else "warm-up" if index <= warmup else f"run {index - warmup} of {num_runs}"
        print(f"{kind}: {seconds[-1] * 1e3:.2f} ms", flush=True)
    warm = statistics(seconds[1 + warmup :])
    duration_s = result.audio.duration_s
    tokens = result.n_tokens
    return {
        "model": model.name,
        "variant": model.variant,
        "engine": model.engine,
        "device": model.device,
        "simulated": result.simulated,
        "audio": audio,
        "duration_s": duration_s,
        "warmup": warmup,
        "num_runs": num_runs,
        "cold_s": seconds[0],
        "runs_s": seconds[1 + warmup :],
        "latency_s": warm.model_dump(),
        "rtf": warm.p50 / duration_s,
        "tokens_per_s": None if tokens is None else tokens / warm.p50,
    }


def main() -> int:
    """Run, and return the exit code."""
    arguments = parse_arguments()
    wanted = DTYPES.get(arguments.dtype, arguments.dtype)
    options = {name: getattr(arguments, name) for name in ("language", "task", "max_new_tokens")}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        folder = find_artifact(arguments.model_path, variant=wanted or "fp32")
        print(f"opening {folder} on {arguments.device}", flush=True)
        with atlasport.open(folder, device=arguments.device) as model:
            if wanted not in {None, model.variant}:
                raise atlasport.InputError(f"--dtype: expected {model.variant}, which the graphs have, found {wanted}")
            audio = arguments.audio or str(folder / model.recognizer.content.recordings[0].file)
            found = timed(model, audio, given, arguments.warmup, arguments.num_runs)
    except atlasport.AtlasportError as error:
        print(f"eval_performance.py: {error}", file=sys.stderr)
        return int(error.exit_code)
    times = {name: f"{1e3 * found['latency_s'][name]:.2f} ms" for name in ("p50", "p90", "p99")}
    print(", ".join(f"{name} {value}" for name, value in times.items()) + f", RTF {found['rtf']:.4f}")
    if found["tokens_per_s"] is not None:
        print(f"{found['tokens_per_s']:.1f} tokens/s")
    if found["simulated"]:
        print("simulated device: these are not times of an NPU")
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"wrote {arguments.output_json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
