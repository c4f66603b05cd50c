"""Reads the table that `npu-smi info` prints, by its labels: columns and their order differ between SoCs and versions.

The table has two lines of labels; every chip then fills two lines, cell by cell in the labels' order. Known layouts:
no HBM column and a `Device` number on 310, 310P and 310B, `Phy-ID` on 910_93, `NPU ID` without a chip number on 950.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

TIMEOUT_S = 30.0

_TITLE = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_RULE = re.compile(r"[-+=| ]*")
_LABEL = re.compile(r"NPU ID|NPU Util\(%\)|\S+")
_VALUE = re.compile(r"\d+\s*/\s*\d+|\S+")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")
_BOARD_LINE = re.compile(r"\s*(.+?)\s*:\s*(.*?)\s*")
_MIB = 2**20


@dataclass(frozen=True)
class NpuChip:
    """One chip. `npu` is the card's number, `chip` the number on the card; memory is in bytes, None where not told.

    `soc` is the name that CANN and ATC use, such as Ascend910B4. `health` is npu-smi's word: OK, Warning, Alarm,
    Critical or UNKNOWN. `power_w` is the watts of the table's Power(W), None where it has none: a 310P Duo prints NA,
    the second chip of an A3's card a dash.
    """

    npu: int
    chip: int
    name: str
    soc: str
    health: str
    memory_used: int | None
    memory_total: int | None
    power_w: float | None


@dataclass(frozen=True)
class NpuSmi:
    """What npu-smi printed: its own version, the driver's, and the chips in the order of their logical numbers.

    `problem` is one line that says why something is missing: no such program, it failed, a row could not be read.
    """

    version: str | None = None
    driver: str | None = None
    chips: tuple[NpuChip, ...] = ()
    problem: str | None = None


def read_npu_smi(timeout_s: float = TIMEOUT_S) -> NpuSmi:
    """Run the `npu-smi` that PATH finds and return what it tells.

    It never raises: a program that is missing, hangs, fails or prints something else gives a `problem`.
    """
    program = shutil.which("npu-smi")
    if program is None:
        return NpuSmi(problem="npu-smi: not found on PATH; the driver's package installs it (/usr/local/sbin)")
    try:
        result = parse_npu_smi(_run([program, "info"], timeout_s))
    except _NpuSmiError as error:
        return NpuSmi(problem=f"{program} info: {error}")
    nameless = next((chip for chip in result.chips if chip.soc == "Ascend910"), None)
    if nameless is None:
        return result
    # 910_93 prints only "Ascend910" in the table; the number of the SoC stands in the board's listing.
    try:
        board = parse_board(_run([program, *_board_query(nameless)], timeout_s))
    except _NpuSmiError:
        board = {}
    number = board.get("NPU Name", "93")
    chips = (replace(chip, soc=f"Ascend910_{number}") if chip.soc == "Ascend910" else chip for chip in result.chips)
    return replace(result, chips=tuple(chips))


def _board_query(chip: NpuChip) -> list[str]:
    return ["info", "-t", "board", "-i", str(chip.npu), "-c", str(chip.chip)]


def parse_npu_smi(text: str) -> NpuSmi:
    """Return what the text that `npu-smi info` printed says.

    Parameters
    ----------
    text : str
        All that it printed, process table and warnings included.

    """
    title = _TITLE.search(text)
    if title is None:
        found = _excerpt(text)
        return NpuSmi(problem=f"npu-smi info: expected a table of devices, found {found}; is the driver loaded?")
    header, rows = _device_table(text)
    version, driver = title.groups()
    if len(header) != 2:  # noqa: PLR2004 - the two lines of labels
        return NpuSmi(version, driver, problem="npu-smi info: found no labels (NPU, Name, Health, ... Bus-Id)")
    chips, unread = [], []
    for start in range(0, len(rows), len(header)):
        group = rows[start : start + len(header)]
        try:
            chips.append(_chip(header, group))
        except ValueError as error:
            unread.append(f"npu-smi info: row {' '.join(' '.join(group).split())!r}: {error}")
    problem = unread[0] if unread else None if chips else "npu-smi info: lists no device"
    return NpuSmi(version, driver, tuple(chips), problem)


def parse_board(text: str) -> dict[str, str]:
    """Return the `Key : Value` lines of `npu-smi info -t board`."""
    matches = (_BOARD_LINE.fullmatch(line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}


def _device_table(text: str) -> tuple[list[str], list[str]]:
    """Return the label lines and the device lines of the first table, without the process table."""
    header: list[str] = []
    rows: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped.startswith("|") or _RULE.fullmatch(stripped):
            continue
        if "Process" in stripped or "No running" in stripped:
            break
        if "Health" in stripped or "Bus-Id" in stripped:
            header.append(stripped)
        elif header:
            rows.append(stripped)
    return header, rows


def _chip(header: Iterable[str], rows: list[str]) -> NpuChip:
    """Return the chip of one group of lines; ValueError says which label has no sensible value."""
    values: dict[str, str] = {}
    for labels, row in zip(header, rows, strict=True):
        values |= _labelled(labels, row)
    name = _required(values, "Name")
    health = _required(values, "Health")
    if not re.fullmatch(r"[A-Za-z]+", health):
        raise ValueError(f"expected a word for Health, found {health!r}")
    used, total = _memory(values)
    return NpuChip(
        npu=_number(values, "NPU ID" if "NPU ID" in values else "NPU"),
        chip=_number(values, "Chip") if "Chip" in values else 0,
        name=name,
        soc=name if name.startswith("Ascend") else f"Ascend{name}",
        health=health,
        memory_used=used,
        memory_total=total,
        power_w=_power(values),
    )


def _labelled(labels: str, row: str) -> dict[str, str]:
    """Return the values of one line by label, cell by cell."""
    label_cells, value_cells = (line.strip("|").split("|") for line in (labels, row))
    if len(label_cells) != len(value_cells):
        raise ValueError(f"expected {len(label_cells)} cells, found {len(value_cells)}")
    result: dict[str, str] = {}
    for label_cell, value_cell in zip(label_cells, value_cells, strict=True):
        names, values = _LABEL.findall(label_cell), _VALUE.findall(value_cell)
        if len(names) != len(values):
            raise ValueError(f"expected {' '.join(names) or 'nothing'}, found {' '.join(values) or 'nothing'}")
        result |= dict(zip(names, values, strict=True))
    return result


def _required(values: Mapping[str, str], label: str) -> str:
    if label not in values:
        raise ValueError(f"expected a value for {label}, found the labels {', '.join(values)}")
    return values[label]


def _number(values: Mapping[str, str], label: str) -> int:
    text = _required(values, label)
    if not text.isdecimal():
        raise ValueError(f"expected a number for {label}, found {text!r}")
    return int(text)


def _memory(values: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return used and total bytes: of the HBM where there is some, else of the chip's memory."""
    for label in ("HBM-Usage(MB)", "Memory-Usage(MB)"):
        usage = _USAGE.fullmatch(values.get(label, ""))
        if usage and int(usage[2]):
            return int(usage[1]) * _MIB, int(usage[2]) * _MIB
    return None, None


def _power(values: Mapping[str, str]) -> float | None:
    """Return watts; npu-smi prints tenths of them (npucli in the driver's sources divides what the DCMI returns)."""
    text = values.get("Power(W)", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


class _NpuSmiError(Exception):
    """The program gave no usable answer."""


def _run(command: list[str], timeout_s: float) -> str:
    """Return what the program printed on stdout."""
    try:
        # A session of its own: what it started ends with it.
        process = subprocess.Popen(  # noqa: S603 - found on the user's PATH, as in a shell
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise _NpuSmiError(f"does not start: {(error.strerror or str(error)).lower()}") from error
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        # In a driver's call that never returns it cannot be killed; do not wait for that.
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        raise _NpuSmiError(f"no answer within {timeout_s:g} s; the driver hangs, reset the card or reboot") from None
    said = stdout.decode(errors="replace")
    if process.returncode:
        reason = _excerpt(stderr.decode(errors="replace") + said)
        raise _NpuSmiError(f"failed with {process.returncode}: {reason}; check the driver, permissions, /dev/davinci*")
    return said


def _excerpt(text: str) -> str:
    said = " ".join(text.split())[:120]
    return repr(said) if said else "nothing"
