"""Memory and file systems of the simulated host: levels that only a leak or a filling disk moves far."""

from __future__ import annotations

import errno
import os
from typing import Final

from gpuvigil_agent.host_files import FilesystemUse
from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.faults import DiskFilling, MemoryLeak
from gpuvigil_agent.simulate.world import FILESYSTEMS, World

_MEMORY_KIB: Final = 2 << 30  # 2 TiB
_LEFT_AT_LAST = 0.02  # what the kernel keeps for itself
_INODE_BYTES = 16 << 10

MOUNTS: Final = (
    "/dev/nvme1n1p2 / ext4 rw,relatime 0 0\n"
    "proc /proc proc rw,nosuid,nodev,noexec 0 0\n"
    "/dev/nvme0n1 /scratch xfs rw,noatime 0 0\n"
    "filer:/home /home nfs4 rw,vers=4.2,hard 0 0\n"
)
MOUNTINFO: Final = (
    "29 1 259:3 / / rw,relatime shared:1 - ext4 /dev/nvme1n1p2 rw\n"
    "30 29 0:22 / /proc rw,nosuid,nodev,noexec shared:5 - proc proc rw\n"
    "61 29 259:0 / /scratch rw,noatime shared:30 - xfs /dev/nvme0n1 rw,attr2,noquota\n"
    "77 29 0:51 / /home rw,relatime shared:41 - nfs4 filer:/home rw,vers=4.2,hard\n"
)


def meminfo(world: World, now_ns: int) -> str:
    """Text of /proc/meminfo."""
    second = world.second(now_ns)
    held = 0.34 if world.load(second).context else 0.03
    share = 1 - held + 0.002 * noise.normal(world.key, second // 5, 40)
    for placed, leak in world.active(MemoryLeak, now_ns):
        share -= (share - _LEFT_AT_LAST) * min(1.0, placed.elapsed_s(now_ns) / leak.gone_in)
    available = int(_MEMORY_KIB * share)
    rows = {
        "MemTotal": _MEMORY_KIB, "MemFree": int(available * 0.8), "MemAvailable": available,
        "Buffers": 1 << 20, "Cached": int(available * 0.2), "SwapCached": 0, "SwapTotal": 0, "SwapFree": 0,
        "Dirty": 4 << 10,
    }  # fmt: skip
    return "".join(f"{name + ':':<16}{value:>12} kB\n" for name, value in rows.items())


def usage(world: World, mount_point: str, now_ns: int) -> FilesystemUse:
    """Answer statvfs of a simulated mount. Raises FileNotFoundError."""
    if mount_point not in FILESYSTEMS:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), mount_point)
    size, used_share = FILESYSTEMS[mount_point]
    free = size * (1 - used_share) - (noise.mix(world.key, world.second(now_ns) // 60) % (1 << 26))
    for placed, fault in world.active(DiskFilling, now_ns):
        if fault.filesystem == mount_point:
            free *= 1 - min(1.0, placed.elapsed_s(now_ns) / fault.full_in)
    inodes = size // _INODE_BYTES
    return FilesystemUse(size, int(free), inodes, int(inodes * 0.97))
