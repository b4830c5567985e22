"""The simulated library answers every NVML call that the samplers use, through the real pynvml."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml as nv
import pytest
from contract.simulated_node import NODE, Clock, config, gpu_view, installed

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import driver

READING_SECONDS = 30.0


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    """A healthy H100 node, 30 s after its start."""
    clock = Clock(READING_SECONDS)
    with installed(config(tmp_path), clock):
        yield clock


def test_inventory(clock: Clock) -> None:
    """Eight boards with their own UUIDs and bus addresses, in both forms NVML writes."""
    handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in range(nv.nvmlDeviceGetCount())]
    assert len(handles) == 8
    assert [nv.nvmlDeviceGetIndex(handle) for handle in handles] == list(range(8))
    uuids = {nv.nvmlDeviceGetUUID(handle) for handle in handles}
    assert len(uuids) == 8
    assert all(uuid.startswith("GPU-") and len(uuid) == 40 for uuid in uuids)
    info = nv.nvmlDeviceGetPciInfo_v3(handles[0])
    assert (info.busId, info.busIdLegacy, info.bus) == ("00000000:1B:00.0", "0000:1B:00.0", 0x1B)
    assert nv.nvmlDeviceGetName(handles[0]) == "NVIDIA H100 80GB HBM3"
    assert nv.nvmlSystemGetDriverVersion() == "570.124.06"


def test_every_reading_is_plausible(clock: Clock) -> None:
    """A training H100: busy, hot, near its limit, without a single error."""
    view = gpu_view(nv.nvmlDeviceGetHandleByIndex(2))
    assert not [name for name, value in view.items() if isinstance(value, str) and value.startswith("error")]
    assert 300_000 < view["power"] <= 710_000
    assert view["limit"] == 700_000
    assert 45 < view["temperature"] < 85
    assert 45 < view["memory_temperature"] < 100
    assert 1000 < view["sm"] <= 1980
    assert (view["ecc_uncorrected"], view["rows"], view["recovery"]) == (0, (0, 0, 0, 0), 0)
    assert view["pcie"] == (5, 16)
    assert view["links"] == [1] * 18
    assert view["processes"] == 1


def test_choices_and_errors(clock: Clock) -> None:
    """What hardware does not have is an NVML error with the code that a real driver gives."""
    handle = nv.nvmlDeviceGetHandleByIndex(0)
    assert nv.nvmlDeviceGetMaxClockInfo(handle, nv.NVML_CLOCK_SM) == 1980
    assert nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM) == 2619
    assert nv.nvmlDeviceGetMaxPcieLinkGeneration(handle) == 5
    assert nv.nvmlDeviceGetMaxPcieLinkWidth(handle) == 16
    assert nv.nvmlDeviceGetTotalEccErrors(handle, 0, 1) >= nv.nvmlDeviceGetTotalEccErrors(handle, 0, 0)
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetNvLinkState(handle, 18)
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetTemperature(handle, 7)
    with pytest.raises(nv.NVMLError_InvalidArgument):
        nv.nvmlDeviceGetHandleByIndex(8)
    with pytest.raises(nv.NVMLError_FunctionNotFound):
        nv.nvmlDeviceGetFanSpeed(handle)
    assert nv.nvmlErrorString(nv.NVML_ERROR_GPU_IS_LOST) == "GPU is lost"


def test_field_values_each_have_their_own_status(clock: Clock) -> None:
    """Memory temperature, recovery action, three NVLink counters with a scope; an unknown id fails alone."""
    handle = nv.nvmlDeviceGetHandleByIndex(0)
    ids = [
        nv.NVML_FI_DEV_MEMORY_TEMP,
        nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION,
        (161, 1),
        (162, 1),
        (163, 1),
        9999,
    ]
    values = nv.nvmlDeviceGetFieldValues(handle, ids)
    assert [value.nvmlReturn for value in values] == [0, 0, 0, 0, 0, nv.NVML_ERROR_NOT_SUPPORTED]
    assert [value.scopeId for value in values] == [0, 0, 1, 1, 1, 0]


def test_before_init_and_after_shutdown(tmp_path: Path) -> None:
    """Without init there is no answer, as with the real library."""
    with installed(config(tmp_path), Clock()):
        nv.nvmlShutdown()
        with pytest.raises(nv.NVMLError_Uninitialized):
            nv.nvmlDeviceGetCount()
        with pytest.raises(nv.NVMLError_Uninitialized):
            nv.nvmlShutdown()


def test_event_wait_blocks_up_to_its_timeout_with_the_interpreter_free(tmp_path: Path) -> None:
    """Another thread runs on while the wait blocks, and the wait ends as TIMEOUT."""
    settings = Simulate(start_ns=time.time_ns())
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.01):
            ticks += 1

    with installed(settings):
        events = nv.nvmlEventSetCreate()
        handle = nv.nvmlDeviceGetHandleByIndex(0)
        nv.nvmlDeviceRegisterEvents(handle, nv.nvmlDeviceGetSupportedEventTypes(handle), events)
        thread = threading.Thread(target=tick)
        thread.start()
        began = time.monotonic()
        with pytest.raises(nv.NVMLError_Timeout):
            nv.nvmlEventSetWait_v2(events, 400)
        assert 0.4 <= time.monotonic() - began < 3.0
        done.set()
        thread.join(5.0)
        assert ticks >= 5
        nv.nvmlEventSetFree(events)
        with pytest.raises(nv.NVMLError_InvalidArgument):
            nv.nvmlEventSetWait_v2(events, 1)


def test_xid_reaches_the_listener_of_its_gpu_alone(tmp_path: Path) -> None:
    """The Xid of GPU 2 wakes the wait at its time; a set without GPU 2 never hears of it."""
    faults = 'kind = "gpu_lost_xid79"\nat = "500ms"\ngpu = 2'
    settings = config(tmp_path, faults, start_ns=time.time_ns())
    with installed(settings):
        handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
        mine, other = nv.nvmlEventSetCreate(), nv.nvmlEventSetCreate()
        nv.nvmlDeviceRegisterEvents(handles[2], nv.nvmlEventTypeXidCriticalError, mine)
        nv.nvmlDeviceRegisterEvents(handles[3], nv.nvmlEventTypeXidCriticalError, other)
        event = nv.nvmlEventSetWait_v2(mine, 5000)
        assert time.time_ns() >= settings.start_ns + 500_000_000
        assert (event.eventType, event.eventData) == (nv.nvmlEventTypeXidCriticalError, 79)
        with pytest.raises(nv.NVMLError_GpuIsLost):
            nv.nvmlDeviceGetUUID(event.device)
        with pytest.raises(nv.NVMLError_Timeout):
            nv.nvmlEventSetWait_v2(other, 50)


def test_cost_is_counted(clock: Clock) -> None:
    """What the simulation takes is known apart, and waiting costs nothing."""
    handle = nv.nvmlDeviceGetHandleByIndex(0)
    before = driver.cost_seconds()
    for second in range(100):
        clock.set(READING_SECONDS + second)
        gpu_view(handle)
    assert 0 < driver.cost_seconds() - before < 5.0


def test_a100_profile_and_idle_load(tmp_path: Path) -> None:
    """An idle A100: no process, low clocks with the idle reason, 12 links, generation 4."""
    with installed(config(tmp_path, profile="a100", load="idle", gpus=4), Clock(READING_SECONDS), NODE):
        assert nv.nvmlDeviceGetCount() == 4
        view = gpu_view(nv.nvmlDeviceGetHandleByIndex(0))
    assert view["links"] == [1] * 12 + [f"error {nv.NVML_ERROR_INVALID_ARGUMENT}"] * 6
    assert (view["pcie"], view["processes"], view["sm"]) == ((4, 16), 0, 210)
    assert view["reasons"] == nv.nvmlClocksEventReasonGpuIdle
    assert view["power"] < 90_000
