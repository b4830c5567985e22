"""CPU, pressure, memory and disks of recorded and of broken hosts."""

from __future__ import annotations

import pytest
from unit.host_fixture import FixtureFiles, values

from gpuvigil_agent.samplers.base import SourceAbsentError
from gpuvigil_agent.samplers.disk import Disks
from gpuvigil_agent.samplers.host_cpu import HostCpu
from gpuvigil_agent.samplers.host_memory import HostMemory, line_value
from gpuvigil_agent.samplers.host_pressure import HostPressure, some_avg10

STAT = "cpu  {} 0 {} {} {} 0 0 0 0 0\nprocs_blocked {}\n"


def node(found):
    return {metric: value for (metric, entity), value in found.items() if entity == "node"}


def test_cpu_shares_are_of_the_time_since_the_last_reading():
    files = FixtureFiles("hgx", {"/proc/stat": STAT.format(100, 50, 800, 50, 0)})
    cpu = HostCpu(files)
    assert "node_cpu_utilization_ratio" not in node(values(cpu))
    files.changes["/proc/stat"] = STAT.format(130, 60, 840, 70, 9)
    found = node(values(cpu))
    assert found["node_cpu_utilization_ratio"] == pytest.approx(0.4)
    assert found["node_cpu_iowait_ratio"] == pytest.approx(0.2)
    assert found["node_processes_blocked"] == 9
    assert found["node_load1"] == 61.34


def test_an_iowait_that_steps_back_and_a_clock_that_stands_yield_no_nonsense():
    files = FixtureFiles("hgx", {"/proc/stat": STAT.format(100, 50, 800, 50, 0)})
    cpu = HostCpu(files)
    values(cpu)
    assert "node_cpu_utilization_ratio" not in node(values(cpu))
    files.changes["/proc/stat"] = STAT.format(110, 50, 890, 40, 0)
    found = node(values(cpu))
    assert found["node_cpu_utilization_ratio"] == pytest.approx(0.1)
    assert found["node_cpu_iowait_ratio"] == 0


@pytest.mark.parametrize(
    "text", ["", "cpu  1 2 3", "cpu  a b c d e f g h", "cpu" + " 1" * 8, "cpu  1 2 3 -4 5 6 7 8", "\x00"]
)
def test_a_broken_stat_yields_no_share_and_does_not_poison_the_next(text):
    files = FixtureFiles("hgx", {"/proc/stat": text})
    cpu = HostCpu(files)
    values(cpu)
    values(cpu)
    for busy in (100, 200):
        files.changes["/proc/stat"] = STAT.format(busy, 0, 8 * busy, 0, 0)
        found = node(values(cpu))
    assert found["node_cpu_utilization_ratio"] == pytest.approx(1 / 9)


def test_a_host_without_stat_is_absent():
    with pytest.raises(SourceAbsentError, match="/proc/stat"):
        values(HostCpu(FixtureFiles("hgx", {"/proc/stat": None})))


def test_pressure_of_a_recorded_host():
    assert node(values(HostPressure(FixtureFiles("hgx")))) == {
        "node_cpu_pressure_ratio": pytest.approx(0.0421), "node_memory_pressure_ratio": 0.0,
        "node_io_pressure_ratio": 0.375,
    }  # fmt: skip


def test_a_kernel_without_pressure_is_absent_and_one_file_less_is_one_series_less():
    paths = [f"/proc/pressure/{name}" for name in ("cpu", "memory", "io")]
    with pytest.raises(SourceAbsentError, match="pressure"):
        values(HostPressure(FixtureFiles("hgx", dict.fromkeys(paths))))
    assert len(values(HostPressure(FixtureFiles("hgx", {paths[0]: None})))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "some",
        "some avg10=",
        "some avg10=x avg60=1",
        "some avg10=nan ",
        "some avg10=101.0 ",
        "some avg10=-1.0 ",
        "full avg10=1.0 ",
    ],
)
def test_pressure_that_makes_no_sense_is_left_out(text):
    assert some_avg10(text) is None


def test_memory_of_a_recorded_host():
    assert node(values(HostMemory(FixtureFiles("hgx")))) == {
        "node_memory_total_bytes": 2113421312 * 1024.0, "node_memory_available_bytes": 1900234512 * 1024.0,
        "node_swap_used_bytes": 262144 * 1024.0, "node_oom_kills_total": 4.0,
    }  # fmt: skip


def test_memory_lines_that_are_missing_or_cut_are_left_out():
    files = FixtureFiles(
        "hgx", {"/proc/meminfo": "MemTotal: 12 kB\nMemAvailable: 123456", "/proc/vmstat": None}
    )
    assert node(values(HostMemory(files))) == {"node_memory_total_bytes": 12 * 1024.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\nkey 5\n", 5), ("\nkeyring 7\nkey 5\n", None), ("\nkey x\n", None), ("\nkey -5\n", None),
     ("\nkey \n", None), ("\nkey ²\n", None), ("\nkey 99999999999999999999\n", 99999999999999999999)],
)  # fmt: skip
def test_one_line_of_a_table(text, expected):
    assert line_value(text, "key") == expected


class Disk:
    """A Disks sampler whose clock and counters a test moves."""

    def __init__(self):
        self.files, self.now_ns = FixtureFiles("hgx"), 10**9
        self.disks = Disks(self.files, lambda: self.now_ns)

    def read(self, line=None, seconds=1.0):
        self.now_ns += int(seconds * 1e9)
        if line is not None:
            self.files.changes["/proc/diskstats"] = line
        return values(self.disks)


def row(reads=0, read_ms=0, writes=0, write_ms=0, busy_ms=0, name="sda"):
    return f"   8 0 {name} {reads} 0 0 {read_ms} {writes} 0 0 {write_ms} 0 {busy_ms} 0\n"


def test_whole_disks_alone_are_read():
    found = Disk().read()
    assert {entity for _, entity in found} == {"disk:nvme0n1", "disk:nvme10n1", "disk:sda", "disk:md127"}
    assert found["disk_read_bytes_total", "disk:nvme0n1"] == 80000000 * 512
    assert found["disk_written_bytes_total", "disk:nvme0n1"] == 40000000 * 512
    assert found["disk_operations_total", "disk:nvme0n1"] == 1200000


def test_busy_share_and_latency_are_of_the_time_since_the_last_reading():
    disk = Disk()
    disk.read(row(reads=100, read_ms=500, busy_ms=1000))
    found = disk.read(row(reads=110, read_ms=700, writes=10, write_ms=200, busy_ms=1500), seconds=2)
    assert found["disk_busy_ratio", "disk:sda"] == pytest.approx(0.25)
    assert found["disk_latency_seconds", "disk:sda"] == pytest.approx(0.02)


def test_a_disk_that_completes_nothing_has_no_latency_but_is_busy():
    disk = Disk()
    disk.read(row(reads=100, read_ms=500, busy_ms=1000))
    found = disk.read(row(reads=100, read_ms=500, busy_ms=2050))
    assert ("disk_latency_seconds", "disk:sda") not in found
    assert found["disk_busy_ratio", "disk:sda"] == 1.0


def test_counters_that_wrap_or_start_anew_yield_no_share():
    disk = Disk()
    disk.read(row(reads=100, read_ms=2**32 - 5, busy_ms=2**32 - 5))
    found = disk.read(row(reads=110, read_ms=3, busy_ms=3))
    assert not {("disk_latency_seconds", "disk:sda"), ("disk_busy_ratio", "disk:sda")} & set(found)
    assert ("disk_latency_seconds", "disk:sda") in disk.read(row(reads=120, read_ms=53, busy_ms=40))


def test_a_disk_that_was_away_has_no_share_of_the_time_it_was_away():
    disk = Disk()
    disk.read(row(reads=1))
    disk.read("")
    assert ("disk_busy_ratio", "disk:sda") not in disk.read(row(reads=5, read_ms=50, busy_ms=10))


@pytest.mark.parametrize(
    "line", ["8 0 sda 1 2\n", row(reads=-1), row().replace("sda", "sd\ufffd"), row(reads="²"), "\x00" * 40]
)
def test_broken_lines_are_left_out(line):
    assert Disk().read(line) == {}
