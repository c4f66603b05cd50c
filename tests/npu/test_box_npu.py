"""A box with a (simulated) NPU: the self-test runs on the device, and a device that computes wrongly fails it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.freeze.pipeline import freeze_artifact
from runtime.box.install import Trust, install
from runtime.box.root import Box
from runtime.box.self_test import last
from runtime.box.status import box_status
from runtime.box.switch import activate
from runtime.box.versions import open_active
from runtime.errors import AtlasportError, EnvironmentNotFitError, GateError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "box"))
from box_bundles import MODEL, requiring

ANY = Trust(allow_unsigned=True)


@pytest.fixture(scope="module")
def bundle(npu_sed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sed-pocket, profile npu."""
    out = tmp_path_factory.mktemp("npu") / "npu.atlas"
    return freeze_artifact(npu_sed, "npu", "1.0.0", out=out, allowed=("unverified",)).path


@pytest.fixture
def cann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that installs a CANN of some version, as far as its files tell."""

    def toolkit(version: str) -> None:
        (tmp_path / "cann").mkdir(exist_ok=True)
        (tmp_path / "cann" / "ascend_toolkit_install.info").write_text(f"package_name=Ascend-cann\nversion={version}\n")
        monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path / "cann"))

    return toolkit


@pytest.fixture
def box(
    bundle: Path, lend_npu: Callable[..., Path], cann: Callable[[str], None], tmp_path: Path
) -> Callable[..., Path]:
    """A function that installs the bundle on a machine with an NPU and CANN and returns the box's folder."""

    def make(*, soc: str = "910B4", version: str = "8.5.1", control: dict[str, Any] | None = None) -> Path:
        lend_npu(soc=soc, control=control)
        cann(version)
        install(bundle, tmp_path / "box", ANY)
        return tmp_path / "box"

    return make


@pytest.mark.slow
def test_the_self_test_runs_on_the_device(box: Callable[..., Path]) -> None:
    root = box()
    result = activate(root, MODEL, "1.0.0").self_test
    assert result is not None
    assert (result.verdict, result.device, result.simulated) == ("pass", "npu:0", True)
    assert result.engine == "torchscript"
    assert any("hf32" in name for name in result.flags)
    artifact, manifest = open_active(root, MODEL)
    assert manifest.profile == "npu"
    assert {name for graph in artifact.content.graphs.values() for name in graph.files} == {"torchscript", "pt2"}
    status = box_status(root)
    assert status.devices["simulated"] is True


@pytest.mark.parametrize(
    ("soc", "version", "said"),
    [
        ("310B4", "8.5.1", "SoC: found Ascend310B4, needed Ascend910B or Ascend910_93"),
        ("910B4", "7.0.RC1", "CANN: found 7.0.RC1, needed >=8.5"),
    ],
)
def test_another_machine_is_refused_before_anything_is_written(
    box: Callable[..., Path], tmp_path: Path, soc: str, version: str, said: str
) -> None:
    with pytest.raises(EnvironmentNotFitError, match=said):
        box(soc=soc, version=version)
    assert not (tmp_path / "box").exists()


# Each of these opens the device three times, in a process of its own.
WRONG = {"faults": [{"operators": "aten::convolution.*", "kind": "gain", "amount": 1.01}]}
BROKEN = {"asynchronous_error": {"operators": "aten::addmm.*", "call": 1, "after": 0}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("control", "kind", "verdict"), [(WRONG, GateError, "fail"), (BROKEN, EnvironmentNotFitError, "blocked")]
)
def test_a_device_that_computes_wrongly_or_fails_is_never_switched_to(
    box: Callable[..., Path], control: dict[str, Any], kind: type[AtlasportError], verdict: str
) -> None:
    root = box(control=control)
    with pytest.raises(kind, match="npu:0"):
        activate(root, MODEL, "1.0.0")
    assert Box(root).state().models[MODEL].active is None
    result = last(Box(root), MODEL, "1.0.0")
    assert result is not None
    assert result.verdict == verdict


@pytest.mark.slow
def test_memory_of_the_device(
    bundle: Path, lend_npu: Callable[..., Path], cann: Callable[[str], None], tmp_path: Path
) -> None:
    lend_npu()
    cann("8.5.1")
    demanding = requiring(bundle, tmp_path / "big.atlas", None, memory_bytes=2**50)
    with pytest.raises(EnvironmentNotFitError, match="memory of npu:0: found"):
        install(demanding, tmp_path / "box", ANY)
