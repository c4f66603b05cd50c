"""A picture of a recording's sounds in one HTML file: spectrogram, the events over it, the scores below.

Inline SVG and PNG data, no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtime.engines.base import Floats
from runtime.families.cnn8rnn.png import png_url
from runtime.results import Event, FramewiseScores, SoundEvents, Spectrogram

# Pixels.
LEFT, WIDTH, RIGHT = 230, 1200, 30
SPECTROGRAM, ROW, GAP, AXIS = 256, 20, 8, 34
MAX_ROWS = 24
_LANE, _LINE, _LETTER, _NARROW = 15, 3, 6.3, 4
_RANGE_DB = 80.0  # below the loudest; quieter is black
_LOUDNESS = ((2, 2, 12), (52, 18, 98), (128, 38, 122), (205, 62, 92), (247, 140, 62), (253, 248, 190))
_SCORE = ((248, 250, 252), (150, 190, 220), (52, 112, 172), (12, 40, 92))
_EVENTS = ("#7fd3ff", "#ffd166", "#8ef0a0", "#ff9fb2", "#d0b3ff", "#ffb570", "#9be8e0", "#e6e67a", "#f2a6f2", "#c8d2dc")
_STYLE = """body{font:13px system-ui,sans-serif;margin:20px;color:#182028;background:#fff}
h1{font-size:18px;margin:0 0 4px}p{margin:0 0 10px;color:#4a5560}svg{max-width:100%;height:auto}
text{font:11px system-ui,sans-serif;fill:#182028}image{image-rendering:pixelated}.event{fill-opacity:.85}"""


def write_heatmap(result: SoundEvents, framewise: FramewiseScores, path: Path) -> None:
    """Write the heat map of a result to `path`."""
    name = html.escape(Path(result.audio.path).name)
    document = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: sound events</title><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p>{html.escape(_caption(result, framewise))}</p>
{_svg(result, framewise)}
</body></html>
"""
    path.write_text(document, encoding="utf-8")


def _caption(result: SoundEvents, framewise: FramewiseScores) -> str:
    events = f"{len(result.events)} event{'' if len(result.events) == 1 else 's'}"
    pooled = max(1, math.ceil(len(framewise.scores) / WIDTH))
    column = f"; each column the highest of {pooled} scores" if pooled > 1 else ""
    return (
        f"{result.model} {result.variant}, {result.engine} on {result.device}"
        f"{' (simulated)' if result.simulated else ''}: {events} in "
        f"{result.audio.duration_s:.2f} s. One score each {1000 * result.resolution_s:.0f} ms, which is the true "
        f"resolution of all times{column}."
    )


class _Scale:
    """Places times on the picture's width."""

    def __init__(self, framewise: FramewiseScores) -> None:
        self.start_s = framewise.start_s
        self.length_s = framewise.n_frames * framewise.frame_s

    def width(self, seconds: float) -> float:
        """Return the pixels of a duration."""
        return round(seconds / self.length_s * WIDTH, 2)

    def x(self, time_s: float) -> float:
        """Return the place of a time in the recording."""
        return LEFT + self.width(time_s - self.start_s)


def _svg(result: SoundEvents, framewise: FramewiseScores) -> str:
    scale = _Scale(framewise)
    labels = _rows_of(result)
    colours = {label: _EVENTS[place % len(_EVENTS)] for place, label in enumerate(labels)}
    shown = [event for event in result.events if event.label in colours]
    rows_top = SPECTROGRAM + AXIS
    height = rows_top + len(labels) * (ROW + GAP) + AXIS
    parts = [
        _spectrogram(framewise.spectrogram, framewise.frame_s, scale),
        *_event_bars(shown, colours, scale),
        *_frequencies(framewise.spectrogram),
        *_times(scale, SPECTROGRAM),
        *_score_rows(result, framewise, colours, rows_top, scale),
        *_event_lines(shown, colours, rows_top, scale),
        *_times(scale, height - AXIS),
    ]
    left_out = len({event.label for event in result.events}) - len({event.label for event in shown})
    if left_out:
        parts.append(f'<text x="{LEFT}" y="{height - 2}">{left_out} more classes with events are not shown</text>')
    total = LEFT + WIDTH + RIGHT
    # Images end with whole columns, which may reach beyond the last frame.
    clip = f'<clipPath id="plot"><rect x="{LEFT}" y="0" width="{WIDTH}" height="{height}"/></clipPath>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" width="{total}" height="{height}">'
    return "\n".join([head, clip, *parts, "</svg>"])


def _rows_of(result: SoundEvents) -> list[str]:
    """Return the classes to show: those with events, then the best tags."""
    with_events: dict[str, float] = {}
    for event in result.events:
        with_events[event.label] = max(event.score, with_events.get(event.label, 0.0))
    best = sorted(with_events, key=lambda label: -with_events[label])[:MAX_ROWS]
    return list(dict.fromkeys([*best, *(tag.label for tag in result.tags)]))[:MAX_ROWS]


def _spectrogram(spectrogram: Spectrogram, frame_s: float, scale: _Scale) -> str:
    loudest = float(spectrogram.db.max())
    quietest = max(float(spectrogram.db.min()), loudest - _RANGE_DB)
    values = (spectrogram.db.T[::-1] - quietest) / max(loudest - quietest, 1e-6)
    width = scale.width(len(spectrogram.db) * spectrogram.frames_per_column * frame_s)
    return _image(png_url(values, _LOUDNESS), 0, width, SPECTROGRAM)


def _image(url: str, top: float, width: float, height: float) -> str:
    place = f'x="{LEFT}" y="{top}" width="{width}" height="{height}"'
    return f'<image {place} preserveAspectRatio="none" clip-path="url(#plot)" href="{url}"/>'


def _event_bars(events: Sequence[Event], colours: Mapping[str, str], scale: _Scale) -> Iterator[str]:
    """Yield a bar for each event, the classes one below the other, and lines at its onset and offset."""
    with_events = {event.label for event in events}
    lanes = {label: lane for lane, label in enumerate(label for label in colours if label in with_events)}
    height = min(_LANE, SPECTROGRAM / 2 / max(1, len(lanes)))  # the lower half stays free
    for event in events:
        x, y = scale.x(event.onset), 1 + lanes[event.label] * height
        end = max(x + 1, scale.x(event.offset))
        if end - x >= _NARROW:  # lines of shorter ones would cover a long recording's spectrogram
            colour = colours[event.label]
            yield f'<path d="M{x} 0V{SPECTROGRAM}M{end} 0V{SPECTROGRAM}" stroke="{colour}" stroke-opacity=".35"/>'
        yield _event(event, colours[event.label], y, height - 1, scale)
        if end - x > _LETTER * (len(event.label) + 1) and height == _LANE:
            yield f'<text x="{x + 4}" y="{y + height - 4}" pointer-events="none">{html.escape(event.label)}</text>'


def _frequencies(spectrogram: Spectrogram) -> Iterator[str]:
    low, high = _mel(spectrogram.f_min), _mel(spectrogram.f_max)
    for hertz in (250, 500, 1000, 2000, 4000, 8000, 16000):
        y = SPECTROGRAM * (1 - (_mel(hertz) - low) / (high - low))
        if 0 <= y <= SPECTROGRAM:
            name = f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz"  # noqa: PLR2004
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
            yield f'<path d="M{LEFT - 5} {y:.1f}h5" stroke="#182028"/>'


def _mel(hertz: float) -> float:
    """Return a frequency on Slaney's mel scale (Auditory Toolbox): linear to 1 kHz, then 27 steps to 6.4 times that."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)  # noqa: PLR2004


def _times(scale: _Scale, top: float) -> Iterator[str]:
    steps = [base * 10**power for power in range(-3, 6) for base in (1, 2, 5)]
    if scale.length_s > 120:  # noqa: PLR2004 - whole minutes from there on
        steps = [10, 30, 60, 120, 300, 600, 1800, 3600, *(3600 * 2**power for power in range(1, 20))]
    step = next(step for step in steps if scale.length_s / step <= 12)  # noqa: PLR2004
    end = scale.start_s + scale.length_s
    for index in range(math.ceil(scale.start_s / step - 1e-9), math.floor(end / step + 1e-9) + 1):
        x = scale.x(index * step)
        yield f'<path d="M{x} {top}v5" stroke="#182028"/>'
        yield f'<text x="{x}" y="{top + 17}" text-anchor="middle">{_clock(index * step, scale.length_s)}</text>'


def _clock(seconds: float, length_s: float) -> str:
    if length_s <= 120:  # noqa: PLR2004
        return f"{round(seconds, 3):g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _score_rows(
    result: SoundEvents, framewise: FramewiseScores, colours: Mapping[str, str], top: float, scale: _Scale
) -> Iterator[str]:
    """Yield a strip for each class: its scores, the highest of each column."""
    tags = {tag.label: tag.score for tag in result.tags}
    columns, per_column = _pooled(framewise, list(colours))
    width = scale.width(len(columns) * per_column * result.resolution_s)
    for place, (label, colour) in enumerate(colours.items()):
        y = top + place * (ROW + GAP)
        yield f'<rect x="{LEFT - 7}" y="{y}" width="5" height="{ROW}" fill="{colour}"/>'
        tag = f" ({tags[label]:.2f})" if label in tags else ""
        yield (
            f'<text x="{LEFT - 12}" y="{y + ROW - 6}" text-anchor="end"><title>{html.escape(label)}</title>'
            f"{html.escape(_short(label))}{tag}</text>"
        )
        yield _image(png_url(columns[None, :, place], _SCORE), y, width, ROW)


def _short(label: str, longest: int = 30) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _pooled(framewise: FramewiseScores, labels: Sequence[str]) -> tuple[Floats, int]:
    """Return columns of scores f32 [at most WIDTH, n_labels] and how many scores each is the highest of."""
    places = [framewise.labels.index(label) for label in labels]
    n_scores = len(framewise.scores)
    per_column = max(1, math.ceil(n_scores / WIDTH))
    block = per_column * max(1, 4096 // per_column)  # the file is not read at once
    columns = []
    for first in range(0, n_scores, block):
        scores = framewise.scores[first : first + block][:, places]
        columns.append(np.maximum.reduceat(scores, np.arange(0, len(scores), per_column), axis=0))
    return np.concatenate(columns), per_column


def _event_lines(events: Sequence[Event], colours: Mapping[str, str], top: float, scale: _Scale) -> Iterator[str]:
    """Yield a line under each event's scores."""
    rows = {label: top + place * (ROW + GAP) + ROW + 1 for place, label in enumerate(colours)}
    for event in events:
        yield _event(event, colours[event.label], rows[event.label], _LINE, scale)


def _event(event: Event, colour: str, y: float, height: float, scale: _Scale) -> str:
    """Return a bar from an event's onset to its offset, with its description for a pointer that rests on it."""
    x = scale.x(event.onset)
    width = max(1.0, round(scale.x(event.offset) - x, 2))
    text = f"{html.escape(event.label)}: {event.onset:.2f} to {event.offset:.2f} s, score {event.score:.2f}"
    return (
        f'<rect class="event" x="{x}" y="{y:.2f}" width="{width}" height="{height:.2f}" fill="{colour}">'
        f"<title>{text}</title></rect>"
    )
