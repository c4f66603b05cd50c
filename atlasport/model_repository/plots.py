"""Two plots as SVG files that stand by themselves: a README shows them as images, on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlasport.model_repository.facts import Repository
from verify.report import duration, number

WIDTH = 900
_LABELS = 370
_ROW = 24
_TOP = 46
_RIGHT = 180


@dataclass(frozen=True)
class Bar:
    """One row: its name, the length of its bar and of its mark in the SVG's units, and the value in words."""

    label: str
    y: int
    length: float
    mark: float | None
    value: str


@dataclass(frozen=True)
class Chart:
    """Bars on a logarithmic axis; `ticks` are (x, label). `limit` is the x of a line that bars are to stay left of."""

    title: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    limit: float | None = None


def latency_chart(repository: Repository) -> Chart | None:
    """Return the median and 99th percentile of everything that was timed, None where nothing was."""
    rows = [
        (f"{timing.name}: {timing.label}", timing.latency.latency_s.p50, timing.latency.latency_s.p99)
        for timing in repository.timings
    ]
    values = [value for _, p50, p99 in rows for value in (p50, p99) if value > 0]
    if not values:
        return None
    low, high = _decades(values)

    def x(value: float) -> float:
        return _x(value, low, high)

    bars = tuple(
        Bar(label, _y(index), x(p50) - _LABELS, x(p99), f"{duration(p50)}, {duration(p99)}")
        for index, (label, p50, p99) in enumerate(rows)
    )
    ticks = tuple((x(10.0**power), duration(10.0**power)) for power in range(low, high + 1))
    return _chart("Warm calls: p50 (bar) and p99 (mark)", bars, ticks)


def gates_chart(repository: Repository) -> Chart | None:
    """Return the share of its limit that each gate with a limit above 0 uses."""
    rows = [
        (f"{gate.name}: {label}", gate.value / gate.limit, f"{number(gate.value)} of {number(gate.limit)}")
        for label, engine in repository.gates
        for gate in engine.gates
        if gate.value is not None and gate.limit > 0 and math.isfinite(gate.value)
    ]
    shares = [share for _, share, _ in rows if share > 0]
    if not shares:
        return None
    low, _ = _decades([*shares, 1.0])
    bars = tuple(
        Bar(label, _y(index), _x(share, low, 0) - _LABELS if share > 0 else 0.0, None, words)
        for index, (label, share, words) in enumerate(sorted(rows))
    )
    ticks = tuple((_x(10.0**power, low, 0), f"{10.0 ** (power + 2):g} %") for power in range(low, 1))
    return _chart("Share of its limit that each gate uses", bars, ticks, limit=_x(1.0, low, 0))


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _x(value: float, low: int, high: int) -> float:
    return round(_LABELS + (WIDTH - _LABELS - _RIGHT) * (math.log10(value) - low) / (high - low), 1)


def _y(index: int) -> int:
    return _TOP + _ROW * index


def _chart(
    title: str, bars: tuple[Bar, ...], ticks: tuple[tuple[float, str], ...], limit: float | None = None
) -> Chart:
    bottom = _TOP + _ROW * len(bars)
    return Chart(title, WIDTH, bottom + 30, _LABELS, WIDTH - _RIGHT, _TOP, bottom, bars, _thinned(ticks), limit)


def _thinned(ticks: tuple[tuple[float, str], ...]) -> tuple[tuple[float, str], ...]:
    """Return so few ticks that their labels do not touch; the last one stays."""
    step = math.ceil(len(ticks) / 6)
    return ticks[::-1][::step][::-1]
