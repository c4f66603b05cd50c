"""Faults, settings, asynchronous errors, capture; run by tests/npu/test_simulator.py in a process of its own."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from probes import X, count
from torch_npu import simulator

pytest_plugins = ("probes",)


@pytest.mark.parametrize(
    ("kind", "error"), [("fp16", 2**-11), ("bf16", 2**-8), ("hf32", 2**-12), ("gain", 0.1), ("nan", None)]
)
def test_numeric_faults(kind: str, error: float | None):
    """Relative errors of the order of half the format's unit in the last place, and none without the fault."""
    torch.manual_seed(0)
    a = torch.randn(64, 64, dtype=torch.float64).float()
    exact = a.double() @ a.double().T

    def relative(found: torch.Tensor) -> float:
        return float((found.cpu().double() - exact).norm() / exact.norm())

    x = a.to("npu")
    assert relative(x @ x.T) < 1e-6
    simulator.apply({"faults": [{"operators": "aten::(mm|matmul)", "kind": kind, "amount": 1.1}]})
    assert relative(x.abs() - x.abs() + exact.float().to("npu")) < 1e-6  # other operators are left alone
    found = relative(x @ x.T)
    if error is None:
        assert math.isnan(found)
    else:
        assert error / 4 < found < 2 * error
    assert simulator.report()["fault_hits"] == {f"aten::matmul {kind}": 1}


def relative_errors() -> tuple[float, float]:
    torch.manual_seed(0)
    a = torch.randn(1, 64, 64)
    x = a.to("npu")
    matmul, conv = x @ x, torch.nn.functional.conv1d(x, x.view(64, 64, 1))
    wanted = a @ a, torch.nn.functional.conv1d(a, a.view(64, 64, 1))
    return tuple(float((f.cpu() - w).norm() / w.norm()) for f, w in zip((matmul, conv), wanted, strict=True))


def test_float32_is_not_float32_under_the_defaults(monkeypatch: pytest.MonkeyPatch):
    """910B convolves in HF32 until told otherwise; 310P multiplies in fp16, or not at all."""
    assert max(relative_errors()) < 1e-6
    simulator.restart()
    matmul, conv = relative_errors()
    assert matmul < 1e-6
    assert 1e-5 < conv < 1e-3
    torch.npu.conv.allow_hf32 = False
    assert max(relative_errors()) < 1e-6
    torch.npu.matmul.allow_hf32 = True
    assert relative_errors()[0] > 1e-5
    monkeypatch.setenv("NPU_SIMULATOR_SOC", "310P3")
    simulator.restart()
    torch.npu.matmul.allow_hf32 = False
    assert min(relative_errors()) > 1e-5
    torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
    for product in (torch.mm, torch.nn.functional.linear):
        with pytest.raises(RuntimeError, match="161002"):
            product(torch.ones(2, 2, device="npu"), torch.ones(2, 2, device="npu"))
        half = torch.ones(2, 2, device="npu", dtype=torch.float16)
        assert product(half, half).cpu().tolist() == [[2, 2], [2, 2]]
    with pytest.raises(RuntimeError, match="161002"):
        torch.nn.functional.conv1d(torch.ones(1, 1, 4, device="npu"), torch.ones(1, 1, 2, device="npu"))


def test_settings_are_kept_in_order():
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.config.allow_internal_format = False
    torch.zeros(2, device="npu") + 1
    torch.npu.conv.allow_hf32 = False
    events = [(event["name"], event["value"], event["operators_before"]) for event in simulator.report()["events"]]
    assert events == [
        ("set_compile_mode.jit_compile", "False", 0),
        ("config.allow_internal_format", "False", 0),
        ("conv.allow_hf32", "False", 2),
    ]
    assert not torch.npu.conv.allow_hf32
    assert torch.npu.is_jit_compile_false()
    with pytest.raises(AttributeError):
        _ = torch.npu.config.allow_internal_format
    with pytest.raises(TypeError, match="must be a bool"):
        torch.npu.matmul.allow_hf32 = 1


def test_an_asynchronous_error_shows_once_and_late():
    x = X.to("npu")
    stale = x.exp().clone()
    before = stale.cpu()
    simulator.apply({"asynchronous_error": {"operators": "aten::exp", "call": 2}})
    x.exp()
    y = x.exp()  # fails on the device
    z = torch.relu(y)  # not computed
    stale.add_(1)
    with pytest.raises(RuntimeError, match=r"aten::exp\. Device npu:0: aicore exception 507015"):
        torch.npu.synchronize()
    torch.npu.synchronize()
    z.cpu()
    assert not torch.equal(z.cpu(), X.exp().relu())
    torch.testing.assert_close(stale.cpu(), before)  # neither written to nor complained of
    assert torch.zeros(1, device="npu:1").add(1).cpu() == 1  # another device goes on


@pytest.mark.parametrize("wait", ["item", "cpu", "to", "event", "empty_cache"])
def test_every_wait_tells_of_an_asynchronous_error(wait: str):
    x = X.to("npu")
    simulator.apply({"asynchronous_error": {"operators": "aten::exp"}})
    y = x.exp()
    waits = {
        "item": y[0, 0].item,
        "cpu": y.cpu,
        "to": partial(X.to, "npu"),
        "event": torch.npu.Event().synchronize,
        "empty_cache": torch.npu.empty_cache,
    }
    with pytest.raises(RuntimeError, match="aicore exception"):
        waits[wait]()
    waits[wait]()


def test_an_asynchronous_error_may_show_at_a_later_operator():
    x = X.to("npu")
    simulator.apply({"asynchronous_error": {"operators": "aten::exp", "after": 2}})
    x.exp()
    x.relu()
    x.relu()
    with pytest.raises(RuntimeError, match="current working operator name is aten::exp"):
        x.relu()
    x.relu()


def captured(function: Any) -> Any:
    graph = torch.npu.NPUGraph()
    with torch.inference_mode(), torch.npu.graph(graph):
        output = function()
    return graph, output


def test_a_capture_computes_at_replay():
    """Not before: outputs are undefined and written tensors unchanged until the first replay."""
    x, total = X.to("npu"), torch.zeros(3, 4, device="npu")

    def work() -> torch.Tensor:
        y = torch.softmax(x @ x.T, -1) @ x
        total.add_(y)
        total[:, :1] = y[:, :1]
        return y

    graph, output = captured(work)
    assert output.cpu().isnan().all()
    assert not total.cpu().any()
    for scale in (1, 2):
        x.copy_((X * scale).to("npu"))
        simulator.clear_record()
        graph.replay()
        expected = torch.softmax(X @ X.T * scale**2, -1) @ X * scale
        torch.testing.assert_close(output.cpu(), expected)
        torch.testing.assert_close(total.cpu()[:, 0], expected[:, 0])
        assert count("aten::matmul") == 2
    graph.reset()
    with pytest.raises(RuntimeError, match="expected a captured graph"):
        graph.replay()


@pytest.mark.parametrize(
    ("forbidden", "message"),
    [
        (torch.Tensor.cpu, "found device_to_host"),
        (lambda x: x + X.to("npu"), "found host_to_device"),
        (lambda x: x.sum().item(), "found item"),
        (lambda x: torch.npu.synchronize(x.device), "found device"),
        (torch.nonzero, "found aten::nonzero"),
    ],
)
def test_what_cannot_be_captured_is_refused(forbidden: Any, message: str):
    x = X.to("npu")
    with pytest.raises(RuntimeError, match=message):
        captured(lambda: forbidden(x))
    assert not torch.npu.is_current_stream_capturing()
    torch.testing.assert_close(x.relu().cpu(), X.relu())


def test_faults_and_errors_reach_a_replay():
    x = X.to("npu")
    graph, output = captured(x.exp)
    simulator.apply({"faults": [{"operators": "aten::exp", "kind": "gain", "amount": 2.0}]})
    graph.replay()
    torch.testing.assert_close(output.cpu(), 2 * X.exp())
    simulator.apply({"asynchronous_error": {"operators": "aten::exp"}})
    graph.replay()
    with pytest.raises(RuntimeError, match="aicore exception"):
        output.cpu()


def test_events_need_timing_and_a_record():
    start, end, plain = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True), torch.npu.Event()
    start.record()
    with pytest.raises(RuntimeError, match="must be recorded"):
        start.elapsed_time(end)
    end.record()
    assert start.elapsed_time(end) >= 0
    plain.record()
    with pytest.raises(RuntimeError, match="enable_timing"):
        start.elapsed_time(plain)


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="expected one of fp16"):
        simulator.apply({"faults": [{"operators": "aten::mm", "kind": "int4"}]})
    with pytest.raises(ValueError, match="control: expected deny"):
        simulator.apply({"denied": []})
