"""What each gate asks, and of which artifacts."""

from __future__ import annotations

# In the order of reports.
QUESTIONS = {
    "structure.relative_l2": "fp32 graphs: relative L2 error of every output",
    "structure.max_relative": "fp32 graphs: largest error over largest value, every output",
    "structure.kl": "fp32 graphs: KL divergence from the golden distribution, worst row, nats",
    "structure.head": "scores that the host makes of logits: largest relative error against float64",
    "precision.relative_l2": "graphs below fp32: relative L2 error of every output",
    "precision.max_relative": "graphs below fp32: largest error over largest value, logits",
    "precision.row_l2": "graphs below fp32: relative L2 error of the worst row of every output",
    "precision.bias": "graphs below fp32: error of the mean over time, where rounding averages out",
    "precision.slope": "graphs below fp32: gain of the logits over many rows",
    "precision.kl": "graphs below fp32: KL divergence from the golden distribution, worst row, nats",
    "ports.relative_l2": "the error that ports are allowed, 1 % whatever the floors: relative L2 on real recordings",
    "decisions.tokens": "teacher-forced tokens that flipped though the golden margin was decisive",
    "decisions.flips": "teacher-forced tokens that flipped at all, against what the source flips in that precision",
    "decisions.kl": "teacher-forced KL divergence from the golden distribution, worst position, nats",
    "decisions.scores": "scores on the other side of a threshold, though the golden one was not within 0.02 of it",
    "decisions.frames": "classes whose highest score moved to a frame where the golden one was over 0.02 below its own",
    "task.text": "recordings whose text differs from the golden run",
    "task.times": "recordings whose segment times differ from the golden run",
    "task.tokens": "recordings whose text tokens differ from the golden run",
    "task.temperatures": "recordings with text that was accepted at another temperature than in the golden run",
    "task.events": "1 - event-F1 (200 ms collar) against the events of the golden run, worst recording",
    "task.event_times": "steps by which onsets and offsets are beyond what scores within 0.02 of golden explain",
    "task.event_scores": "largest difference of an event's score from the golden run",
    "task.tags": "largest difference of a tag's score from the golden run",
    "task.words": "below fp32: share of words that got worse, at least so many with 95 % confidence",
    "task.reference": "error rate of a golden text against what people say was spoken, worst recording that is judged",
    "task.repetition": "recordings in which another thing is heard when they are heard once more",
    "task.batch": "recordings in which another thing is heard in a batch with others, in the batch's order",
    "overflow.non_finite": "values that are NaN or infinite",
    "overflow.at_limit": "values at the largest magnitude of their dtype",
    "controls.missed": "injected faults that no gate, or the wrong gate, caught",
}
# What only one kind of result has.
TEXT_GATES = frozenset(
    {
        "structure.kl",
        "precision.max_relative",
        "precision.slope",
        "precision.kl",
        "decisions.tokens",
        "decisions.flips",
        "decisions.kl",
        "task.text",
        "task.times",
        "task.tokens",
        "task.temperatures",
        "task.words",
        "task.reference",
        "task.batch",
    }
)
# What fp32 has not.
LOWER_GATES = frozenset(name for name in QUESTIONS if name.startswith("precision.")) | {"decisions.flips", "task.words"}
SOUND_GATES = frozenset(
    {
        "structure.head",
        "decisions.scores",
        "decisions.frames",
        "task.events",
        "task.event_times",
        "task.event_scores",
        "task.tags",
    }
)
