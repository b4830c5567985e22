"""What waited in the spool goes on streams of its own, slower than live data, so that live stays fresh.

Per boot: events first, then metrics, oldest first, at most RATE messages a second and WINDOW of them
unacknowledged. After INVALID_ARGUMENT the window is 1, so that the message at fault is known and buried.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from gpuvigil_agent.ledger import EVENTS, METRICS
from gpuvigil_agent.spool_store import Row, merged
from gpuvigil_agent.wire import carrier, request
from gpuvigil_protos import log
from gpuvigil_protos.v1 import stream_pb2 as pb

if TYPE_CHECKING:
    from gpuvigil_agent.session import Session

RATE: Final = 50
WINDOW: Final = 200
CHUNK: Final = 25
LOOK_AGAIN_S: Final = 5.0
ACK_TIMEOUT_S: Final = 30.0
_END: Final = 1 << 40
_log = log.get("backlog")


class Backlog:
    """Drains every boot that waits. `received` and `following` bound the current boot: live has the rest."""

    def __init__(
        self, session: Session, received: dict[int, int], following: dict[int, int], window: int | None
    ) -> None:
        self.session, self.spool = session, session.spool
        self.window = window or WINDOW
        self._current_done = False
        self._received, self._following = received, following

    async def run(self) -> None:
        """Look for what waits now and then; a backlog stream's own trouble does not end the live one."""
        while True:
            for boot_id in self.spool.waiting_boots():
                try:
                    await self._drain(boot_id)
                except (TimeoutError, grpc.aio.AioRpcError) as error:
                    code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "TIMEOUT"
                    self.session.stream.failures[code] = self.session.stream.failures.get(code, 0) + 1
                    _log.warning("backlog_interrupted", reason=code, boot_id=boot_id)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _drain(self, boot_id: str) -> None:
        current = boot_id == self.session.boot_id
        if current and self._current_done:
            return
        last = {n: self._following[n] - 1 if current else _END for n in (EVENTS, METRICS)}
        if current and not await self._waits(boot_id, last):
            self._current_done = True
            return
        replay = Replay(self, boot_id, last)
        await replay.run(wait_durable=not current)
        self._current_done |= current

    async def _waits(self, boot_id: str, last: dict[int, int]) -> bool:
        for number, top in last.items():
            rows = await self.spool.read(boot_id, number, self._received.get(number, 0), 1)
            if rows and rows[0].sequence <= top:
                return True
        return False


class Replay:
    """One backlog stream of one boot."""

    def __init__(self, backlog: Backlog, boot_id: str, last: dict[int, int]) -> None:
        self.session, self.spool, self.window = backlog.session, backlog.spool, backlog.window
        self.boot_id, self.last = boot_id, last
        self._received = {EVENTS: 0, METRICS: 0}
        self._version = 0
        self._in_flight: list[Row] = []
        self._progress = asyncio.Event()
        self._call: Any = None

    async def run(self, *, wait_durable: bool) -> None:
        """Send everything, then wait until it is received (and for an old boot durable)."""
        self._call, welcome = await self.session.open(pb.ROLE_BACKLOG, self.boot_id, None)
        self._take_received(welcome.watermarks)
        reader = asyncio.ensure_future(self._read())
        sender = asyncio.ensure_future(self._send(wait_durable))
        try:
            await asyncio.wait({reader, sender}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            sender.result()
        except grpc.aio.AioRpcError as error:
            self._bury_culprit(error)
            raise
        finally:
            for task in (reader, sender):
                task.cancel()
            await asyncio.gather(reader, sender, return_exceptions=True)
            self._call.cancel()

    def _bury_culprit(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT and len(self._in_flight) == 1:
            self._give_up(self._in_flight[0], "invalid_argument")

    async def _read(self) -> None:
        while True:
            answer = await self._call.read()
            if answer is grpc.aio.EOF:
                code, details = await self._call.code(), await self._call.details()
                raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
            await self.session.take(self._call, self.boot_id, answer)
            if answer.WhichOneof("message") == "ack":
                self._take_received(answer.ack.watermarks)
            elif answer.WhichOneof("message") == "refusal":
                gone = (getattr(answer.refusal, "class"), answer.refusal.sequence)
                self._in_flight = [r for r in self._in_flight if (r.number, r.sequence) != gone]
            self._progress.set()

    def _take_received(self, watermarks: Any) -> None:
        for mark in watermarks:
            number = getattr(mark, "class")
            if number in self._received:
                self._received[number] = max(self._received[number], mark.received)
        self._in_flight = [r for r in self._in_flight if r.sequence > self._received[r.number]]

    async def _send(self, wait_durable: bool) -> None:
        for number in (EVENTS, METRICS):
            await self._send_class(number)
        while wait_durable and (gaps := self.session.untold(self.boot_id)):
            sequence = self.spool.last(self.boot_id, METRICS) + 1
            await self.session.write(self._call, request(carrier(self.boot_id, sequence), gaps))
        await self._until(lambda: not self._in_flight)
        if wait_durable:
            await self._until(lambda: self.boot_id not in self.spool.waiting_boots())

    async def _send_class(self, number: int) -> None:
        after = self._received[number]
        while rows := await self.spool.read(self.boot_id, number, after, CHUNK):
            started = time.monotonic()
            for row in rows:
                if row.sequence > self.last[number]:
                    return
                after = row.sequence
                await self._until(lambda: len(self._in_flight) < self.window)
                if row.sequence > self._received[number] and await self._dictionary_sent(row):
                    await self._send_row(row, self.session.untold(self.boot_id))
            await asyncio.sleep(max(0.0, len(rows) / RATE - (time.monotonic() - started)))

    async def _dictionary_sent(self, row: Row) -> bool:
        """Send the dictionary a row needs; a row whose dictionary is lost cannot be read by anyone."""
        if row.number == EVENTS or row.version in (0, self._version):
            return True
        found = await self.spool.dictionary(self.boot_id, row.version)
        if found is None:
            self._give_up(row, "no_dictionary")
            return False
        message = pb.Dictionary()
        message.ParseFromString(found)
        await self.session.write(self._call, pb.StreamRequest(dictionary=message))
        self._version = row.version
        return True

    def _give_up(self, row: Row, reason: str) -> None:
        """Bury a row that the collector does not know of, and tell the hole, which it would wait for."""
        self.session.bury(row.boot_id, row.number, row.sequence, reason)
        self.spool.memory.add_gaps(merged([(row.boot_id, row.number, row.sequence, row.samples)], reason))

    async def _send_row(self, row: Row, gaps: list[Any]) -> None:
        self._in_flight.append(row)
        await self.session.write(self._call, request(row, gaps))
        self.session.stream.counters["backlog_sent"] += 1

    async def _until(self, condition: Any) -> None:
        deadline = time.monotonic() + ACK_TIMEOUT_S
        while not condition():
            self._progress.clear()
            await asyncio.wait_for(self._progress.wait(), max(0.01, deadline - time.monotonic()))
