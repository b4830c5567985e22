"""Starts the ingest workers, restarts what dies, and carries what they say to the store.

One thread a worker: it owns the process, its socket and its ring, so that a brain that thinks for a second
holds up nobody.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.ring import SHAPES, Plane, create
from gpuvigil_collector.ingest.settings import IngestConfig, WorkerConfig
from gpuvigil_collector.ingest.worker import EXIT_ADDRESS, EXIT_LOCKED
from gpuvigil_collector.store import Store
from gpuvigil_protos import log

WORKER_COMMAND: Final = (sys.executable, "-m", "gpuvigil_collector.ingest.worker")
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 8.0
BACKOFF_MAX_S: Final = 30.0
HEALTHY_S: Final = 60.0
_log = log.get("ingest")


class IngestError(Exception):
    """Ingest cannot start; the text says why, and what to do."""


class Ingest:
    """All workers. `address` is where they listen once `start` has returned (a port 0 is resolved)."""

    def __init__(
        self, config: IngestConfig, state_directory: Path, store: Store, *, log_level: str = "info",
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:  # fmt: skip
        self.address = config.address
        self._config = config
        self._state_directory = state_directory / "ingest"
        self._store = store
        self._log_level = log_level
        self._command = worker_command
        self._workers: list[_WorkerThread] = []
        self.restarts = 0

    def start(self) -> None:
        """Start all workers and wait until each listens. Raises IngestError; blocks up to 30 s."""
        self._state_directory.mkdir(parents=True, exist_ok=True)
        for index in range(self._config.workers):
            worker = _WorkerThread(self, index)
            self._workers.append(worker)
            worker.start()
            try:
                worker.wait_ready(START_TIMEOUT_S)
            except IngestError:
                self.stop()
                raise
            host = self.address.rpartition(":")[0]
            self.address = f"{host}:{worker.port}"

    def stop(self) -> None:
        """End all workers: each makes durable what it has. Blocks up to 8 s, then kills."""
        for worker in self._workers:
            worker.close()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for worker in self._workers:
            worker.end(deadline)

    def send(self, command: frames.Command) -> None:
        """Hand a command to the workers: the one that has the node's stream passes it on."""
        for worker in self._workers:
            worker.send(command)

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.pid]

    def worker_config(self, index: int, ring_fds: tuple[int, int]) -> str:
        """Return one worker's config as JSON."""
        config = WorkerConfig(
            index=index,
            state_directory=str(self._state_directory),
            ingest=msgspec.structs.replace(self._config, address=self.address),
            ring_fds=ring_fds,
            log_level=self._log_level,
        )
        return msgspec.json.encode(config, enc_hook=_plain).decode()

    @property
    def series_capacity(self) -> int:
        """Return a ring's rows."""
        return self._config.series_capacity

    @property
    def command(self) -> Sequence[str]:
        """Return the argument list that runs a worker."""
        return self._command

    @property
    def store(self) -> Store:
        """Return where the workers' messages go."""
        return self._store


class _WorkerThread(threading.Thread):
    """One worker's life: run, read, reap, back off, run again."""

    def __init__(self, ingest: Ingest, index: int) -> None:
        super().__init__(name=f"ingest-{index}", daemon=True)
        self._ingest = ingest
        self._index = index
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self.port = 0

    @property
    def pid(self) -> int:
        """Return the process id, 0 while none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the worker listens. Raises IngestError."""
        if not self._ready.wait(timeout_s):
            raise IngestError(f"ingest worker {self._index} did not start within {timeout_s:g} s")
        if self._failure:
            raise IngestError(self._failure)

    def send(self, command: frames.Command) -> None:
        """Send a command down; one that a busy worker has no room for is lost, and its deadline says so."""
        ours = self._socket
        if ours is not None:
            data = frames.encode(command)
            with contextlib.suppress(OSError), self._sending:  # BlockingIOError: no room at all
                sent = ours.send(data, socket.MSG_DONTWAIT)
                ours.sendall(data[sent:])  # half a frame would spoil all that follow

    def close(self) -> None:
        """Tell the worker to end, by the end of its socket."""
        self._stopping.set()
        ours = self._socket
        if ours is not None:
            with contextlib.suppress(OSError):  # it has died, or is about to be started again
                ours.shutdown(socket.SHUT_WR)

    def end(self, deadline: float) -> None:
        """Wait for the end until `deadline`, then kill."""
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive() and self._process is not None:
            _log.warning("worker_killed", worker=self._index)
            self._process.kill()
            self.join(1.0)

    def run(self) -> None:
        """Run workers, one after the other, until told to stop."""
        backoff = 0.1
        while not self._stopping.is_set():
            started = time.monotonic()
            status = self._run_one()
            if self._stopping.is_set() or not self._ready.is_set():
                break
            self._ingest.restarts += 1
            backoff = 0.1 if time.monotonic() - started > HEALTHY_S else min(backoff * 2, BACKOFF_MAX_S)
            _log.error("worker_died", worker=self._index, status=status, restart_in_s=backoff)
            self._stopping.wait(backoff)
        if not self._ready.is_set():
            self._failure = _why(status, self._ingest.address)
            self._ready.set()

    def _run_one(self) -> int:
        fds = [create(f"ring-{at}", shape, self._ingest.series_capacity) for at, shape in enumerate(SHAPES)]
        planes = tuple(
            Plane(fd, shape, self._ingest.series_capacity) for fd, shape in zip(fds, SHAPES, strict=True)
        )
        ours, theirs = socket.socketpair()
        config = self._ingest.worker_config(self._index, (fds[0], fds[1]))
        argv = [*self._ingest.command, "--config-json", config, "--fd", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(argv, pass_fds=[*fds, theirs.fileno()], stdin=subprocess.DEVNULL)
        finally:
            theirs.close()
            for fd in fds:
                os.close(fd)
        with ours:
            self._socket = ours
            if self._stopping.is_set():
                ours.shutdown(socket.SHUT_WR)
            nodes = self._read(ours, planes)
            self._socket = None
        self._ingest.store.worker_ended(self._index, nodes)
        return self._process.wait()

    def _read(self, ours: socket.socket, planes: tuple[Plane, ...]) -> set[str]:
        """Carry messages until the worker is gone; return the nodes that were connected to it."""
        reader = frames.FrameReader()
        nodes: set[str] = set()
        while chunk := _receive(ours):
            for message in reader.feed(chunk):
                if isinstance(message, frames.Ready):
                    self.port = message.port
                    self._ready.set()
                elif isinstance(message, frames.NodeUp):
                    nodes.add(message.node)
                elif isinstance(message, frames.NodeDown):
                    nodes.discard(message.node)
                self._ingest.store.feed(self._index, message, planes)
        return nodes


def _receive(ours: socket.socket) -> bytes:
    try:
        return ours.recv(1 << 18)
    except ConnectionError:
        return b""


def _why(status: int, address: str) -> str:
    if status == EXIT_ADDRESS:
        return f"ingest.address: {address} cannot be listened on: is another collector running?"
    if status == EXIT_LOCKED:
        return "state_directory: another collector uses it"
    return f"an ingest worker ended with status {status} before it listened; see its messages above"


def _plain(value: object) -> object:
    """Encode Seconds and Bytes as the numbers they are."""
    return float(value) if isinstance(value, float) else int(value) if isinstance(value, int) else str(value)
