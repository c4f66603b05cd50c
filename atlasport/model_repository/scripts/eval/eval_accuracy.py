"""Compare the graphs on a device with the CPU reference that the artifact carries, by every gate.

python eval/eval_accuracy.py --device npu:0 --output_json accuracy.json

Recordings of your own are heard on the device and on the CPU, and the two texts compared:

python eval/eval_accuracy.py --device npu:0 --audio recording.wav
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import atlasport
from runtime.artifact import find_artifact
from verify.run import verify_artifact

HERE = Path(__file__).resolve().parents[1]
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Compare the graphs on a device with the CPU reference.")
    parser.add_argument("--model_path", default=str(HERE / "model"), help="artifact's folder, or a model's name")
    parser.add_argument("--audio", nargs="*", default=[], help="recordings of your own, in place of the gates")
    parser.add_argument("--device", default="npu:0", help="npu:N, cuda:N or cpu")
    parser.add_argument("--dtype", choices=[*DTYPES.values(), *DTYPES], help="precision that the artifact must have")
    parser.add_argument("--language", help="of the speech in your recordings, where the model takes one")
    parser.add_argument("--task", help="transcribe or translate, where the model takes one")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--warmup", type=int, help="taken for the sake of one command line; nothing is timed here")
    parser.add_argument("--num_runs", type=int, help="as --warmup")
    parser.add_argument("--output_json", type=Path)
    return parser.parse_args()


def by_gates(folder: Path, device: str) -> tuple[bool, dict[str, Any]]:
    """Return whether every gate holds on the device, and all that was measured; it is written into the artifact."""
    found = verify_artifact(folder, device=device, runs=0, progress=lambda line: print(line, flush=True))
    for engine in found.results.accuracy.engines:
        print(f"\n{engine.engine} on {engine.device}: {engine.verdict}, {engine.reason}")
        for gate in engine.gates:
            value = "not run" if gate.value is None else f"{gate.value:.3g}"
            print(f"  {gate.name}: {value} of {gate.limit:.3g}: {'holds' if gate.passed else 'DOES NOT HOLD'}")
    if found.results.accuracy.simulated:
        print("simulated device: this says nothing of an NPU")
    return bool(found), found.results.accuracy.model_dump(mode="json")


def by_recordings(folder: Path, device: str, audio: list[str], options: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Return whether recordings give the same on the device as on the CPU, and both results."""
    heard: dict[str, list[Any]] = {}
    for where in ("cpu", device):
        with atlasport.open(folder, device=where) as model:
            recognize = model.transcribe if model.kind == "Speech" else model.detect_events
            for recording in audio:
                print(f"{recording} on {where}", flush=True)
                heard.setdefault(recording, []).append(recognize(recording, **options))
    rows = []
    for recording, (cpu, other) in heard.items():
        same = cpu.summary == other.summary
        print(f"{recording}: {'the same' if same else 'DIFFERENT'}\n  cpu: {cpu.summary}\n  {device}: {other.summary}")
        rows.append({"audio": recording, "same": same, "cpu": cpu.to_json(), device: other.to_json()})
    return all(row["same"] for row in rows), {"device": device, "recordings": rows}


def main() -> int:
    """Run, and return the exit code: 0 where all is as on the CPU, 1 where it is not."""
    arguments = parse_arguments()
    wanted = DTYPES.get(arguments.dtype, arguments.dtype)
    options = {name: getattr(arguments, name) for name in ("language", "task", "max_new_tokens")}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        folder = find_artifact(arguments.model_path, variant=wanted or "fp32")
        variant = variant_of(folder)
        if wanted not in {None, variant}:
            raise atlasport.InputError(f"--dtype: expected {variant}, which the graphs have, found {wanted}")
        if arguments.audio:
            passed, found = by_recordings(folder, arguments.device, arguments.audio, given)
        else:
            passed, found = by_gates(folder, arguments.device)
    except atlasport.AtlasportError as error:
        print(f"eval_accuracy.py: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(f"accuracy on {arguments.device}: {'pass' if passed else 'fail'}")
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"wrote {arguments.output_json}")
    return 0 if passed else 1


def variant_of(folder: Path) -> str:
    """Return the precision of an artifact."""
    return str(json.loads((folder / "manifest.json").read_bytes())["content"]["variant"])


if __name__ == "__main__":
    sys.exit(main())
