"""Every fault shows through real pynvml calls and host files where it should, and nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pynvml as nv
import pytest
from contract.simulated_node import Clock, config, installed, node_view

LATER = 55.0
POWERED = {"power", "energy", "temperature", "memory_temperature", "sm", "reasons"}
LOST = "error 15"

SHOWN = {
    'kind = "ecc_uncorrectable"\ngpu = 1': {("gpu1", n) for n in ("ecc_uncorrected", "rows", "recovery")},
    'kind = "ecc_corrected_growth"\ngpu = 2': {("gpu2", "ecc_corrected")},
    'kind = "row_remap_failure"\ngpu = 3': {("gpu3", "rows"), ("gpu3", "recovery")},
    'kind = "thermal_throttle"\ngpu = 4': {("gpu4", name) for name in POWERED},
    'kind = "power_brake"\ngpu = 5': {("gpu5", name) for name in POWERED},
    'kind = "nvlink_errors"\ngpu = 6\nlink = 7': {("gpu6", "link_errors")},
    'kind = "nvlink_down"\ngpu = 7\nlink = 3': {("gpu7", "links")},
    'kind = "pcie_downgrade"\ngpu = 0': {("gpu0", "pcie")},
    'kind = "xid_application_storm"': set(),
    'kind = "disk_slow"': {
        ("host", f"/proc/{name}") for name in ("diskstats", "stat", "loadavg", "pressure/io")
    },
    'kind = "disk_filling"': {("host", "/scratch")},
    'kind = "memory_leak"': {("host", "/proc/meminfo")},
    'kind = "nic_down"\ninterface = "ib2"': {
        ("host", "/proc/net/dev"), ("ib2", "carrier"), ("ib2", "carrier_changes"), ("ib2", "speed"),
        ("ib2", "operstate"),
    },
    'kind = "nic_flap"\ninterface = "ib2"': {("host", "/proc/net/dev"), ("ib2", "carrier_changes")},
}  # fmt: skip


@pytest.mark.parametrize("faults", SHOWN, ids=lambda text: text.split('"')[1])
def test_a_fault_shows_where_it_is_and_nowhere_else(faults: str, tmp_path: Path) -> None:
    """Before its time nothing differs from the healthy node; after it exactly the named readings do."""
    healthy, sick = config(tmp_path), config(tmp_path, f'{faults}\nat = "20s"')
    assert node_view(healthy, 19.0) == node_view(sick, 19.0)
    before, after = node_view(healthy, LATER), node_view(sick, LATER)
    assert {key for key in before if before[key] != after[key]} == SHOWN[faults]


@pytest.mark.parametrize(("kind", "count"), [("gpu_lost_xid79", 8), ("gpu_lost_silent", 7)])
def test_a_lost_gpu_answers_nothing(kind: str, count: int, tmp_path: Path) -> None:
    """Every call about it says GPU_IS_LOST; the others answer as on the healthy node."""
    sick = config(tmp_path, f'kind = "{kind}"\ngpu = 3\nat = "20s"')
    before, after = node_view(config(tmp_path), LATER), node_view(sick, LATER)
    changed = {key for key in before if before[key] != after[key]} - {("node", "count")}
    assert {part for part, _ in changed} == {"gpu3"}
    assert after["node", "count"] == count
    assert {after["gpu3", name] for name in ("power", "util", "memory", "recovery", "energy")} == {LOST}


def test_a_gpu_vanishes_and_returns(tmp_path: Path) -> None:
    """While one is gone the indices behind it move up; afterwards it is back under its UUID."""
    clock = Clock()
    settings = config(tmp_path, 'kind = "gpu_lost_silent"\ngpu = 3\nat = "20s"\nduration = "10s"')
    with installed(settings, clock):
        uuids = [nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(index)) for index in range(8)]
        clock.set(25)
        left = [
            nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(i)) for i in range(nv.nvmlDeviceGetCount())
        ]
        assert left == [*uuids[:3], *uuids[4:]]
        clock.set(31)
        assert nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(3)) == uuids[3]


def test_blanks(tmp_path: Path) -> None:
    """NotSupported from narrow calls, NVML's INT64 blank with success from wide ones."""
    clock = Clock(LATER)
    with installed(config(tmp_path, 'kind = "driver_blanks"\ngpu = 1\nat = "1s"'), clock):
        handle = nv.nvmlDeviceGetHandleByIndex(1)
        with pytest.raises(nv.NVMLError_NotSupported):
            nv.nvmlDeviceGetPowerUsage(handle)
        assert nv.nvmlDeviceGetTotalEnergyConsumption(handle) == 9223372036854775794
        assert nv.nvmlDeviceGetMemoryInfo(handle).used == 9223372036854775794
        values = nv.nvmlDeviceGetFieldValues(handle, [82, 230])
        assert {(value.nvmlReturn, value.value.sllVal) for value in values} == {(0, 9223372036854775794)}
        assert nv.nvmlDeviceGetPowerUsage(nv.nvmlDeviceGetHandleByIndex(2)) > 0


def _finishes(call: object, *arguments: object) -> bool:
    thread = threading.Thread(target=call, args=arguments, daemon=True)  # type: ignore[arg-type]
    thread.start()
    thread.join(0.5)
    return not thread.is_alive()


def test_a_hang_on_one_gpu_leaves_the_others(tmp_path: Path) -> None:
    """Calls on GPU 2 block with the interpreter free; those on GPU 1 and the count answer."""
    faults = 'kind = "driver_hang"\ngpu = 2\nat = "0s"\nduration = "3s"'
    with installed(config(tmp_path, faults, start_ns=time.time_ns())):
        handles = [nv.nvmlDeviceGetHandleByIndex(index) for index in range(3)]
        assert not _finishes(nv.nvmlDeviceGetPowerUsage, handles[2])
        assert nv.nvmlDeviceGetPowerUsage(handles[1]) > 0
        assert nv.nvmlDeviceGetCount() == 8


@pytest.mark.parametrize(
    ("where", "blocked"), [("init", {"init"}), ("events", {"wait"}), ("readings", {"init", "wait", "count"})]
)
def test_hang_in_init_in_the_event_wait_or_everywhere(where: str, blocked: set[str], tmp_path: Path) -> None:
    """A hang blocks the call it names; one without a GPU on readings blocks the whole driver."""
    faults = f'kind = "driver_hang"\ncall = "{where}"\nat = "10s"\nduration = "2s"'
    clock = Clock(0)
    with installed(config(tmp_path, faults), clock):
        events = nv.nvmlEventSetCreate()
        clock.set(11)
        calls = {"init": (nv.nvmlInit,), "count": (nv.nvmlDeviceGetCount,), "wait": (_wait, events)}
        assert {name for name, call in calls.items() if not _finishes(*call)} == blocked
        clock.set(13)


def _wait(events: object) -> None:
    with pytest.raises(nv.NVMLError_Timeout):
        nv.nvmlEventSetWait_v2(events, 0)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_kills_the_process_once(name: str, tmp_path: Path) -> None:
    """The process that lives at the instant dies of the signal; one that starts later is left alone."""
    faults = f'kind = "driver_crash"\nat = "500ms"\nsignal = "{name}"'
    settings = config(tmp_path, faults, start_ns=time.time_ns())
    program = textwrap.dedent(f"""
        import time, pynvml
        from gpuvigil_agent.config import Simulate
        from gpuvigil_agent.simulate import driver
        driver.install(Simulate(start_ns=START, scenario={settings.scenario!r}), "sim-03")
        pynvml.nvmlInit()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            pynvml.nvmlDeviceGetCount()
            time.sleep(0.02)
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for start, expected in (("time.time_ns()", -getattr(signal, name)), ("time.time_ns() - 10**9", 0)):
        command = [sys.executable, "-c", program.replace("START", start)]
        assert subprocess.run(command, env=environment, timeout=30, check=False).returncode == expected
