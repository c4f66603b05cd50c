"""Devices, memory, operators, records; run by tests/npu/test_simulator.py in a process of its own."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
import torch_npu
from probes import X, count, device_copies
from torch_npu import simulator

pytest_plugins = ("probes",)


def test_it_says_that_it_is_simulated():
    assert torch_npu.__version__.endswith("+simulated")
    from torch_npu.npu.utils import get_cann_version

    assert get_cann_version() == "simulated"


@pytest.mark.parametrize("soc", ["910B4", "310P3"])
def test_name_and_number(soc: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NPU_SIMULATOR_SOC", soc)
    assert torch.npu.get_device_name(0) == f"Ascend{soc}"
    assert torch.npu.device_count() == 2
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    assert torch.npu.device_count() == 1
    with pytest.raises(AssertionError, match="Invalid device id 1"):
        torch.npu.get_device_name(1)


def test_two_devices_do_not_mix():
    first, second = X.to("npu:0"), X.to("npu:1")
    assert (first.device.index, second.device.index) == (0, 1)
    assert (second + second).device == second.device
    with pytest.raises(RuntimeError, match=r"npu:0 and npu:1! \(operator aten::add\.Tensor\)"):
        first + second
    torch.testing.assert_close(second.to("npu:0").cpu(), X)
    with pytest.raises(RuntimeError, match="Invalid device id npu:2"):
        X.to("npu:2")


def test_fresh_memory_is_nan():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.empty(5, dtype=dtype, device="npu").cpu().isnan().all()
    kept = X.to("npu").exp()
    del kept  # a block that comes back is poisoned again
    assert torch.empty(3, 4, device="npu").cpu().isnan().all()
    assert torch.zeros(3, device="npu").cpu().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + X,
        lambda x: torch.cat([x, X]),
        lambda x: x @ X.T,
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: torch.embedding(X, x[0, :1].long()),
        lambda x: x.clone().add_(X),
        lambda x: torch.stack([x[0], X[1]]),
        lambda x: torch.nn.functional.linear(x, X),
        lambda x: torch.mm(x, torch.tensor(2.0)),
    ],
)
def test_a_tensor_on_the_cpu_is_an_error(mixed: Any):
    with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device.*operator aten::\w+"):
        mixed(X.to("npu"))


def test_scalars_may_lie_on_the_cpu():
    x = X.to("npu")
    torch.testing.assert_close((x * torch.tensor(2.0)).cpu(), X * 2)
    torch.testing.assert_close(torch.where(x > 0, x, torch.tensor(0.0)).cpu(), X.relu())


def test_operators_give_what_the_cpu_gives():
    x = X.to("npu")
    for function in (
        lambda t: torch.softmax(t @ t.T, -1),
        torch.nn.functional.gelu,
        torch.isnan,
        lambda t: t.t().contiguous().view(-1)[3:7],
        lambda t: torch.cat([t, t], 1).max(dim=1).values,
        lambda t: t.clone().mul_(3).masked_fill_(t > 0, 7.0),
        lambda t: torch.zeros_like(t).copy_(t)[:, 1:3],
        lambda t: t.half().float() + torch.arange(4, device=t.device),
        lambda t: torch.mul(t, t, out=torch.empty(0, device=t.device)),
        lambda t: torch.nn.functional.conv1d(t[None], t.view(2, 3, 2), padding=1),
        lambda t: torch.nn.functional.scaled_dot_product_attention(t[None], t[None], t[None], t[:, :3] > 0),
        lambda t: torch.nn.functional.scaled_dot_product_attention(t[None], t[None], t[None], t[:, :3]),
    ):
        torch.testing.assert_close(function(x).cpu(), function(X))


def test_convolution_overrideable():
    weight = X.view(2, 3, 2)
    arguments = (None, [1], [0], [1], False, [0], 1)
    found = torch.ops.aten.convolution_overrideable(X[None].to("npu"), weight.to("npu"), *arguments)
    torch.testing.assert_close(found.cpu(), torch.convolution(X[None], weight, *arguments))


def test_attention_is_one_kernel_where_the_real_package_has_one(monkeypatch: pytest.MonkeyPatch):
    q = X.view(1, 1, 3, 4).to("npu")
    attention = torch.nn.functional.scaled_dot_product_attention
    for soc, mask, fused in (
        ("910B4", None, 1),
        ("910B4", q[..., :3] > 0, 1),
        ("910B4", q[..., :3], 0),
        ("310P3", None, 0),
    ):
        monkeypatch.setenv("NPU_SIMULATOR_SOC", soc)
        simulator.apply({})
        simulator.clear_record()
        attention(q, q, q, mask)
        assert count("aten::scaled_dot_product_attention") == fused, (soc, mask)
        assert bool(count("aten::matmul")) != fused


def test_no_bfloat16_on_310p(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NPU_SIMULATOR_SOC", "310P3")
    simulator.apply({})
    with pytest.raises(RuntimeError, match=r"aten::add\.Tensor' does not support DT_BFLOAT16 on Ascend310P3"):
        X.to("npu", torch.bfloat16) + 1


def test_operators_and_their_shapes_are_counted():
    x = X.to("npu")
    for length in (2, 3, 3):
        torch.nn.functional.gelu(x[:length])
    operators = simulator.report()["operators"]
    assert operators["aten::gelu"] == {"count": 3, "shapes": {"Float[2, 4]": 1, "Float[3, 4]": 2}}
    assert list(operators) == ["aten::gelu"]  # views are no work


def test_copies_and_waits_are_counted():
    x = X.to("npu")
    y = x.exp()
    assert device_copies() == {"host_to_device": 1}
    y.cpu()
    y.sum().item()
    torch.zeros(3, 4, device="npu")[1:] = y[1:]
    torch.npu.synchronize()
    torch.npu.Event().synchronize()
    report = simulator.report()
    assert device_copies() == {"host_to_device": 1, "device_to_host": 2, "device_to_device": 1}
    assert report["copies"]["device_to_host"]["shapes"] == {"Float[3, 4]": 1, "Float[]": 1}
    assert report["copies"]["device_to_host"]["bytes"] == 4 * 13
    assert report["synchronizations"] == {"device": 1, "device_to_host": 1, "event": 1, "host_to_device": 1, "item": 1}


def test_memory_statistics():
    torch.npu.empty_cache()
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    big = torch.zeros(1 << 18, device="npu")
    assert torch.npu.memory_allocated() - before == 1 << 20
    del big
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() - before == 1 << 20
    assert torch.npu.memory_reserved() >= before + (1 << 20)
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() == torch.npu.memory_allocated()
    free, total = torch.npu.mem_get_info()
    assert total - free == torch.npu.memory_reserved()
    assert torch.npu.memory_allocated(1) == 0


def test_memory_ends():
    simulator.apply({"memory_bytes": 1 << 20})
    with pytest.raises(torch.OutOfMemoryError, match=r"NPU out of memory\. Tried to allocate 4194304 bytes on npu:0"):
        torch.empty(1 << 20, device="npu")


def test_a_denied_operator_fails_by_name():
    simulator.apply({"deny": ["aten::gelu"]})
    torch.relu(X.to("npu"))
    with pytest.raises(RuntimeError, match="'aten::gelu' is not supported on Ascend910B4"):
        torch.nn.functional.gelu(X.to("npu"))


def test_a_fallback_fails_or_warns(monkeypatch: pytest.MonkeyPatch):
    """torch_npu 2.13 has no kernel for bessel_j0."""
    x = X.to("npu")
    with pytest.raises(
        RuntimeError, match=r"'aten::special_bessel_j0.out' is .*disabled by TORCH_NPU_FALLBACK_CPU_DISABLE=1"
    ):
        torch.special.bessel_j0(x)
    simulator.clear_record()
    for known in (True, False):
        monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "0" if known else "1")
        simulator.apply({"ignores_fallback_variable": not known})
        with pytest.warns(
            UserWarning, match=r"CAUTION: The operator 'aten::special_bessel_j0.out'.*will fall back to run"
        ):
            y = torch.special.bessel_j0(x)
    assert simulator.report()["fallbacks"]["aten::special_bessel_j0.out"]["count"] == 2
    # Input and output go to the host, the output comes back.
    assert device_copies() == {"device_to_host": 4, "host_to_device": 2}
    torch.testing.assert_close(y.cpu(), torch.special.bessel_j0(X))
    simulator.apply({"without_kernel": ["aten::exp"]})
    with pytest.raises(RuntimeError, match="'aten::exp' is not currently supported"):
        x.exp()


def test_a_traced_device_is_caught():
    """map_location moves weights, not the device that tracing has baked in."""

    class Baked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(4, dtype=x.dtype)

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Baked(), X), file)
        file.seek(0)
        loaded = torch.jit.load(file, map_location="npu:0")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        loaded(X.to("npu"))
