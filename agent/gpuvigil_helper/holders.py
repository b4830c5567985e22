"""Which processes hold a GPU: whoever has its device file open or mapped, in any container.

Source: /proc/PID/fd, followed to the file itself (a path means nothing across mount namespaces),
/proc/PID/maps for what was mapped and closed, /proc/driver/nvidia/gpus/*/information for which device file
a UUID is.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuvigil_protos.text import printable

_Identity = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has the device."""

    pid: int
    name: str


def holders(uuid: str, patterns: Sequence[str], proc: Path = Path("/proc")) -> list[Holder]:
    """Return who holds the GPU. Where the driver does not say which file it is, holders of any GPU count."""
    files = [Path(found) for pattern in patterns for found in sorted(glob.glob(pattern))]  # noqa: PTH207
    minor = _minor(uuid, proc)
    if minor is not None:
        files = [file for file in files if file.name.removeprefix("nvidia") == minor] or files
    wanted: set[_Identity] = set()
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            wanted.add(_identity(file.stat()))
    names = {str(file) for file in files}
    own = os.getpid()
    return [
        Holder(pid=pid, name=_name(proc, pid))
        for pid in _processes(proc)
        if pid != own and _holds(proc / str(pid), wanted, names)
    ]


def _identity(found: os.stat_result) -> _Identity:
    """A device by its number, wherever its file lies; a plain file by its place."""
    return (found.st_rdev,) if stat.S_ISCHR(found.st_mode) else (found.st_dev, found.st_ino)


def _processes(proc: Path) -> Iterator[int]:
    return (int(entry.name) for entry in proc.iterdir() if entry.name.isdigit())


def _holds(process: Path, wanted: set[_Identity], names: set[str]) -> bool:
    """A process that cannot be looked at may hold it, but for init, which some kernels hide from root."""
    try:
        return _has_open(process, wanted) or _has_mapped(process, names)
    except PermissionError:
        return process.name != "1"


def _has_open(process: Path, wanted: set[_Identity]) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if _identity(entry.stat()) in wanted:
                    return True
    return False


def _has_mapped(process: Path, names: set[str]) -> bool:
    path = process / "maps"
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        path.open(encoding="utf-8", errors="replace") as lines,
    ):
        return any(line.rstrip("\n").removesuffix(" (deleted)")[73:] in names for line in lines)
    return False


def _name(proc: Path, pid: int) -> str:
    with contextlib.suppress(OSError):
        text = (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
        return printable(text)
    return "?"


def _minor(uuid: str, proc: Path) -> str | None:
    for file in (proc / "driver/nvidia/gpus").glob("*/information"):
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
            facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            if facts.get("GPU UUID", "").strip() == uuid:
                return facts.get("Device Minor", "").strip() or None
    return None
