"""The pocket models through the real torch_npu, whose CANN is a stub: from the command line down to its front end.

What shows here is how torch_npu is used: that it is imported when it can be, what it is told before anything runs,
which operators it asks for, how it fails. Its numbers are ATen's and no time says anything.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_npu_stub.lending import ROOT, RealTorchNpu, lend_torch_npu

from export.graphs import GraphDefinition
from export.writers.torchscript import write_torchscript
from runtime.errors import ExitCode
from runtime.manifest import Graph, TensorSpec

sys.path.insert(0, str(ROOT / "tests" / "runtime"))
from toy_artifact import seal

SHORT, SOUNDS = ROOT / "samples" / "short_en.wav", ROOT / "samples" / "sed_1.flac"
SOCS = {"910B4": "Ascend910B4", "310P3": "Ascend310P3"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def npu() -> RealTorchNpu:
    return lend_torch_npu()


@pytest.fixture
def artifact(npu_pocket: Path, tmp_path: Path) -> Path:
    """A copy to write results into."""
    return shutil.copytree(npu_pocket, tmp_path / "artifact")


def transcript(
    npu: RealTorchNpu, artifact: Path, *options: str, audio: Path = SHORT, **variables: str
) -> dict[str, object]:
    """Return what `run --json` prints, without the times."""
    done = npu.atlasport("run", artifact, audio, "--json", *options, **variables)
    assert done.returncode == ExitCode.OK, done.stderr
    return {name: value for name, value in json.loads(done.stdout).items() if name != "timings"}


def events(log: Path) -> list[str]:
    """Return what torch_npu asked the stub for, in order."""
    return [line.partition(" ")[2] for line in log.read_text().splitlines()]


class TestRun:
    @pytest.mark.parametrize(
        ("soc", "fixture", "engine"),
        [
            ("910B4", "npu_pocket", "torchscript"),
            ("910B4", "npu_pocket", "pt2"),
            ("310P3", "pocket_fp16_artifact", "torchscript"),
        ],
    )
    def test_it_says_what_the_cpu_says(
        self, npu: RealTorchNpu, soc: str, fixture: str, engine: str, request: pytest.FixtureRequest
    ):
        artifact = request.getfixturevalue(fixture)
        options = ("--engine", engine)
        found = transcript(npu, artifact, *options, "--device", "npu:0", CANN_STUB_SOC=SOCS[soc])
        expected = transcript(npu, artifact, *options, "--device", "cpu")
        assert found.pop("simulated") is True
        assert expected.pop("simulated") is False
        assert (found.pop("device"), expected.pop("device")) == ("npu:0", "cpu")
        tokens = [[segment.pop("tokens") for segment in side["segments"]] for side in (found, expected)]
        assert tokens[0] == tokens[1]
        assert tokens[0][0]
        assert found["text"] == expected["text"]

    @pytest.mark.parametrize(
        ("soc", "fixture", "engine"),
        [
            ("910B4", "npu_sed", "torchscript"),
            ("910B4", "npu_sed", "pt2"),
            ("310P3", "sed_fp16_artifact", "torchscript"),
        ],
    )
    def test_it_hears_the_sounds_that_the_cpu_hears(
        self, npu: RealTorchNpu, soc: str, fixture: str, engine: str, request: pytest.FixtureRequest
    ):
        artifact, options = request.getfixturevalue(fixture), ("--engine", engine)
        found, expected = (
            transcript(npu, artifact, *options, "--device", device, audio=SOUNDS, CANN_STUB_SOC=SOCS[soc])
            for device in ("npu:0", "cpu")
        )
        assert found["simulated"] is True
        assert expected["events"]
        labels = [[event["label"] for event in side["events"]] for side in (found, expected)]
        assert labels[0] == labels[1]

    @pytest.mark.parametrize("command", ["run", "verify", "doctor"])
    def test_310p_refuses_float32_by_name(self, npu: RealTorchNpu, artifact: Path, command: str, tmp_path: Path):
        """Before any operator does, which is what CANN says of float32 products that are to be kept."""
        audio = (SHORT,) if command == "run" else ()
        log = tmp_path / "log"
        log.touch()
        variables = {"CANN_STUB_SOC": SOCS["310P3"], "CANN_STUB_LOG": str(log)}
        done = npu.atlasport(command, artifact, *audio, "--device", "npu:0", **variables)
        said = done.stdout + done.stderr
        assert done.returncode == ExitCode.ENVIRONMENT, said
        assert "whisper-pocket --precision fp16" in said
        assert not [event for event in events(log) if "161002" in event]

    def test_what_attention_becomes(self, npu: RealTorchNpu, pocket_fp16_artifact: Path, tmp_path: Path):
        """Without a mask it is one kernel from 910B on; 310P has none, so that it is computed in steps."""
        asked = {}
        for name, soc in SOCS.items():
            log = tmp_path / name
            options = ("--device", "npu:0", "--engine", "torchscript")
            transcript(npu, pocket_fp16_artifact, *options, CANN_STUB_SOC=soc, CANN_STUB_LOG=str(log))
            asked[name] = Counter(events(log))
        assert asked["910B4"]["launch aclnnFlashAttentionScore"] > 0
        assert asked["310P3"]["launch aclnnFlashAttentionScore"] == 0
        assert asked["310P3"]["launch aclnnSoftmax"] > asked["910B4"]["launch aclnnSoftmax"]

    def test_one_small_copy_and_one_wait_for_each_token(self, npu: RealTorchNpu, npu_pocket: Path, tmp_path: Path):
        copies, waits = [], []
        for count in (2, 5):
            log = tmp_path / str(count)
            limit = ("--max-new-tokens", str(count))
            transcript(npu, npu_pocket, "--device", "npu:0", *limit, CANN_STUB_LOG=str(log))
            copies.append(Counter(event for event in events(log) if event.startswith(("copy D2H", "copy H2D"))))
            waits.append(events(log).count("synchronize"))
        more = copies[1] - copies[0]
        assert not copies[0] - copies[1]
        assert more.total() == 3 == waits[1] - waits[0]
        # The logits of one token.
        (copy,) = more
        vocabulary = json.loads((npu_pocket / "manifest.json").read_text())["content"]["dims"]["n_vocab"]
        assert copy == f"copy D2H {4 * vocabulary}"

    def test_capture_that_cannot_be(self, npu: RealTorchNpu, npu_pocket: Path):
        """Refused as what it is, as torch_npu itself does in the middle of the work."""
        options = ("run", npu_pocket, SHORT, "--device", "npu:0", "--engine", "torchscript", "--capture")
        done = npu.atlasport(*options, TASK_QUEUE_ENABLE="2")
        assert done.returncode == ExitCode.BAD_INPUT
        assert "TASK_QUEUE_ENABLE=2; set it to 1" in done.stderr

    def test_a_310p_before_cann_9_captures_nothing(self, npu: RealTorchNpu):
        """Why it is refused by us: torch_npu drops CANN's error and ends in an assertion of its own."""
        script = """
import torch, torch_npu
torch.npu.set_compile_mode(jit_compile=False)
x = torch.ones(2, device="npu:0")
with torch.npu.graph(torch.npu.NPUGraph()):
    x * 2
"""
        old = npu.run("-c", script, CANN_STUB_SOC=SOCS["310P3"], CANN_STUB_CANN="8.5.0")
        assert old.returncode == 1
        assert "ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE INTERNAL ASSERT FAILED" in old.stderr
        assert npu.run("-c", script, CANN_STUB_SOC=SOCS["310P3"], CANN_STUB_CANN="9.0.0").returncode == 0

    def test_capture(self, npu: RealTorchNpu, npu_pocket: Path, tmp_path: Path):
        log = tmp_path / "log"
        options = ("--device", "npu:1", "--engine", "torchscript")
        captured = transcript(npu, npu_pocket, *options, "--capture", CANN_STUB_LOG=str(log))
        assert captured["text"] == transcript(npu, npu_pocket, *options)["text"]
        asked = Counter(events(log))
        assert 0 < asked["capture"] < asked["replay"]


class TestVerify:
    def test_fp32_is_fp32_only_because_it_was_asked_for(self, npu: RealTorchNpu, artifact: Path):
        """torch_npu's defaults let the stub round as the SoC would; the flag reaches every convolution."""
        options = ("--device", "npu:0", "--engine", "torchscript", "--cases", "short*", "--runs", "1", "--no-controls")
        done = npu.atlasport("verify", artifact, *options)
        assert done.returncode == ExitCode.OK, done.stdout + done.stderr
        done = npu.atlasport("verify", artifact, *options, "--default-precision")
        assert done.returncode == ExitCode.GATE_FAILED, done.stdout + done.stderr
        assert "structure.relative_l2" in done.stdout + done.stderr

    def test_two_devices_and_what_the_results_tell(self, npu: RealTorchNpu, artifact: Path):
        options = ("--device", "npu:0,npu:1", "--cases", "short*", "--runs", "2", "--no-controls")
        done = npu.atlasport("verify", artifact, *options)
        assert done.returncode == ExitCode.OK, done.stdout + done.stderr
        accuracy, performance = (
            json.loads((artifact / "results" / f"{name}.json").read_text()) for name in ("accuracy", "performance")
        )
        assert accuracy["simulated"] is performance["simulated"] is True
        ran = {(engine["device"], engine["engine"]) for engine in accuracy["engines"]}
        assert ran == {(device, engine) for device in ("npu:0", "npu:1") for engine in ("torchscript", "pt2")}
        assert accuracy["versions"]["torch_npu"] == npu.version
        assert accuracy["versions"]["soc"] == SOCS["910B4"]
        assert "simulated" in accuracy["versions"]["driver"]
        assert accuracy["flags"]["conv.allow_hf32"] == accuracy["flags"]["jit_compile"] == "false"
        for engine in performance["engines"]:
            assert all(graph["device_s"]["min"] > 0 for graph in engine["graphs"].values())
            memory = engine["device_memory"]
            assert 0 < memory["allocated"] <= memory["peak"] <= memory["reserved"]


class TestFailure:
    FAILING = "aclnnCat"  # in the step graph only

    def test_run(self, npu: RealTorchNpu, npu_pocket: Path):
        options = ("run", npu_pocket, SHORT, "--device", "npu:0", "--engine", "torchscript")
        done = npu.atlasport(*options, CANN_STUB_FAIL=self.FAILING)
        assert done.returncode == ExitCode.ENVIRONMENT
        assert re.search(r"npu:0 failed in graph step\b.*507015", done.stderr), done.stderr
        assert not done.stdout
        done = npu.atlasport(*options, CANN_STUB_FAIL=self.FAILING, ASCEND_LAUNCH_BLOCKING="1")
        assert f"operator {self.FAILING}" in done.stderr

    def test_verify_believes_nothing_of_the_worker(self, npu: RealTorchNpu, artifact: Path):
        options = ("--engine", "torchscript", "--device", "npu:0", "--no-controls")
        done = npu.atlasport("verify", artifact, *options, CANN_STUB_FAIL=self.FAILING)
        assert done.returncode not in {ExitCode.OK, ExitCode.BAD_INPUT}
        (engine,) = json.loads((artifact / "results" / "accuracy.json").read_text())["engines"]
        assert engine["verdict"] != "pass"
        assert "graph step" in engine["reason"]
        assert "case step" in engine["reason"]

    def test_an_operator_without_a_kernel(self, npu: RealTorchNpu, tmp_path: Path):
        class Bessel(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.i1e(x)

        x, y = (TensorSpec(name=name, dtype="float32", shape=(3,)) for name in "xy")
        definition = GraphDefinition("encoder", Bessel(), (x,), (y,))
        written = write_torchscript({"encoder": definition}, tmp_path / "model.ts")
        seal(
            tmp_path,
            {"encoder": Graph(precision="fp32", inputs=(x,), outputs=(y,), files={"torchscript": written["encoder"]})},
        )
        answers = npu.answers(
            f"""
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.engines import open_engine
from runtime.errors import DeviceFailedError
artifact = open_artifact(Path({str(tmp_path)!r}))
engine = open_engine(artifact, "torchscript", "npu:0")
(spec,) = artifact.content.graphs["encoder"].inputs
try:
    engine.get(engine.run("encoder", {{spec.name: engine.zeros(spec)}})["y"])
except DeviceFailedError as error:
    answers["error"] = str(error)
"""
        )
        assert "npu:0 failed in graph encoder, operator aten::special_i1e.out" in answers["error"]

    def test_the_parent_survives(self, npu: RealTorchNpu, npu_pocket: Path):
        answers = npu.answers(
            f"""
from pathlib import Path
from runtime.artifact import open_artifact
from runtime.engines import open_engine
from runtime.errors import DeviceFailedError
artifact = open_artifact(Path({str(npu_pocket)!r}))
def run(engine):
    graph = artifact.content.graphs["step"]
    return engine.run("step", {{spec.name: engine.zeros(spec) for spec in graph.inputs}})["logits"]
engine = open_engine(artifact, "torchscript", "npu:0")
pending = run(engine)
for name in ("first", "second"):
    try:
        engine.get(pending)
    except DeviceFailedError as error:
        answers[name] = str(error)
fresh = open_engine(artifact, "torchscript", "cpu")
answers["shape"] = list(fresh.get(run(fresh)).shape)
""",
            CANN_STUB_FAIL=self.FAILING,
        )
        assert "npu:0 failed in graph step" in answers["first"]
        assert answers["second"] == answers["first"]
        assert answers["shape"][-1] > 1


class TestEnvironment:
    def test_doctor(self, npu: RealTorchNpu, npu_pocket: Path):
        done = npu.atlasport("doctor", npu_pocket, "--device", "npu:0")
        assert done.returncode == ExitCode.OK, done.stdout + done.stderr
        assert SOCS["910B4"] in done.stdout
        assert "simulated" in done.stdout.lower()

    def test_doctor_of_a_310p(self, npu: RealTorchNpu, sed_fp16_artifact: Path):
        """It computes in float16 there, and is fit for what does."""
        done = npu.atlasport("doctor", sed_fp16_artifact, "--device", "npu:0", CANN_STUB_SOC=SOCS["310P3"])
        assert done.returncode == ExitCode.OK, done.stdout + done.stderr
        assert f"{SOCS['310P3']}, computes" in done.stdout

    @pytest.mark.parametrize("command", [("doctor",), ("run", str(SHORT))], ids=["doctor", "run"])
    def test_torch_npu_without_cann(self, npu: RealTorchNpu, npu_pocket: Path, command: tuple[str, ...]):
        nowhere = {"LD_LIBRARY_PATH": "", "ASCEND_HOME_PATH": "", "ASCEND_TOOLKIT_HOME": ""}
        done = npu.atlasport(command[0], npu_pocket, *command[1:], "--device", "npu:0", **nowhere)
        assert done.returncode == ExitCode.ENVIRONMENT
        said = done.stdout + done.stderr
        assert "cannot be imported" in said
        assert "cannot open shared object file" in said
        assert "Traceback" not in said
        # torch itself is of use without it.
        assert npu.atlasport("run", npu_pocket, SHORT, "--engine", "torchscript", **nowhere).returncode == ExitCode.OK

    def test_no_such_device(self, npu: RealTorchNpu, npu_pocket: Path):
        done = npu.atlasport("run", npu_pocket, SHORT, "--device", "npu:1", CANN_STUB_DEVICES="1")
        assert done.returncode == ExitCode.ENVIRONMENT
        assert "torch_npu sees 1" in done.stderr
