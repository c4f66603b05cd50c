"""The engine on the simulated NPU: a device that is missing, flags, fallbacks, failures, capture, restarts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import psutil
import pytest
from npu_simulator import reports

from atlasport.restarting import RestartingRecognizer
from runtime.artifact import Artifact, open_artifact
from runtime.audio import open_audio
from runtime.engines import open_engine
from runtime.engines.base import Engine, EngineSettings
from runtime.engines.worker import WorkerEngine
from runtime.errors import DeviceFailedError, EnvironmentNotFitError, InputError, NoDeviceError
from runtime.families import family_of, open_recognizer
from runtime.golden import Golden

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
Lend = Callable[..., Path]

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def artifact(pocket_artifact: Path) -> Artifact:
    return open_artifact(pocket_artifact)


def golden_step(artifact: Artifact, engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of one golden step, found and expected."""
    case = next(case for case in artifact.content.cases if case.name == "step_middle")
    golden = Golden(artifact)
    dtypes = {spec.name: spec.dtype for spec in artifact.content.graphs["step"].inputs}
    inputs = {name: engine.put(array, dtypes[name]) for name, array in golden.inputs(case).items()}
    return engine.get(engine.run("step", inputs)["logits"]), golden.output(case.outputs["logits"])


class TestNoDevice:
    """Three ways to have none, each told apart; the fourth, no torch_npu at all, is in tests/runtime."""

    def broken(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        package = tmp_path / "torch_npu"
        package.mkdir()
        (package / "__init__.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
        monkeypatch.syspath_prepend(str(tmp_path))

    @pytest.fixture(autouse=True)
    def path_of_the_tests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))

    def test_torch_npu_without_cann(self, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        reason = "libhccl.so: cannot open shared object file: No such file or directory"
        self.broken(tmp_path, monkeypatch, f"raise ImportError('{reason}' + chr(10) + 'and more')")
        with pytest.raises(NoDeviceError) as caught:
            open_engine(artifact, device="npu:0")
        assert reason in str(caught.value)
        assert "no CANN" in str(caught.value)
        assert "set_env.sh" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_torch_npu_that_ends_the_process(self, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.broken(tmp_path, monkeypatch, "import os; os.write(2, b'driver too old'); os.abort()")
        with pytest.raises(DeviceFailedError, match="signal SIGABRT: driver too old"):
            open_engine(artifact, device="npu:0")

    def test_no_such_device(self, artifact: Artifact, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch):
        lend_npu(devices=2)
        with pytest.raises(NoDeviceError, match=r"^npu:2: .*sees 2; .*ASCEND_RT_VISIBLE_DEVICES"):
            open_engine(artifact, device="npu:2")
        monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "")
        with pytest.raises(NoDeviceError, match="sees 0"):
            open_engine(artifact, "torchscript", device="npu:0")


# What has to be set before anything runs.
SETTINGS = {
    "set_compile_mode.jit_compile": "False",
    "config.allow_internal_format": "False",
    "conv.allow_hf32": "False",
}


@pytest.mark.parametrize("soc", ["910B4", pytest.param("910_9391", marks=pytest.mark.slow)])
def test_fp32_is_fp32(artifact: Artifact, lend_npu: Lend, soc: str):
    """The simulated chips round as the real ones do unless they are told not to."""
    folder = lend_npu(soc=soc)
    errors = {}
    for default in (False, True):
        engine = open_engine(artifact, device="npu:0", settings=EngineSettings(default_precision=default))
        assert engine.probe.facts.simulated
        assert engine.probe.facts.versions["soc"] == f"Ascend{soc}"
        assert engine.probe.facts.versions["torch_npu"].endswith("+simulated")
        case = next(case for case in artifact.content.cases if case.name == "speech" and case.graph == "encoder")
        golden = Golden(artifact)
        inputs = {"mel": engine.put(golden.inputs(case)["mel"], "float32")}
        hidden = engine.get(engine.run("encoder", inputs)["hidden"])
        expected = golden.output(case.outputs["hidden"])
        stride = case.outputs["hidden"].stride
        errors[default] = np.linalg.norm(hidden[:, ::stride] - expected) / np.linalg.norm(expected)
        assert engine.probe.facts.flags["conv.allow_hf32"] == str(default).lower()
        engine.close()
    assert errors[False] < 1e-5 < errors[True]
    first = reports(folder)[0]
    events = first["events"]
    assert {event["name"]: event["value"] for event in events} == SETTINGS
    assert all(event["operators_before"] == 0 for event in events)


def test_310p_refuses_fp32_by_name(artifact: Artifact, lend_npu: Lend):
    """Its matrix unit has no float32; what it makes of it by default can be looked at, and is not float32."""
    folder = lend_npu(soc="310P3")
    with pytest.raises(EnvironmentNotFitError, match=r"float32; use the fp16 one: .* whisper-pocket --precision fp16"):
        open_engine(artifact, device="npu:0")
    engine = open_engine(artifact, device="npu:0", settings=EngineSettings(default_precision=True))
    found, expected = golden_step(artifact, engine)
    assert 1e-5 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-2
    engine.close()
    # It is not told to keep float32, at which every product would fail.
    [report] = reports(folder)
    told = {event["name"] for event in report["events"]}
    assert "config.allow_internal_format" in told
    assert not {name for name in told if "PRECISION" in name or "hf32" in name}


@pytest.mark.slow
def test_on_310p_float32_graphs_of_an_fp16_artifact_run_on_the_host(sed_fp16_artifact: Path, lend_npu: Lend):
    artifact = open_artifact(sed_fp16_artifact)
    events, convolutions = {}, {}
    for soc in ("910B4", "310P3"):
        folder = lend_npu(soc=soc)
        recognizer = open_recognizer(artifact, "torchscript", "npu:0")
        events[soc] = [event.label for event in recognizer.recognize(open_audio(SAMPLES / "sed_1.flac")).events]
        flags = recognizer._engine.probe.facts.flags
        recognizer._engine.close()
        assert flags.get("on_host") == {"910B4": None, "310P3": "frontend"}[soc]
        assert flags.get("float32_products") == {"910B4": None, "310P3": "float16"}[soc]
        convolutions[soc] = reports(folder)[-1]["operators"]["aten::convolution"]["shapes"]
    assert events["910B4"] == events["310P3"]
    assert len(events["310P3"]) > 3
    # That of the front end.
    [missing] = convolutions["910B4"].keys() - convolutions["310P3"].keys()
    assert missing.startswith("Float[1, 1, ")
    assert convolutions["310P3"].keys() < convolutions["910B4"].keys()


class TestCaptureThatCannotBe:
    CAPTURE = EngineSettings(capture=True, default_precision=True)

    def test_with_task_queue_2(self, artifact: Artifact, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch):
        lend_npu()
        monkeypatch.setenv("TASK_QUEUE_ENABLE", "2")
        with pytest.raises(InputError, match="TASK_QUEUE_ENABLE=2; set it to 1"):
            open_engine(artifact, device="npu:0", settings=self.CAPTURE)
        open_engine(artifact, device="npu:0").close()

    @pytest.mark.parametrize("cann", ["8.5.0", pytest.param("9.0.0", marks=pytest.mark.slow)])
    def test_on_310p_before_cann_9(
        self, artifact: Artifact, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch, cann: str
    ):
        lend_npu(soc="310P3")
        monkeypatch.setenv("NPU_SIMULATOR_CANN", cann)
        refused = pytest.raises(InputError, match=r"Ascend310P3 can capture graphs from CANN 9\.0 on, found 8\.5\.0")
        with refused if cann == "8.5.0" else nullcontext():
            open_engine(artifact, device="npu:0", settings=self.CAPTURE).close()


@pytest.mark.slow
def test_rank_does_not_silence_a_fallback(artifact: Artifact, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch):
    lend_npu(control={"without_kernel": ["aten::gelu"], "ignores_fallback_variable": True})
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(DeviceFailedError) as caught:
        golden_step(artifact, open_engine(artifact, device="npu:0"))
    assert caught.value.operator == "aten::gelu"


def test_a_worker_stands_in_a_folder_of_its_own(pocket_artifact: Path, lend_npu: Lend, monkeypatch: pytest.MonkeyPatch):
    """And finds an artifact by a path that was relative to where its parent stands."""
    lend_npu()
    monkeypatch.chdir(pocket_artifact.parent)
    engine = open_engine(open_artifact(Path(pocket_artifact.name)), device="npu:0")
    assert isinstance(engine, WorkerEngine)
    where = Path(psutil.Process(engine._channel.pid).cwd())
    assert where.is_dir()
    assert where != Path.cwd()
    assert not list(where.iterdir())
    engine.open("step")
    engine.close()
    assert not where.exists()


@pytest.mark.parametrize("ignores_variable", [False, True], ids=["newer wheel", "older wheel"])
def test_a_fallback_is_an_error_by_name(artifact: Artifact, lend_npu: Lend, ignores_variable: bool):  # noqa: FBT001
    lend_npu(control={"without_kernel": ["aten::gelu"], "ignores_fallback_variable": ignores_variable})
    engine = open_engine(artifact, device="npu:0")
    with pytest.raises(DeviceFailedError) as caught:
        golden_step(artifact, engine)
    assert caught.value.operator == "aten::gelu"
    assert caught.value.graph == "step"


def test_an_error_that_comes_late_gives_no_result(artifact: Artifact, lend_npu: Lend):
    """The queue fails and throws once, some operators later; everything after that would be stale.

    A step has two embeddings: the third step is the one that fails.
    """
    lend_npu(control={"asynchronous_error": {"operators": "aten::embedding", "call": 5, "after": 5}})
    engine = open_engine(artifact, device="npu:0")
    for _ in range(2):
        found, expected = golden_step(artifact, engine)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    for _ in range(2):
        with pytest.raises(DeviceFailedError) as caught:
            golden_step(artifact, engine)
        assert caught.value.graph == "step"


def test_memory_and_times_are_the_devices(artifact: Artifact, lend_npu: Lend):
    lend_npu()
    engine = open_engine(artifact, device="npu:0", graphs=["encoder"])
    before, free = engine.probe.memory(), engine.probe.free_memory()
    value = engine.put(np.zeros((256, 1024), np.float32), "float32")
    start = engine.probe.mark()
    engine.run("encoder", {"mel": engine.zeros(artifact.content.graphs["encoder"].inputs[0])})
    end = engine.probe.mark()
    after = engine.probe.memory()
    assert before is not None
    assert after is not None
    assert before.allocated >= sum(p.stat().st_size for p in artifact.path.glob("weights*")) * 0.5
    assert after.allocated - before.allocated >= 2**20
    assert free is not None
    assert free - engine.probe.free_memory() >= 2**20
    assert after.peak >= after.allocated
    assert after.reserved >= after.allocated
    assert engine.probe.seconds(start, end) > 0
    assert value.shape == (256, 1024)


@pytest.mark.parametrize("name", ["torchscript", pytest.param("pt2", marks=pytest.mark.slow)])
def test_capture_gives_the_same_tokens(npu_pocket: Path, lend_npu: Lend, name: str):
    folder = lend_npu()
    artifact = open_artifact(npu_pocket)
    texts = []
    for capture in (False, True):
        recognizer = open_recognizer(artifact, name, "npu:0", settings=EngineSettings(capture=capture))
        texts.append(
            [
                [segment.tokens for segment in recognizer.recognize(open_audio(SAMPLES / file)).segments]
                for file in ("short_en.wav", "long_en.wav", "short_de.wav")
            ]
        )
        recognizer._engine.close()
    assert texts[0] == texts[1]
    events = [[event["name"] for event in report["events"]] for report in reports(folder)]
    assert "capture_begin" not in events[0]
    # frontend, encoder, the prompt's prefill and the step: once each, for all windows of all three recordings.
    assert events[1].count("capture_begin") == 4
    tokens = sum(len(segment) for recording in texts[1] for segment in recording)
    assert events[1].count("replay") > tokens


@pytest.mark.slow
def test_recordings_that_mix_windows_are_kept_apart(artifact: Artifact, lend_npu: Lend):
    """Two windows bound at once, called in turn: a captured step reads one memory for both."""
    lend_npu()
    case = next(case for case in artifact.content.cases if case.name == "step_middle")
    golden = Golden(artifact)
    dtypes = {spec.name: spec.dtype for spec in artifact.content.graphs["step"].inputs}
    found = {}
    for capture in (False, True):
        engine = open_engine(artifact, device="npu:0", settings=EngineSettings(capture=capture))
        mel = artifact.content.graphs["encoder"].inputs[0]
        noise = np.random.default_rng(0).standard_normal(mel.shape).astype(np.float32)
        inputs = {name: engine.put(array, dtypes[name]) for name, array in golden.inputs(case).items()}
        steps = []
        for scale in (0.0, 1.0):
            outputs = engine.run("encoder", {"mel": engine.put(scale * noise, "float32")})
            cross = {name: value for name, value in outputs.items() if name.startswith("cross_")}
            caches = {name: value for name, value in inputs.items() if name.startswith("self_")}
            steps.append(engine.bind("step", cross | caches))
        given = {name: inputs[name] for name in ("tokens", "pos")}
        found[capture] = [engine.get(steps[window](given)["logits"]) for window in (0, 1, 0, 1, 1, 0)]
        engine.close()
    for eager, captured in zip(found[False], found[True], strict=True):
        np.testing.assert_allclose(captured, eager, rtol=1e-5, atol=1e-5)
    assert np.abs(found[True][0] - found[True][1]).max() > 1e-2


@contextmanager
def kill_first_worker() -> Iterator[None]:
    """Kill the first process that this one starts to own a device."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for child in psutil.Process().children():
                if "runtime.engines.worker_process" in child.cmdline():
                    child.kill()
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()


def test_a_fresh_process_is_tried_once(artifact: Artifact, lend_npu: Lend, capfd: pytest.CaptureFixture[str]):
    lend_npu()
    with kill_first_worker():
        recognizer = RestartingRecognizer(lambda: open_recognizer(artifact, device="npu:0"), restarts=1)
    transcript = recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), family_of(artifact).options.parse({}), None)
    assert transcript.text == "set a timer for twenty six minutes"
    assert transcript.simulated
    assert "SIGKILL" in capfd.readouterr().err
    engine: WorkerEngine = recognizer._recognizer._engine  # type: ignore[union-attr]
    psutil.Process(engine._channel.pid).kill()
    with pytest.raises(DeviceFailedError):
        recognizer.recognize(open_audio(SAMPLES / "short_en.wav"), family_of(artifact).options.parse({}), None)


def test_without_restart_the_failure_is_told(artifact: Artifact, lend_npu: Lend):
    lend_npu()
    with kill_first_worker(), pytest.raises(DeviceFailedError, match="SIGKILL"):
        RestartingRecognizer(lambda: open_recognizer(artifact, device="npu:0"), restarts=0)
