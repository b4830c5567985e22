"""The child that alone talks to NVML: `python -m gpuvigil_agent.driver_process --fd N`, exec'd, never forked.

The coordinator (this thread) never calls the driver. One thread starts the library and counts boards, one
waits for Xids, one reads each GPU; each may hang alone. A tick is answered in time with what is there.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_session import Session
from gpuvigil_agent.driver_worker import Outbox
from gpuvigil_agent.parent_death import die_with
from gpuvigil_protos.settings import ConfigError

ANSWER_S: Final = 0.6


class Coordinator:
    """Frames in, frames out, deadlines in between."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._buffer = frames.FrameBuffer()
        self._outbox = Outbox()
        self._session: Session | None = None
        self._tick: frames.Tick | None = None
        self._answer_at = 0.0
        self._ended = False
        self._simulation_s: Callable[[], float] | None = None

    def run(self) -> None:
        """Serve until Stop, until the agent is gone, or until there is no driver."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._outbox.wake_fd, select.POLLIN)
        while not self._ended:
            for fd, _ in poll.poll(self._wait_ms()):
                if fd == self._link.fileno():
                    self._receive()
            self._outbox.drain()
            if self._session is not None:
                self._send(self._session.take_frames())
                self._answer(self._session)

    def _wait_ms(self) -> float | None:
        if self._tick is None:
            return None
        return max(0.0, self._answer_at - time.monotonic()) * 1000

    def _receive(self) -> None:
        data = self._link.recv(65536)
        self._ended = not data
        for body in self._buffer.feed(data):
            frame = frames.decode_down(body)
            if isinstance(frame, frames.Stop):
                self._ended = True
            elif isinstance(frame, frames.Begin):
                self._begin(frame)
            elif self._session is not None:
                self._tick, self._answer_at = frame, time.monotonic() + ANSWER_S
                self._session.start_tick(frame)

    def _begin(self, frame: frames.Begin) -> None:
        """Choose the driver: the simulated one goes below pynvml before anything is called."""
        if frame.simulated:
            from gpuvigil_agent.simulate import driver  # noqa: PLC0415 - costs memory on real nodes

            self._simulation_s = driver.cost_seconds
            try:
                driver.install(frame.simulate, frame.node)
            except ConfigError as error:
                self._send([frames.Ended(str(error))])
                return
        self._session = Session(Budget(frame.calls_per_second_max), self._outbox)

    def _answer(self, session: Session) -> None:
        """Answer the tick once all GPUs have, or its time is up."""
        if self._tick is None:
            return
        if session.all_read(self._tick.number) or time.monotonic() >= self._answer_at:
            number, self._tick = self._tick.number, None
            answer = session.answer(number)
            if self._simulation_s is not None:  # a benchmark takes it off the agent's own cost, and shows it
                answer.counters["simulation_us"] = round(self._simulation_s() * 1e6)
            self._send([*session.inventory_frame(), answer])

    def _send(self, outgoing: list[frames.Up]) -> None:
        for frame in outgoing:
            self._link.sendall(frames.encode(frame))
            self._ended = self._ended or isinstance(frame, frames.Ended)


def _crash(details: threading.ExceptHookArgs) -> None:
    """Show a thread's bug and end the process: a sampler that is silently dead would look like absence."""
    threading.__excepthook__(details)
    os._exit(70)


def main(arguments: list[str]) -> None:
    """Serve the socket `--fd N` of the agent `--parent PID`."""
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    for number in (signal.SIGINT, signal.SIGTERM):  # the agent says when to stop; they reach its whole group
        signal.signal(number, signal.SIG_IGN)
    threading.excepthook = _crash
    die_with(int(options["--parent"]))
    link = socket.socket(fileno=int(options["--fd"]))
    link.setblocking(True)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the agent is gone
        Coordinator(link).run()
    os._exit(0)  # threads that hang in the driver are not waited for


if __name__ == "__main__":
    main(sys.argv[1:])
