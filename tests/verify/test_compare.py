"""Two results side by side; every value that must be found worse was calculated by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from handmade import artifact, results

from runtime.errors import InputError
from verify.compare import compare_results
from verify.results_folder import Results

HEARD = "set a timer for twenty six minutes"


def write(folder: Path, found: Results) -> Path:
    folder.mkdir(parents=True)
    files = {"accuracy": found.accuracy, "performance": found.performance, "inference": found.inference}
    for name, file in (files | {"env_info": found.environment}).items():
        (folder / f"{name}.json").write_text(file.model_dump_json())
    return folder


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before", results(artifact(tmp_path)))


def test_the_same_results_have_no_difference(before: Path) -> None:
    found = compare_results(before, before)
    assert (found.changes, found.worse, found.notes) == ((), (), ())
    # Three verdicts, two engines with gates, rate, text, four graphs, RTF and memory.
    gates = len(Results.read_folder(before).accuracy.engines[0].gates)
    assert found.compared == 3 + 2 * (gates + 1 + 1 + 4 + 1 + 1)


@pytest.mark.parametrize(
    ("error", "margin", "worse"),
    [
        # Before, relative_l2 is 1e-6, which is 1 % of its limit of 1e-4; max_relative is twice that, of the same limit.
        (5e-6, 0.1, []),
        (7e-6, 0.1, ["structure.max_relative"]),
        (12e-6, 0.1, ["structure.relative_l2", "structure.max_relative"]),
        (12e-6, 0.3, []),
        (2e-4, 9.0, ["verdict", "structure.relative_l2", "structure.max_relative"]),
    ],
)
def test_a_gate_is_worse_by_its_share_of_the_limit(
    before: Path, tmp_path: Path, error: float, margin: float, worse: list[str]
) -> None:
    after = write(tmp_path / "after", results(artifact(tmp_path), error=error))
    found = compare_results(before, after, margin)
    names = [change.name.removeprefix("torchscript, ") for change in found.worse]
    assert [name for name in names if name.startswith(("verdict", "structure"))] == worse
    # The other way round nothing is worse, and the same values differ.
    back = compare_results(after, before, margin)
    assert back.worse == ()
    assert [change.name for change in back.changes] == [change.name for change in found.changes]


def test_another_text_is_shown_and_its_gate_is_worse(before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after", results(artifact(tmp_path), heard="set a timer for twenty"))
    found = compare_results(before, after)
    lines = [str(change) for change in found.changes]
    assert f"torchscript, text of short_en: {HEARD!r} -> 'set a timer for twenty'" in lines
    assert "worse: torchscript, task.text: 0 of 0 -> 1 of 0" in lines
    assert "worse: torchscript, verdict: pass -> fail" in lines


def test_times_are_those_of_one_machine(before: Path, tmp_path: Path) -> None:
    found = results(artifact(tmp_path))
    slow, *others = found.performance.engines
    assert slow.end_to_end is not None
    slow = slow.model_copy(update={"end_to_end": slow.end_to_end.model_copy(update={"rtf": 0.14})})
    performance = found.performance.model_copy(update={"engines": (slow, *others)})
    after = write(tmp_path / "after", Results(found.accuracy, performance, found.inference, found.environment))
    assert [str(change) for change in compare_results(before, after).worse] == [
        "worse: onnxruntime, RTF: 0.07 -> 0.14 (+100%)"
    ]
    assert compare_results(before, after, margin=1.01).worse == ()
    elsewhere = found.environment.model_copy(update={"cpu_model": "Another one"})
    other = write(tmp_path / "other", Results(found.accuracy, performance, found.inference, elsewhere))
    compared = compare_results(before, other)
    assert compared.worse == ()
    assert compared.notes == ("times are not compared: other processor (A processor, Another one)",)


def test_a_gate_or_an_engine_that_is_gone(before: Path, tmp_path: Path) -> None:
    found = results(artifact(tmp_path))
    one, two, _ = found.accuracy.engines
    fewer = one.model_copy(update={"gates": one.gates[1:]})
    accuracy = found.accuracy.model_copy(update={"engines": (fewer,)})
    after = write(tmp_path / "after", Results(accuracy, found.performance, found.inference, found.environment))
    compared = compare_results(before, after)
    assert [(change.name, change.after) for change in compared.worse] == [
        (f"onnxruntime, {one.gates[0].name}", "missing")
    ]
    assert compared.notes == (f"torchscript is in {before} only", f"pt2 is in {before} only")
    lonely = found.accuracy.model_copy(update={"engines": (two.model_copy(update={"device": "npu:0"}),)})
    other = write(tmp_path / "other", Results(lonely, found.performance, found.inference, found.environment))
    with pytest.raises(InputError, match="expected an engine and device in both"):
        compare_results(before, other)


def test_the_command(before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after", results(artifact(tmp_path), error=2e-4))

    def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "atlasport", "verify", "--compare", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert (compare(before, before).returncode, compare(after, before).returncode) == (0, 0)
    worse = compare(before, after)
    assert worse.returncode == 1
    assert worse.stdout.splitlines()[-1] == (
        f"compare {before} with {after}: 3 of {compare_results(before, after).compared} values became worse, "
        "margin 10%, 3 differ"
    )
    for arguments in ((before,), (before, tmp_path / "nothing"), (before, after, before)):
        refused = compare(*arguments)
        assert refused.returncode == 2
        assert len(refused.stderr.splitlines()) == 1
