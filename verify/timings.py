"""results/performance.json: times and memory by engine."""

from __future__ import annotations

from pydantic import Field

from verify.results import EngineSection, Result, Subject


class Statistics(Result):
    """Seconds over the warm runs; `std` is the sample standard deviation (0 for one run)."""

    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Latency(Result):
    """Wall seconds of one operation: the first call after loading, then the warm runs in order.

    `device_s` are the seconds between two events around the same warm runs, where the device has a clock of its own.
    """

    cold_s: float
    runs_s: tuple[float, ...]
    latency_s: Statistics
    device_s: Statistics | None = None


class DeviceWork(Result):
    """What one recognition asks of the device, per second of audio.

    `calls` of graphs, the `operators` in them (0 where the engine does not know), `copies` to the device and from it,
    `syncs`: times that the host waits. `host_calls` are of graphs on the host.
    """

    calls: float
    operators: float
    copies: float
    syncs: float
    host_calls: float


class DeviceCost(Result):
    """What one token or one window asks of the device, on average over a recording; see `runtime.engines.probe.Work`.

    `operators` are computed there, `launches` started by the host one by one, `copies` go between both, and `syncs` are
    the times that the host waits.
    """

    operators: float
    launches: float
    copies: float
    syncs: float


class EndToEnd(Result):
    """One recording from file to text.

    `rtf` is the median wall time over the recording's duration, `tokens_per_s` its decoded tokens (timestamps too)
    over the median wall time, None where nothing is decoded. `split_s` holds the stages of the median run. `work` is
    what each kind of search that the family has asks of the device, where that is not the host; `per_token` is what a
    call of the graph that makes one token asks of it, None where none does, and `per_window` all else by the windows.
    """

    recording: str
    duration_s: float
    tokens: int | None
    latency: Latency
    rtf: float
    tokens_per_s: float | None
    split_s: dict[str, float]
    work: dict[str, DeviceWork] = Field(default_factory=dict)
    per_token: DeviceCost | None = None
    per_window: DeviceCost | None = None


class Memory(Result):
    """Resident memory of the measuring process in bytes (VmHWM: the peak, host memory only).

    The process that owns an NPU is another one and not counted.

    `before_load` holds Python and this project; `after_load` adds the engine's library, the graphs and the weights;
    `peak` is the most during the whole protocol.
    """

    before_load: int
    after_load: int
    peak: int


class DeviceMemory(Result):
    """Bytes on the device after everything was timed: held by tensors, by the allocator, and the tensors' peak."""

    allocated: int
    reserved: int
    peak: int


class Power(Result):
    """Watts of a device by the Power(W) of npu-smi's table.

    `idle_w` was read before the engine opened, `busy_w` one after the other while one recording was recognised again
    and again, behind everything that was timed: npu-smi itself takes time of the host. `mean_w` and `max_w` are of
    `busy_w`.
    """

    idle_w: float
    busy_w: tuple[float, ...]
    mean_w: float
    max_w: float


class Protocol(Result):
    """How the times were taken; each operation stops early after `budget_s` seconds, but not before three runs."""

    process: str = "a fresh process per engine; cold is the first call after loading in it"
    warm_up: int
    runs: int
    budget_s: float
    threads: int | None = Field(description="None: the engine's own choice")
    synchronised: bool = True
    clock: str = (
        "time.perf_counter around bind/call and synchronize, device times by events around the call; "
        "inputs on the device, outputs left there"
    )


class EnginePerformance(EngineSection):
    """Times and memory of one engine; `blocked` is the reason why there are none.

    `captured`: its graphs were captured and replayed. `load_s` is the wall time to open the engine, the import of its
    library included. `power` is None where npu-smi
    tells none. Nothing here is a figure of the device where `simulated` is true.
    """

    simulated: bool = False
    captured: bool = False
    load_s: float | None = None
    graphs: dict[str, Latency] = Field(default_factory=dict)
    end_to_end: EndToEnd | None = None
    memory: Memory | None = None
    device_memory: DeviceMemory | None = None
    power: Power | None = None
    blocked: str | None = None


class PerformanceFile(Subject):
    """results/performance.json."""

    protocol: Protocol
    engines: tuple[EnginePerformance, ...]
