"""The simulated host and kernel log, seen by the real samplers and the real grammar."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from contract.simulated_node import NODE, START_NS, Clock, config

from gpuvigil_agent.config import Host
from gpuvigil_agent.kernel_grammar import Fact, Grammar
from gpuvigil_agent.samplers.host_table import build_host_samplers
from gpuvigil_agent.simulate.host import SimulatedHostFiles
from gpuvigil_agent.simulate.kernel_log import _ORDINARY, fault_lines, simulated_source
from gpuvigil_agent.simulate.links import Links
from gpuvigil_agent.simulate.world import World


def rates(tmp_path: Path, faults: str, at: list[float]) -> list[dict[tuple[str, str], float]]:
    """What the real host samplers yield at each time, with counters as rates since the time before."""
    clock = Clock(at[0] - 1)
    files = SimulatedHostFiles(config(tmp_path, faults), NODE, clock)
    samplers = build_host_samplers(files, Host())
    last: dict[tuple[str, str], float] = {}
    found = []
    for seconds in [at[0] - 1, *at]:
        clock.set(seconds)
        now = {(s.metric.name, s.entity): s.value for sampler in samplers for s in sampler.sample()}
        found.append(
            {key: now[key] - last.get(key, 0.0) if key[0].endswith("_total") else now[key] for key in now}
        )
        last = now
    return found[1:]


def test_healthy_host(tmp_path: Path) -> None:
    """The samplers see 9 interfaces, two disks, two local file systems, and plausible shares."""
    seen = rates(tmp_path, "", [float(second) for second in range(30, 90)])
    last = seen[-1]
    assert len([key for key in last if key[0] == "interface_up"]) == 9
    assert {key[1] for key in last if key[0] == "filesystem_size_bytes"} == {
        "filesystem:/",
        "filesystem:/scratch",
    }
    assert {key[1] for key in last if key[0] == "disk_busy_ratio"} == {"disk:nvme0n1", "disk:nvme1n1"}
    written = [row["disk_written_bytes_total", "disk:nvme0n1"] for row in seen]
    assert max(written) > 100 * sorted(written)[len(written) // 2], "checkpoints show on the data disk"
    assert all(0.05 < row["node_cpu_utilization_ratio", "node"] < 0.4 for row in seen)
    assert all(row["interface_errors_total", "interface:ib0"] == 0 for row in seen)
    assert all(0 <= value < 1e16 for row in seen for value in row.values())


def test_rates_do_not_depend_on_the_reading_pace(tmp_path: Path) -> None:
    """Within one second, the totals grow evenly: half a second gives half the bytes."""
    first, half, rest = rates(tmp_path, "", [30.0, 30.5, 31.0])
    key = ("interface_receive_bytes_total", "interface:ib0")
    assert half[key] == pytest.approx(rest[key], rel=1e-6)
    assert first[key] > 0


def test_slow_disk(tmp_path: Path) -> None:
    """Latency grows by its factor on the named disk and stays on the other."""
    before, _, after = rates(tmp_path, 'kind = "disk_slow"\nat = "35s"', [34.0, 36.0, 37.0])
    key = ("disk_latency_seconds", "disk:nvme0n1")
    assert 14 < after[key] / before[key] < 27
    assert after[key[0], "disk:nvme1n1"] < 3 * before[key[0], "disk:nvme1n1"]


@pytest.mark.parametrize(("mount", "empty_at"), [("/scratch", 71.0), ("/", 71.0)])
def test_filling_disk(mount: str, empty_at: float, tmp_path: Path) -> None:
    """Free space falls in a straight line and is 0 at the end."""
    faults = f'kind = "disk_filling"\nfilesystem = "{mount}"\nat = "20s"\nfull_in = "50s"'
    free = [
        r["filesystem_available_bytes", f"filesystem:{mount}"]
        for r in rates(tmp_path, faults, [20.0, 45.0, empty_at])
    ]
    assert free[1] == pytest.approx(free[0] / 2, rel=0.01)
    assert free[2] == 0


def test_leak_takes_memory_and_leaves_the_kernel_some(tmp_path: Path) -> None:
    """Available memory falls to 2 % of the host and no lower."""
    seen = rates(tmp_path, 'kind = "memory_leak"\nat = "20s"\ngone_in = "60s"', [19.0, 50.0, 80.0, 200.0])
    shares = [
        row["node_memory_available_bytes", "node"] / row["node_memory_total_bytes", "node"] for row in seen
    ]
    assert shares[0] > 0.6
    assert shares[1] == pytest.approx((shares[0] + 0.02) / 2, abs=0.02)
    assert shares[2] == shares[3] == pytest.approx(0.02, abs=0.001)


def test_flapping_and_return(tmp_path: Path) -> None:
    """Two carrier changes a period; at the end of its duration the link is up and stays."""
    faults = 'kind = "nic_flap"\ninterface = "ib1"\nat = "20s"\nduration = "20s"\nperiod = "8s"\ndown = "3s"'
    clock = Clock()
    files = SimulatedHostFiles(config(tmp_path, faults), NODE, clock)
    seen = []
    for second in (19, 21, 24, 29, 32, 37, 39.5, 41, 100):
        clock.set(second)
        path = "/sys/class/net/ib1"
        seen.append((files.read(f"{path}/carrier").strip(), int(files.read(f"{path}/carrier_changes"))))
    assert seen == [("1", 3), ("0", 4), ("1", 5), ("0", 6), ("1", 7), ("0", 8), ("1", 9), ("1", 9), ("1", 9)]
    assert Links(World(config(tmp_path, faults), NODE, clock)).edges()[-1][1:] == ("ib1", True)
    with pytest.raises(FileNotFoundError):
        files.read("/sys/class/net/wlan0/carrier")
    with pytest.raises(FileNotFoundError):
        files.read("/etc/shadow")
    with pytest.raises(FileNotFoundError):
        files.usage("/data")


@pytest.mark.parametrize("duration", [3, 8, 11, 16, 17, 20])
def test_carrier_changes_are_the_edges(duration: int, tmp_path: Path) -> None:
    """At every instant the count of changes is the number of edges so far, also when the fault ends."""
    faults = f'kind = "nic_flap"\nat = "20s"\nduration = "{duration}s"'
    links = Links(World(config(tmp_path, faults), NODE, Clock()))
    edges = [time_ns for time_ns, _, _ in links.edges()]
    for tenth in range(150, 500):
        now_ns = START_NS + tenth * 10**8
        assert links.changes("ib0", now_ns) == 3 + sum(edge <= now_ns for edge in edges)


def facts(tmp_path: Path, faults: str) -> list[Fact]:
    """What the real grammar reads in the kernel lines of a fault."""
    grammar = Grammar()
    lines = fault_lines(World(config(tmp_path, faults), NODE, Clock()))
    assert all(facility == 0 for _, facility, _, _ in lines)
    return [fact for _, _, _, text in lines if (fact := grammar.parse(text)) is not None]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ('kind = "gpu_lost_xid79"\ngpu = 0', [("xid", 79), ("xid", 154), ("gpu_lost", 0)]),
        ('kind = "gpu_lost_silent"\ngpu = 0', []),
        ('kind = "ecc_uncorrectable"\ngpu = 0\nxid = 94', [("xid", 94), ("xid", 154)]),
        ('kind = "row_remap_failure"\ngpu = 0', [("xid", 64), ("xid", 154)]),
        ('kind = "nvlink_down"\ngpu = 0\nlink = 5', [("xid", 74), ("sxid", 20034)]),
        ('kind = "nvlink_down"\ngpu = 0\nxid = false', []),
        ('kind = "nvlink_errors"\ngpu = 0', [("sxid", 20001)]),
        ('kind = "nic_down"', []),
    ],
)
def test_kernel_lines_parse(faults: str, expected: list[tuple[str, int]], tmp_path: Path) -> None:
    """Each line is what the driver writes: the grammar reads kind, code and the GPU's address."""
    found = facts(tmp_path, faults + '\nat = "20s"')
    assert [(fact.kind, fact.code) for fact in found] == expected
    assert {fact.pci for fact in found if fact.kind in {"xid", "gpu_lost"}} <= {"0000:1b:00"}
    assert not any(fact.synthetic for fact in found)


def test_storm_lines_name_no_single_unit(tmp_path: Path) -> None:
    """Only application codes, on all GPUs, and Xid 13 at different places of the chip."""
    found = facts(tmp_path, 'kind = "xid_application_storm"\nat = "20s"\nbursts = 6')
    assert {fact.code for fact in found} == {13, 31, 43, 45}
    assert len({fact.pci for fact in found}) == 8
    places = [(fact.pci, fact.fields["gpc"], fact.fields["tpc"]) for fact in found if fact.code == 13]
    assert len(places) > 4
    assert len(set(places)) == len(places)


def test_ordinary_lines_are_no_facts() -> None:
    """What every kernel writes all day means nothing."""
    grammar = Grammar()
    assert [text for _, _, text in _ORDINARY if grammar.parse(text) is not None] == []


async def test_the_source_tells_a_fault_at_its_time(tmp_path: Path) -> None:
    """Records come in order and not before their time; one from before the start of reading never comes."""
    settings = config(tmp_path, 'kind = "gpu_lost_xid79"\ngpu = 1\nat = "400ms"', start_ns=time.time_ns())
    async with asyncio.timeout(10):
        async for record in simulated_source(settings, NODE):
            assert time.time_ns() >= record.time_ns - 5_000_000
            if "Xid" in record.text:
                break
    assert record.text.startswith("NVRM: Xid (PCI:0000:43:00): 79, ")
    assert (record.facility, record.time_ns) == (0, settings.start_ns + 400_000_000)
    late = simulated_source(settings, NODE, lambda: settings.start_ns + 10**15)
    assert "Xid" not in (await anext(late)).text
