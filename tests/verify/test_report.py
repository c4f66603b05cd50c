"""The report: complete, escaped, self-contained, and of this artifact only."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade import HOSTILE, artifact, results

from runtime.errors import InputError
from verify.marked import marked
from verify.metrics import statistics
from verify.report import duration, latency_plot, number, render_report
from verify.results_folder import Results
from verify.timings import DeviceMemory, Power


class Page(HTMLParser):
    """Collects tags, attributes and text; complains of tags that do not close."""

    VOID = frozenset({"meta", "br", "line", "circle", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "xlink:href")]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data + " "


@pytest.fixture
def page(tmp_path: Path) -> Page:
    made = artifact(tmp_path)
    return Page(render_report(made, results(made, error=3e-3, heard=f"set a timer {HOSTILE}")))


def words(page: Page) -> str:
    return " ".join(page.text.split())


def test_hostile_text_stays_text(page: Page) -> None:
    assert "script" not in page.tags
    assert "<script>alert('owned')</script>" in page.text


def test_self_contained(page: Page) -> None:
    assert page.links == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert "svg" in page.tags


def test_verdict_gates_and_engines(page: Page) -> None:
    text = words(page)
    assert "Not verified: torchscript failed; blocked: pt2" in text
    assert "structure.relative_l2 0.003 > 0.0001 at encoder/speech out_0" in text
    assert "pt2 : torch is too old" in text


def test_raw_errors_are_there(page: Page) -> None:
    text = words(page)
    assert "raw mean" in text
    assert "0.012" in text, "raw mean relative error, by hand 4 x 3e-3"
    assert "1.5" in text, "raw max relative error, by hand 500 x 3e-3"


def test_source_and_hashes(page: Page) -> None:
    text = words(page)
    for fact in ("Apache-2.0", "example/whisper-hand", "0123abc", "b" * 64, "a" * 64, "transformers 5.23.0"):
        assert fact in text


def test_random_weights_are_said(tmp_path: Path) -> None:
    trained, random = (artifact(tmp_path, weights) for weights in ("trained", "random"))
    assert "Random weights." not in render_report(trained, results(trained))
    assert "Random weights." in render_report(random, results(random))


def test_times_of_a_simulated_device_are_not_shown(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = results(made)
    real = words(Page(render_report(made, found)))
    accuracy = found.accuracy.model_copy(update={"simulated": True})
    text = words(Page(render_report(made, Results(accuracy, found.performance, found.inference, found.environment))))
    assert "Simulated device." in text
    assert "Simulated device." not in real
    assert "Speed and memory not run" in text
    numbers = [number(engine.end_to_end.rtf) for engine in found.performance.engines if engine.end_to_end]
    assert numbers
    assert all(value in real.split() for value in numbers)
    assert not any(value in text.split() for value in numbers)


def test_device_times_and_memory(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = results(made)
    held = DeviceMemory(allocated=11 * 2**20, reserved=33 * 2**20, peak=22 * 2**20)
    engines = tuple(
        engine.model_copy(
            update={
                "device": "npu:0",
                "device_memory": held,
                "power": Power(idle_w=65.5, busy_w=(92.0,), mean_w=92.0, max_w=95.0),
                "graphs": {
                    name: latency.model_copy(update={"device_s": statistics([0.0477, 0.0477])})
                    for name, latency in engine.graphs.items()
                },
            }
        )
        for engine in found.performance.engines
    )
    changed = found.performance.model_copy(update={"engines": engines})
    text = words(Page(render_report(made, Results(found.accuracy, changed, found.inference, found.environment))))
    for fact in ("11.0 MiB", "33.0 MiB", "22.0 MiB", "47.7 ms", "65.5 W", "92 W", "95 W"):
        assert fact in text


def test_two_devices_stand_side_by_side(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = results(made)
    first = found.accuracy.engines[0].model_copy(update={"device": "npu:0"})
    second = first.model_copy(update={"device": "npu:1", "verdict": "fail", "reason": "npu:1 failed", "gates": ()})
    accuracy = found.accuracy.model_copy(update={"engines": (first, second)})
    text = words(Page(render_report(made, Results(accuracy, found.performance, found.inference, found.environment))))
    assert f"{first.engine} on npu:0" in text
    assert f"{first.engine} on npu:1 : npu:1 failed" in text


def test_what_was_not_measured_is_not_run(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = results(made)
    untimed = Results(
        found.accuracy, found.performance.model_copy(update={"engines": ()}), found.inference, found.environment
    )
    text = words(Page(render_report(made, untimed)))
    assert "Speed and memory not run" in text
    assert latency_plot(untimed.performance) is None


def test_plot_is_inside_its_frame(tmp_path: Path) -> None:
    plot = latency_plot(results(artifact(tmp_path)).performance)
    assert plot is not None
    assert all(0 <= x <= plot.width for row in plot.rows for x in (row.cold, row.p50, row.p99, *row.warm))
    assert all(row.y < plot.height for row in plot.rows)
    decades = [label for _, label in plot.ticks]
    assert decades == ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]


def test_differences_are_marked() -> None:
    assert marked("set a timer", "set the timer now", strict=True) == (
        ("same", "set"),
        ("removed", "a"),
        ("added", "the"),
        ("same", "timer"),
        ("added", "now"),
    )
    assert marked("hello there", "Hello, there!", strict=False) == (("same", "Hello, there!"),)
    assert marked("", "", strict=True) == (("same", ""),)
    assert marked("hello", "", strict=True) == (("removed", "hello"),)
    assert len(marked("hello there", "Hello, there!", strict=True)) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not run"),
        (0.0, "0"),
        (3, "3"),
        (1e-4, "1.00e-04"),
        (0.0421, "0.0421"),
        (math.inf, "∞"),
        (123456.5, "1.23e+05"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "not run"), (2.5, "2.5 s"), (0.0123, "12.3 ms"), (4e-5, "40 µs")]
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_results_of_another_export_are_refused(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = results(made)
    folder = tmp_path / "results"
    folder.mkdir()
    for name, file in (
        ("accuracy.json", found.accuracy),
        ("performance.json", found.performance),
        ("inference.json", found.inference),
        ("env_info.json", found.environment),
    ):
        (folder / name).write_text(file.model_dump_json())
    assert Results.read(made) == found
    with pytest.raises(InputError, match=re.escape("run `atlasport verify` again")):
        Results.read(artifact(tmp_path, "random"))
    (folder / "accuracy.json").write_text("{}")
    with pytest.raises(InputError, match=r"accuracy\.json"):
        Results.read(made)
    (folder / "accuracy.json").unlink()
    with pytest.raises(InputError, match="found none"):
        Results.read(made)
