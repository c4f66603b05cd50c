"""Interleaved timing, and what follows from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.contestants import Contestant
from runtime.engines.base import Floats


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of the process's CPU time over all threads."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Run:
    """One window through one contestant."""

    encoder: Cost
    decoder: Cost


@dataclass(frozen=True)
class Summary:
    """The tokens of the first round, and the runs that count."""

    name: str
    tokens: tuple[int, ...]
    runs: tuple[Run, ...]

    def seconds(self, part: str, kind: str) -> float:
        """Return the median of `part` (encoder, decoder, token or total) in seconds by `kind` (wall_s or cpu_s)."""

        def of(run: Run) -> float:
            encoder, decoder = (float(getattr(cost, kind)) for cost in (run.encoder, run.decoder))
            return {
                "encoder": encoder,
                "decoder": decoder,
                "token": decoder / len(self.tokens),
                "total": encoder + decoder,
            }[part]

        return statistics.median(of(run) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return medians and all runs as plain JSON types."""
        parts = ("encoder", "token", "total")
        return {
            "median": {kind: {part: self.seconds(part, kind) for part in parts} for kind in ("wall_s", "cpu_s")},
            "runs": [asdict(run) for run in self.runs],
        }


def _now() -> Cost:
    return Cost(time.perf_counter(), time.process_time())


def _between(begin: Cost, end: Cost) -> Cost:
    return Cost(end.wall_s - begin.wall_s, end.cpu_s - begin.cpu_s)


def _run(contestant: Contestant, mel: Floats, prompt: Sequence[int], count: int) -> Run:
    begin = _now()
    encoded = contestant.encode(mel)
    middle = _now()
    contestant.decode(encoded, prompt, count, distinct=False)
    return Run(_between(begin, middle), _between(middle, _now()))


def measure(
    contestants: Sequence[Contestant], mel: Floats, prompt: Sequence[int], count: int, runs: int
) -> list[Summary]:
    """Run all contestants in turn, `runs` times.

    A round before that does not count warms them up and shows that they do the same work: there no token may come
    twice, since random weights otherwise repeat one token, on which anybody could agree.

    Parameters
    ----------
    contestants : sequence of Contestant
        All in this process: what slows the machine for a while slows each of them.
    mel : array, f32 [n_mels, n_frames]
        One window.
    prompt : sequence of int
        Tokens before the first new one.
    count : int
        New tokens: the first from the prompt's logits, then `count` - 1 steps.
    runs : int
        Rounds that count.

    """
    tokens = dict[str, tuple[int, ...]]()
    for contestant in contestants:
        decoded = contestant.decode(contestant.encode(mel), prompt, count, distinct=True)
        if len(decoded) != count:
            raise RuntimeError(f"{contestant.name}: expected {count} tokens, found {len(decoded)}")
        tokens[contestant.name] = tuple(decoded)
    timed = {contestant.name: list[Run]() for contestant in contestants}
    for _ in range(runs):
        for contestant in contestants:
            timed[contestant.name].append(_run(contestant, mel, prompt, count))
    return [Summary(name, tokens[name], tuple(done)) for name, done in timed.items()]


def agreeing_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return after how many equal tokens the two sequences part."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
