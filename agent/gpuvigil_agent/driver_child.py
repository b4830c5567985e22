"""The driver process seen from the agent: exec, frames both ways, end, and reaping without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gpuvigil_agent
import gpuvigil_protos
from gpuvigil_agent import driver_frames as frames

OnFrame = Callable[["DriverChild", frames.Up], None]
OnEnd = Callable[["DriverChild", int], None]


class DriverChild(asyncio.Protocol):
    """One driver process. `on_frame` and `on_end` are called on the loop, on_end once, with the exit status.

    A process that hangs in the kernel cannot be killed: `abandon` lets go of it, and the loop reaps it
    whenever it ends.
    """

    def __init__(self, on_frame: OnFrame, on_end: OnEnd) -> None:
        self._on_frame, self._on_end = on_frame, on_end
        self._buffer = frames.FrameBuffer()
        self._transport: asyncio.WriteTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.ended = asyncio.Event()

    @property
    def pid(self) -> int:
        """Return the process id, 0 before the start."""
        return self._process.pid if self._process else 0

    async def start(self, begin: frames.Begin) -> None:
        """Exec the process and say which driver it shall speak to. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            self._process = _exec(theirs.fileno())
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)
        await loop.create_unix_connection(lambda: self, sock=ours)
        self.send(begin)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way down."""
        if isinstance(transport, asyncio.WriteTransport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand frames up; a child that sends what no frame is gets killed."""
        try:
            for body in self._buffer.feed(data):
                self._on_frame(self, frames.decode_up(body))
        except frames.BadFrameError:
            self.abandon()

    def send(self, frame: frames.Down) -> None:
        """Send without waiting; the caller bounds what is outstanding."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.encode(frame))

    def hand_over(self, on_frame: OnFrame, on_end: OnEnd) -> None:
        """Let another listen from now on."""
        self._on_frame, self._on_end = on_frame, on_end

    def abandon(self) -> None:
        """Kill it and close the link; never wait."""
        self._on_frame = lambda _child, _frame: None
        if self._transport is not None:
            self._transport.abort()
        if self._process is not None and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    def _reap(self) -> None:
        """Take the exit status: no zombie stays."""
        if self._process is None or self._process.poll() is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._transport is not None:
            self._transport.abort()
        self.ended.set()
        self._on_end(self, self._process.returncode)


def import_path(outer: str = "") -> str:
    """Return the PYTHONPATH with which a child of the agent finds the agent's own packages, then `outer`."""
    installed = {*site.getsitepackages(), site.getusersitepackages()}  # found anyway, and not before stdlib
    roots = {
        str(Path(package.__file__ or "").parents[1]): None for package in (gpuvigil_agent, gpuvigil_protos)
    }
    return os.pathsep.join([*(root for root in roots if root not in installed), *filter(None, [outer])])


def child_environment() -> dict[str, str]:
    """Return the environment of a child of the agent: the agent's, and where its packages are."""
    return os.environ | {"PYTHONPATH": import_path(os.environ.get("PYTHONPATH", ""))}


def _exec(fd: int) -> subprocess.Popen[bytes]:
    """Start the interpreter anew; -P keeps the current folder out of the import path."""
    command = [sys.executable, "-P", "-m", "gpuvigil_agent.driver_process"]
    return subprocess.Popen(
        [*command, "--fd", str(fd), "--parent", str(os.getpid())],
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        env=child_environment(),
    )
