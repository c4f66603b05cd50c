"""What a search for the place of a divergence found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Place(BaseModel):
    """A value inside a graph, and how far the engine's is from the reference's, relative L2.

    `total` is against the reference's value; `local` against what the reference makes of the engine's own values before
    it: what this place itself adds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    module: str = Field(description="path of the module in the checkpoint; empty where none has parameters nearby")
    operator: str = Field(description="of the ONNX graph")
    node: str = Field(description="the value's name in the ONNX graph")
    total: float
    local: float
    limit: float = Field(description="of `local`: what rounding can make of it")

    @property
    def wrong(self) -> bool:
        """Whether it is wrong by itself."""
        return not self.local <= self.limit

    @property
    def label(self) -> str:
        """Module and operator."""
        return f"{self.module or '(no module)'}, {self.operator} ({self.node})"


class Divergence(BaseModel):
    """A graph of one engine along a case, in the order in which its values are computed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: str
    case: str
    reference: str
    places: tuple[Place, ...]

    @property
    def first(self) -> Place | None:
        """The first place that is wrong by itself; None where errors are rounding alone, amplified."""
        return next((place for place in self.places if place.wrong), None)

    @property
    def summary(self) -> str:
        """One line for people."""
        where = f"{self.graph}/{self.case}"
        if first := self.first:
            reach = max(place.total for place in self.places)
            return (
                f"{where}: wrong in {first.label}: relative L2 {first.local:.2g} there, where rounding makes "
                f"{first.limit:.2g} at most; {reach:.2g} where it is largest"
            )
        if not self.places:
            return f"{where}: no value inside is known by its name in both graphs"
        worst = max(self.places, key=lambda place: place.total)
        return f"{where}: no place is wrong by itself; rounding grows to relative L2 {worst.total:.2g} in {worst.label}"
