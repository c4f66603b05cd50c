from __future__ import annotations

from functools import partial
from itertools import permutations

import pytest

from bench.measure import Cost, Laps, Run, measure, medians

pytestmark = pytest.mark.slow


def test_contestants_take_turns() -> None:
    order = list[str]()

    def run(name: str) -> Run:
        order.append(name)
        return {"all": Cost(float(len(order)), 0.0)}

    timed = measure({name: partial(run, name) for name in "abc"}, 40)
    rounds = [tuple(order[start : start + 3]) for start in range(0, 120, 3)]
    assert set(rounds) == set(permutations("abc"))
    for name, entries in timed.items():
        assert [order[int(entry["all"].wall_s) - 1] for entry in entries] == [name] * 40


def test_laps_are_of_the_parts_and_add_up() -> None:
    whole, laps = Laps(), Laps()
    sum(range(200_000))
    laps.end("first")
    laps.end("second")
    whole.end("all")
    assert list(laps.run) == ["first", "second"]
    assert laps.run["second"].cpu_s < laps.run["first"].cpu_s
    for clock in ("wall_s", "cpu_s"):
        assert 0 < sum(getattr(cost, clock) for cost in laps.run.values()) <= getattr(whole.run["all"], clock)


def test_medians() -> None:
    runs = [{"encoder": Cost(a, 0.0), "decoder": Cost(b, 1.0)} for a, b in ((3.0, 1.0), (1.0, 7.0), (2.0, 4.0))]
    # The total's median is of each run's sum (4, 8, 6).
    assert medians(runs, "wall_s") == {"encoder": 2, "decoder": 4, "total": 6}
    assert medians(runs, "cpu_s") == {"encoder": 0, "decoder": 1, "total": 1}
