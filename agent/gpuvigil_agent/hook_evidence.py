"""Evidence from ranks that may hang: torch's records where the hook runs, stacks by signal where it does not.

A signal goes only to a process that is still the one that registered (pidfd), still its owner's, and that has
a handler for it (/proc/PID/status): one without would die of it. It writes into the file that it gave us,
which is read a moment later; nothing here waits. Stacks are another user's text and hostile until cleaned.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from gpuvigil import layout, ring_read
from gpuvigil_agent import hook_events
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.hook_peer import Refused
from gpuvigil_agent.hook_rank import Rank
from gpuvigil_agent.wire import clean

HELD_S: Final = 3.0  # the hook beats twice a second
LOOKS_S: Final = (0.3, 1.0, 3.0)  # after the signal; a process without a core to run on writes late
FRAMES_MAX: Final = 8
_STOPPED: Final = frozenset("TtXZ")
_FRAME: Final = re.compile(r'  File "(.{0,500})", line (\d{1,9}) in (.{1,200})$')
_THREAD: Final = re.compile(r"(Current thread|Thread) 0x[0-9a-f]{1,16}\b")
_SAYS: Final = re.compile(r"^(State|Uid|SigCgt):\s*(.*)$", re.MULTILINE)
Tell = Callable[[AgentEvent], None]


class Status(NamedTuple):
    """What /proc/PID/status says: state letter, whose it is (real, effective, saved), signals it handles."""

    state: str
    uids: tuple[int, ...]
    caught: int


def gather(ranks: Iterable[Rank], number: int, tell: Tell) -> str:
    """Ask every rank in the way that it can answer; return what was begun. Raises Refused: no rank."""
    asked = signalled = 0
    for rank in ranks:
        if _held(rank):
            signalled += 1
            _signal(rank, tell)
        else:
            asked += 1
            rank.ask_for_evidence(number)
    if not asked + signalled:
        raise Refused("bad_command", "no rank of the job runs here")
    return f"asked {asked} ranks for their records, {signalled} for stacks by signal"


def _held(rank: Rank) -> bool:
    """Tell whether the hook's thread does not run."""
    beat = ring_read.heartbeat(rank.ring)
    return beat > 0 and time.monotonic_ns() - beat > HELD_S * 1e9


def _signal(rank: Rank, tell: Tell) -> None:
    """Have a process write its stacks, and tell them; or tell why it cannot."""
    status = status_of(rank.peer.pid)
    number = ring_read.stack_signal(rank.ring)
    state = status.state if status is not None else ""
    why = _why_not(rank, status, number)
    if not why:
        try:
            # the process writes where the descriptor that we share stands: back to the start, the old away
            written = os.lseek(rank.stacks, 0, os.SEEK_CUR)
            os.pwrite(rank.stacks, bytes(min(written, layout.STACKS_SIZE)), 0)
            os.lseek(rank.stacks, 0, os.SEEK_SET)
            signal.pidfd_send_signal(rank.pidfd, number)
        except OSError as error:
            why = f"the agent may not signal it: {error.strerror}"
    if why:
        tell(hook_events.held(rank, state, [], 0, why))
    else:
        asyncio.get_running_loop().call_later(LOOKS_S[0], _look, rank, state, tell, 0)


def _why_not(rank: Rank, status: Status | None, number: int) -> str:
    if status is None:
        return "its state cannot be read"
    if status.state in _STOPPED:
        return "stopped by a signal, or by a debugger" if status.state in "Tt" else "it has ended"
    if rank.stacks < 0 or not number:
        return "it offers no signal for stacks"
    if any(uid != rank.peer.uid for uid in status.uids):
        return "it has changed its user"
    if not status.caught >> (number - 1) & 1:
        return f"it handles signal {number} no more"
    return ""


def status_of(pid: int, proc: Path = Path("/proc")) -> Status | None:
    """Read a process's status; None where it cannot be read."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
        found = dict(_SAYS.findall(text))
        uids = tuple(int(word) for word in found["Uid"].split()[:3])
        return Status(found["State"][:1], uids, int(found["SigCgt"], 16))
    except (OSError, KeyError, ValueError):
        return None


def _look(rank: Rank, state: str, tell: Tell, turn: int) -> None:
    """Read what was written; nothing yet: look again later, and in the end say so."""
    if rank.closed:
        return
    try:
        frames, threads = stacks_of(os.pread(rank.stacks, layout.STACKS_SIZE, 0))
    except OSError:
        frames, threads = [], 0
    if frames:
        tell(hook_events.held(rank, state, frames, threads, ""))
    elif turn + 1 < len(LOOKS_S):
        wait_s = LOOKS_S[turn + 1] - LOOKS_S[turn]
        asyncio.get_running_loop().call_later(wait_s, _look, rank, state, tell, turn + 1)
    else:
        tell(hook_events.held(rank, state, [], 0, f"no stack within {LOOKS_S[-1]:g} s of the signal"))


def stacks_of(raw: bytes) -> tuple[list[str], int]:
    """Return the main thread's innermost frames, `file.py:12 function`, and how many threads there are.

    The thread that took the signal is the main one unless it has blocked it; else the oldest, which is last.
    Source: CPython's faulthandler, `_Py_DumpTracebackThreads`.
    """
    threads: list[list[str]] = []
    current: list[str] | None = None
    for line in raw.partition(b"\0")[0].decode("utf-8", "replace").splitlines():
        if head := _THREAD.match(line):
            threads.append([])
            current = threads[-1] if head[1] == "Current thread" else current
        elif threads and len(threads[-1]) < FRAMES_MAX and (frame := _FRAME.match(line)):
            name = frame[1].rpartition("/")[2] or frame[1]
            threads[-1].append(clean(f"{name}:{frame[2]} {frame[3]}", 80))
    if current is None:
        current = threads[-1] if threads else []
    return current, len(threads)
