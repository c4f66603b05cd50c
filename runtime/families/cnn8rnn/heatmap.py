"""A picture of a recording's sounds in one HTML file: spectrogram, the events over it, the scores below.

No script, nothing loaded from elsewhere. Places are shares of the page's width, and nothing is scaled down: an event is
at least a pixel wide at any width, and scores come pooled for wide, middling and narrow pages, of which CSS shows one.
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

# Most columns of scores on a page, by the CSS class of their images; their plots are at least so many pixels wide.
WIDTHS = {"wide": 1200, "middling": 600, "narrow": 300}
MAX_ROWS = 24
_SPECTROGRAM, _LANE = 256, 15  # pixels
_RANGE_DB = 80.0  # below the loudest; quieter is black
_TICKS, _TICKS_NARROW = 12, 4  # at most
_EDGED, _NAMED = 1, 5  # per cent of the width that an event has at least where its edges, its name are drawn
_SHORT_S, _HERTZ = 120, (250, 500, 1000, 2000, 4000, 8000, 16000)
_LOUDNESS = ((2, 2, 12), (52, 18, 98), (128, 38, 122), (205, 62, 92), (247, 140, 62), (253, 248, 190))
_SCORE = ((248, 250, 252), (150, 190, 220), (52, 112, 172), (12, 40, 92))
_EVENTS = ("#7fd3ff", "#ffd166", "#8ef0a0", "#ff9fb2", "#d0b3ff", "#ffb570", "#9be8e0", "#e6e67a", "#f2a6f2", "#c8d2dc")
_STYLE = """body{font:13px system-ui,sans-serif;margin:20px;color:#182028;background:#fff}
h1{font-size:18px;margin:0 0 4px;overflow-wrap:anywhere}p{margin:0 0 10px;color:#4a5560}
section{display:grid;grid-template-columns:230px minmax(0,1fr);gap:0 10px;margin-bottom:6px}
section>div{grid-column:2;position:relative}h2{font-size:12px;font-weight:400;line-height:20px;height:20px;margin:0;
text-align:right;border-right:5px solid;padding-right:6px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
h2 span{color:#182028}div>*{position:absolute}img{left:0;top:0;height:20px;image-rendering:pixelated}
.event{min-width:1px;overflow:hidden;font:11px/14px system-ui,sans-serif;white-space:nowrap;color:#182028}
.edges{top:0;height:100%;opacity:.35;border:solid;border-width:0 1px;box-sizing:border-box}
.hertz{right:calc(100% + 4px);transform:translateY(-50%);font-size:11px;white-space:nowrap}
.time{font-size:11px;white-space:nowrap;transform:translateX(-50%);padding-top:6px}
.time::before{content:"";position:absolute;left:50%;top:0;width:1px;height:5px;background:#182028}
@media (min-width:1520px){.middling,.narrow{display:none}}
@media (min-width:900px) and (max-width:1519px){.wide,.narrow{display:none}}
@media (max-width:899px){.wide,.middling,.between{display:none}}
@media (max-width:699px){body{margin:20px 18px}section{grid-template-columns:minmax(0,1fr)}section>div{grid-column:1}
h2{text-align:left;border-right:0;border-left:5px solid;padding:0 0 0 6px;white-space:normal;height:auto}
.hertz{right:auto;left:2px;color:#fff;text-shadow:0 0 3px #000}}"""


def write_heatmap(result: SoundEvents, framewise: FramewiseScores, path: Path) -> None:
    """Write the heat map of a result to `path`."""
    name = html.escape(Path(result.audio.path).name)
    document = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{name}: sound events</title><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p>{html.escape(_caption(result, framewise))}</p>
{_plots(result, framewise)}
</body></html>
"""
    path.write_text(document, encoding="utf-8")


def _caption(result: SoundEvents, framewise: FramewiseScores) -> str:
    events = f"{len(result.events)} event{'' if len(result.events) == 1 else 's'}"
    pooled = len(framewise.scores) > min(WIDTHS.values())
    return (
        f"{result.model} {result.variant}, {result.engine} on {result.device}"
        f"{' (simulated)' if result.simulated else ''}: {events} in "
        f"{result.audio.duration_s:.2f} s. One score each {1000 * result.resolution_s:.0f} ms, which is the true "
        f"resolution of all times{'; a column shows the highest of its scores' if pooled else ''}."
    )


class _Scale:
    """Places times on the plot's width, in per cent."""

    def __init__(self, framewise: FramewiseScores) -> None:
        self.start_s = framewise.start_s
        self.length_s = framewise.n_frames * framewise.frame_s

    def width(self, seconds: float) -> float:
        """Return the share of a duration."""
        return round(100 * seconds / self.length_s, 4)

    def x(self, time_s: float) -> float:
        """Return the place of a time in the recording."""
        return self.width(time_s - self.start_s)


def _plots(result: SoundEvents, framewise: FramewiseScores) -> str:
    scale = _Scale(framewise)
    labels = _rows_of(result)
    colours = {label: _EVENTS[place % len(_EVENTS)] for place, label in enumerate(labels)}
    shown = [event for event in result.events if event.label in colours]
    parts = [
        f'<section><div style="height:{_SPECTROGRAM}px;clip-path:inset(0 0 0 -99px)">',
        _spectrogram(framewise.spectrogram, framewise.frame_s, scale),
        *_event_bars(shown, colours, scale),
        *_frequencies(framewise.spectrogram),
        "</div></section>",
        *_times(scale),
        *_score_rows(result, framewise, colours, scale),
        *_times(scale),
    ]
    left_out = len({event.label for event in result.events}) - len({event.label for event in shown})
    if left_out:
        parts.append(f"<p>{left_out} more classes with events are not shown</p>")
    return "\n".join(parts)


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
    return _image(png_url(values, _LOUDNESS), width, f"height:{_SPECTROGRAM}px;image-rendering:auto", "")


def _image(url: str, width: float, style: str, shown_on: str) -> str:
    """Return an image from the left on; it ends with a whole column, which may reach beyond the last frame."""
    return f'<img class="{shown_on}" alt="" style="width:{width}%;{style}" src="{url}"/>'


def _event_bars(events: Sequence[Event], colours: Mapping[str, str], scale: _Scale) -> Iterator[str]:
    """Yield a bar for each event, the classes one below the other, and lines at its onset and offset."""
    with_events = {event.label for event in events}
    lanes = {label: lane for lane, label in enumerate(label for label in colours if label in with_events)}
    height = min(_LANE, _SPECTROGRAM / 2 / max(1, len(lanes)))  # the lower half stays free
    for event in events:
        colour, width = colours[event.label], scale.width(event.offset - event.onset)
        if width >= _EDGED:  # lines of shorter ones would cover a long recording's spectrogram
            yield f'<i class="edges" style="left:{scale.x(event.onset)}%;width:{width}%;color:{colour}"></i>'
        text = html.escape(event.label) if height == _LANE and width >= _NAMED else ""
        yield _event(event, colour, (1 + lanes[event.label] * height, height - 1), scale, text)


def _event(event: Event, colour: str, lane: tuple[float, float], scale: _Scale, text: str = "") -> str:
    """Return a bar, `lane` is its top and height, with the event's description for a pointer that rests on it."""
    told = f"{html.escape(event.label)}: {event.onset:.2f} to {event.offset:.2f} s, score {event.score:.2f}"
    place = f"left:{scale.x(event.onset)}%;width:{scale.width(event.offset - event.onset)}%"
    place += f";top:{lane[0]:.2f}px;height:{lane[1]:.2f}px"
    return f'<b class="event" style="{place};background:{colour}" title="{told}">{text}</b>'


def _frequencies(spectrogram: Spectrogram) -> Iterator[str]:
    low, high = _mel(spectrogram.f_min), _mel(spectrogram.f_max)
    for hertz in _HERTZ:
        y = _SPECTROGRAM * (1 - (_mel(hertz) - low) / (high - low))
        if 0 <= y <= _SPECTROGRAM:
            name = f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz"  # noqa: PLR2004
            yield f'<span class="hertz" style="top:{y:.1f}px">{name}</span>'


def _mel(hertz: float) -> float:
    """Return a frequency on Slaney's mel scale (Auditory Toolbox): linear to 1 kHz, then 27 steps to 6.4 times that."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)  # noqa: PLR2004


def _times(scale: _Scale) -> Iterator[str]:
    """Yield an axis; a narrow page leaves out those between."""
    steps = [base * 10**power for power in range(-3, 6) for base in (1, 2, 5)]
    if scale.length_s > _SHORT_S:  # whole minutes from there on
        steps = [10, 30, 60, 120, 300, 600, 1800, 3600, *(3600 * 2**power for power in range(1, 20))]
    step = next(step for step in steps if scale.length_s / step <= _TICKS)
    end = scale.start_s + scale.length_s
    ticks = range(math.ceil(scale.start_s / step - 1e-9), math.floor(end / step + 1e-9) + 1)
    every = math.ceil(len(ticks) / _TICKS_NARROW)
    yield '<section><div style="height:30px">'
    for index in ticks:
        between = " between" if index % every else ""
        clock = _clock(index * step, scale.length_s)
        yield f'<span class="time{between}" style="left:{scale.x(index * step)}%">{clock}</span>'
    yield "</div></section>"


def _clock(seconds: float, length_s: float) -> str:
    if length_s <= _SHORT_S:
        return f"{round(seconds, 3):g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _score_rows(
    result: SoundEvents, framewise: FramewiseScores, colours: Mapping[str, str], scale: _Scale
) -> Iterator[str]:
    """Yield a strip for each class: its scores, the highest of each column, and its events below."""
    tags = {tag.label: tag.score for tag in result.tags}
    pooled = {name: _pooled(framewise, list(colours), most) for name, most in WIDTHS.items()}
    for place, (label, colour) in enumerate(colours.items()):
        told = f"{html.escape(label)} ({tags[label]:.2f})" if label in tags else html.escape(label)
        yield f'<section><h2 style="border-color:{colour}" title="{html.escape(label)}"><span>{told}</span></h2>'
        yield '<div style="height:25px;overflow:clip">'
        for name, (columns, per_column) in pooled.items():
            width = scale.width(len(columns) * per_column * result.resolution_s)
            yield _image(png_url(columns[None, :, place], _SCORE), width, "", name)
        yield from (_event(event, colour, (21, 3), scale) for event in result.events if event.label == label)
        yield "</div></section>"


def _pooled(framewise: FramewiseScores, labels: Sequence[str], most: int) -> tuple[Floats, int]:
    """Return columns of scores f32 [at most `most`, n_labels] and how many scores each is the highest of."""
    places = [framewise.labels.index(label) for label in labels]
    n_scores = len(framewise.scores)
    per_column = max(1, math.ceil(n_scores / most))
    block = per_column * max(1, 4096 // per_column)  # the file is not read at once
    columns = []
    for first in range(0, n_scores, block):
        scores = framewise.scores[first : first + block][:, places]
        columns.append(np.maximum.reduceat(scores, np.arange(0, len(scores), per_column), axis=0))
    return np.concatenate(columns), per_column
