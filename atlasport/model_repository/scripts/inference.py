"""Hear a recording with the frozen graphs beside this file: its text, or its sounds.

python inference.py --audio recording.wav --device npu:0 --output_json result.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import atlasport
from runtime.artifact import find_artifact

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def parse_arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description="Hear a recording with the frozen graphs of this repository.")
    parser.add_argument("--model_path", default=str(HERE / "model"), help="artifact's folder, or a model's name")
    parser.add_argument("--audio", help="default: the first recording of the artifact")
    parser.add_argument("--device", default="npu:0", help="npu:N, cuda:N or cpu")
    parser.add_argument("--dtype", choices=[*DTYPES.values(), *DTYPES], help="precision that the artifact must have")
    parser.add_argument("--language", help="of the speech, where the model takes one")
    parser.add_argument("--task", help="transcribe or translate, where the model takes one")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--output_json", type=Path)
    return parser.parse_args()


def hear(model: Any, audio: str, options: dict[str, Any]) -> Any:
    """Return the transcript, or the sound events, of a recording; print how far it is."""

    def progress(done_s: float, total_s: float) -> None:
        print(f"{done_s:.1f} of {total_s:.1f} s of audio", flush=True)

    recognize = model.transcribe if model.kind == "Speech" else model.detect_events
    return recognize(audio, on_progress=progress, **options)


def main() -> int:
    """Run, and return the exit code."""
    arguments = parse_arguments()
    wanted = DTYPES.get(arguments.dtype, arguments.dtype)
    options = {name: getattr(arguments, name) for name in ("language", "task", "max_new_tokens")}
    try:
        folder = find_artifact(arguments.model_path, variant=wanted or "fp32")
        print(f"opening {folder} on {arguments.device}", flush=True)
        with atlasport.open(folder, device=arguments.device) as model:
            if wanted not in {None, model.variant}:
                raise atlasport.InputError(f"--dtype: expected {model.variant}, which the graphs have, found {wanted}")
            audio = arguments.audio or str(folder / model.recognizer.content.recordings[0].file)
            print(f"{model.name} {model.variant}, {model.engine} on {model.device}: {audio}", flush=True)
            result = hear(model, audio, {name: value for name, value in options.items() if value is not None})
    except atlasport.AtlasportError as error:
        print(f"inference.py: {error}", file=sys.stderr)
        return int(error.exit_code)
    if result.simulated:
        print("simulated device: its times are none of an NPU")
    print(f"total {result.timings['total_s']:.3f} s, RTF {result.timings['rtf']:.4f}")
    print(result.summary)
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"wrote {arguments.output_json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
