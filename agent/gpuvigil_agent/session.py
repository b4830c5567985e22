"""One connection's life: Hello and Welcome, live messages out, acks in, and the backlog beside it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from gpuvigil_agent.backlog import Backlog
from gpuvigil_agent.call import Call
from gpuvigil_agent.identity import AGENT_VERSION
from gpuvigil_agent.ledger import CLASSES, METRICS
from gpuvigil_agent.spool_store import Gap, Row
from gpuvigil_agent.wire import clean, request
from gpuvigil_protos import log
from gpuvigil_protos.codec import ALREADY_DURABLE, SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb
from gpuvigil_protos.v1 import stream_pb2_grpc

if TYPE_CHECKING:
    from gpuvigil_agent.stream import Stream

QUEUE_MAX: Final = 256
WELCOME_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 20.0
ACK_TIMEOUT_S: Final = 30.0
_COMMANDS_MAX: Final = 32
_GAPS_PER_MESSAGE: Final = 50
_FLUSH_MIN_S, _FLUSH_MAX_S = 1.0, 60.0
_log = log.get("stream")


class SessionEndedError(Exception):
    """The session must end for a reason of its own: stalled, overflowed, a new spool generation."""


class Session:
    """Lives from one Welcome to the first error. `serve` raises what ended it."""

    def __init__(self, stream: Stream, channel: grpc.aio.Channel, *, cautious: bool) -> None:
        self.stream, self.spool = stream, stream.spool
        self.stub = stream_pb2_grpc.TelemetryServiceStub(channel)  # type: ignore[no-untyped-call]
        self.boot_id = self.spool.memory.boot_id
        self.live = False
        self.cautious = cautious
        self._queue: asyncio.Queue[pb.StreamRequest | tuple[Row, pb.Dictionary | None]] = asyncio.Queue(
            QUEUE_MAX
        )
        self._version = 0
        self._told: set[Gap] = set()
        self._forgotten: list[Gap] = []  # told in this session alone: the next Welcome says anew
        self._unanswered_since_s = 0.0
        self._overflowed = False
        self._commands: set[asyncio.Task[None]] = set()

    # --- what the agent hands over

    def offer(self, row: Row, dictionary: pb.Dictionary | None) -> None:
        """Queue a new message. A full queue means a stalled collector: the session ends, the spool has it."""
        if self.live:
            self._enqueue((row, dictionary))

    def offer_hello(self) -> bool:
        """Queue a fresh Hello: the inventory has changed. False while the stream is not live yet."""
        if self.live:
            self._enqueue(pb.StreamRequest(hello=self.hello(pb.ROLE_LIVE, self.boot_id, None)))
        return self.live

    def _enqueue(self, item: pb.StreamRequest | tuple[Row, pb.Dictionary | None]) -> None:
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            self.stream.counters["live_overflows"] += 1
            self._overflowed = True

    def hello(self, role: pb.Role, boot_id: str, dictionary: pb.Dictionary | None) -> pb.Hello:
        """Say who we are."""
        return pb.Hello(
            schema_version=SCHEMA_VERSION, node=self.stream.node, boot_id=boot_id, role=role,
            agent_version=AGENT_VERSION, inventory=self.stream.inventory(), dictionary=dictionary,
            sent_ns=time.time_ns(),
        )  # fmt: skip

    # --- the connection

    async def open(
        self, role: pb.Role, boot_id: str, dictionary: pb.Dictionary | None
    ) -> tuple[Call, pb.Welcome]:
        """Open a stream and be welcomed. Raises AioRpcError, TimeoutError, SessionEndedError."""
        call = Call(self.stub.Stream())
        hello = pb.StreamRequest(hello=self.hello(role, boot_id, dictionary))
        try:
            await asyncio.wait_for(call.write(hello), WRITE_TIMEOUT_S)
            answer = await asyncio.wait_for(call.read(), WELCOME_TIMEOUT_S)
        except asyncio.InvalidStateError:
            raise await _status_of(call) from None
        except BaseException:
            call.cancel()
            raise
        if answer is grpc.aio.EOF:
            raise await _status_of(call)
        if answer.WhichOneof("message") != "welcome":
            call.cancel()
            raise SessionEndedError("the collector's first answer was no Welcome")
        self.take_watermarks(boot_id, answer.welcome.watermarks)
        self._compare(boot_id, answer.welcome.watermarks)
        return call, answer.welcome

    def _compare(self, boot_id: str, watermarks: Any) -> None:
        """A collector that has lost its ledger would wait for ever for what left the spool long ago."""
        durable = {getattr(mark, "class"): mark.durable for mark in watermarks}
        for number, name in CLASSES.items():
            known, last = durable.get(number, 0), self.spool.begins(boot_id, number) - 1
            if known < last:
                _log.warning("collector_has_forgotten", boot_id=boot_id, delivery_class=name,
                             first=known + 1, last=last)  # fmt: skip
                self._forgotten.append(Gap(boot_id, number, known + 1, last, ALREADY_DURABLE, 0))

    async def serve(self) -> None:
        """Serve until something ends it; what ended it is raised."""
        dictionary = self.stream.dictionary()
        call, welcome = await self.open(pb.ROLE_LIVE, self.boot_id, dictionary)
        self._version = dictionary.version
        received = {getattr(mark, "class"): mark.received for mark in welcome.watermarks}
        backlog = Backlog(
            self, received, dict(self.spool.memory.following), window=1 if self.cautious else None
        )
        self.live = True
        self.stream.welcomed()
        tasks = [asyncio.ensure_future(work) for work in
                 (self._send(call), self._receive(call), backlog.run(), self._watch())]  # fmt: skip
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            self.live = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()

    async def _send(self, call: Call) -> None:
        while True:
            item = await self._queue.get()
            if isinstance(item, pb.StreamRequest):
                await self.write(call, item)
                continue
            row, dictionary = item
            if row.boot_id != self.boot_id:
                raise SessionEndedError("the spool began a new generation")
            if dictionary is not None and dictionary.version != self._version:
                await self.write(call, pb.StreamRequest(dictionary=dictionary))
                self._version = dictionary.version
            await self.write(call, request(row, self.untold(self.boot_id)))
            self.stream.counters["batches_sent" if row.number == METRICS else "events_sent"] += 1
            self._unanswered_since_s = self._unanswered_since_s or time.monotonic()

    async def write(self, call: Call, message: pb.StreamRequest) -> None:
        """Write one message. Raises the stream's own status when it has ended."""
        try:
            await asyncio.wait_for(call.write(message), WRITE_TIMEOUT_S)
        except asyncio.InvalidStateError:
            raise await _status_of(call) from None
        self.stream.counters["bytes_sent"] += message.ByteSize()

    def untold(self, boot_id: str) -> list[Gap]:
        """Return gaps this session has not told yet, and count them as told."""
        forgotten = [gap for gap in self._forgotten if gap.boot_id == boot_id]
        gaps = [gap for gap in (*forgotten, *self.spool.memory.gaps(boot_id)) if gap not in self._told]
        gaps = gaps[:_GAPS_PER_MESSAGE]
        self._told.update(gaps)
        return gaps

    async def _receive(self, call: Call) -> None:
        while True:
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise await _status_of(call)
            self._unanswered_since_s = 0.0
            await self.take(call, self.boot_id, answer)

    async def take(self, call: Call, boot_id: str, answer: pb.StreamResponse) -> None:
        """Act on one answer of the collector."""
        kind = answer.WhichOneof("message")
        if kind == "ack":
            self.stream.counters["acks"] += 1
            self.take_watermarks(boot_id, answer.ack.watermarks)
        elif kind == "refusal":
            refusal = answer.refusal
            self.stream.counters["refusals"] += 1
            _log.error("message_refused", sequence=refusal.sequence, reason=clean(refusal.reason, 40),
                       detail=clean(refusal.detail, 300))  # fmt: skip
            self.bury(boot_id, getattr(refusal, "class"), refusal.sequence, refusal.reason)
        elif kind == "setting" and answer.setting.flush_interval_ns > 0:
            self.stream.counters["settings"] += 1
            self.stream.on_setting(
                min(_FLUSH_MAX_S, max(_FLUSH_MIN_S, answer.setting.flush_interval_ns / 1e9))
            )
        elif kind == "command":
            self.stream.counters["commands"] += 1
            self._begin_command(call, answer.command)

    def _begin_command(self, call: Call, command: pb.Command) -> None:
        """Answer beside the stream: a command that takes long delays no ack."""
        if len(self._commands) >= _COMMANDS_MAX:
            raise SessionEndedError(f"more than {_COMMANDS_MAX} commands wait for their answers")
        task = asyncio.ensure_future(self._command(call, command))
        self._commands.add(task)
        task.add_done_callback(self._commands.discard)

    async def _command(self, call: Call, command: pb.Command) -> None:
        result = await self.stream.answer(command)
        if self.live:  # else the collector has to look, as after every lost answer
            self._enqueue(pb.StreamRequest(command_result=result))

    def bury(self, boot_id: str, number: int, sequence: int, reason: str) -> None:
        """Move one message to the dead letters."""
        if number in CLASSES:
            word = "".join(c for c in reason[:40] if c.isascii() and (c.isalnum() or c == "_")) or "unknown"
            self.spool.memory.refuse(boot_id, number, sequence, word)

    def take_watermarks(self, boot_id: str, watermarks: Any) -> None:
        """Let the spool delete what the collector has on disk."""
        for mark in watermarks:
            if getattr(mark, "class") in CLASSES and mark.durable > 0:
                self.spool.memory.ack(boot_id, getattr(mark, "class"), mark.durable)

    async def _watch(self) -> None:
        """End a session whose collector takes messages and never answers, or does not take them."""
        while True:
            await asyncio.sleep(1)
            since = self._unanswered_since_s
            if self._overflowed:
                raise SessionEndedError("the collector does not take messages: queue full")
            if since and time.monotonic() - since > ACK_TIMEOUT_S:
                raise SessionEndedError(f"no ack within {ACK_TIMEOUT_S:g} s")


async def _status_of(call: Call) -> grpc.aio.AioRpcError | SessionEndedError:
    """Return why a stream ended."""
    code = await asyncio.wait_for(call.code(), WRITE_TIMEOUT_S)
    details = await asyncio.wait_for(call.details(), WRITE_TIMEOUT_S)
    if code is grpc.StatusCode.OK:
        return SessionEndedError("the collector closed the stream")
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
