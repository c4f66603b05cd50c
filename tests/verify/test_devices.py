"""Verdicts over several devices, a device's failure, and what is put together from several engines."""

from __future__ import annotations

import pytest

from runtime.engines.probe import DeviceFacts, is_simulated
from runtime.errors import DeviceFailedError, InputError
from verify.devices import failed_section, merged, overall_of_devices, parse_devices, verify_on_device
from verify.inference import EngineInference
from verify.results import EngineAccuracy, Verdict

NOTHING = EngineInference(engine="torchscript", device="npu:0", recordings=())


def section(verdict: Verdict, device: str = "npu:0") -> EngineAccuracy:
    return EngineAccuracy(engine="torchscript", device=device, verdict=verdict, reason="")


def failed(facts: DeviceFacts | None = None) -> EngineAccuracy:
    error = DeviceFailedError("npu:0", "aicore exception", "step", "step_4", "aten::addmm")
    return failed_section("torchscript", "npu:0", error, facts)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([("pass", "npu:0"), ("pass", "npu:1")], "pass"),
        ([("pass", "npu:0"), ("blocked", "npu:0")], "pass"),
        # A device on which nothing could be run is not verified by the other one.
        ([("pass", "npu:0"), ("blocked", "npu:1")], "blocked"),
        ([("pass", "npu:0"), ("fail", "npu:1"), ("blocked", "npu:2")], "fail"),
        ([("blocked", "npu:0")], "blocked"),
    ],
)
def test_every_device_counts(verdicts: list[tuple[Verdict, str]], expected: Verdict) -> None:
    assert overall_of_devices([section(*verdict) for verdict in verdicts]) == expected


def test_a_failed_device_says_where() -> None:
    found = failed(DeviceFacts(simulated=True, flags={"a": "b"}, versions={"torch_npu": "1"}))
    assert found.verdict == "fail"
    assert found.device_failure is not None
    assert found.device_failure.model_dump() == {
        "graph": "step",
        "case": "step_4",
        "operator": "aten::addmm",
        "reason": "aicore exception",
    }
    assert "graph step, case step_4, operator aten::addmm: aicore exception" in found.reason
    assert found.simulated
    assert (found.flags, found.versions) == ({"a": "b"}, {"torch_npu": "1"})
    assert found.gates == found.cases == found.recordings == ()


@pytest.mark.parametrize(
    ("restart", "attempts", "calls", "verdict"),
    [
        (False, [failed()], 1, "fail"),
        (True, [failed(), section("pass")], 2, "pass"),
        (True, [failed(), failed(), section("pass")], 2, "fail"),
        (True, [section("fail"), section("pass")], 1, "fail"),
    ],
)
def test_restart_is_for_devices_and_once(
    restart: bool,  # noqa: FBT001
    attempts: list[EngineAccuracy],
    calls: int,
    verdict: Verdict,
) -> None:
    left = iter(attempts)
    found, _ = verify_on_device(lambda: (next(left), NOTHING), restart=restart)
    assert found.verdict == verdict
    assert found.restarted is (calls == 2)
    assert len(list(left)) == len(attempts) - calls


def test_devices_of_a_list() -> None:
    assert parse_devices("npu:0, npu:1,npu:0") == ["npu:0", "npu:1"]
    for text in ("", "npu:0,", "npu:0;npu:1", "npu"):
        with pytest.raises(InputError, match="expected cpu, cuda:N or npu:N"):
            parse_devices(text)


def test_what_differs_is_all_told() -> None:
    parts = [{"soc": "Ascend910B4", "a": "1"}, {"soc": "Ascend310P3", "a": "1"}, {}]
    assert merged(parts) == {"soc": "Ascend910B4, Ascend310P3", "a": "1"}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"torch_npu": "2.13.0", "cann": "8.5.1"}, False),
        ({"torch_npu": "2.13.0+simulated"}, True),
        ({"torch_npu": "2.13.0", "cann": "8.5.1.simulated"}, True),
    ],
)
def test_stand_ins_have_it_in_a_version(versions: dict[str, str], expected: bool) -> None:  # noqa: FBT001
    assert is_simulated(versions) is expected
