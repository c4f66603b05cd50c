"""Power by npu-smi: a program that prints what a real one printed stands in for it."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path

import pytest
from npu_smi_program import SAMPLES, printed, printing, write_program

from runtime.npu_smi import parse_npu_smi
from verify.power import power_at_work, power_now

# As the samples print them: tenths of watts, which `npu-smi info` makes of what the DCMI returns ("The unit is 0.1 W":
# dcmi_get_device_power_info.md in hicann/driver, commit 999c25d; npucli/src/npu_chip_info.c prints %.1f of it).
WATTS = {
    "24.1.rc3_910B4_multi.txt": [93.7, 94.3, 86.0, 87.5],
    "25.5.1_310P3_duo.txt": [None, None, None, None],
    "25.2.0_910_93.txt": [211.3, None, 160.7, None],
    "25.5.2_910B4.txt": [89.9],
}


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize("name", [path.name for path in SAMPLES.iterdir()])
def test_watts_stand_below_their_label(name: str) -> None:
    found = [chip.power_w for chip in parse_npu_smi(printed(name)).chips]
    assert found == WATTS.get(name, found)
    # Whatever the layout, a number of the table or none.
    assert all(watts is None or f" {watts:.1f} " in printed(name) for watts in found)


def test_the_device_that_is_read_is_the_one_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    on_path(monkeypatch, printing(tmp_path / "bin", printed("24.1.rc3_910B4_multi.txt")))
    assert [power_now(f"npu:{index}") for index in range(5)] == [93.7, 94.3, 86.0, 87.5, None]
    assert power_now("cpu") is None
    assert power_now("cuda:0") is None
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "3,1")
    assert [power_now(f"npu:{index}") for index in range(3)] == [87.5, 94.3, None]


def test_without_npu_smi_nothing_is_read_or_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path(monkeypatch, tmp_path)
    assert power_now("npu:0") is None
    assert power_at_work("npu:0", None, lambda: pytest.fail("for nothing")) is None


@pytest.mark.slow
def test_every_reading_is_of_a_device_at_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The program prints another value at each call, and takes its time; what is done meanwhile is counted."""
    table = shlex.quote(printed("25.5.2_910B4.txt"))
    count = tmp_path / "count"
    script = (
        f'echo x >> {count}; sleep 0.2; printf %s {table} | sed "s/| 89.9 /| $(wc -l < {count})00.5/"\n'
        f'test "$(wc -l < {count})" -lt 4'
    )
    on_path(monkeypatch, write_program(tmp_path / "bin", script))
    idle = power_now("npu:0")
    assert idle == 100.5
    worked: list[float] = []

    def work() -> None:
        assert threading.current_thread() is threading.main_thread()
        time.sleep(0.01)
        worked.append(time.monotonic())

    # The fourth call fails: what was read until then is told.
    power = power_at_work("npu:0", idle, work)
    assert power is not None
    assert power.busy_w == (200.5, 300.5)
    assert (power.idle_w, power.mean_w, power.max_w) == (100.5, 250.5, 300.5)
    assert len(worked) > 3


def test_work_that_fails_ends_the_readings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.touch()
    table = shlex.quote(printed("25.5.2_910B4.txt"))
    on_path(monkeypatch, write_program(tmp_path / "bin", f"echo x >> {count}; printf %s {table}"))
    before = set(threading.enumerate())

    def work() -> None:
        raise OSError("the device is gone")

    with pytest.raises(OSError, match="the device is gone"):
        power_at_work("npu:0", 50.0, work)
    for reader in set(threading.enumerate()) - before:
        reader.join(60)
        assert not reader.is_alive()
    assert len(count.read_text()) <= len("x\n")
