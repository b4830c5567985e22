"""Where host samplers read from: this machine, or the simulated host's text of the same form."""

from __future__ import annotations

import os
from typing import Final, NamedTuple, Protocol

_READ_BYTES: Final = 1 << 16
_READ_MAX_BYTES: Final = 8 << 20


class FilesystemUse(NamedTuple):
    """Sizes in bytes, inodes as counts; inodes 0 where the file system has no fixed number."""

    size_bytes: int
    available_bytes: int
    inodes: int
    inodes_free: int


class HostFiles(Protocol):
    """The host as files. Every method raises OSError as the real ones do."""

    def read(self, path: str) -> str:
        """Return a whole /proc or /sys file."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the entries of a directory, sorted."""
        ...

    def usage(self, mount_point: str) -> FilesystemUse:
        """Return statvfs of a mount point."""
        ...


class RealHostFiles:
    """This machine's own files."""

    def read(self, path: str) -> str:
        """Read with errors replaced: names in /proc are user-chosen bytes.

        Plain system calls, because pathlib costs twice as much and this runs 20 times a second. A file is
        cut at 8 MiB, so that none can eat the agent.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts, left = [], _READ_MAX_BYTES
            while left > 0 and (part := os.read(descriptor, _READ_BYTES)):
                parts.append(part)
                left -= len(part)
        finally:
            os.close(descriptor)
        return b"".join(parts).decode("utf-8", "replace")

    def names(self, path: str) -> list[str]:
        """List a directory."""
        return sorted(os.listdir(path))  # noqa: PTH208 - names only, once a tick

    def usage(self, mount_point: str) -> FilesystemUse:
        """Ask the file system; a hung network mount blocks, so callers keep to local types."""
        found = os.statvfs(mount_point)
        return FilesystemUse(
            found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail
        )
