"""How the kernel writes the simulated host's numbers: /proc and /sys text, one function a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.host_second import HostSecond
from gpuvigil_agent.simulate.world import DATA_DISK, ROOT_DISK

_DEVICES: Final = {DATA_DISK: (259, 0), ROOT_DISK: (259, 1)}
_DISK_WORDS: Final = (
    "reads", "read_sectors", "read_ms", "writes", "written_sectors", "write_ms", "busy_ms", "weighted_ms",
)  # fmt: skip
_PACKET_BYTES = 4 << 10
_INFINIBAND_MEGABITS, _ETHERNET_MEGABITS = 400_000, 100_000


def _total(second: HostSecond, name: str, fraction: float) -> int:
    return int(second.totals[name] + second.rates[name] * fraction)


def stat(second: HostSecond, fraction: float, boot_ns: int) -> str:
    """Text of /proc/stat: all cores together; seven eighths of busy time is user's."""
    busy = _total(second, "cpu.busy", fraction)
    idle, iowait = _total(second, "cpu.idle", fraction), _total(second, "cpu.iowait", fraction)
    system = busy // 8
    return (
        f"cpu  {busy - system} 0 {system} {idle} {iowait} 0 0 0 0 0\n"
        f"intr {busy * 9}\nctxt {busy * 40}\nbtime {boot_ns // 1_000_000_000}\nprocesses {busy // 50}\n"
        f"procs_running {second.running}\nprocs_blocked {second.blocked}\n"
    )


def loadavg(second: HostSecond) -> str:
    """Text of /proc/loadavg; the longer means are told as the first."""
    load = f"{second.load1:.2f}"
    return f"{load} {load} {load} {second.running}/2410 98131\n"


def pressure(share: float) -> str:
    """Text of a /proc/pressure file; only avg10 of `some` is simulated."""
    percent = f"{100 * share:.2f}"
    return (
        f"some avg10={percent} avg60={percent} avg300={percent} total=0\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )


def diskstats(second: HostSecond, fraction: float) -> str:
    """Text of /proc/diskstats: the two disks and the root partition."""
    lines = []
    for name, (major, minor) in _DEVICES.items():
        value = {key: _total(second, f"disk.{name}.{key}", fraction) for key in _DISK_WORDS}
        lines.append(
            f" {major:3} {minor:7} {name} {value['reads']} 0 {value['read_sectors']} {value['read_ms']} "
            f"{value['writes']} 0 {value['written_sectors']} {value['write_ms']} 0 {value['busy_ms']} "
            f"{value['weighted_ms']} 0 0 0 0 0 0\n"
        )
    lines.append(f" 259       3 {ROOT_DISK}p2 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
    return "".join(lines)


def net_dev(second: HostSecond, fraction: float, interfaces: Sequence[str]) -> str:
    """Text of /proc/net/dev: no errors and no drops on a healthy fabric."""
    lines = [
        "Inter-|   Receive                                                |  Transmit\n",
        " face |bytes    packets errs drop fifo frame compressed multicast|"
        "bytes    packets errs drop fifo colls carrier compressed\n",
        "    lo: 90114 1201 0 0 0 0 0 0 90114 1201 0 0 0 0 0 0\n",
    ]
    for name in interfaces:
        received = _total(second, f"net.{name}.rx", fraction)
        sent = _total(second, f"net.{name}.tx", fraction)
        lines.append(
            f"{name:>6}: {received} {received // _PACKET_BYTES} 0 0 0 0 0 0 "
            f"{sent} {sent // _PACKET_BYTES} 0 0 0 0 0 0\n"
        )
    return "".join(lines)


def interface_files(name: str, number: int, *, up: bool, changes: int) -> dict[str, str]:
    """The files of /sys/class/net/<name>, without the final newline."""
    infiniband = name.startswith("ib")
    speed = _INFINIBAND_MEGABITS if infiniband else _ETHERNET_MEGABITS
    tail = noise.mix(noise.key_of(name), number) % (1 << 24)
    return {
        "carrier": str(int(up)),
        "carrier_changes": str(changes),
        "operstate": "up" if up else "down",
        "speed": str(speed) if up else "-1",
        "type": "32" if infiniband else "1",
        "flags": "0x1003",
        "address": "b8:3f:d2:" + tail.to_bytes(3, "big").hex(":"),
    }
