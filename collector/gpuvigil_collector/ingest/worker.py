"""One ingest worker process: `python -m gpuvigil_collector.ingest.worker --config-json JSON --fd N`.

Started by the supervisor, ends when the supervisor does: the socket's end is the signal, all that was
received is made durable first.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import msgspec

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.admission import Admission
from gpuvigil_collector.ingest.brain_link import BrainLink
from gpuvigil_collector.ingest.hooks import Hook, no_hook
from gpuvigil_collector.ingest.intake import Intake, event_frame
from gpuvigil_collector.ingest.ledger import Key, Ledger, LedgerFile
from gpuvigil_collector.ingest.node_locks import NodeLocks
from gpuvigil_collector.ingest.recorder import Recorder, recover
from gpuvigil_collector.ingest.refusal import StreamRejectedError
from gpuvigil_collector.ingest.ring import SHAPES, Plane
from gpuvigil_collector.ingest.segments import Segments
from gpuvigil_collector.ingest.service import RECEIVE_MAX_BYTES, Service
from gpuvigil_collector.ingest.settings import WorkerConfig
from gpuvigil_collector.ingest.upkeep import Upkeep
from gpuvigil_collector.ingest.vital import Vital
from gpuvigil_protos import log
from gpuvigil_protos.v1 import stream_pb2 as pb

EXIT_ADDRESS: Final = 3
EXIT_LOCKED: Final = 4
STATUS_INTERVAL_S: Final = 1.0
LOCK_TIMEOUT_S: Final = 15.0
GRACE_S: Final = 2.0
FORGET_ROWS_S: Final = 3600.0
_IDENTITY_ONLY: Final = 1
_log = log.get("ingest")


class Worker:
    """Wires one worker's parts, and tells the brain how it is once a second."""

    def __init__(self, config: WorkerConfig, hook: Hook, recorder: type[Recorder]) -> None:
        self._config = config
        state = Path(config.state_directory)
        recordings = Path(config.ingest.recordings.directory or state / "recordings")
        workers = config.ingest.workers
        files = [state / f"ledger-{index:02}.sqlite" for index in range(workers)]
        own = LedgerFile.own(files[config.index])
        own.prune()
        quota = config.ingest.recordings.quota // workers
        self._segments = Segments(recordings, config.index, quota, hook)
        recovered = recover(self._segments, own)
        self.ledger = Ledger([LedgerFile(path) for path in sorted({*files, *state.glob("ledger-*.sqlite")})])
        self.recorder = recorder(config.ingest.recordings, self._segments, own, self.ledger, hook)
        self._upkeep = Upkeep(self._segments, self.recorder, config.ingest.recordings.merge_after)
        self.brain = BrainLink()
        locks = NodeLocks(state / "nodes.lock", config.index, workers) if workers > 1 else None
        self.admission = Admission(self.ledger, locks)
        planes = tuple(
            Plane(fd, shape, config.ingest.series_capacity)
            for fd, shape in zip(config.ring_fds, SHAPES, strict=True)
        )
        self.intake = Intake(planes, self.ledger, self.recorder, self.brain, hook, config.ingest.series_max)
        self.intake.counters["recovered_rows_total"] = recovered
        self._left: dict[str, float] = {}
        self.recorder.when_durable(self._tell_durable)

    def _tell_durable(self, keys: frozenset[Key]) -> None:
        """Tell the streams whose watermark moved."""
        now = time.monotonic()
        for node in {node for node, _, _ in keys}:
            for session in self.admission.of_node(node):
                session.owe(now)

    async def run(self, fd: int) -> int:
        """Serve until the brain is gone. Returns the exit status; raises what ended a vital task."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        watch = await self.brain.open(fd, stop, self._command)
        server, service = self._server()
        try:
            port = self._bind(server)
        except RuntimeError as error:
            _log.error("address_refused", address=self._config.ingest.address, error=str(error))
            return EXIT_ADDRESS
        for row in await asyncio.to_thread(self._segments.recent_events):
            self.brain.send(event_frame(row))
        await server.start()
        self.brain.send(frames.Ready(port))
        vital = Vital(stop)
        vital.start("report", self._report(stop))
        vital.start("upkeep", self._upkeep.run(stop))
        await self.recorder.run(stop)
        service.stopping = True
        await self.recorder.flush()
        await server.stop(GRACE_S)
        watch.cancel()
        await vital.join()
        return 0

    def _command(self, command: frames.Command) -> None:
        """Pass a command on to the node's live stream; without one there is nobody to ask."""
        message = pb.Command(
            id=command.id, verb=command.verb, arguments=command.arguments, deadline_ns=command.deadline_ns
        )
        for session in self.admission.of_node(command.node):
            if session.live:
                session.command(message)

    def _server(self) -> tuple[grpc.aio.Server, Service]:
        name = f"worker-{self._config.index}"
        service = Service(self.admission, self.intake, self.brain, name)
        options = [
            ("grpc.max_receive_message_length", RECEIVE_MAX_BYTES),
            ("grpc.max_concurrent_streams", 16),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
            ("grpc.so_reuseport", int(self._config.ingest.workers > 1)),
        ]
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((service.handler(),))
        return server, service

    def _bind(self, server: grpc.aio.Server) -> int:
        config = self._config.ingest
        if not config.tls.enabled:
            _log.warning(
                "plain_text", address=config.address, meaning="no TLS: anyone on this machine may send"
            )
            return int(server.add_insecure_port(config.address))
        credentials = grpc.ssl_server_credentials(
            [(Path(config.tls.key).read_bytes(), Path(config.tls.certificate).read_bytes())],
            root_certificates=Path(config.tls.ca).read_bytes(),
            require_client_auth=True,
        )
        return int(server.add_secure_port(config.address, credentials))

    async def _report(self, stop: asyncio.Event) -> None:
        """Send the brain a status once a second, and a last one at the end."""
        while not stop.is_set():
            await asyncio.sleep(STATUS_INTERVAL_S)
            self._look_after_streams()
            self._release_left()
            self.brain.send(self._status())

    def _look_after_streams(self) -> None:
        """Tell what is owed, and end the streams that have been silent for too long."""
        now, idle_s = time.monotonic(), self._config.ingest.idle_timeout
        for session in self.admission.sessions:
            if session.owed:
                session.owe(now)
            if now - session.heard > idle_s:
                detail = f"no message for {idle_s:g} s"
                session.end(StreamRejectedError(grpc.StatusCode.UNAVAILABLE, "idle", detail))

    def _release_left(self) -> None:
        """Let go of nodes that have no stream: ledger and lock when all is durable, rows after an hour."""
        here = {session.node for session in self.admission.sessions}
        now = time.monotonic()
        for node in self.ledger.nodes - here:
            if not self.recorder.waits_for(node) and not self.ledger.has_news(node):
                self.admission.release(node)
                self._left[node] = now
        for node in [node for node, left in self._left.items() if node in here or now - left > FORGET_ROWS_S]:
            del self._left[node]
            if node not in here:
                self.intake.rows.release(node, time.time_ns())
                self.brain.send(frames.Series(node, 0, [], [], b"", b"", b"", b""))

    def _status(self) -> frames.Status:
        ledger = [
            frames.LedgerRow(
                *key, d.received.watermark, d.durable.watermark, d.duplicates, d.gap_sequences, d.refused
            )
            for key, d in self.ledger.changes()
        ]
        heard = time.monotonic() - STATUS_INTERVAL_S
        now_ns = time.time_ns()
        seen = {
            session.node: (now_ns, session.clock.offset_ns)
            for session in self.admission.sessions
            if session.live and session.heard >= heard
        }
        return frames.Status(self._counters(), ledger, seen)

    def _counters(self) -> dict[str, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            **{name: float(value) for name, value in self.intake.counters.items()},  # never past 64 bits
            **self.recorder.counters,
            **self.recorder.latency.counters,
            **self._upkeep.counters,
            "streams": len(self.admission.sessions),
            "pending_bytes": self.recorder.pending_bytes,
            "recordings_failing": float(self.recorder.failing),
            "recordings_bytes": self._segments.bytes,
            "recordings_files": self._segments.count,
            "segments_deleted_total": self._segments.deleted,
            "ring_rows_used": self.intake.rows.used,
            "statuses_dropped_total": self.brain.statuses_dropped,
            "worker_cpu_seconds_total": usage.ru_utime + usage.ru_stime,
        }


def _lock(path: Path) -> bool:
    """Wait until the worker before us has ended; the lock lives as long as this process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def main(argv: Sequence[str] | None = None, hook: Hook = no_hook, recorder: type[Recorder] = Recorder) -> int:
    """Run a worker; `hook` and `recorder` are the tests' way in."""
    parser = argparse.ArgumentParser(prog="gpuvigil-ingest-worker")
    parser.add_argument("--config-json", required=True)
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    config = msgspec.json.decode(
        arguments.config_json, type=WorkerConfig, dec_hook=lambda kind, value: kind(value)
    )
    log.configure(config.log_level)
    state = Path(config.state_directory)
    state.mkdir(parents=True, exist_ok=True)
    if not _lock(state / f"worker-{config.index:02}.lock"):
        _log.error("state_in_use", directory=str(state), expected="no other collector on it")
        return EXIT_LOCKED
    return asyncio.run(Worker(config, hook, recorder).run(arguments.fd))


if __name__ == "__main__":
    sys.exit(main())
