"""How an error grows inside a graph, for the report: rows by module, and the geometry of a plot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from verify.diverged import Divergence, Place

WIDTH, HEIGHT = 440, 150
_LEFT, _TOP, _BOTTOM = 8, 10, 132
_LEAST = 1e-9


def by_module(divergence: Divergence) -> list[Place]:
    """Return by module, in order, the place that is worst by itself, with the largest total error of the module."""
    worst: dict[str, Place] = {}
    for place in divergence.places:
        known = worst.setdefault(place.module, place)
        bad = max(known, place, key=lambda one: one.local)
        worst[place.module] = bad.model_copy(update={"total": max(known.total, place.total)})
    return list(worst.values())


@dataclass(frozen=True)
class GrowthPlot:
    """Relative L2 along a graph on a logarithmic axis, in the units of an SVG of `WIDTH` x `HEIGHT`."""

    total: str
    local: tuple[tuple[float, float], ...]
    first: float | None
    limit: float
    ticks: tuple[tuple[float, str], ...]


def growth_plot(divergence: Divergence) -> GrowthPlot | None:
    """Return the plot's geometry; None where there is nothing to plot."""
    places = divergence.places
    if not places:
        return None
    finite = [value for place in places for value in (place.total, place.local, place.limit) if math.isfinite(value)]
    low = math.log10(_LEAST)
    high = max(math.ceil(math.log10(max(*finite, _LEAST))), low + 1)

    def y(value: float) -> float:
        share = (math.log10(min(max(value, _LEAST), 10.0**high)) - low) / (high - low)
        return round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)

    def x(index: int) -> float:
        return round(_LEFT + (WIDTH - 2 * _LEFT) * (index + 0.5) / len(places), 1)

    first = next((index for index, place in enumerate(places) if place.wrong), None)
    return GrowthPlot(
        total=" ".join(f"{x(index)},{y(place.total)}" for index, place in enumerate(places)),
        local=tuple((x(index), y(place.local)) for index, place in enumerate(places) if place.local > _LEAST),
        first=None if first is None else x(first),
        limit=y(places[0].limit),
        ticks=tuple((y(10.0**power), f"1e{power}") for power in range(int(low), int(high) + 1, 3)),
    )
