"""What the real torch_npu itself does, as far as the engine builds on it. Its CANN is a stub."""

from __future__ import annotations

import re

import pytest
from torch_npu_stub.lending import RealTorchNpu, lend_torch_npu

from runtime.engines.channel import FALLBACK_WARNING

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FLAGS = """
import torch, torch_npu
torch.npu.set_device("npu:0")
torch.npu.set_compile_mode(jit_compile=False)
torch.npu.config.allow_internal_format = False
torch.npu.conv.allow_hf32 = False
"""


@pytest.fixture(scope="module")
def npu() -> RealTorchNpu:
    return lend_torch_npu()


class TestImport:
    def test_torch_loads_it_unless_told_not_to(self, npu: RealTorchNpu):
        script = "import sys, torch\nanswers['loaded'] = 'torch_npu' in sys.modules"
        assert npu.answers(script)["loaded"] is True
        assert npu.answers(script, TORCH_DEVICE_BACKEND_AUTOLOAD="0")["loaded"] is False

    def test_without_cann_torch_dies_with_it(self, npu: RealTorchNpu):
        done = npu.run("-c", "import torch", LD_LIBRARY_PATH="")
        assert done.returncode == 1
        assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr
        without = {"LD_LIBRARY_PATH": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        assert npu.run("-c", "import torch", **without).returncode == 0
        done = npu.run("-c", "import torch, torch_npu", **without)
        assert re.search(r"^ImportError: lib\w+\.so: cannot open", done.stderr, re.MULTILINE), done.stderr

    @pytest.mark.parametrize("soc", ["Ascend910B4", "Ascend310P3"])
    def test_devices(self, npu: RealTorchNpu, soc: str):
        script = """
import torch, torch_npu
from torch_npu.npu.utils import get_cann_version
answers["count"] = torch.npu.device_count()
torch.npu.set_device("npu:1")
answers["current"] = torch.npu.current_device()
answers["name"] = torch.npu.get_device_name("npu:1")
answers["hf32"] = [torch.npu.conv.allow_hf32, torch.npu.matmul.allow_hf32]
answers["versions"] = [get_cann_version(), get_cann_version("DRIVER")]
"""
        answers = npu.answers(script, CANN_STUB_SOC=soc)
        assert (answers["count"], answers["current"], answers["name"]) == (2, 1, soc)
        # fp32 convolutions are not computed in fp32 unless asked for.
        assert answers["hf32"] == [True, False]
        cann, driver = answers["versions"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", cann)
        assert driver == f"{cann}-simulated"


class TestFloat32OnA310P:
    """Why the engine leaves the precision mode alone there."""

    def test_it_is_refused_where_it_is_to_be_kept(self, npu: RealTorchNpu):
        answers = npu.answers(
            """
import torch, torch_npu
torch.npu.set_device("npu:0")
torch.npu.set_compile_mode(jit_compile=False)
torch.npu.config.allow_internal_format = False
x = torch.ones(2, 2, device="npu:0") + 2**-12
products = {
    "mm": lambda x: x @ x,
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "linear": lambda x: torch.nn.functional.linear(x, x, x[0]),
    "conv": lambda x: torch.nn.functional.conv1d(x[None], x[:, :, None]),
}
for name, product in products.items():
    answers[f"{name} by default"] = product(x).flatten()[0].item() - (1 if name == "linear" else 0)
torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
torch.npu.conv.allow_hf32 = False
for name, product in products.items():
    try:
        product(x)
        torch.npu.synchronize()
    except RuntimeError as error:
        answers[name] = "161002" in str(error)
    answers[f"{name} of float16"] = product(x.half()).flatten()[0].item()
""",
            CANN_STUB_SOC="Ascend310P3",
        )
        # 1 + 2 ** -12 is 1 in float16.
        assert {answers[f"{name} by default"] for name in ("mm", "bmm", "conv")} == {2.0}
        assert all(answers[name] is True for name in ("mm", "bmm", "linear", "conv")), answers
        assert {answers[f"{name} of float16"] for name in ("mm", "bmm", "conv")} == {2.0}


class TestFallback:
    SCRIPT = "import torch, torch_npu\nx = torch.special.i1e(torch.ones(3, device='npu:0'))\nprint(x.cpu())"

    def test_it_warns_where_it_is_not_forbidden(self, npu: RealTorchNpu):
        done = npu.run("-c", self.SCRIPT)
        assert done.returncode == 0
        assert re.search(rf"operator 'aten::special_i1e.out'.*{FALLBACK_WARNING}", done.stderr), done.stderr

    def test_forbidden_it_is_an_error(self, npu: RealTorchNpu):
        if b"TORCH_NPU_FALLBACK_CPU_DISABLE" not in (npu.torch_npu / "lib" / "libtorch_npu.so").read_bytes():
            pytest.skip(f"torch_npu {npu.version} only warns")
        done = npu.run("-c", self.SCRIPT, TORCH_NPU_FALLBACK_CPU_DISABLE="1")
        assert done.returncode == 1
        assert re.search(r"RuntimeError: .*'aten::special_i1e.out'.*TORCH_NPU_FALLBACK_CPU_DISABLE=1", done.stderr)

    def test_every_such_warning_in_the_wheel_is_known(self, npu: RealTorchNpu):
        binary = (npu.torch_npu / "lib" / "libtorch_npu.so").read_bytes()
        texts = re.findall(rb"[ -~]{0,24}fall ?back to[ -~]{0,24}CPU\b", binary)
        assert len(texts) > 5
        unknown = [text for text in texts if not re.search(FALLBACK_WARNING.encode(), text)]
        assert not unknown

    def test_of_a_later_rank_it_says_nothing(self, npu: RealTorchNpu):
        """Why the engine's process has no RANK."""
        done = npu.run("-c", self.SCRIPT, RANK="1")
        assert done.returncode == 0
        assert not re.search(FALLBACK_WARNING, done.stderr), done.stderr


class TestWork:
    def test_events_and_memory(self, npu: RealTorchNpu):
        answers = npu.answers(
            FLAGS
            + """
start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
x = torch.zeros(256, 1024, device="npu:0")
torch.npu.reset_peak_memory_stats()
start.record()
y = x + 1
end.record()
end.synchronize()
answers["ms"] = start.elapsed_time(end)
def memory():
    return [f("npu:0") for f in (torch.npu.memory_allocated, torch.npu.max_memory_allocated, torch.npu.memory_reserved)]
answers["two"] = memory()
del y
answers["one"] = memory()
del x
torch.npu.empty_cache()
answers["none"] = memory()
answers["fresh"] = torch.empty(4, device="npu:0").cpu().isnan().all().item()
"""
        )
        mebibyte = 1 << 20
        assert answers["ms"] > 0
        # The allocator adds 32 bytes to each.
        assert [round(size / mebibyte) for size in answers["two"][:2]] == [2, 2]
        assert [round(size / mebibyte) for size in answers["one"][:2]] == [1, 2]
        assert answers["one"][2] == answers["two"][2] >= 2 * mebibyte
        assert answers["none"][0] == answers["none"][2] == 0
        assert answers["fresh"]

    def test_capture_and_replay(self, npu: RealTorchNpu):
        answers = npu.answers(
            FLAGS
            + """
x = torch.ones(4, device="npu:0")
graph = torch.npu.NPUGraph()
with torch.npu.graph(graph):
    y = x * 2 + 1
x.fill_(5)
graph.replay()
answers["first"] = y.cpu().tolist()
x.fill_(7)
graph.replay()
answers["second"] = y.cpu().tolist()
try:
    with torch.npu.graph(torch.npu.NPUGraph()):
        (x * 2).cpu()
except RuntimeError as error:
    answers["waiting"] = str(error)
"""
        )
        assert answers["first"] == [11.0] * 4
        assert answers["second"] == [15.0] * 4
        assert "waiting" in answers

    def test_the_layers_of_a_convolutional_network(self, npu: RealTorchNpu):
        """The operators of the sound-event family: equal to the CPU's, which computes them here too."""
        answers = npu.answers(
            FLAGS
            + """
from torch.nn import functional as F
torch.manual_seed(0)
layers = {
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), (2, 3, 8, 12), (4, 3, 3, 3)),
    "batch_norm": (lambda x, w: F.batch_norm(x, w[0], w[1] * w[1] + 1, w[1], w[0], False), (2, 3, 8, 12), (2, 3)),
    "pooling": (lambda x: F.avg_pool2d(x, (1, 2)) + F.max_pool2d(x, (1, 2)), (2, 3, 8, 12)),
    "dense": (lambda x, w: F.relu(F.linear(x, w)).mean(1).sigmoid(), (2, 5, 4), (3, 4)),
}
with torch.inference_mode():
    for name, (layer, *shapes) in layers.items():
        given = [torch.randn(shape) for shape in shapes]
        found, expected = layer(*(tensor.to("npu:0") for tensor in given)).cpu(), layer(*given)
        answers[name] = ((found - expected).norm() / expected.norm()).item()
"""
        )
        assert len(answers) == 4
        assert all(error < 1e-6 for error in answers.values()), answers


class TestError:
    def test_it_is_told_once_and_what_follows_is_stale(self, npu: RealTorchNpu):
        """Why the engine runs in a process that ends at the first error."""
        answers = npu.answers(
            FLAGS
            + """
x = torch.ones(4, device="npu:0")
y = x * 3
torch.npu.synchronize()
z = torch.tanh(x)  # fails later
answers["given"] = True
try:
    torch.npu.synchronize()
except RuntimeError as error:
    answers["error"] = str(error)
answers["stale"] = (y + 1).cpu().tolist() != [4.0] * 4
""",
            CANN_STUB_FAIL="aclnnTanh",
        )
        assert answers["given"]
        assert "507015" in answers["error"]
        assert answers["stale"]

    @pytest.mark.parametrize(
        ("call", "name"),
        [("torch.abs(x)", "Abs"), ("x.aminmax()[0]", "aclnnAminmax")],
        ids=["legacy operator", "aclnn operator"],
    )
    def test_what_is_not_emulated_fails_by_name(self, npu: RealTorchNpu, call: str, name: str):
        # A legacy operator fails in the thread of torch_npu's task queue, which empties the queue before it takes down
        # the error (Repository::ReadQueue of NPUQueue.cpp, 2.13.0): who waits for an empty queue in between is told
        # nothing, who waits later is.
        script = f"""
{FLAGS}
import time
x = torch.ones(4, device='npu:0')
{call}
given = time.monotonic()
while time.monotonic() < given + 120:
    torch.npu.synchronize()
    time.sleep(0.01)
"""
        done = npu.run("-c", script)
        assert done.returncode == 1
        assert re.search(rf"RuntimeError: .*\b{name}\b", done.stderr.replace("\n", " ")), done.stderr
