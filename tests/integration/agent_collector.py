"""A small collector for tests of the agent: a real gRPC server whose behaviour a test can break at will."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc
import grpc.aio

from gpuvigil_protos.codec import blocks_crc
from gpuvigil_protos.v1 import stream_pb2 as pb
from gpuvigil_protos.v1 import stream_pb2_grpc

Key = tuple[str, int]


@dataclass
class Taken:
    """What came of one (boot_id, class): sequences with their content, gaps, duplicates, the order."""

    rows: dict[int, bytes] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)
    gaps: list[pb.Gap] = field(default_factory=list)
    duplicates: int = 0
    changed: list[int] = field(default_factory=list)

    def watermark(self) -> int:
        mark = 0
        while mark + 1 in self.rows or mark + 1 in self.given_up:
            mark += 1
        return mark


class TestCollector(stream_pb2_grpc.TelemetryServiceServicer):
    """Knobs: durable, durable_lag (sequences received and not yet durable), eat_acks, stall,
    refuse (sequence -> reason), abort (called with each message), welcome_delay_s.
    """

    __test__ = False

    def __init__(self) -> None:
        self.taken: dict[Key, Taken] = {}
        self.hellos: list[pb.Hello] = []
        self.dictionaries: list[pb.Dictionary] = []
        self.results: list[pb.CommandResult] = []
        self.events: list[pb.Event] = []
        self.durable, self.durable_lag = True, 0
        self.eat_acks = self.stall = False
        self.refuse: dict[int, str] = {}
        self.abort: Callable[[pb.StreamRequest], tuple[grpc.StatusCode, str] | None] = lambda _message: None
        self.down: list[pb.StreamResponse] = []
        self.welcome_delay_s = 0.0
        self.backlog_lag_s: list[float] = []
        self.live_lag_s: list[float] = []

    def of(self, number: int = pb.CLASS_METRICS) -> list[Taken]:
        return [taken for (_, found), taken in self.taken.items() if found == number]

    def rows(self, number: int = pb.CLASS_METRICS) -> int:
        return sum(len(taken.rows) for taken in self.of(number))

    def holes(self) -> list[tuple[str, int, int]]:
        """Every sequence below the highest seen that neither came nor was reported as a gap."""
        found = []
        for (boot, number), taken in self.taken.items():
            top = max([*taken.rows, *taken.given_up], default=0)
            found += [
                (boot, number, s)
                for s in range(1, top + 1)
                if s not in taken.rows and s not in taken.given_up
            ]
        return found

    async def Stream(self, requests: AsyncIterator[pb.StreamRequest], context: grpc.aio.ServicerContext):
        hello: pb.Hello | None = None
        known = pb.Dictionary()
        async for message in requests:
            await self._maybe_abort(message, context)
            kind = message.WhichOneof("message")
            if kind == "batch":
                assert_readable(message.batch, known)
            elif kind == "dictionary":
                known = message.dictionary
            elif kind == "hello" and message.hello.HasField("dictionary"):
                known = message.hello.dictionary
            if kind == "hello":
                first = hello is None
                hello = message.hello
                self.hellos.append(hello)
                if hello.HasField("dictionary"):
                    self.dictionaries.append(hello.dictionary)
                if first:
                    await asyncio.sleep(self.welcome_delay_s)
                    yield pb.StreamResponse(
                        welcome=pb.Welcome(schema_version=1, watermarks=self._marks(hello.boot_id))
                    )
                continue
            assert hello is not None
            while self.stall:
                await asyncio.sleep(0.05)
            refusal = self._take(hello, message)
            if refusal is not None:
                yield pb.StreamResponse(refusal=refusal)
            for answer in self.down:
                yield answer
            self.down = []
            if not self.eat_acks:
                yield pb.StreamResponse(ack=pb.Ack(watermarks=self._marks(hello.boot_id)))

    async def _maybe_abort(self, message: pb.StreamRequest, context: grpc.aio.ServicerContext) -> None:
        found = self.abort(message)
        if found is not None:
            await context.abort(*found)

    def _take(self, hello: pb.Hello, message: pb.StreamRequest) -> pb.Refusal | None:
        kind = message.WhichOneof("message")
        if kind == "dictionary":
            self.dictionaries.append(message.dictionary)
            return None
        if kind == "command_result":
            self.results.append(message.command_result)
            return None
        body = message.batch if kind == "batch" else message.event
        number = pb.CLASS_METRICS if kind == "batch" else pb.CLASS_EVENTS
        for gap in body.gaps:
            taken = self._of(hello.boot_id, getattr(gap, "class"))
            taken.gaps.append(gap)
            taken.given_up |= set(range(gap.first, gap.last + 1)) - taken.rows.keys()
        if kind == "batch":
            assert body.crc == blocks_crc(body.blocks), "a batch came with a wrong CRC"
            lags = self.live_lag_s if hello.role == pb.ROLE_LIVE else self.backlog_lag_s
            lags += [time.time() - max(block.tick_ns) / 1e9 for block in body.blocks]
        return self._count(self._of(hello.boot_id, number), number, body)

    def _count(self, taken: Taken, number: int, body: pb.Batch | pb.Event) -> pb.Refusal | None:
        sequence, content = body.sequence, _content(body)
        if number == pb.CLASS_METRICS and sequence in self.refuse:
            taken.given_up.add(sequence)
            refusal = pb.Refusal(sequence=sequence, reason=self.refuse[sequence], detail="test")
            setattr(refusal, "class", number)
            return refusal
        if sequence in taken.rows:
            taken.duplicates += 1
            if taken.rows[sequence] != content:
                taken.changed.append(sequence)
            return None
        taken.rows[sequence] = content
        taken.order.append(sequence)
        if number == pb.CLASS_EVENTS:
            self.events.append(body)
        return None

    def _of(self, boot_id: str, number: int) -> Taken:
        return self.taken.setdefault((boot_id, number), Taken())

    def _marks(self, boot_id: str) -> list[pb.Watermark]:
        marks = []
        for number in (pb.CLASS_METRICS, pb.CLASS_EVENTS):
            received = self._of(boot_id, number).watermark()
            durable = max(0, received - self.durable_lag) if self.durable else 0
            mark = pb.Watermark(received=received, durable=durable)
            setattr(mark, "class", number)
            marks.append(mark)
        return marks


def assert_readable(batch: pb.Batch, known: pb.Dictionary) -> None:
    """A batch that the stream's dictionary does not explain ends the stream, and so fails the test."""
    widths = {group.id: len(group.series) for group in known.groups}
    assert not batch.blocks or batch.dictionary_version == known.version
    for block in batch.blocks:
        assert len(block.values) == 4 * widths[block.group] * len(block.tick_ns)


def _content(body: pb.Batch | pb.Event) -> bytes:
    """What must never differ between two deliveries of one sequence."""
    copy = type(body)()
    copy.CopyFrom(body)
    copy.ClearField("gaps")
    copy.ClearField("sent_ns")
    return copy.SerializeToString(deterministic=True)


@contextlib.asynccontextmanager
async def serving(
    collector: TestCollector, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """Serve on loopback; yields the port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    stream_pb2_grpc.add_TelemetryServiceServicer_to_server(collector, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def until(ask: Callable[[], object], within_s: float, what: str) -> None:
    """Poll until `ask` gives something true. Raises AssertionError that says what did not come."""
    deadline = time.monotonic() + within_s
    while not ask():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.05)
