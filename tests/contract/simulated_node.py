"""A simulated node for tests: a clock that tests turn, and all that a node shows, as one flat dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml as nv

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import driver
from gpuvigil_agent.simulate.host import SimulatedHostFiles

START_NS = 1_800_000_000_000_000_000
NODE = "sim-03"
SECOND = 1_000_000_000
HOST_FILES = (
    "/proc/stat",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/diskstats",
    "/proc/net/dev",
    "/proc/pressure/io",
)


class Clock:
    """Nanoseconds that only a test moves."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Go to so many seconds after the start."""
        self.now_ns = START_NS + int(seconds * SECOND)

    def __call__(self) -> int:
        return self.now_ns


def config(tmp_path: Path, faults: str = "", **changes: object) -> Simulate:
    """A node's config; `faults` is the body of one [[fault]] table, without kind's brackets and node."""
    scenario = ""
    if faults:
        file = tmp_path / "scenario.toml"
        file.write_text(f'version = 1\n[[fault]]\nnode = "{NODE}"\n{faults}\n')
        scenario = str(file)
    settings: dict[str, object] = {"start_ns": START_NS, "scenario": scenario, "seed": 7} | changes
    return Simulate(**settings)  # type: ignore[arg-type]


@contextmanager
def installed(settings: Simulate, clock: Clock | None = None, node: str = NODE) -> Iterator[None]:
    """Put the simulated library below pynvml, initialise it, and take it away again."""
    before = nv.nvmlLib
    if clock is None:
        driver.install(settings, node)
    else:
        driver.install(settings, node, clock)
    try:
        nv.nvmlInit()
        yield
    finally:
        nv.nvmlLib = before
        nv._nvmlGetFunctionPointer_cache.clear()


def _answer(call: object, *arguments: object) -> object:
    try:
        return call(*arguments)  # type: ignore[operator]
    except nv.NVMLError as error:
        return f"error {error.value}"


def gpu_view(handle: object) -> dict[str, object]:
    """Every reading of one GPU that the samplers take."""
    return {
        "util": str(_answer(nv.nvmlDeviceGetUtilizationRates, handle)),
        "memory": str(_answer(nv.nvmlDeviceGetMemoryInfo, handle)),
        "temperature": _answer(nv.nvmlDeviceGetTemperature, handle, nv.NVML_TEMPERATURE_GPU),
        "power": _answer(nv.nvmlDeviceGetPowerUsage, handle),
        "limit": _answer(nv.nvmlDeviceGetEnforcedPowerLimit, handle),
        "energy": _answer(nv.nvmlDeviceGetTotalEnergyConsumption, handle),
        "sm": _answer(nv.nvmlDeviceGetClockInfo, handle, nv.NVML_CLOCK_SM),
        "reasons": _answer(nv.nvmlDeviceGetCurrentClocksEventReasons, handle),
        "ecc_corrected": _answer(nv.nvmlDeviceGetTotalEccErrors, handle, 0, 0),
        "ecc_uncorrected": _answer(nv.nvmlDeviceGetTotalEccErrors, handle, 1, 0),
        "rows": _answer(nv.nvmlDeviceGetRemappedRows, handle),
        "pcie": (
            _answer(nv.nvmlDeviceGetCurrPcieLinkGeneration, handle),
            _answer(nv.nvmlDeviceGetCurrPcieLinkWidth, handle),
        ),
        "replays": _answer(nv.nvmlDeviceGetPcieReplayCounter, handle),
        "links": [_answer(nv.nvmlDeviceGetNvLinkState, handle, link) for link in range(18)],
        "link_errors": [
            _answer(nv.nvmlDeviceGetNvLinkErrorCounter, handle, link, kind)
            for link in range(18)
            for kind in range(4)
        ],
        "recovery": _fields(handle, 230),
        "memory_temperature": _fields(handle, 82),
        "processes": _processes(handle),
    }


def _processes(handle: object) -> object:
    found = _answer(nv.nvmlDeviceGetComputeRunningProcesses_v3, handle)
    return found if isinstance(found, str) else len(found)  # type: ignore[arg-type]


def _fields(handle: object, field: int) -> object:
    values = _answer(nv.nvmlDeviceGetFieldValues, handle, [field])
    return values if isinstance(values, str) else values[0].value.ullVal  # type: ignore[index]


def node_view(settings: Simulate, seconds: float) -> dict[tuple[str, str], object]:
    """All that a node shows at one instant: (part, reading) -> value."""
    clock = Clock(0.0)
    view: dict[tuple[str, str], object] = {}
    with installed(settings, clock):
        handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in range(settings.gpus)]
        clock.set(seconds)
        view["node", "count"] = nv.nvmlDeviceGetCount()
        for index, handle in enumerate(handles):
            view |= {(f"gpu{index}", name): value for name, value in gpu_view(handle).items()}
    files = SimulatedHostFiles(settings, NODE, clock)
    view |= {("host", path): files.read(path) for path in HOST_FILES}
    for mount in ("/", "/scratch"):
        view["host", mount] = files.usage(mount)
    for interface in files.names("/sys/class/net"):
        if interface != "lo":
            for name in ("carrier", "carrier_changes", "speed", "operstate"):
                view[interface, name] = files.read(f"/sys/class/net/{interface}/{name}")
    return view
