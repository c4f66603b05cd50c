"""Sound events as files.

`tsv` has file name, onset, offset (seconds) and label of each event, under the header of DCASE's lists, which sed_eval
and dcase_util read. `json`, with the scores too, is the one line that `run --json` prints; `audacity` is a label track.
`npz` and `csv` have the framewise scores as the original model gives them, a row each 10 ms, and say how much of that
is resolution: 40 ms. `html` is a heat map.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runtime.engines.base import Array, Floats
from runtime.errors import InputError
from runtime.families.cnn8rnn.heads import score_of_frames
from runtime.families.cnn8rnn.heatmap import write_heatmap
from runtime.family import Format
from runtime.results import FramewiseScores, SoundEvents

_BLOCK = 4096  # frames


def _write_tsv(result: SoundEvents, path: Path) -> None:
    name = _one_cell(Path(result.audio.path).name)
    rows = [f"{name}\t{e.onset:.3f}\t{e.offset:.3f}\t{_one_cell(e.label)}" for e in result.events]
    _write_lines(path, ["filename\tonset\toffset\tevent_label", *rows])


def _write_json(result: SoundEvents, path: Path) -> None:
    _write_lines(path, [json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False)])


def _write_audacity(result: SoundEvents, path: Path) -> None:
    """Write a label track as Audacity imports it: start, end, text."""
    _write_lines(path, [f"{e.onset:.6f}\t{e.offset:.6f}\t{_one_cell(e.label)}" for e in result.events])


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _one_cell(text: str) -> str:
    return " ".join(text.split())


def _write_csv(result: SoundEvents, path: Path) -> None:
    """Write a row each 10 ms: its time, the true resolution, both in seconds, and the score of every class."""
    framewise = _framewise(result, "csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(["time_s", "resolution_s", *framewise.labels])
        frame = 0
        for scores in _rows(framewise):
            for row in scores.tolist():
                time_s = round(framewise.start_s + frame * framewise.frame_s, 6)
                file.write(
                    f"{time_s:.12g},{result.resolution_s:g}," + ",".join([f"{value:.6g}" for value in row]) + "\n"
                )
                frame += 1


def _write_npz(result: SoundEvents, path: Path) -> None:
    """Write arrays: scores f32 [n_frames, n_classes], its axes, labels, and in seconds frame_s, resolution_s, start_s.

    Frame k begins at start_s + k * frame_s.
    """
    framewise = _framewise(result, "npz")
    small: dict[str, Array] = {
        "axes": np.array(["frame", "class"]),
        "labels": np.array(framewise.labels),
        "frame_s": np.array(framewise.frame_s),
        "resolution_s": np.array(result.resolution_s),
        "start_s": np.array(framewise.start_s),
    }
    # numpy.savez would want an hour's 640 MB at once.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("scores.npy", "w", force_zip64=True) as member:
            shape = (framewise.n_frames, len(framewise.labels))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for scores in _rows(framewise):
                member.write(scores.astype("<f4", copy=False).tobytes())


def _rows(framewise: FramewiseScores) -> Iterator[Floats]:
    """Yield the scores of all 10 ms frames, f32 [n, n_classes]."""
    for first in range(0, framewise.n_frames, _BLOCK):
        stop = min(first + _BLOCK, framewise.n_frames)
        yield framewise.scores[score_of_frames(first, stop, framewise.frames_per_score, len(framewise.scores))]


def _framewise(result: SoundEvents, name: str) -> FramewiseScores:
    if result.scores is None:
        raise InputError(f"{name}: expected a result with framewise scores, found none; recognise with scores=True")
    return result.scores


def _write_html(result: SoundEvents, path: Path) -> None:
    write_heatmap(result, _framewise(result, "html"), path)


_NEEDS_SCORES = {"scores": True}
FORMATS = {
    "tsv": Format(_write_tsv, together="events.tsv"),
    "json": Format(_write_json),
    "audacity": Format(_write_audacity, suffix="labels.txt"),
    "npz": Format(_write_npz, _NEEDS_SCORES),
    "csv": Format(_write_csv, _NEEDS_SCORES),
    "html": Format(_write_html, _NEEDS_SCORES),
}
