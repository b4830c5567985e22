"""Processes by /proc: is it the same one still, whose job is it, and an end that hits no other.

Source: /proc/PID/stat field 22 [clock ticks since boot], /proc/PID/environ, pidfd_open(2).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gpuvigil.run import children_of

MARK: Final = "GPUVIGIL_SUPERVISED"
_PROC: Final = Path("/proc")


def start_ticks(pid: int) -> int:
    """Return when a process began, 0 when it has ended: with the pid, it names one for ever."""
    try:
        words = (
            (_PROC / str(pid) / "stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(") ")[2]
            .split()
        )
        return 0 if words[0] in "ZX" else int(words[19])
    except (OSError, IndexError, ValueError):
        return 0


def family(keeper: int, mark: str) -> list[int]:
    """Return what lives of a job: its keeper (0: none), all below it, and whoever carries its mark."""
    found = set(children_of(keeper)) | {keeper} if keeper else set()
    wanted = f"{MARK}={mark}".encode()
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return sorted(pid for pid in found if start_ticks(pid))


def end(pid: int, ticks: int, number: signal.Signals) -> None:
    """Signal the process that began at `ticks`, and never one that came after it under its number."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if ticks and start_ticks(pid) == ticks:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def wait_for(pid: int, ticks: int, seconds: float) -> bool:
    """Wait until a process has ended; False when it lives on."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if start_ticks(pid) != ticks:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL each, as the process that it is now."""
    for pid in pids:
        end(pid, start_ticks(pid), signal.SIGKILL)


def kill_family(keeper: int, mark: str, within_s: float) -> list[int]:
    """SIGKILL all that lives of a job until nothing does; return what is left (in the kernel's hands)."""
    deadline = time.monotonic() + within_s
    while left := family(keeper, mark):
        kill_all(left)
        if time.monotonic() >= deadline:
            return left
        time.sleep(0.05)
    return []
