"""What is recorded, what is copied, what is checked and what is refused; the device here is one of host memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_artifact import seal, write_toy

from export.graphs import GraphDefinition
from export.writers.torchscript import write_torchscript
from runtime.artifact import open_artifact
from runtime.engines.base import EngineSettings
from runtime.engines.capture import CapturedGraph
from runtime.engines.devices.cpu import CpuDevice
from runtime.engines.onnxruntime import OnnxRuntimeEngine
from runtime.engines.torch import TorchScriptEngine
from runtime.errors import EnvironmentNotFitError, InputError
from runtime.manifest import TensorSpec


class ReplayingDevice(CpuDevice):
    """Replays by running the recorded call's work again into the memory of its outputs, as a device does.

    `fault` spoils that: "baked" keeps what was recorded, "gain" computes something else.
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__("cpu", EngineSettings())
        self.fault = fault
        self.recorded = 0

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:  # type: ignore[override]
        self.recorded += 1
        call()
        places = call.__closure__
        assert places is not None
        captured = next(cell.cell_contents for cell in places if isinstance(cell.cell_contents, CapturedGraph))
        outputs = captured._outputs

        def replay() -> None:
            if self.fault == "baked":
                return
            call()
            for place, result in zip(outputs, captured._outputs, strict=True):
                with torch.inference_mode():
                    place.copy_(result * (1.01 if self.fault == "gain" else 1))
            captured._outputs = outputs

        return replay


def multiply(x: torch.Tensor, cache: torch.Tensor, cross: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x * cache.sum() + cross,)


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        cross = torch.arange(3.0)  # as a graph's output is
    return {"x": torch.ones(3), "cache": torch.arange(4.0), "cross": cross}


FIXED = {"cache", "cross"}


def captured(values: dict[str, torch.Tensor], fault: str = "") -> CapturedGraph:
    return CapturedGraph("step", ReplayingDevice(fault), multiply, values, FIXED)


def test_a_replay_sees_new_inputs_and_what_was_written_to_caches(values: dict[str, torch.Tensor]):
    graph = captured(values)
    assert graph(values)[0].tolist() == [6, 7, 8]
    values["cache"][0] = 4
    assert graph(values | {"x": 2 * values["x"]})[0].tolist() == [20, 21, 22]
    assert graph.fits(values, FIXED)


def test_the_next_window_needs_no_new_recording(values: dict[str, torch.Tensor]):
    graph = captured(values)
    with torch.inference_mode():
        later = values | {"cross": torch.full((3,), 10.0)}
    assert graph.fits(later, FIXED)
    assert graph(later)[0].tolist() == [16, 16, 16]
    assert graph(values)[0].tolist() == [6, 7, 8]


def test_what_may_be_written_elsewhere_is_recorded_anew(values: dict[str, torch.Tensor]):
    graph = captured(values)
    assert not graph.fits(values | {"cache": values["cache"].clone()}, FIXED)
    assert not graph.fits(values | {"cross": torch.ones(3)}, FIXED)
    assert not graph.fits(values | {"x": torch.ones(4)}, FIXED)
    assert not graph.fits(values, {"cache"})


@pytest.mark.parametrize("fault", ["baked", "gain"])
def test_a_replay_that_differs_is_refused(values: dict[str, torch.Tensor], fault: str):
    with pytest.raises(EnvironmentNotFitError, match="graph step: output 0 of the captured graph differs"):
        captured(values, fault)


def test_nan_is_no_agreement(values: dict[str, torch.Tensor]):
    values["x"][0] = torch.nan
    with pytest.raises(EnvironmentNotFitError, match="differs"):
        captured(values, "gain")


class OpenCache(torch.nn.Module):
    """x [1], cache [1, 1, rows, 2] -> y [2]."""

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        return x * cache[0, 0].sum(dim=0)


def test_a_bound_cache_of_open_length_is_captured_and_another_one_anew(tmp_path: Path):
    x = TensorSpec(name="x", dtype="float32", shape=(1,))
    cache = TensorSpec(name="cache", dtype="float32", shape=(1, 1, "rows", 2))
    y = TensorSpec(name="y", dtype="float32", shape=(2,))
    definition = GraphDefinition("step", OpenCache().eval(), (x, cache), (y,), {"rows": 1})
    files = {"torchscript": write_torchscript({"step": definition}, tmp_path / "model.ts")["step"]}
    seal(tmp_path, {"step": definition.signature(files)})
    engine = TorchScriptEngine(open_artifact(tmp_path))
    engine._capture, engine._device = True, (device := ReplayingDevice())

    def sums(rows: int) -> list[list[float]]:
        """Return 2 y before and after the rows are written."""
        bound = engine.zeros(cache.model_copy(update={"shape": (1, 1, rows, 2)}))
        call, two = engine.bind("step", {"cache": bound}), {"x": torch.full((1,), 2.0)}
        before = call(two)["y"].tolist()
        engine.write_rows(bound, torch.ones(1, 1, rows, 2), 0, rows)
        return [before, call(two)["y"].tolist()]

    assert sums(3) == [[0.0, 0.0], [6.0, 6.0]]
    assert device.recorded == 1
    assert sums(5) == [[0.0, 0.0], [10.0, 10.0]]
    assert device.recorded == 2
    engine.run("step", {"x": torch.ones(1), "cache": torch.ones(1, 1, 3, 2)})
    assert device.recorded == 2


def test_onnxruntime_and_cpu_capture_nothing(tmp_path: Path):
    from runtime.engines import open_engine

    artifact = open_artifact(write_toy(tmp_path / "toy"))
    assert isinstance(open_engine(artifact), OnnxRuntimeEngine)
    for name in ("onnxruntime", "torchscript", "pt2"):
        with pytest.raises(InputError, match=r"^capture: "):
            open_engine(artifact, name, settings=EngineSettings(capture=True))
