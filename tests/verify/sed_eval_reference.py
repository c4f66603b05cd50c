"""Writes sed_eval_reference.json: random event lists and what sed_eval 0.2.1 says of them.

sed_eval draws in librosa, numba, scikit-learn and matplotlib, 600 MB, so it is no dependency of the tests. In an
environment of its own: `pip install sed_eval==0.2.1; python tests/verify/sed_eval_reference.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LABELS = ("Dog", "Siren", "Speech")
LISTS = 60


def random_events(rng: np.random.Generator, crowded: float) -> list[dict]:
    """Events of up to 2 s within `crowded` seconds: the fewer, the more pairings there are."""
    events = []
    for _ in range(rng.integers(1, 9)):
        onset = rng.uniform(0, crowded)
        events.append({"onset": onset, "offset": onset + rng.uniform(0.05, 2), "label": str(rng.choice(LABELS))})
    return [{**event, "onset": round(event["onset"], 3), "offset": round(event["offset"], 3)} for event in events]


def disturbed(rng: np.random.Generator, events: list[dict]) -> list[dict]:
    """The events as a system may find them: edges off by about a collar, some lost, some of another class."""
    found = []
    for event in events:
        if rng.random() < 0.15:
            continue
        onset = max(0.0, event["onset"] + rng.normal(0, 0.15))
        offset = max(onset + 0.02, event["offset"] + rng.normal(0, 0.2))
        label = str(rng.choice(LABELS)) if rng.random() < 0.1 else event["label"]
        found.append({"onset": round(onset, 3), "offset": round(offset, 3), "label": label})
    return found


def scores(pairs: list[tuple[list[dict], list[dict]]]) -> dict[str, float]:
    """F1 over all pairs of a reference and what was found, which sed_eval adds up."""
    from dcase_util.containers import MetaDataContainer
    from sed_eval.sound_event import EventBasedMetrics, SegmentBasedMetrics

    events = EventBasedMetrics(event_label_list=list(LABELS), t_collar=0.2, percentage_of_length=0.2)
    segments = SegmentBasedMetrics(event_label_list=list(LABELS), time_resolution=1.0)
    for pair in pairs:
        lists = [
            MetaDataContainer([{"event_label": e["label"], "onset": e["onset"], "offset": e["offset"]} for e in listed])
            for listed in pair
        ]
        events.evaluate(*lists)
        segments.evaluate(*lists)
    return {
        name: float(metric.results_overall_metrics()["f_measure"]["f_measure"])
        for name, metric in (("event_f1", events), ("segment_f1", segments))
    }


def main() -> None:
    rng = np.random.default_rng(0)
    cases = []
    while len(cases) < LISTS:
        reference = random_events(rng, crowded=rng.choice([0.5, 3.0, 20.0]))
        found = disturbed(rng, reference) + (random_events(rng, 3.0) if rng.random() < 0.3 else [])
        if found:
            cases.append({"reference": reference, "found": found, **scores([(reference, found)])})
    lines = ",\n".join(json.dumps(case) for case in cases)
    together = json.dumps(scores([(case["reference"], case["found"]) for case in cases]))
    Path(__file__).with_suffix(".json").write_text(f'{{"together": {together}, "lists": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
