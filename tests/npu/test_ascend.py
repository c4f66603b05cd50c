"""What is read of an Ascend machine: npu-smi's tables of several versions, driver and CANN files, environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from npu_smi_program import SAMPLES, printed, printing, write_program

from runtime.ascend import ascend_facts, cann_release, cann_toolkit, driver_version, soc_family
from runtime.npu_smi import parse_board, parse_npu_smi, read_npu_smi

MIB = 2**20

# sample: npu-smi's version, the driver's, and card, chip, SoC, health, used and total MiB of each chip.
EXPECTED = {
    "22.0.0_310P3.txt": ("22.0.0", "22.0.2", [(0, 0, "Ascend310P3", "OK", 4060, 21534)]),
    "22.0.4_910A.txt": ("22.0.4.1", "22.0.4.1", [(0, 0, "Ascend910A", "OK", 0, 32768)]),
    "23.0.rc3_310B4.txt": ("23.0.rc3", "23.0.rc3", [(0, 0, "Ascend310B4", "Alarm", 2166, 3513)]),
    "23.0.7_910B3_warning.txt": (
        "23.0.7",
        "23.0.7",
        [
            (0, 0, "Ascend910B3", "OK", 3338, 65536),
            (1, 0, "Ascend910B3", "Warning", 3337, 65536),
            (2, 0, "Ascend910B3", "Critical", 3336, 65536),
        ],
    ),
    "24.1.rc3_910B4_multi.txt": (
        "24.1.rc3",
        "24.1.rc3",
        [
            (0, 0, "Ascend910B4", "OK", 29844, 32768),
            (3, 0, "Ascend910B4", "OK", 2842, 32768),
            (4, 0, "Ascend910B4-1", "OK", 2841, 65536),
            (5, 0, "Ascend910B4", "OK", 2843, 32768),
        ],
    ),
    "25.2.0_910_93.txt": (
        "25.2.0",
        "25.2.0",
        [
            (0, 0, "Ascend910", "OK", 3109, 65536),
            (0, 1, "Ascend910", "OK", 2886, 65536),
            (1, 0, "Ascend910", "OK", 3103, 65536),
            (1, 1, "Ascend910", "OK", 2885, 65536),
        ],
    ),
    "25.5.1_310P3_duo.txt": (
        "25.5.1",
        "25.5.1",
        [
            (1, 0, "Ascend310P3", "OK", 1448, 44278),
            (1, 1, "Ascend310P3", "OK", 1511, 43693),
            (2, 0, "Ascend310P3", "OK", 1392, 44278),
            (2, 1, "Ascend310P3", "OK", 1500, 43693),
        ],
    ),
    "25.5.2_910B4.txt": ("25.5.2", "25.5.2", [(5, 0, "Ascend910B4", "OK", 2922, 32768)]),
    "26.0.rc1_950.txt": ("26.0.rc1", "26.0.rc1", [(0, 0, "Ascend950PR", "OK", 3103, 114688)]),
    "24.1.0_no_devices.txt": ("24.1.0", "24.1.0", []),
}
NO_TABLE = {"25.2.0_910_93_board.txt", "dcmi_failed.txt"}


@pytest.fixture
def no_ascend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment that names nothing of Ascend, and a home without any."""
    for name in list(os.environ):
        if name.startswith(("ASCEND", "ACL_", "TORCH_DEVICE", "TORCH_NPU", "PYTORCH_NPU")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_every_sample_is_expected() -> None:
    assert {path.name for path in SAMPLES.iterdir()} == EXPECTED.keys() | NO_TABLE


@pytest.mark.parametrize("name", EXPECTED)
def test_tables_of_several_versions(name: str) -> None:
    version, driver, chips = EXPECTED[name]
    result = parse_npu_smi(printed(name))
    assert (result.version, result.driver) == (version, driver)
    found = [
        (chip.npu, chip.chip, chip.soc, chip.health, (chip.memory_used or 0) // MIB, (chip.memory_total or 0) // MIB)
        for chip in result.chips
    ]
    assert found == chips
    assert (result.problem is None) == bool(chips)


def test_values_follow_their_labels_not_their_places() -> None:
    table = printed("25.5.2_910B4.txt")
    moved = table.replace("Memory-Usage(MB)  HBM-Usage(MB) ", "HBM-Usage(MB)  Memory-Usage(MB) ")
    moved = moved.replace("0    / 0          2922 / 32768", "2922 / 32768      0    / 0    ")
    assert moved != table
    assert parse_npu_smi(moved) == parse_npu_smi(table)
    # The values alone in other places are read as what the label says: 0 of 0 is no memory.
    swapped = table.replace("0    / 0          2922 / 32768", "2922 / 32768      0    / 0    ")
    assert parse_npu_smi(swapped).chips[0].memory_total == 32768 * MIB  # Memory-Usage(MB), since HBM has none
    gone = table.replace("2922 / 32768", "0    / 0    ")
    assert parse_npu_smi(gone).chips[0].memory_total is None


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("| 3     910B4               |", "| 3                         |", "expected NPU Name"),
        ("| 3     910B4               |", "| x     910B4               |", "number for NPU"),
        ("| OK            | 94.3 ", "| 0K            | 94.3 ", "word for Health"),
        ("| 0                         | 0000:82:00.0  |", "| 0000:82:00.0  |", "expected 3 cells, found 2"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_the_others_are_kept(old: str, new: str, why: str) -> None:
    table = printed("24.1.rc3_910B4_multi.txt")
    assert table.count(old) == 1
    result = parse_npu_smi(table.replace(old, new))
    assert [chip.npu for chip in result.chips] == [0, 4, 5]
    assert result.problem is not None
    assert why in result.problem


def test_a_table_without_labels_is_not_guessed() -> None:
    table = "\n".join(line for line in printed("25.5.2_910B4.txt").splitlines() if "Bus-Id" not in line)
    result = parse_npu_smi(table)
    assert result.chips == ()
    assert result.problem is not None
    assert "labels" in result.problem


def test_the_number_of_a_910_93_comes_from_its_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = printed("25.2.0_910_93_board.txt")
    assert parse_board(board)["NPU Name"] == "9392"
    on_path(monkeypatch, printing(tmp_path / "a", printed("25.2.0_910_93.txt"), board))
    assert {chip.soc for chip in read_npu_smi().chips} == {"Ascend910_9392"}
    # Without an answer the family is all that is known.
    on_path(monkeypatch, printing(tmp_path / "b", printed("25.2.0_910_93.txt")))
    assert {chip.soc for chip in read_npu_smi().chips} == {"Ascend910_93"}


@pytest.mark.parametrize(
    ("script", "parts"),
    [
        (f"cat <<'END'\n{printed('dcmi_failed.txt')}END\nexit 0", ("dcmi module initialize failed", "driver")),
        (f"cat <<'END' >&2\n{printed('dcmi_failed.txt')}END\nexit 247", ("failed with 247", "dcmi module")),
        ("exit 1", ("failed with 1", "nothing")),
        ("true", ("expected a table", "found nothing")),
        (r"printf '\377\376\000garbage'", ("expected a table", "garbage")),
        ("kill -SEGV $$", ("failed with -11",)),
    ],
)
def test_a_program_that_fails_or_prints_something_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, parts: tuple[str, ...]
) -> None:
    on_path(monkeypatch, write_program(tmp_path, script))
    result = read_npu_smi()
    assert result.chips == ()
    assert result.problem is not None
    assert "\n" not in result.problem
    for part in ("npu-smi", *parts):
        assert part in result.problem


def test_a_program_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    on_path(monkeypatch, write_program(tmp_path, f"sleep 600 & echo $! > {pid}; wait"))
    result = read_npu_smi(timeout_s=2)
    assert result.problem is not None
    assert "no answer within 2 s" in result.problem
    child = Path("/proc") / pid.read_text().strip()
    for _ in range(100):  # the kernel needs a moment
        if not child.exists() or "zombie" in (child / "status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the program's child still runs")


def test_no_program_and_one_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_path(monkeypatch, tmp_path)
    assert "not found on PATH" in (read_npu_smi().problem or "")
    program = tmp_path / "npu-smi"
    program.write_bytes(b"\x7fELF not a program")
    program.chmod(0o755)
    assert "does not start" in (read_npu_smi().problem or "")


def test_nothing_of_ascend(no_ascend: Path) -> None:
    facts = ascend_facts(no_ascend / "none")
    assert (facts.driver, facts.cann, facts.cann_path, facts.variables) == (None, None, None, {})
    assert facts.chip(0) is None
    assert facts.npu_smi.problem is not None


def test_driver_and_toolkit_files(no_ascend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = no_ascend / "Ascend"
    (root / "driver").mkdir(parents=True)
    version_info = root / "driver" / "version.info"
    version_info.write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    assert driver_version(root) == "25.2.0"
    version_info.write_text("Version=7.35.23\npackage_version=26.0.rc1\n")
    assert driver_version(root) == "26.0.rc1"

    latest = root / "ascend-toolkit" / "latest"
    (latest / "runtime").mkdir(parents=True)
    (latest / "runtime" / "version.info").write_text("Version=7.6.0.1.220:8.0.0\n")
    assert cann_toolkit(root) == ("8.0.0", latest)
    (latest / "aarch64-linux").mkdir()
    (latest / "aarch64-linux" / "ascend_toolkit_install.info").write_text(
        "package_name=Ascend-cann-toolkit\nversion=8.3.RC2\ninnerversion=V100R001C23\n"
    )
    assert cann_toolkit(root) == ("8.3.RC2", latest)
    own = no_ascend / "cann-8.5.1"
    own.mkdir()
    (own / "ascend_toolkit_install.info").write_text("version=8.5.1\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(own))
    facts = ascend_facts(root)
    assert (facts.cann, facts.cann_path, facts.driver) == ("8.5.1", str(own), "26.0.rc1")
    assert facts.to_strings()["cann"] == "8.5.1"


@pytest.mark.parametrize(
    ("visible", "npus"),
    [(None, [0, 3, 4, 5, None]), ("2", [4, None]), ("3,0", [5, 0, None]), ("", [None]), ("9", [None])],
)
def test_visible_devices_renumber(
    no_ascend: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, npus: list[int | None]
) -> None:
    on_path(monkeypatch, printing(no_ascend / "bin", printed("24.1.rc3_910B4_multi.txt")))
    if visible is not None:
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", visible)
    facts = ascend_facts(no_ascend / "none")
    chips = [facts.chip(index) for index in range(len(npus))]
    assert [chip and chip.npu for chip in chips] == npus
    assert facts.driver == "24.1.rc3"


def test_the_driver_of_npu_smi_counts_before_the_file(no_ascend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(monkeypatch, printing(no_ascend / "bin", printed("22.0.0_310P3.txt")))
    strings = ascend_facts(no_ascend / "none").to_strings()
    assert (strings["driver"], strings["npu_smi"], strings["soc"]) == ("22.0.2", "22.0.0", "Ascend310P3")


@pytest.mark.parametrize(
    ("soc", "expected"),
    [
        ("Ascend910B4-1", ("910B", True, True, True)),
        ("Ascend910_9392", ("910_93", True, True, True)),
        ("Ascend310P3", ("310P", True, False, False)),
        ("Ascend310B4", ("310B", False, True, False)),
    ],
)
def test_families_of_socs(soc: str, expected: tuple[str, bool, bool, bool]) -> None:
    found = soc_family(soc)
    assert found is not None
    assert (found.name, found.torch_npu, found.fp32, found.bf16) == expected


def test_an_unknown_soc_has_no_family() -> None:
    assert soc_family("Ascend950PR") is None
    assert soc_family("Ascend910A") is None


@pytest.mark.parametrize(
    ("text", "release"), [("8.5.1", (8, 5)), ("8.3.RC2", (8, 3)), ("9.1.0-beta.2", (9, 1)), ("unknown", None)]
)
def test_releases_of_cann(text: str, release: tuple[int, int] | None) -> None:
    assert cann_release(text) == release


def test_facts_import_neither_torch_nor_torch_npu() -> None:
    code = "import sys, runtime.ascend; runtime.ascend.ascend_facts(); print([m for m in sys.modules if 'torch' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
