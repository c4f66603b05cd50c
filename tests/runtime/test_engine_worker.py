"""The engine in a process of its own, on the CPU: what it computes, and what is left when its process ends.

On a device nothing else differs for the parent; tests/npu runs the same worker on the simulated NPU.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy_artifact import DIM, ROWS, expected_encoder, expected_logits, write_toy

from runtime.artifact import Artifact, open_artifact
from runtime.engines.base import EngineSettings
from runtime.engines.channel import fallback_operator
from runtime.engines.worker import WorkerEngine
from runtime.errors import DeviceFailedError, EnvironmentNotFitError, ExitCode, InputError
from runtime.manifest import TensorSpec

RNG = np.random.default_rng(2)
X = RNG.standard_normal((1, 3, DIM)).astype(np.float32)
CROSS = RNG.standard_normal((1, 2, 3, DIM)).astype(np.float32)
CACHE = TensorSpec(name="self_k", dtype="float32", shape=(1, 2, ROWS, DIM))
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(write_toy(tmp_path_factory.mktemp("toy") / "float32"))


def opened(toy: Artifact) -> Iterator[WorkerEngine]:
    engine = WorkerEngine(toy, "torchscript", "cpu", threads=1)
    yield engine
    engine.close()


# A process takes seconds to start: tests that leave it alive share one.
shared = pytest.fixture(scope="module", name="shared")(opened)
engine = pytest.fixture(name="engine")(opened)


def pid(engine: WorkerEngine) -> int:
    return engine._channel.pid


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(int(PATIENCE_S / 0.05)):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["torchscript", "pt2"])
def test_decode_with_a_cache(toy: Artifact, name: str):
    """As the engine in the process itself, by the numbers computed by hand."""
    engine = WorkerEngine(toy, name, "cpu", threads=1)
    assert (engine.name, engine.device) == (name, "cpu")
    hidden = engine.run("encoder", {"x": engine.put(X, "float32")})["hidden"]
    np.testing.assert_allclose(engine.get(hidden), expected_encoder(X), atol=1e-6)
    cache, mirror = engine.zeros(CACHE), np.zeros(CACHE.shape, np.float32)
    step = engine.bind("step", {"cross": engine.put(CROSS, "float32"), "self_k": cache})
    for pos, token in enumerate([3, 0, 6, 6]):
        outputs = step(
            {"tokens": engine.put(np.array([[token]]), "int64"), "pos": engine.put(np.array([pos]), "int64")}
        )
        np.testing.assert_allclose(
            engine.get(outputs["logits"]), expected_logits(token, pos, CROSS, mirror), rtol=1e-5, atol=1e-5
        )
        engine.write_rows(cache, outputs["new_self_k"], pos, 1)
        mirror[:, :, pos] = engine.get(outputs["new_self_k"])[:, :, 0]
    np.testing.assert_array_equal(engine.get(cache), mirror)
    assert engine.probe.shapes() == {"encoder": 1, "step": 1}
    engine.close()


def test_the_device_is_asked_once_a_token(shared: WorkerEngine, monkeypatch: pytest.MonkeyPatch):
    """Everything but the one copy to the host is sent without waiting."""
    waits: list[str] = []
    ask = shared._channel.ask
    monkeypatch.setattr(shared._channel, "ask", lambda name, *rest: (waits.append(name), ask(name, *rest))[1])
    cache = shared.zeros(CACHE)
    step = shared.bind("step", {"cross": shared.put(CROSS, "float32"), "self_k": cache})
    for pos in range(3):
        outputs = step({"tokens": shared.put(np.array([[1]]), "int64"), "pos": shared.put(np.array([pos]), "int64")})
        shared.write_rows(cache, outputs["new_self_k"], pos, 1)
        shared.get(outputs["logits"])
        shared.synchronize()
    assert waits == ["get"] * 3


def test_inputs_are_checked_before_they_are_sent(shared: WorkerEngine):
    with pytest.raises(ValueError, match="encoder: x: expected"):
        shared.run("encoder", {"x": shared.put(X[0], "float32")})
    with pytest.raises(ValueError, match="expected the inputs"):
        shared.bind("step", {"cross": shared.put(CROSS, "float32")})({})
    with pytest.raises(ValueError, match="a value of this engine"):
        shared.get(X)
    hidden = shared.run("encoder", {"x": shared.put(X, "float32")})["hidden"]
    np.testing.assert_allclose(shared.get(hidden), expected_encoder(X), atol=1e-6)


def test_values_that_nobody_holds_are_forgotten(shared: WorkerEngine):
    process = psutil.Process(pid(shared))
    big = np.ones((1, 1, 4, 2**20), np.float32)  # 16 MiB
    shared.get(shared.put(big, "float32"))
    before = process.memory_info().rss
    for _ in range(20):
        shared.put(big, "float32")
    gc.collect()
    shared.probe.shapes()
    assert process.memory_info().rss - before < 5 * big.nbytes


def test_large_arrays_both_ways(shared: WorkerEngine):
    """Far beyond what the socket holds."""
    big = RNG.standard_normal((3, 7, 2**20)).astype(np.float32)  # 88 MB
    np.testing.assert_array_equal(shared.get(shared.put(big, "float32")), big)


def test_times_between_marks(shared: WorkerEngine):
    start = shared.probe.mark()
    shared.run("encoder", {"x": shared.put(X, "float32")})
    middle, end = shared.probe.mark(), shared.probe.mark()
    assert shared.probe.seconds(start, middle) > 0
    assert shared.probe.seconds(end, shared.probe.mark()) >= 0
    assert shared.probe.memory() is None
    assert not shared.probe.facts.simulated


def unusable(engine: WorkerEngine, value: object, error: DeviceFailedError) -> None:
    """Nothing of the worker can be had any more, and each attempt says why."""
    for use in (
        lambda: engine.get(value),
        lambda: engine.put(X, "float32"),
        lambda: engine.zeros(CACHE),
        lambda: engine.open("encoder"),
        lambda: engine.bind("encoder", {}),
        engine.probe.shapes,
    ):
        with pytest.raises(DeviceFailedError) as again:
            use()
        assert str(again.value) == str(error)


def test_killed_between_calls(engine: WorkerEngine):
    value = engine.put(X, "float32")
    hidden = engine.run("encoder", {"x": value})["hidden"]
    engine.get(hidden)
    os.kill(pid(engine), signal.SIGKILL)
    with pytest.raises(DeviceFailedError) as caught:
        engine.get(hidden)
    error = caught.value
    assert error.graph == "encoder"
    assert "its process ended by signal SIGKILL" in str(error)
    assert error.exit_code == ExitCode.ENVIRONMENT
    assert "\n" not in str(error)
    unusable(engine, hidden, error)


def test_killed_in_the_middle_of_a_call(engine: WorkerEngine):
    """The parent waits for an answer that never comes."""
    os.kill(pid(engine), signal.SIGSTOP)
    value = engine.put(X, "float32")
    child = os.fork()
    if child == 0:
        time.sleep(0.5)
        os.kill(pid(engine), signal.SIGKILL)
        os._exit(0)
    with pytest.raises(DeviceFailedError, match="SIGKILL"):
        engine.get(value)
    assert os.waitpid(child, 0)[1] == 0


def test_killed_while_much_is_sent(engine: WorkerEngine):
    """The socket is full when the process ends."""
    os.kill(pid(engine), signal.SIGSTOP)
    child = os.fork()
    if child == 0:
        time.sleep(0.5)
        os.kill(pid(engine), signal.SIGKILL)
        os._exit(0)
    with pytest.raises(DeviceFailedError, match="SIGKILL"):
        engine.put(np.ones(2**24, np.float32), "float32")
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_is_reported_once_and_for_all(engine: WorkerEngine):
    """An operation that torch refuses, sent without waiting, shows at the next answer; later ones do not count."""
    cache = engine.zeros(CACHE)
    hidden = engine.run("encoder", {"x": engine.put(X, "float32")})["hidden"]
    engine.write_rows(cache, hidden, 0, 1)  # [1, 3, 4] into [1, 2, 1, 4]
    process = psutil.Process(pid(engine))
    with pytest.raises(DeviceFailedError) as caught:
        engine.get(cache)
    error = caught.value
    assert error.device == "cpu"
    assert error.graph == "encoder"
    assert "must match the existing size" in error.reason
    assert str(error).startswith("cpu failed in graph encoder: ")
    assert wait_for(lambda: gone(process))
    unusable(engine, hidden, error)
    assert "case step_4" in str(error.in_case("step_4"))


def test_what_the_process_says_last_is_told(engine: WorkerEngine, capfd: pytest.CaptureFixture[str]):
    os.write(engine._channel._log.fileno(), b"driver: heartbeat lost\n\n")
    os.kill(pid(engine), signal.SIGABRT)
    with pytest.raises(DeviceFailedError, match=r"ended by signal SIGABRT: driver: heartbeat lost;"):
        engine.probe.shapes()
    assert "heartbeat lost" in capfd.readouterr().err


def test_a_warning_of_a_fallback_is_an_error(engine: WorkerEngine, capfd: pytest.CaptureFixture[str]):
    """Older torch_npu only prints it, from C++: it never becomes a warning of Python."""
    warning = (
        "[W VariableFallbackKernel.cpp:250] Warning: CAUTION: The operator 'aten::special_entr.out' is not currently "
        "supported on the NPU backend and will fall back to run on the CPU. This may have performance implications. "
        "(function npu_cpu_fallback)"
    )
    hidden = engine.run("encoder", {"x": engine.put(X, "float32")})["hidden"]
    os.write(engine._channel._log.fileno(), b"[W compiler_depend.ts:51] Warning: something else\n")
    engine.get(hidden)
    os.write(engine._channel._log.fileno(), warning.encode() + b"\n")
    with pytest.raises(DeviceFailedError) as caught:
        engine.get(hidden)
    assert caught.value.operator == "aten::special_entr.out"
    assert "ran on the CPU" in str(caught.value)
    unusable(engine, hidden, caught.value)
    assert warning in capfd.readouterr().err


@pytest.mark.parametrize(
    ("operator", "warning"),
    [
        # As they stand in the libraries of torch_npu 2.9.0 and 2.13.0, shortened at the end.
        ("aten::unfold_backward", "operator {} is currently not supported on the NPU backend. Now this operator will "),
        ("aten::_masked_softmax", "operator {} is currently not supported on the NPU backend.Now this operator will "),
        ("aten::_sparse_csr_sum.dim_dtype", "NPU interface does not support operator '{}', the operator will "),
    ],
)
def test_every_wording_of_the_warning(operator: str, warning: str):
    for end in ("fall back to CPU.", "fallback to run on the CPU and may have", "fall back to run on the CPU. This"):
        assert fallback_operator(f"an operator\nCAUTION: The {warning.format(operator)}{end}\nmore") == operator
    assert fallback_operator("The operator 'aten::gelu' is not supported") is None


def test_close_ends_the_process(toy: Artifact):
    engine = WorkerEngine(toy, "torchscript", "cpu", threads=1)
    process = psutil.Process(pid(engine))
    value = engine.put(X, "float32")
    engine.close()
    engine.close()
    assert not process.is_running()
    with pytest.raises(DeviceFailedError, match="closed"):
        engine.get(value)


def test_an_engine_that_nobody_holds_ends(toy: Artifact):
    engine = WorkerEngine(toy, "torchscript", "cpu", threads=1)
    process = psutil.Process(pid(engine))
    del engine
    gc.collect()
    assert wait_for(lambda: gone(process))


def test_it_ends_with_its_parent(toy: Artifact):
    """However the parent goes, and though another process keeps the connection open: nobody keeps the device."""
    code = """
        import subprocess, sys, time
        from pathlib import Path
        from runtime.artifact import open_artifact
        from runtime.engines.worker import WorkerEngine
        engine = WorkerEngine(open_artifact(Path(sys.argv[1])), "torchscript", "cpu", threads=1)
        keeper = subprocess.Popen(["sleep", "600"], pass_fds=[engine._channel._connection.fileno()])
        print(engine._channel.pid, keeper.pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(toy.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker, keeper = (psutil.Process(int(number)) for number in parent.stdout.readline().split())
        parent.kill()
    try:
        assert wait_for(lambda: gone(worker))
    finally:
        keeper.kill()


def test_an_interrupt_leaves_no_answer_behind(engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C while an answer is under way: the next question must not get it."""
    first, second = engine.put(X, "float32"), engine.put(2 * X, "float32")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._channel._connection, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.get(first)
    with pytest.raises(DeviceFailedError, match="interrupted"):
        engine.get(second)


def test_an_interrupt_at_the_terminal_is_the_parents(shared: WorkerEngine):
    os.kill(pid(shared), signal.SIGINT)
    assert shared.get(shared.put(X, "float32")).shape == X.shape


def test_a_file_that_cannot_be_read(toy: Artifact, tmp_path: Path):
    folder = Path(shutil.copytree(toy.path, tmp_path / "toy"))
    damaged = Artifact(folder, toy.manifest)
    (folder / "model.ts").write_bytes(b"")
    engine = WorkerEngine(damaged, "torchscript", "cpu", threads=1)
    with pytest.raises(EnvironmentNotFitError, match=r"model\.ts") as caught:
        engine.open("step")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DeviceFailedError)
    assert caught.value.graph == "step"


def test_what_opening_refuses_is_refused_here(toy: Artifact):
    with pytest.raises(InputError, match="capture: cpu"):
        WorkerEngine(toy, "torchscript", "cpu", settings=EngineSettings(capture=True))
    with pytest.raises(EnvironmentNotFitError, match=r"^cuda:97: "):
        WorkerEngine(toy, "torchscript", "cuda:97")
